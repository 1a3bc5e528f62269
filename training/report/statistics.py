"""What a passage is like in figures: muspy's metrics, note density, and how intervals, durations, velocities and shifts spread.

The metrics are muspy's own functions on a muspy.Music of 24 ticks a quarter note, so that they compare with what others publish.
A histogram sums to 1. An interval is from a note to the next one in canonical order (time, then pitch), so within a chord it is
the distance to the next higher note: the same intervals as in the figures of `training.report.form`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, RESOLUTION, Piece
from training.report.excerpts import metre_of

Array = NDArray[np.float64]

WIDEST = 24  # semitones; wider intervals count as so wide
# Lengths in half-octave classes from a 64th note (1.5 ticks) to eight quarter notes and more: triplets and dotted values apart.
LENGTH_EDGES = 1.5 * 2 ** (np.arange(1, 15) / 2 - 0.25)
VELOCITY_CLASS = 8  # velocities to a class

GROOVE = "groove_consistency"
METRICS = (
    "pitch_range",
    "n_pitches_used",
    "polyphony",
    "pitch_class_entropy",
    "scale_consistency",
    GROOVE,
    "empty_beat_rate",
)
DENSITY = "notes_per_quarter"


def to_muspy(piece: Piece, shift: int = 0) -> Any:
    """Return a muspy.Music of one track with a passage's notes, moved by some ticks."""
    import muspy

    notes = [
        muspy.Note(time + shift, pitch, duration, velocity)
        for time, pitch, duration, velocity in piece.notes[["time", "pitch", "duration", "velocity"]].tolist()
    ]
    return muspy.Music(resolution=RESOLUTION, tracks=[muspy.Track(program=0, notes=notes)])


def metrics(piece: Piece) -> dict[str, float]:
    """Return muspy's metrics of a passage, and its notes per quarter note.

    Groove consistency counts from the passage's barlines; it is NaN within a single bar.
    """
    import muspy

    music, bar = to_muspy(piece), metre_of(piece).bar_ticks
    figures = {name: float(getattr(muspy, name)(music)) for name in METRICS if name != GROOVE}
    figures[GROOVE] = float(muspy.groove_consistency(to_muspy(piece, -piece.pickup % bar), bar))
    figures[DENSITY] = len(piece.notes) / max(1.0, (piece.end - int(piece.notes["time"][0])) / RESOLUTION)
    return figures


def _shares(classes: NDArray[np.int64], size: int) -> Array:
    counts: Array = np.bincount(classes, minlength=size).astype(np.float64)
    return counts / max(1.0, float(counts.sum()))


def _length_classes(ticks: NDArray[np.int64]) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = np.searchsorted(LENGTH_EDGES, ticks)
    return classes


def histograms(piece: Piece) -> dict[str, Array]:
    """Return the share of each pitch, interval, duration, velocity and shift (time to the next onset) of a passage."""
    notes = piece.notes
    shifts = np.diff(np.unique(notes["time"]))
    return {
        "pitch": _shares(notes["pitch"] - LOWEST_PITCH, HIGHEST_PITCH - LOWEST_PITCH + 1),
        "interval": _shares(np.diff(notes["pitch"]).clip(-WIDEST, WIDEST) + WIDEST, 2 * WIDEST + 1),
        "duration": _shares(_length_classes(notes["duration"]), len(LENGTH_EDGES) + 1),
        "velocity": _shares(notes["velocity"] // VELOCITY_CLASS, 128 // VELOCITY_CLASS),
        "shift": _shares(_length_classes(shifts), len(LENGTH_EDGES) + 1),
    }


# What is compared by the method of Yang and Lerch. The pitch itself is not: the intervals and the pitch metrics are.
FEATURES = (*METRICS, DENSITY, "interval", "duration", "velocity", "shift")


def features(pieces: Sequence[Piece]) -> dict[str, Array]:
    """Return each of FEATURES of every passage, and their pitches: arrays of shape (passages, D), D = 1 for a plain figure."""
    rows = [metrics(piece) | histograms(piece) for piece in pieces]
    return {name: np.array([row[name] for row in rows], np.float64).reshape(len(rows), -1) for name in (*FEATURES, "pitch")}


def summarise(values: Array) -> dict[str, float]:
    """Return mean and standard deviation over passages of a plain figure, those left out where it is not defined."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"mean": math.nan, "sd": math.nan}
    return {"mean": float(known.mean()), "sd": float(known.std())}


def shared_mass(first: Array, second: Array) -> float:
    """Return how much of two mean histograms, shapes (N, D) and (M, D), is common: 1 less their total variation distance."""
    return float(np.minimum(first.mean(axis=0), second.mean(axis=0)).sum())
