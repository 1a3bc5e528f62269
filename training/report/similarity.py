"""How alike the bars of a passage are: its self-similarity matrix, and the mean similarity of bars some bars apart.

A bar is written as the notes that begin in it, counted by position (in 16ths) and pitch class; the similarity of two bars is the
cosine of these, so that a literal repetition, also an octave away, has 1 and bars without a common pitch class at a common
place 0. The matrix is Foote's (Visualizing music and audio using self-similarity, ACM Multimedia 1999), the curve the mean of
its diagonals. It shows what a statistic of notes cannot: that music comes back after 2, 4 or 8 bars.
"""

from collections.abc import Sequence

import numpy as np

from service.music.piece import RESOLUTION, Piece
from training.report.excerpts import metre_of
from training.report.statistics import Array

LAGS = 32  # bars
PHRASES = (4, 8, 12, 16)  # bars: where real music comes back
SIXTEENTH = RESOLUTION // 4


def bar_vectors(piece: Piece) -> Array:
    """Return the notes that begin in each bar, shape (bars, places × 12); bars without a note are rows of zeros."""
    bar = metre_of(piece).bar_ticks
    time, pitch = piece.notes["time"] + (-piece.pickup % bar), piece.notes["pitch"]
    places = -(-bar // SIXTEENTH)
    vectors = np.zeros((int(time[-1]) // bar + 1, places * 12))
    np.add.at(vectors, (time // bar, time % bar // SIXTEENTH * 12 + pitch % 12), 1.0)
    return vectors


def self_similarity(piece: Piece) -> Array:
    """Return the similarity of every two bars, shape (bars, bars), 0..1."""
    vectors = bar_vectors(piece)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    matrix: Array = units @ units.T
    return matrix


def lag_curve(pieces: Sequence[Piece], lags: int = LAGS) -> tuple[Array, list[int]]:
    """Return the mean similarity of bars 1 to `lags` bars apart, and how many passages each mean is of.

    First the mean over a passage's bars, then over passages; a passage takes part in a lag if it has at least that many bars
    and as many again half, so that no mean hangs on its last bar alone.
    """
    curves = np.full((len(pieces), lags), np.nan)
    for row, piece in enumerate(pieces):
        matrix = self_similarity(piece)
        for lag in range(1, min(lags, 2 * len(matrix) // 3) + 1):
            curves[row, lag - 1] = np.diagonal(matrix, lag).mean()
    counts = np.isfinite(curves).sum(axis=0)
    sums = np.nansum(curves, axis=0)
    means: Array = np.divide(sums, counts, out=np.full(lags, np.nan), where=counts > 0)
    return means, counts.tolist()


def phrase_peak(curve: Array) -> float:
    """Return by how much bars PHRASES apart are more alike, on average, than those one bar nearer and one further apart.

    About 0 for music that only drifts, however alike its bars are; above 0 for music in phrases. NaN if the curve is too short.
    """
    peaks = [curve[lag - 1] - (curve[lag - 2] + curve[lag]) / 2 for lag in PHRASES if lag < len(curve)]
    return float(np.mean(peaks)) if peaks else float("nan")
