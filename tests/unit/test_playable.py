import numpy as np
from hypothesis import given

from service.music.piece import NOTE, records
from service.music.playable import MAX_KEYS, lift_fingers, make_playable, release_keys
from tests.unit.music_strategies import pieces


def test_a_key_is_let_go_before_it_is_struck_again():
    notes = records(NOTE, [(0, 60, 48, 64, 1), (0, 64, 48, 64, 1), (12, 60, 12, 64, 2), (24, 60, 5, 64, 1)])
    assert release_keys(notes)["duration"].tolist() == [12, 48, 12, 5]
    assert notes["duration"].tolist() == [48, 48, 12, 5]


def test_the_key_held_longest_is_let_go_for_an_eleventh():
    notes = records(NOTE, [(tick, 50 + tick, 200, 64, 1) for tick in range(12)])
    assert lift_fingers(notes)["duration"].tolist() == [10, 10, *[200] * 10]
    assert lift_fingers(notes[:10])["duration"].tolist() == [200] * 10


def test_eleven_keys_struck_at_once_stay():
    notes = records(NOTE, [(0, 50 + key, 24, 64, 1) for key in range(11)])
    assert lift_fingers(notes)["duration"].tolist() == [24] * 11


@given(pieces(longest_rest=8))
def test_ten_fingers_are_enough(piece):
    playable = make_playable(piece.notes)
    assert (playable["duration"] > 0).all()
    onsets, struck = np.unique(playable["time"], return_counts=True)
    for now, begun in zip(onsets.tolist(), struck.tolist(), strict=True):
        down = (playable["time"] <= now) & (playable["time"] + playable["duration"] > now)
        assert down.sum() <= max(MAX_KEYS, begun)
