import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.music.representation import TEMPOS
from service.music.tempos import scale_tempos, tempo_map

COMPOSED = st.lists(st.sampled_from(TEMPOS[1:].tolist()), min_size=1, max_size=50).map(np.array)


@given(COMPOSED, st.floats(20, 300))
def test_the_median_is_what_was_asked_for_and_every_tempo_can_be_written(qpm, asked):
    scaled = scale_tempos(qpm, asked)
    assert TEMPOS[1] <= scaled.min()
    assert scaled.max() <= TEMPOS[-1]
    if len(qpm) % 2:
        assert np.median(scaled) == asked
        assert (np.sign(scaled - asked) == np.sign(qpm - np.median(qpm))).all()


def test_deviations_stay():
    assert scale_tempos(np.array([60.0, 66.0, 54.0]), 120).tolist() == [120, 132, 108]
    assert scale_tempos(np.array([]), 120).tolist() == []


def test_the_first_note_of_an_onset_gives_its_tempo_and_only_changes_are_told():
    times, qpm = np.array([5, 5, 9, 12, 12, 20]), np.array([60.0, 90.0, 60.0, 75.0, 60.0, 75.0])
    assert tempo_map(times, qpm).tolist() == [(0, 60), (12, 75)]
    assert tempo_map(times[:0], qpm[:0]).tolist() == []
