"""What the network's memory holds of a piece: its last notes, and how each of them relates to what comes next.

A slot is a token of the past; slots of controls are holes. The slot of a note offers that note as the continuation of the passage
before it. Two things are known of an offer before anything is learnt: how many notes before it equal the last notes played (the
match, by shifts and intervals, so that a transposed passage matches too), and how many bars ago it was. Their classes,
`match x LAGS + lag`, are what this module computes, one row of M slots for every token, the oldest first.

Shape letters: N tokens, M slots of memory.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import LAGS
from service.music.piece import RESOLUTION
from service.music.representation import CONTROL, FIELDS, MAX_SHIFT, TIME_SIGNATURES, TokenArray

# Lengths of a match from which on it is of the next class: 0, 1, 2, 3, 4, 5, 6-7, 8-11, 12-19, 20 and more notes.
MATCH_EDGES = (1, 2, 3, 4, 5, 6, 8, 12, 20)
MATCHES = len(MATCH_EDGES) + 1
LONGEST_MATCH = MATCH_EDGES[-1]  # longer ones are not told apart
MATCH_CLASS = np.searchsorted(MATCH_EDGES, np.arange(LONGEST_MATCH + 1), side="right").astype(np.uint8)
# The lag's class by the number of bars: 0 is no whole number of bars, 1 the same onset, then 1 to 8 bars, 12 or 16, and others.
_BAR_CLASSES = {0: 1, **{bars: bars + 1 for bars in range(1, 9)}, 12: 10, 16: 10}
MAX_LAG_BARS = 17
LAG_CLASS = np.array([_BAR_CLASSES.get(bars, 11) for bars in range(MAX_LAG_BARS + 1)], np.uint8)
CLASSES = MATCHES * LAGS
EMPTY = CLASSES  # the class of a slot that holds no note

# Ticks of a bar of each metre; 0 for "other", whose lags are never whole bars.
BAR_TICKS = np.array(
    [0] + [4 * RESOLUTION * int(n) // int(d) for n, d in (name.split("/") for name in TIME_SIGNATURES[1:])], np.int32
)

SLOT_FIELDS = ("shift", "hand", "pitch", "interval", "duration", "velocity")  # what a slot remembers of its note
INTERVAL_OFFSET = 128  # added to intervals, which are signed
_CODE_BASE = 2 * INTERVAL_OFFSET


class MemoryColumns(NamedTuple):
    """A piece as the memory sees it, one row a token."""

    slots: NDArray[np.int16]  # (N, SLOT_FIELDS): `shift` since the note before; `interval` to the hand's last note, offset
    classes: NDArray[np.uint8]  # (N, M): of each of the M tokens before it, as offers for this token
    elapsed: NDArray[np.int64]  # (N,): ticks since the last note's onset, at the token before
    matched: NDArray[np.int64]  # (N,): class of the longest match, 0..MATCHES - 1


def memory_columns(tokens: TokenArray, metres: NDArray[np.int32], last_pitches: NDArray[np.int64], memory: int) -> MemoryColumns:
    """Return a piece as the memory sees it.

    Parameters
    ----------
    tokens : int array, shape (N, F)
    metres : int array, shape (N,)
        Index into TIME_SIGNATURES.
    last_pitches : int array, shape (N, hands)
        Pitch index of the last note of each hand before each token, 0 where there is none.
    memory : int
        M.
    """
    columns = dict(zip(FIELDS, tokens.astype(np.int64).T, strict=True))
    is_note = columns["hand"] != CONTROL
    times = np.cumsum(columns["shift"])
    count = np.cumsum(is_note) - is_note  # notes before each token
    onsets = times[is_note]
    onset_before = np.concatenate([[0], onsets])  # of the note before each note; the piece's start before the first
    slots = np.zeros((len(tokens), len(SLOT_FIELDS)), np.int16)
    own_last = np.take_along_axis(last_pitches, columns["hand"][:, None], axis=1)[:, 0]
    shifts = times - onset_before[count]
    values = {**columns, "shift": shifts.clip(0, MAX_SHIFT), "interval": columns["pitch"] - own_last + INTERVAL_OFFSET}
    for i, name in enumerate(SLOT_FIELDS):
        slots[:, i] = np.where(is_note, values[name], 0)
    codes = note_codes(shifts[is_note].clip(0, MAX_SHIFT), columns["pitch"][is_note])
    match = _matches(codes, memory)
    by_token = is_note.all() or not (~is_note[:-1]).any()
    classes = np.full((len(tokens), memory), EMPTY, np.uint8)
    for metre in np.unique(metres):
        rows = np.flatnonzero(metres == metre)
        after = count[rows]  # notes before the token: the row of `match`
        lag = _lag_classes(onset_before, int(BAR_TICKS[metre]), memory)
        offers = np.where(match == EMPTY, EMPTY, match * np.uint8(LAGS) + lag)
        classes[rows] = offers[after] if by_token else _spread(offers, rows, count, is_note, memory)
    matched = np.where(match == EMPTY, 0, match).max(axis=1)[count]
    before = np.concatenate([[0], times[:-1]])
    return MemoryColumns(slots, classes, before - onset_before[count], matched.astype(np.int64))


def note_codes(shifts: NDArray[np.int64], pitches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a positive number for each pair of shift and interval to the note before; 0 for the first note, which has none."""
    codes = 1 + shifts * _CODE_BASE + np.diff(pitches, prepend=0) + INTERVAL_OFFSET
    codes[:1] = 0
    return codes


def _by_distance(values: NDArray[np.int32], memory: int) -> NDArray[np.int32]:
    """Return for each index the `memory` values before it, the oldest first, 0 where there are none, shape (N, memory)."""
    padded = np.concatenate([np.zeros(memory, values.dtype), values])
    windows: NDArray[np.int32] = np.lib.stride_tricks.sliding_window_view(padded, memory)[: len(values)]
    return windows


def _matches(codes: NDArray[np.int64], memory: int) -> NDArray[np.uint8]:
    """Return the class of the match of each offer, shape (notes + 1, M): row n holds what is offered after n notes.

    The offer at distance d after note n - 1 is note n - d; its match is the number of codes, back from n - 1, that equal those
    back from n - 1 - d: a run along n for a fixed d.
    """
    codes32 = codes.astype(np.int32)
    equal = (_by_distance(codes32, memory) == codes32[:, None]) & (codes > 0)[:, None]
    numbers = np.arange(len(codes), dtype=np.int32)[:, None]
    run = numbers - np.maximum.accumulate(np.where(equal, np.int32(-1), numbers), axis=0)
    # A run that never broke began before the first note, which has no code: its -1 cannot occur, as note 0 is unequal to all.
    match = np.full((len(codes) + 1, memory), EMPTY, np.uint8)
    match[1:] = MATCH_CLASS[np.minimum(run, LONGEST_MATCH)]
    distance = np.arange(memory, 0, -1)
    match[distance[None, :] > np.arange(len(codes) + 1)[:, None]] = EMPTY
    return match


def _lag_classes(onset_before: NDArray[np.int64], bar: int, memory: int) -> NDArray[np.uint8]:
    """Return the class of the lag of each offer, shape (notes + 1, M): from the onset before it to the last onset.

    `onset_before[n]` is the onset of the last of n notes, so the offer at distance d, note n - d, has `onset_before[n - d]`.
    """
    now = onset_before.astype(np.int32)
    lag = now[:, None] - _by_distance(now, memory)
    bars = lag // np.int32(bar) if bar else np.zeros_like(lag)
    whole = bars * np.int32(bar) == lag
    return np.where(whole, LAG_CLASS[np.minimum(bars, MAX_LAG_BARS)], np.uint8(0))


def _spread(
    offers: NDArray[np.uint8], rows: NDArray[np.int64], count: NDArray[np.int64], is_note: NDArray[np.bool_], memory: int
) -> NDArray[np.uint8]:
    """Return the offers of some tokens by their slots, where controls among the tokens leave holes."""
    slots = rows[:, None] - np.arange(memory, 0, -1)[None, :]
    notes = is_note[slots.clip(0)] & (slots >= 0)
    distance = count[rows][:, None] - count[slots.clip(0)]
    near = notes & (distance <= memory)
    found = offers[count[rows][:, None], memory - np.where(near, distance, 1)]
    return np.where(near, found, np.uint8(EMPTY))
