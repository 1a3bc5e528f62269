"""Repeated notes and their matches: against pieces read by hand, and against a search that compares every window."""

import numpy as np
import pytest

from service.music.piece import NOTE, PEDAL, Piece, records, sort_notes
from service.music.representation import CONTROL, PITCH_OFFSET, TokenArray, encode_piece, is_note
from tests.training.test_baselines import random_piece, refrain
from training.repetition import MATCHED_FIELDS, NOTHING, PASSAGES, find_matches, repeated


def tune(steps: list[tuple[int, int]], pedals: list[tuple[int, bool]] | None = None, velocities: int = 0) -> TokenArray:
    """Return the tokens of a melody from (ticks until the next note, pitch); `velocities` is added to those of each next note."""
    times = np.cumsum([0, *(step for step, _ in steps[:-1])])
    rows = [(t, pitch, step, 40 + velocities * i, 1) for i, (t, (step, pitch)) in enumerate(zip(times, steps, strict=True))]
    return encode_piece(Piece(records(NOTE, rows), pedals=records(PEDAL, pedals or []))).tokens


FIGURE = [(12, 60), (6, 62), (6, 64), (12, 65), (24, 67)]  # five notes: four pairs


def test_a_note_is_repeated_when_the_four_pairs_before_it_were_heard() -> None:
    tokens = tune([*FIGURE, (12, 50), *FIGURE, (12, 80), (12, 81)])
    # Notes 6 to 10 are the figure again. Its four pairs stand before note 5 and before note 11, whatever note 11 is itself; and
    # not before note 10, which is the last of the figure, nor before note 12, whose last pair is new.
    assert np.flatnonzero(repeated(tokens)).tolist() == [11]


def test_a_match_is_moved_to_the_present_key() -> None:
    higher = [(step, pitch + 5) for step, pitch in FIGURE]
    tokens = tune([*FIGURE, (12, 50), *higher, (12, 80)], velocities=4)
    matches = find_matches(tokens)
    assert matches.length.tolist() == [0] * 11 + [4, 0]
    assert matches.source[11] == 5
    expected = tokens[5, : len(MATCHED_FIELDS)].copy()
    expected[2] = 50 + 5 - PITCH_OFFSET
    assert matches.values[11].tolist() == expected.tolist()
    assert (matches.values[:11] == NOTHING).all()


def test_another_rhythm_is_another_passage() -> None:
    slower = [(2 * step, pitch) for step, pitch in FIGURE]
    assert not repeated(tune([*FIGURE, (12, 50), *slower, (12, 80)])).any()


def test_the_latest_place_and_the_longest_passage_win() -> None:
    # One note over and over: every place is like every other.
    tokens = tune([(12, 60)] * 40)
    matches = find_matches(tokens)
    # The first pair stands before note 2. Four pairs stand before note 5, and again before note 6; and so on.
    expected = np.zeros(41)
    for pairs in PASSAGES:
        expected[pairs + 2 :] = pairs
    assert matches.length.tolist() == expected.tolist()  # END too
    assert matches.source[6:].tolist() == list(range(5, 40))
    # Two places are like the third; the one further back shares more.
    tokens = tune([(12, 40), *FIGURE, (12, 41), (12, 30), (6, 31), *FIGURE, (12, 50), (12, 40), *FIGURE, (12, 41)])
    assert find_matches(tokens).source[21] == 14
    longer = [(12, 40), (12, 44), (12, 49), (12, 55)]
    tokens = tune([*longer, *FIGURE, (12, 41), (12, 30), (6, 31), *FIGURE, (12, 50), *longer, *FIGURE, (12, 41)])
    last = len(tokens) - 2
    assert (find_matches(tokens).length[last], find_matches(tokens).source[last]) == (8, 9)


def test_controls_do_not_hide_a_passage() -> None:
    melody = [*FIGURE, (12, 50), *FIGURE, (12, 50)]
    plain = find_matches(tune(melody))
    tokens = tune(melody, [(9, True), (66, False), (125, True), (130, False)])
    played = is_note(tokens)
    matches = find_matches(tokens)
    assert (tokens[:, 1] == CONTROL).sum() == 5
    assert matches.length[played].tolist() == plain.length[:-1].tolist()
    # The figure's last note sounds at tick 108, the one after it at 132; pedals come at 125 and 130.
    last = int(np.flatnonzero(played)[-1])
    assert matches.length[last - 2 : last + 1].tolist() == [4, 4, 4]
    assert matches.values[last - 2 : last + 1, 0].tolist() == [24, 7, 2]
    assert matches.values[last].tolist() == tokens[last, : len(MATCHED_FIELDS)].tolist()


def test_what_cannot_be_is_not_foretold() -> None:
    low = [(12, 40), (6, 38), (6, 36), (12, 34), (24, 30)]
    top = [(step, pitch + 60) for step, pitch in low]
    tokens = tune([*low, (12, 55), *top, (12, 99)])
    matches = find_matches(tokens)
    assert matches.length[11] == 4
    assert matches.values[11, 2] == NOTHING  # 115, seven semitones above the piano
    assert matches.values[11, 0] == 24
    # The note that should follow is overdue once a pedal has come later than it.
    tokens = tune([*FIGURE, (12, 50), *FIGURE[:-1], (48, 67), (12, 50)], [(140, True)])
    late = int(np.flatnonzero(is_note(tokens))[-1])
    assert find_matches(tokens).values[late - 1 : late + 1, 0].tolist() == [24, NOTHING]


def by_search(tokens: TokenArray) -> list[tuple[int, int]]:
    notes = np.flatnonzero(is_note(tokens))
    times, pitches = np.cumsum(tokens[:, 0])[notes], tokens[notes, 2]
    pairs = [(0, 0), *zip(np.diff(times).tolist(), np.diff(pitches).tolist(), strict=True)]  # of each note
    found = []
    for i in range(len(tokens)):
        now = int((notes < i).sum())
        places = [
            (length, int(notes[there]))
            for length in reversed(PASSAGES)
            for there in range(now - 1, length, -1)
            if now > length and pairs[there - length : there] == pairs[now - length : now]
        ]
        found.append(places[0] if places else (0, NOTHING))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [refrain, random_piece])
def test_the_same_as_a_search(make, seed) -> None:
    tokens = make(seed).tokens
    matches = find_matches(tokens)
    assert list(zip(matches.length.tolist(), matches.source.tolist(), strict=True)) == by_search(tokens)


@pytest.mark.parametrize("count", range(1, 8))
def test_short_pieces(count) -> None:
    notes = sort_notes(records(NOTE, [(12 * i, 60, 12, 64, 1) for i in range(count)]))
    tokens = encode_piece(Piece(notes)).tokens
    assert np.flatnonzero(repeated(tokens)).tolist() == list(range(6, count + 1))
