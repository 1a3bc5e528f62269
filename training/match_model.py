"""The match feature: a model's probabilities, mixed with the expectation that a piece goes on as it did before.

p = (1 - w) p_model + w [value is the match's], field by field, where `training.repetition` finds a match. How far it is trusted,
w, is how often matches were right: counted by field, by the match's length, and by which of the token's earlier fields agreed
with it. A value that the model expected as well is counted for either in proportion (expectation maximisation). Counted in full
for the match, it would be trusted too far: 4.136 nats per note of order 5 with chosen contexts on the piano data, instead of
4.046. No torch here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.music.representation import FIELDS, EncodedPiece, is_note
from training.repetition import MATCHED_FIELDS, NOTHING, PASSAGES, IntArray, Matches, find_matches
from training.score import Floats

_NOTE_FIELDS = FIELDS.index("pitch")  # from here on a match foretells what notes have
_ROUNDS = 30  # of counting; on the piano data no weight moves by more than 0.002 afterwards


class MatchModel:
    """How far matches are trusted beside one model; made by `fit`."""

    def __init__(self, weights: list[Floats]) -> None:
        self._weights = weights  # of each field, (len(PASSAGES) * 2 ** number of the field): w by length and agreement

    @classmethod
    def fit(cls, pieces: Sequence[EncodedPiece], log_probs: Sequence[Floats]) -> "MatchModel":
        """Count over pieces how often each kind of match was right where the model would not have said so itself.

        Parameters
        ----------
        pieces : sequence of EncodedPiece
            Neither what the model was fitted on nor what will be scored.
        log_probs : sequence of float arrays, shape (N, F), one for each piece
            What the model gives to their tokens.
        """
        matches = [find_matches(piece.tokens) for piece in pieces]
        weights = []
        for field in range(len(MATCHED_FIELDS)):
            size = len(PASSAGES) * 2**field
            parts = [(_foretold(p, m, field), np.exp(q[:, field])) for p, m, q in zip(pieces, matches, log_probs, strict=True)]
            kinds = np.concatenate([foretold.kinds for foretold, _ in parts])
            right = np.concatenate([foretold.right for foretold, _ in parts])
            given = np.concatenate([probabilities[foretold.rows] for foretold, probabilities in parts])
            weight = np.full(size, 0.5)
            for _ in range(_ROUNDS):
                # How likely it was the match that named the value; one yes and one no to begin with, so that no weight is 0 or 1.
                share = weight[kinds] * right / (weight[kinds] * right + (1 - weight[kinds]) * given)
                weight = (np.bincount(kinds, share, size) + 1) / (np.bincount(kinds, minlength=size) + 2)
            weights.append(weight)
        return cls(weights)

    def mix(self, log_probs: Floats, piece: EncodedPiece) -> Floats:
        """Return the mixture.

        Parameters
        ----------
        log_probs : float array, shape (N, F)
            Natural logarithms of the probabilities that a model gives to the piece's tokens.
        piece : EncodedPiece

        Returns
        -------
        float64 array, shape (N, F)
            Unchanged where there is no match, and for the tempo, of which a match says nothing.
        """
        matches = find_matches(piece.tokens)
        probabilities = np.exp(log_probs)
        for field, weights in enumerate(self._weights):
            rows, kinds, right = _foretold(piece, matches, field)
            probabilities[rows, field] += weights[kinds] * (right - probabilities[rows, field])
        return np.log(probabilities)


class _Foretold(NamedTuple):
    rows: IntArray  # the tokens of which a match foretells a field
    kinds: IntArray  # of each: the match's length and which of the fields before agreed with it
    right: NDArray[np.bool_]  # whether the field did


def _foretold(piece: EncodedPiece, matches: Matches, field: int) -> _Foretold:
    given = matches.values[:, field] != NOTHING
    if field >= _NOTE_FIELDS:
        given &= is_note(piece.tokens)
    rows = np.flatnonzero(given)
    agreed = matches.values[rows] == piece.tokens[rows, : len(MATCHED_FIELDS)]
    kinds = np.searchsorted(PASSAGES, matches.length[rows]) * 2**field + agreed[:, :field] @ (1 << np.arange(field))
    return _Foretold(rows, kinds, agreed[:, field])
