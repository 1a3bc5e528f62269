"""What a piece has said before: which notes go on from an earlier passage, and how that passage went on.

A passage is told by its last (shift, interval) pairs: shift, the ticks from the note before it to a note, and interval, the
semitones between the two; so it may return in another key. Both are of notes: controls are skipped, and a shift that a pedal
token splits is whole again. The pairs are those of the notes *before* a token, not of the token's own note: a composer knows
whether a note is repeated before drawing it, and controls and END have an answer too. Of the notes in the validation pieces of
the piano data 43.5 % are repeated. (Were the note's own pair the last of the four, 43.5 %; were its shift known beside the four
before, 42.6 %.)

Pairs are compared exactly, by ranks: the rank of a window of 2 k pairs is that of the pair (rank of its first half, of its
second). Arrays go by token, shape (N,) or (N, F). No torch here, and no loop over notes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.music.representation import FIELDS, MAX_SHIFT, VOCABULARY, Control, TokenArray, is_note

PASSAGES = (4, 8, 16, 32)  # pairs that two places must share, powers of two
MATCHED_FIELDS = ("shift", "hand", "pitch", "duration", "velocity")  # what a match foretells; the first fields of a token
NOTHING = -1  # in place of a token's number or a field's value: there is none

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """The latest earlier place like the one before each token, and what it leads to expect.

    Attributes
    ----------
    length : int array, shape (N,)
        The longest of PASSAGES that stood at an earlier place too; 0 if none did.
    source : int array, shape (N,)
        Number of the token with the note that followed there, the latest if there are several; NOTHING if none.
    values : int array, shape (N, len(MATCHED_FIELDS))
        The fields of this token, should it go on as there: that note's, moved to this key, its onset as far from the last note as
        there. NOTHING without a match, if that onset has passed already (a control stood between) or is more than MAX_SHIFT away,
        and if the pitch would lie outside the piano.
    """

    length: IntArray
    source: IntArray
    values: IntArray


def find_matches(tokens: TokenArray) -> Matches:
    """Return what each token repeats; it depends on the tokens before it alone.

    Parameters
    ----------
    tokens : int array, shape (N, F)
        Of one piece, from its start.
    """
    played = is_note(tokens)
    tokens = tokens.astype(np.int64)
    notes = np.flatnonzero(played)
    times: IntArray = np.cumsum(tokens[:, 0])
    length, source = _latest_same(times[notes], tokens[notes, 2])
    coming: IntArray = np.cumsum(played) - played  # number of the note that this token is or precedes
    length, source = length[coming], source[coming]
    values = np.full((len(tokens), len(MATCHED_FIELDS)), NOTHING)
    found = np.flatnonzero(length)
    if len(found):
        there, last = source[found], coming[found] - 1
        passed = np.concatenate([[0], times])[found] - times[notes[last]]  # ticks from the last note to the token before
        shift = times[notes[there]] - times[notes[there - 1]] - passed
        pitch = tokens[notes[last], 2] + tokens[notes[there], 2] - tokens[notes[there - 1], 2]
        values[found] = tokens[notes[there], : len(MATCHED_FIELDS)]
        values[found, 0] = np.where((shift >= 0) & (shift <= MAX_SHIFT), shift, NOTHING)
        values[found, 2] = np.where((pitch >= len(Control)) & (pitch < VOCABULARY.pitch), pitch, NOTHING)
        source[found] = notes[there]
    return Matches(length, source, values)


def repeated(tokens: TokenArray) -> NDArray[np.bool_]:
    """Return for each token whether the last 4 pairs before it stood earlier in the piece; the others are novel.

    Parameters
    ----------
    tokens : int array, shape (N, F)
        Of one piece, from its start.

    Returns
    -------
    bool array, shape (N,)
        Of a control: whether the note after it is repeated (after the last note: whether one would be).
    """
    return find_matches(tokens).length > 0


def _latest_same(times: IntArray, pitches: IntArray) -> tuple[IntArray, IntArray]:
    """Return, for each of n notes and one after the last, the length of its match and the number of the note expected."""
    length, source = np.zeros(len(times) + 1, np.int64), np.full(len(times) + 1, NOTHING)
    ranks = _ranks(np.diff(times), np.diff(pitches))  # that of note i's pair stands at i - 1
    pairs = 1
    while len(ranks):
        if pairs in PASSAGES:
            before = _latest_equal(ranks)
            starts = np.flatnonzero(before >= 0)
            following = starts + pairs + 1
            length[following] = pairs
            source[following] = before[starts] + pairs + 1
        if pairs == max(PASSAGES):
            break
        ranks = _ranks(ranks[:-pairs], ranks[pairs:])
        pairs *= 2
    return length, source


def _ranks(first: IntArray, second: IntArray) -> IntArray:
    """Return numbers from 0 on that are equal where both values are."""
    if not len(first):
        return np.zeros(0, np.int64)
    second = second - second.min()
    ranks: IntArray = np.unique(first * (second.max() + 1) + second, return_inverse=True)[1]
    return ranks


def _latest_equal(ranks: IntArray) -> IntArray:
    """Return for each value the place of the latest equal one before it; NOTHING if there is none."""
    order = np.argsort(ranks, kind="stable")
    same = np.diff(ranks[order]) == 0
    before = np.full(len(ranks), NOTHING)
    before[order[1:][same]] = order[:-1][same]
    return before


assert FIELDS[: len(MATCHED_FIELDS)] == MATCHED_FIELDS
