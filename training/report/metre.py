"""Which metre a passage sounds like, judged by its notes alone: linear discriminant analysis of where notes begin.

Fitted on passages of the train split whose metre is written. What it looks at: the autocorrelation of the onsets, plain and
weighted by duration (music in three has a high one at three beats), and how the weight of the onsets spreads over two, three,
four and one and a half beats from the barline. No method reads a metre off the notes for certain: 2/4 and 4/4 differ on paper
more than in sound. So the share of composed passages whose metre is found is to be read beside that of real ones. `FAMILIES`
counts metres of the same feel as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.music.piece import RESOLUTION, Piece
from training.report.excerpts import metre_of
from training.report.statistics import Array

METRES = ("2/4", "3/4", "4/4", "3/8", "6/8")  # the most frequent ones of the piano data but 2/2, which is 4/4 to the ear
FAMILIES = {"2/4": "two", "4/4": "two", "3/4": "three", "3/8": "compound", "6/8": "compound"}

_GRID = RESOLUTION // 8  # ticks: 32nds
_LAGS = range(4, 50, 2)  # of the grid: half a beat to six beats
_CYCLES = (16, 24, 32, 12)  # of the grid: bars of 2/4, 3/4 and 6/8, 4/4, 3/8
_LONGEST = 2 * RESOLUTION  # ticks: longer notes weigh no more
_SHRINKAGE = 0.02  # of the mean variance, added to each: neighbouring lags are nearly the same number


def metre_name(piece: Piece) -> str:
    """Return the name of a passage's metre, such as "3/4"."""
    metre = metre_of(piece)
    return f"{metre.numerator}/{metre.denominator}"


def metre_features(piece: Piece) -> Array:
    """Return what the classifier sees of a passage, shape (D,)."""
    places = (piece.notes["time"] + (-piece.pickup % metre_of(piece).bar_ticks)) // _GRID
    weights = np.minimum(piece.notes["duration"], _LONGEST).astype(np.float64)
    parts = []
    for weight in (weights, np.ones_like(weights)):
        signal = np.bincount(places, weights=weight)
        signal -= signal.mean()
        energy = max(float(signal @ signal), 1e-9)
        parts.append([float(signal[:-lag] @ signal[lag:]) / energy if lag < len(signal) else 0.0 for lag in _LAGS])
    for cycle in _CYCLES:
        profile = np.bincount(places % cycle, weights=weights, minlength=cycle) / weights.sum()
        parts.append(profile.reshape(-1, 2).sum(axis=1).tolist())  # 16ths
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class MetreClassifier:
    """Weights (D, metres) and offsets (metres,) of the discriminant; every metre counts as equally likely beforehand."""

    weights: Array
    offsets: Array

    @classmethod
    def fit(cls, pieces: Sequence[Piece]) -> "MetreClassifier":
        """Learn from passages in METRES; others are passed over. A metre without passages is never found."""
        known = [piece for piece in pieces if metre_name(piece) in METRES]
        inputs = np.array([metre_features(piece) for piece in known])
        labels = np.array([METRES.index(metre_name(piece)) for piece in known])
        present = np.array([bool((labels == index).any()) for index in range(len(METRES))])
        means = np.array(
            [inputs[labels == index].mean(axis=0) if present[index] else 0 * inputs[0] for index in range(len(METRES))]
        )
        centred = inputs - means[labels]
        covariance = centred.T @ centred / len(inputs)
        covariance += (_SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))
        weights = np.linalg.solve(covariance, means.T)
        offsets = -0.5 * (means.T * weights).sum(axis=0)
        return cls(weights, np.where(present, offsets, -np.inf))

    def classify(self, piece: Piece) -> str:
        """Return the metre, of METRES, that a passage sounds like."""
        return METRES[int((metre_features(piece) @ self.weights + self.offsets).argmax())]
