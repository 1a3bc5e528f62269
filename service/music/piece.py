"""A piece of piano music as plain numpy records; everything else in `service.music` maps to or from it.

Times and durations are in ticks, `RESOLUTION` ticks to a quarter note, counted from the start of the piece.
Nothing here knows MIDI bytes, tokens or a model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 24  # ticks per quarter note: holds 32nds (3 ticks) and triplets (16, 8, 4, 2 ticks)
LOWEST_PITCH = 21  # A0, the lowest key of the piano
HIGHEST_PITCH = 108  # C8
DEFAULT_QPM = 120.0  # MIDI's own tempo where a file names none
DEFAULT_VELOCITY = 64


class Hand(IntEnum):
    """Who plays a note. The values are those of the `hand` field of a token, where 0 marks a control."""

    RIGHT = 1
    LEFT = 2
    UNKNOWN = 3


NOTE = np.dtype([("time", "i8"), ("pitch", "i8"), ("duration", "i8"), ("velocity", "i8"), ("hand", "i8")])
TEMPO = np.dtype([("time", "i8"), ("qpm", "f8")])
PEDAL = np.dtype([("time", "i8"), ("down", "?")])

Records = NDArray[Any]  # a structured array; which dtype is said where it is used


class TimeSignature(NamedTuple):
    """A metre from `time` on; a bar begins at `time`."""

    time: int
    numerator: int
    denominator: int

    @property
    def bar_ticks(self) -> int:
        """Length of a bar in ticks, at least 1."""
        return max(1, round(4 * RESOLUTION * self.numerator / self.denominator))


class KeySignature(NamedTuple):
    """A key from `time` on: `fifths` sharps (negative: flats), -7..7."""

    time: int
    fifths: int
    minor: bool


COMMON_TIME = TimeSignature(0, 4, 4)


def records(dtype: np.dtype[Any], rows: Iterable[tuple[Any, ...]] = ()) -> Records:
    """Return a structured array of `dtype` from tuples in the order of its fields."""
    return np.array(list(rows), dtype=dtype)


def sort_notes(notes: Records) -> Records:
    """Return `notes` (dtype NOTE) in canonical order: by time, then pitch, hand, duration and velocity."""
    order = np.lexsort((notes["velocity"], notes["duration"], notes["hand"], notes["pitch"], notes["time"]))
    return notes[order]


@dataclass(frozen=True)
class Piece:
    """Notes with the maps that give them metre, tempo and pedal.

    Attributes
    ----------
    notes : structured array of dtype NOTE
        In canonical order (`sort_notes`). Velocities 1..127, durations at least 1 tick.
    tempos : structured array of dtype TEMPO
        Tempo in quarter notes per minute from each time on, by time. Before the first entry, or where there is none,
        `DEFAULT_QPM` holds.
    pedals : structured array of dtype PEDAL
        Changes of the sustain pedal, by time, down and up in turn.
    time_signatures : tuple of TimeSignature
        By time, the first at 0. Where there is none, 4/4 holds.
    key_signatures : tuple of KeySignature
        By time; empty if unknown.
    pickup : int
        Ticks before the first full bar; 0 if the piece begins with one. Less than a bar of the first metre.
    title, copyright : str
        Texts of the file, "" if none.
    """

    notes: Records
    tempos: Records = field(default_factory=lambda: records(TEMPO))
    pedals: Records = field(default_factory=lambda: records(PEDAL))
    time_signatures: tuple[TimeSignature, ...] = ()
    key_signatures: tuple[KeySignature, ...] = ()
    pickup: int = 0
    title: str = ""
    copyright: str = ""

    @cached_property
    def end(self) -> int:
        """Tick at which the last note ends; 0 for a piece without notes."""
        return int((self.notes["time"] + self.notes["duration"]).max(initial=0))

    def tempo_at(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the tempo in quarter notes per minute at each of `times` (ticks)."""
        index = np.searchsorted(self.tempos["time"], times, side="right")
        return np.concatenate([[DEFAULT_QPM], self.tempos["qpm"]])[index]

    def seconds(self) -> float:
        """Return how long the piece lasts, in seconds."""
        starts = np.concatenate([[0], self.tempos["time"], [self.end]]).clip(0, self.end)
        qpm = np.concatenate([[DEFAULT_QPM], self.tempos["qpm"]])
        return float((np.diff(starts) / RESOLUTION * 60 / qpm).sum())


def bar_positions(
    times: NDArray[np.int64], time_signatures: tuple[TimeSignature, ...], pickup: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place times in their bars.

    Parameters
    ----------
    times : int array, shape (N,)
        Ticks from the start of the piece.
    time_signatures : tuple of TimeSignature
        The metre map; empty means 4/4.
    pickup : int
        Ticks before the first full bar.

    Returns
    -------
    positions : int array, shape (N,)
        Ticks since the barline before.
    indices : int array, shape (N,)
        Which entry of `time_signatures` holds (0 where the map is empty).
    """
    signatures = time_signatures or (COMMON_TIME,)
    starts = np.array([s.time for s in signatures])
    bars = np.array([s.bar_ticks for s in signatures])
    indices = (np.searchsorted(starts, times, side="right") - 1).clip(0)
    origins = starts.copy()
    origins[0] = pickup - bars[0] if pickup else 0
    return (times - origins[indices]) % bars[indices], indices
