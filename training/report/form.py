"""Whether a passage keeps to its own material: figures that return, and what goes with it in rhythm, touch and key.

A figure is four consecutive steps, a step being (shift in ticks, interval in semitones) from one note to the next in canonical
order (time, then pitch): the same unit as in the nats per note of "repeated" notes, and the same music whatever the key.
"""

from collections.abc import Sequence

import numpy as np

from service.music.piece import RESOLUTION, Piece, Records, bar_positions
from training.keys import estimate_key
from training.report.originality import steps
from training.report.statistics import Array

FIGURE = 4  # steps
REACH = 128  # notes
SIXTEENTH = RESOLUTION // 4


def returning_figures(notes: Records) -> float:
    """Return the share of the figures that were heard before, beginning at most REACH notes earlier; NaN without a figure.

    An earlier figure may overlap (a scale returns a note later), as in the figures of real pieces beside it. The first figures
    of a passage have less to return to; real passages of the same length have that too.
    """
    codes = steps(notes).tolist()
    latest: dict[tuple[int, ...], int] = {}
    figures = [tuple(codes[i : i + FIGURE]) for i in range(len(codes) - FIGURE + 1)]
    returned = 0
    for place, figure in enumerate(figures):
        returned += place - latest.get(figure, -REACH - 1) <= REACH
        latest[figure] = place
    return returned / len(figures) if figures else float("nan")


def off_beat(piece: Piece) -> float:
    """Return the share of the notes that begin off the grid of 16ths counted from the barline: triplets, 32nds, ornaments.

    Of the definitions tried, this one gives real pieces the 4 to 10 % that the target speaks of (mean over the validation
    pieces 7 %, over their notes 9 %).
    """
    positions, _ = bar_positions(piece.notes["time"], piece.time_signatures, piece.pickup)
    return float((positions % SIXTEENTH != 0).mean())


def restruck(notes: Records) -> float:
    """Return the share of the notes that strike a key which an earlier note still holds down."""
    sounding: dict[int, tuple[int, int, int]] = {}  # by pitch: last onset, until when held before it, until when now
    struck = 0
    for time, pitch, duration in notes[["time", "pitch", "duration"]].tolist():
        onset, before, until = sounding.get(pitch, (-1, -1, -1))
        if time > onset:
            before = until
        struck += time < before
        sounding[pitch] = (time, before, max(until, time + duration))
    return struck / len(notes)


def form(piece: Piece) -> dict[str, float]:
    """Return the figures of one passage."""
    return {
        "returning_figures": returning_figures(piece.notes),
        "off_beat": off_beat(piece),
        "restruck": restruck(piece.notes),
        "clarity": estimate_key(piece.notes).clarity,
    }


def mean_form(pieces: Sequence[Piece]) -> dict[str, dict[str, float]]:
    """Return mean, and 5th and 95th percentile over passages, of each figure."""
    rows = [form(piece) for piece in pieces]
    table: dict[str, Array] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        name: {
            "mean": float(np.nanmean(values)),
            "p5": float(np.nanpercentile(values, 5)),
            "p95": float(np.nanpercentile(values, 95)),
        }
        for name, values in table.items()
    }
