"""Notes as the model sees them: one compound token per note, and tokens back to notes.

A token is a row of six small integers in the order of `NoteToken`. Besides notes there are control tokens (hand 0): the start
and the end of the piece, pedal down and up, and a wait for silences longer than `MAX_SHIFT`. Within one onset controls come
first, then the notes from the lowest pitch up. Position in the bar is not stored: it follows from the times and the metre.

Time is in ticks, `RESOLUTION` to a quarter note. Arrays of tokens are int32, shape (N, F), F = len(NoteToken._fields).
Nothing here knows MIDI bytes, files or networks; all of it is numpy without loops over notes.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidMusic
from service.music.piece import (
    COMMON_TIME,
    DEFAULT_QPM,
    HIGHEST_PITCH,
    LOWEST_PITCH,
    NOTE,
    PEDAL,
    RESOLUTION,
    TEMPO,
    Hand,
    KeySignature,
    Piece,
    Records,
    TimeSignature,
    bar_positions,
    sort_notes,
)

REPRESENTATION_VERSION = 1  # raised whenever a token would mean something else


class NoteToken(NamedTuple):
    """The fields of a token, in the order in which they are drawn."""

    shift: int  # onset minus the onset before, in ticks, 0..MAX_SHIFT (0: same chord)
    hand: int  # a Hand, or CONTROL
    pitch: int  # MIDI number - PITCH_OFFSET, or a Control
    duration: int  # index into DURATIONS; 0 for controls
    velocity: int  # index into VELOCITIES; 0 for controls
    tempo: int  # local tempo at the onset, index into TEMPOS; 0 for controls


class Control(IntEnum):
    """What a token with hand 0 does; the values of its `pitch` field."""

    START = 0  # stands before the first token, never drawn
    END = 1  # its shift runs from the last onset to the end of the last note
    PEDAL_DOWN = 2
    PEDAL_UP = 3
    WAIT = 4  # lets MAX_SHIFT ticks pass at most, where the next onset is further away than that


FIELDS = NoteToken._fields
CONTROL = 0  # in the hand field
MAX_SHIFT = 8 * RESOLUTION  # longer ones are under 0.1 % of the piano data; WAIT covers them
PITCH_OFFSET = LOWEST_PITCH - len(Control)
MAX_BAR = 8 * RESOLUTION  # bar positions are clipped to MAX_BAR - 1: bars longer than 4/2 are rare

# Exact up to 8 quarter notes, then in steps of an eighth note up to 16. Index 0 is "none".
DURATIONS = np.concatenate([np.arange(8 * RESOLUTION + 1), np.arange(8 * RESOLUTION + 12, 16 * RESOLUTION + 1, 12)])
# Middle values of bins four wide, so that no velocity moves by more than 2. Index 0 is "none".
VELOCITIES = np.concatenate([[0], np.arange(2, 128, 4)])
# Eighteen steps to a doubling keep the error of the nearest one under 2 %; 120 quarter notes per minute is exact, and with it
# 15, 30, 60, 240 and 480. Index 0 is "none".
TEMPO_STEPS_PER_DOUBLING = 18
_LOWEST_TEMPO, _HIGHEST_TEMPO = -71, 36  # 7.8 and 480 quarter notes per minute: the piano data goes down to 8.0
DEFAULT_TEMPO_INDEX = 1 - _LOWEST_TEMPO  # of DEFAULT_QPM
TEMPOS = np.concatenate([[0.0], DEFAULT_QPM * 2 ** (np.arange(_LOWEST_TEMPO, _HIGHEST_TEMPO + 1) / TEMPO_STEPS_PER_DOUBLING)])

VOCABULARY = NoteToken(
    shift=MAX_SHIFT + 1,
    hand=1 + len(Hand),
    pitch=len(Control) + HIGHEST_PITCH - LOWEST_PITCH + 1,
    duration=len(DURATIONS),
    velocity=len(VELOCITIES),
    tempo=len(TEMPOS),
)
START = NoteToken(0, CONTROL, Control.START, 0, 0, 0)  # all zeros, so that an empty state of the model is a valid one

# The metres the model tells apart; index 0 stands for every other one. Those of the piano data that occur in ten files or more.
TIME_SIGNATURES = (
    "other", "4/4", "3/4", "2/4", "3/8", "6/8", "2/2", "12/8", "9/8", "5/4", "6/4", "4/8", "3/2",
)  # fmt: skip

TokenArray = NDArray[np.int32]

# The nearest bin for every whole value, so that encoding is one look-up per field.
_DURATION_INDEX = np.abs(np.arange(DURATIONS[-1] + 1)[:, None] - DURATIONS[1:]).argmin(axis=1) + 1
_VELOCITY_INDEX = np.abs(np.arange(128)[:, None] - VELOCITIES[1:]).argmin(axis=1) + 1
_TEMPO_EDGES = np.sqrt(TEMPOS[1:-1] * TEMPOS[2:])


@dataclass(frozen=True)
class EncodedPiece:
    """Tokens, and the metre that places them in bars.

    Attributes
    ----------
    tokens : int32 array, shape (N, F)
        Without START; the last one is END.
    positions : int32 array, shape (N,)
        Ticks since the barline at each token's time, 0..MAX_BAR - 1.
    metres : int32 array, shape (N,)
        Index into TIME_SIGNATURES that holds there.
    start_position : int
        Position in the bar at tick 0: 0, or the length of a bar less the pick-up.
    """

    tokens: TokenArray
    positions: NDArray[np.int32]
    metres: NDArray[np.int32]
    start_position: int

    def from_token(self, start: int, tokens: TokenArray) -> "EncodedPiece":
        """Return the rest of the piece from a token on, which sounds at once; `tokens` (N, F) replace its own."""
        if not start:
            return EncodedPiece(tokens, self.positions, self.metres, self.start_position)
        tokens = tokens[start:].copy()
        tokens[0, 0] = 0
        return EncodedPiece(tokens, self.positions[start:], self.metres[start:], int(self.positions[start]))


def is_note(tokens: TokenArray) -> NDArray[np.bool_]:
    """Return for each token (…, F) whether it is a note and not a control."""
    hands: NDArray[np.int32] = tokens[..., FIELDS.index("hand")]
    notes: NDArray[np.bool_] = hands != CONTROL
    return notes


def count_notes(tokens: TokenArray) -> int:
    """Return how many of the tokens (N, F) are notes."""
    return int(is_note(tokens).sum())


def time_signature_index(signature: TimeSignature) -> int:
    """Return the index into TIME_SIGNATURES of a metre."""
    name = f"{signature.numerator}/{signature.denominator}"
    return TIME_SIGNATURES.index(name) if name in TIME_SIGNATURES else 0


def tempo_index(qpm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index into TEMPOS nearest, by ratio, to each tempo in quarter notes per minute."""
    return np.searchsorted(_TEMPO_EDGES, qpm) + 1


def encode_notes(notes: Records, qpm: NDArray[np.float64] | None = None) -> TokenArray:
    """Turn notes alone into tokens: no pedal, no end.

    Parameters
    ----------
    notes : structured array of dtype NOTE, shape (N,)
        In canonical order, from tick 0 on.
    qpm : float array, shape (N,), optional
        The tempo at each note in quarter notes per minute; `DEFAULT_QPM` if left out.

    Returns
    -------
    tokens : int32 array, shape (N', F)
        N' > N only where a silence needs WAIT tokens.

    Raises
    ------
    InvalidMusic
        If a pitch is not on the piano, a velocity not in 1..127, a duration under one tick, a hand unknown to `Hand`, or a
        time negative or not ascending.
    """
    if qpm is None:
        qpm = np.full(len(notes), DEFAULT_QPM)
    return _set_shifts(_note_rows(notes, qpm), notes["time"])


def encode_piece(piece: Piece) -> EncodedPiece:
    """Turn a piece into tokens that end with END.

    Raises
    ------
    InvalidMusic
        As `encode_notes`; also if the piece has no notes.
    """
    if not len(piece.notes):
        raise InvalidMusic("the piece has no notes")
    notes, pedals = piece.notes, piece.pedals
    tokens = np.zeros((len(pedals) + len(notes) + 1, len(FIELDS)), np.int32)
    tokens[: len(pedals), 2] = np.where(pedals["down"], Control.PEDAL_DOWN, Control.PEDAL_UP)
    tokens[len(pedals) : -1] = _note_rows(notes, piece.tempo_at(notes["time"]))
    tokens[-1, 2] = Control.END
    times = np.concatenate([pedals["time"], notes["time"], [max(piece.end, int(pedals["time"].max(initial=0)))]])
    order = np.argsort(times, kind="stable")  # stable: pedals stand before the notes of their tick, END after all
    tokens = _set_shifts(tokens[order], times[order])
    at = np.cumsum(tokens[:, 0], dtype=np.int64)
    positions, indices = bar_positions(np.concatenate([[0], at]), piece.time_signatures, piece.pickup)
    places = positions.clip(0, MAX_BAR - 1).astype(np.int32)
    classes = np.array([time_signature_index(s) for s in piece.time_signatures or (COMMON_TIME,)], np.int32)
    return EncodedPiece(tokens, places[1:], classes[indices[1:]], int(places[0]))


def decode_tokens(
    tokens: TokenArray,
    time_signatures: tuple[TimeSignature, ...] = (),
    pickup: int = 0,
    key_signatures: tuple[KeySignature, ...] = (),
    title: str = "",
    copyright: str = "",
) -> Piece:
    """Turn tokens back into a piece; what no token carries is passed in.

    Parameters
    ----------
    tokens : int32 array, shape (N, F)
        From `encode_piece`, `encode_notes` or a model; every index must lie in its vocabulary.
    time_signatures, pickup, key_signatures, title, copyright
        As in `Piece`.

    Returns
    -------
    Piece
        A tempo is taken from the first note of each onset and written where it differs from the one before.
    """
    times = np.cumsum(tokens[:, 0], dtype=np.int64)
    played = is_note(tokens)
    rows = tokens[played]
    notes = np.empty(len(rows), NOTE)
    notes["time"] = times[played]
    notes["pitch"] = rows[:, 2] + PITCH_OFFSET
    notes["duration"] = DURATIONS[rows[:, 3]]
    notes["velocity"] = VELOCITIES[rows[:, 4]]
    notes["hand"] = rows[:, 1]
    pedal = ~played & ((tokens[:, 2] == Control.PEDAL_DOWN) | (tokens[:, 2] == Control.PEDAL_UP))
    pedals = np.empty(int(pedal.sum()), PEDAL)
    pedals["time"] = times[pedal]
    pedals["down"] = tokens[pedal, 2] == Control.PEDAL_DOWN
    first = np.diff(notes["time"], prepend=-1) > 0
    tempos = _tempo_changes(notes["time"][first], rows[first, 5])
    return Piece(sort_notes(notes), tempos, pedals, time_signatures, key_signatures, pickup, title, copyright)


def _note_rows(notes: Records, qpm: NDArray[np.float64]) -> TokenArray:
    """Return a token for each note with every field but the shift."""
    _check_notes(notes)
    rows = np.zeros((len(notes), len(FIELDS)), np.int32)
    rows[:, 1] = notes["hand"]
    rows[:, 2] = notes["pitch"] - PITCH_OFFSET
    rows[:, 3] = _DURATION_INDEX[np.minimum(notes["duration"], DURATIONS[-1])]
    rows[:, 4] = _VELOCITY_INDEX[notes["velocity"]]
    rows[:, 5] = tempo_index(qpm)
    return rows


def _check_notes(notes: Records) -> None:
    for name, low, high in (
        ("pitch", LOWEST_PITCH, HIGHEST_PITCH),
        ("velocity", 1, 127),
        ("hand", min(Hand), max(Hand)),
        ("duration", 1, None),
        ("time", 0, None),
    ):
        values = notes[name]
        bad = values < low if high is None else (values < low) | (values > high)
        if bad.any():
            limit = f"at least {low}" if high is None else f"in {low}..{high}"
            raise InvalidMusic(f"`{name}` must be {limit}; got {values[bad][0]}")
    if (np.diff(notes["time"]) < 0).any():
        raise InvalidMusic("`time` must ascend from note to note")


def _set_shifts(tokens: TokenArray, times: NDArray[np.int64]) -> TokenArray:
    """Fill in the shift field from ascending times, and insert WAIT tokens where one is too long."""
    shifts = np.diff(times, prepend=0)
    waits = np.maximum(shifts - 1, 0) // MAX_SHIFT
    tokens[:, 0] = shifts - waits * MAX_SHIFT
    if not waits.any():
        return tokens
    wait = np.array(NoteToken(MAX_SHIFT, CONTROL, Control.WAIT, 0, 0, 0), np.int32)
    return np.insert(tokens, np.repeat(np.arange(len(tokens)), waits), wait, axis=0)


def _tempo_changes(times: NDArray[np.int64], indices: NDArray[np.int32]) -> Records:
    """Return the tempo map (dtype TEMPO) that a tempo index at each of `times` makes."""
    changed = np.diff(indices, prepend=-1) != 0
    tempos = np.empty(int(changed.sum()), TEMPO)
    tempos["time"] = times[changed]
    tempos["qpm"] = TEMPOS[indices[changed]]
    if len(tempos):
        tempos["time"][0] = 0  # the first tempo holds from the start, also through a rest before the first note
    return tempos
