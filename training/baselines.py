"""What a model without a memory of its own reaches: uniform choice, and Kneser-Ney back-off models of order 3 and 5.

A model of order n predicts each field of a token from n - 1 symbols of the past; `training.contexts` says which, in two kinds:
plain, and chosen by search. The probability of a pitch is the mean of a model of pitches and one of intervals. Each is scored
with the match feature too (`training.match_model`), which lets it repeat what the piece has said.

Probabilities are natural logarithms; arrays of them have the shape of the tokens, (N, F). No torch here.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from service.music.representation import FIELDS, EncodedPiece
from training.contexts import CHOSEN, MAX_ORDER, PLAIN, Contexts, token_rows
from training.kneser_ney import Floats, KneserNey
from training.match_model import MatchModel
from training.score import Score

ORDERS = (3, 5)
KINDS = {"order": CHOSEN, "plain": PLAIN}  # the name of a model is its kind and its order
MATCH = "+match"  # after the name of a model with the match feature
_HELD_OUT = 8  # one of so many training pieces tells how far to trust a match beside a model fitted on the others


class BackoffModel:
    """Kneser-Ney models of every field; made by `fit`."""

    def __init__(self, models: list[KneserNey], order: int, contexts: Contexts) -> None:
        self._models = models
        self.order = order
        self.contexts = contexts

    @classmethod
    def fit(cls, pieces: Sequence[EncodedPiece], order: int, contexts: Contexts = CHOSEN) -> "BackoffModel":
        """Count what follows what.

        Parameters
        ----------
        pieces : sequence of EncodedPiece
            At least one.
        order : int
            One more than the number of context symbols from the past, 1..5.
        contexts : Contexts
        """
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"`order` must be in 1..{MAX_ORDER}; got {order}")
        by_piece = [contexts.symbols(piece) for piece in pieces]
        context = {name: np.concatenate([symbols[name] for symbols in by_piece]) for name in by_piece[0]}
        del by_piece
        tokens = np.concatenate([piece.tokens for piece in pieces]).astype(np.int64)
        models = []
        for target in contexts.targets:
            rows = token_rows(tokens, target.tokens)
            used = [context[name][rows] for name in target.names(order)]
            models.append(KneserNey(used, target.symbol(tokens, context)[rows], target.size))
        return cls(models, order, contexts)

    def log_probs(self, piece: EncodedPiece) -> Floats:
        """Return the natural logarithm of the probability of each field of each token.

        Parameters
        ----------
        piece : EncodedPiece

        Returns
        -------
        float64 array, shape (N, F)
            0 where a field follows from the ones before: duration, velocity and tempo of controls.
        """
        context = self.contexts.symbols(piece)
        tokens = piece.tokens.astype(np.int64)
        probabilities = np.ones(tokens.shape)
        by_field: dict[tuple[str, str], list[Floats]] = {}
        for target, model in zip(self.contexts.targets, self._models, strict=True):
            rows = token_rows(tokens, target.tokens)
            used = [context[name][rows] for name in target.names(self.order)]
            found = model.probabilities(used, target.symbol(tokens, context)[rows])
            by_field.setdefault((target.field, target.tokens), []).append(found)
        for (field, which), found_by in by_field.items():
            probabilities[token_rows(tokens, which), FIELDS.index(field)] = np.mean(found_by, axis=0)
        return np.log(probabilities)


def uniform_log_probs(piece: EncodedPiece) -> Floats:
    """Return what `BackoffModel.log_probs` does, for equal choice among the legal values of each field.

    A control is one of all but START, a note one of the piano's keys, with no "none" for duration, velocity and tempo.
    """
    tokens = piece.tokens.astype(np.int64)
    result = np.zeros(tokens.shape)
    for target in CHOSEN.targets:
        result[token_rows(tokens, target.tokens), FIELDS.index(target.field)] = -np.log(target.size)
    return result


def score_baselines(train: Sequence[EncodedPiece], pieces: Sequence[EncodedPiece]) -> Iterator[tuple[str, Score]]:
    """Score uniform choice and the back-off models, one after the other.

    Parameters
    ----------
    train : sequence of EncodedPiece
        What the models and the trust in matches are fitted on.
    pieces : sequence of EncodedPiece
        What is scored; at least one note.

    Yields
    ------
    name : str
        "uniform", "order3", "order5" (chosen contexts), "plain3", "plain5"; and those four with "+match".
    score : Score
    """
    yield "uniform", Score.of(pieces, [-uniform_log_probs(piece) for piece in pieces])
    held_out = train[::_HELD_OUT]
    rest = [piece for i, piece in enumerate(train) if i % _HELD_OUT] or held_out
    for kind, contexts in KINDS.items():
        for order in ORDERS:
            model = BackoffModel.fit(rest, order, contexts)
            matches = MatchModel.fit(held_out, [model.log_probs(piece) for piece in held_out])
            model = BackoffModel.fit(train, order, contexts)
            found = [model.log_probs(piece) for piece in pieces]
            yield f"{kind}{order}", Score.of(pieces, [-log_probs for log_probs in found])
            mixed = [-matches.mix(log_probs, piece) for log_probs, piece in zip(found, pieces, strict=True)]
            yield f"{kind}{order}{MATCH}", Score.of(pieces, mixed)
