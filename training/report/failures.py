"""Faults that anyone hears, each counted in pieces: it happens somewhere in the piece, or not at all.

- repeated: more than 8 notes in a row (canonical order) of one pitch.
- silence: no key down for more than 2 bars, between two notes.
- crowded: at some onset more than 10 keys are down, the pedal not counted: more than ten fingers.
- stretched: notes that one hand strikes at one onset lie more than 2 octaves (24 semitones) apart.
- edge: the mean pitch of the last 16 notes lies within an octave of the lowest or the highest key.
- endless: at the end of the length that the model was told, it finds another note likelier than none (composed pieces only).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, Hand, Piece, Records
from service.music.playable import MAX_KEYS, MAX_REPEATS, MAX_STRETCH
from training.report.excerpts import metre_of

MAX_SILENCE = 2  # bars
LAST = 16  # notes
EDGE = 12  # semitones
MIN_NOTES = 16  # what ends before is no piece of music; a fault of its own, and left out of every other comparison


def longest_repetition(notes: Records) -> int:
    """Return how many notes of one pitch follow each other at most."""
    changes = np.flatnonzero(np.diff(notes["pitch"])) + 1
    return int(np.diff([0, *changes.tolist(), len(notes)]).max())


def longest_silence(notes: Records) -> int:
    """Return for how many ticks no key is down at most, from the first note to the last."""
    released = np.maximum.accumulate(notes["time"] + notes["duration"])
    return int((notes["time"][1:] - released[:-1]).max(initial=0))


def most_keys(notes: Records) -> int:
    """Return how many keys are down at most, counted at onsets."""
    onsets = np.unique(notes["time"])
    begun = np.searchsorted(np.sort(notes["time"]), onsets, side="right")
    over = np.searchsorted(np.sort(notes["time"] + notes["duration"]), onsets, side="right")
    return int((begun - over).max())


def widest_stretch(notes: Records) -> int:
    """Return how far apart, in semitones, notes lie at most that one hand strikes at one onset."""
    widest = 0
    for hand in (Hand.RIGHT, Hand.LEFT):
        mine = notes[notes["hand"] == hand]
        if len(mine):
            first = np.flatnonzero(np.diff(mine["time"], prepend=mine["time"][0] - 1))
            highest, lowest = np.maximum.reduceat(mine["pitch"], first), np.minimum.reduceat(mine["pitch"], first)
            widest = max(widest, int((highest - lowest).max()))
    return widest


def at_edge(notes: Records) -> bool:
    """Return whether the last notes lie at an edge of the keyboard."""
    mean = float(notes["pitch"][-LAST:].mean())
    return mean < LOWEST_PITCH + EDGE or mean > HIGHEST_PITCH - EDGE


def faults(piece: Piece) -> dict[str, bool]:
    """Return which faults a piece of at least one note has, those that its end decides left aside."""
    notes = piece.notes
    return {
        "repeated": longest_repetition(notes) > MAX_REPEATS,
        "silence": longest_silence(notes) > MAX_SILENCE * metre_of(piece).bar_ticks,
        "crowded": most_keys(notes) > MAX_KEYS,
        "stretched": widest_stretch(notes) > MAX_STRETCH,
        "edge": at_edge(notes),
    }


def interval(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share: count of total."""
    z = 1.959964
    share, scale = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def count_faults(
    pieces: Sequence[Piece], chances_of_end: Sequence[float] | None = None, min_notes: int = MIN_NOTES
) -> dict[str, dict[str, Any]]:
    """Return how many pieces have each fault.

    The intervals take the pieces as independent, which several excerpts of one real piece are not: theirs are a little narrow.

    Parameters
    ----------
    pieces : sequence of Piece
    chances_of_end : sequence of float, optional
        How likely the model finds it that each piece is over where it stops; without it `endless` is not counted, for which
        another note must be likelier.
    min_notes : int
        Pieces with fewer notes count for nothing.

    Returns
    -------
    dict of str to dict
        For each fault its `count`, the number of pieces it was looked for in (`of`), its `share` and that share's 95 %
        interval (Wilson), `low` to `high`.
    """
    whole = [piece for piece in pieces if len(piece.notes) >= min_notes]
    rows = [faults(piece) for piece in whole]
    counts = {name: (sum(row[name] for row in rows), len(rows)) for name in (rows[0] if rows else ())}
    if chances_of_end is not None:
        counts["endless"] = (sum(chance < 0.5 for chance in chances_of_end), len(chances_of_end))
    table = {}
    for name, (count, total) in counts.items():
        low, high = interval(count, total)
        table[name] = {"count": count, "of": total, "share": count / total, "low": low, "high": high}
    return table
