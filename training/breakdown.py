"""Sums of a score over parts of the notes, as figures with intervals: what a model needs where, and beside which baseline.

Parts
    `all` tokens; `novel` and `repeated` ones, as `training.repetition` has it. A control belongs to the part of the note that it
    precedes, END to that of the note that could have come; so the two parts hold every token, and their nats add up.
Measures
    `everything`: all fields of all tokens. `without_tempo_and_pedal` leaves out the tempo field, and hand and pitch of pedal
    tokens (that a pedal comes now, and which way it goes); what is left compares with models of representations that have
    neither. The shifts of pedal tokens stay: they split the shift to the next note, and its nats are then those of both tokens.
    So they hold the cost of the pedal's own time, too; `pedal_shifts` says how much that is at most.
Figures
    Nats per note: the nats of a part over the number of its notes. `low` and `high` are the 2.5th and 97.5th percentile of that
    ratio over 2,000 samples of as many pieces, drawn with replacement from the pieces (with a fixed seed, the same for every
    model, so that ratios of two models are of the same samples). None for a single piece. None for the whole figure where a part
    has no notes.

No torch here.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.music.representation import CONTROL, FIELDS, Control, TokenArray, is_note
from training.data import Dataset
from training.repetition import repeated
from training.score import Floats, Score

PARTS = ("all", "novel", "repeated")
MEASURES = ("everything", "without_tempo_and_pedal")
THIS_MODEL = "model"  # the name of the model evaluated, among those of the baselines
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
_SEED = 0
_DIGITS = 6

Figure = dict[str, float | None] | None
Figures = dict[str, dict[str, Figure]]  # by measure and part


class Breakdown:
    """The parts of a set of pieces, for the scores of several models.

    Parameters
    ----------
    dataset : Dataset
        What was scored.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._infos = dataset.infos
        tokens = [piece.tokens for piece in dataset.pieces]
        novelty = [~repeated(t) for t in tokens]
        self._parts = {
            "all": [np.ones(len(t), bool) for t in tokens],
            "novel": novelty,
            "repeated": [~novel for novel in novelty],
        }
        self._kept = [_without_tempo_and_pedal(t) for t in tokens]
        self._pedals = [_is_pedal(t) for t in tokens]
        self._notes = {
            part: np.array([np.count_nonzero(is_note(t) & m) for t, m in zip(tokens, masks, strict=True)])
            for part, masks in self._parts.items()
        }

    @property
    def repeated_share(self) -> float:
        """Share of notes that are repeated."""
        return float(self._notes["repeated"].sum() / self._notes["all"].sum())

    def groups(self, name: str) -> dict[str, list[int]]:
        """Return the pieces of each value of one of the attributes of `PieceInfo`, such as `pack` or `composer`."""
        values = [getattr(info, name) for info in self._infos]
        return {value: [i for i, other in enumerate(values) if other == value] for value in sorted(set(values))}

    def describe(self, groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
        """Return the number of pieces and notes of each group."""
        return {name: {"pieces": len(rows), "notes": int(self._notes["all"][rows].sum())} for name, rows in groups.items()}

    def figures(self, score: Score) -> dict[str, Any]:
        """Return what a model needs of all pieces.

        Returns
        -------
        dict
            By measure, then by part: a figure, `value`, `low` and `high`. Beside the parts of each measure stands `fields`, by
            part and field; of the second `pedal_shifts` too. And `bits_per_second` of music, of everything; None if the seconds
            are not known.
        """
        sums = self._sums(score)
        rows = list(range(len(self._infos)))
        result: dict[str, Any] = self._by_part(sums, rows)
        for measure in MEASURES:
            result[measure]["fields"] = {
                part: {
                    field: figure(sums[measure][part][:, i], self._notes[part])
                    for i, field in enumerate(FIELDS)
                    if measure == "everything" or field != "tempo"
                }
                for part in PARTS
            }
        shifts = [tokens[pedal, 0].sum() for tokens, pedal in zip(score.tokens, self._pedals, strict=True)]
        result["without_tempo_and_pedal"]["pedal_shifts"] = figure(np.array(shifts), self._notes["all"])
        seconds = np.array([info.seconds for info in self._infos])
        result["bits_per_second"] = figure(score.nats.sum(axis=1) / np.log(2), seconds) if seconds.all() else None
        return result

    def figures_of(self, score: Score, groups: Mapping[str, Sequence[int]]) -> dict[str, Figures]:
        """Return what a model needs of each group of pieces, by measure and part."""
        sums = self._sums(score)
        return {name: self._by_part(sums, rows) for name, rows in groups.items()}

    def ratios(self, score: Score, other: Score) -> Figures:
        """Return the nats of one model over those of another, by measure and part."""
        ours, theirs = self._sums(score), self._sums(other)
        return {
            measure: {part: figure(ours[measure][part].sum(axis=1), theirs[measure][part].sum(axis=1)) for part in PARTS}
            for measure in MEASURES
        }

    def _sums(self, score: Score) -> dict[str, dict[str, Floats]]:
        """Return nats by measure and part, each of shape (pieces, F)."""
        kept = [np.where(keep, tokens, 0.0) for tokens, keep in zip(score.tokens, self._kept, strict=True)]
        return {
            measure: {
                part: np.stack([t[mask].sum(axis=0) for t, mask in zip(tokens, masks, strict=True)])
                for part, masks in self._parts.items()
            }
            for measure, tokens in zip(MEASURES, (score.tokens, kept), strict=True)
        }

    def _by_part(self, sums: dict[str, dict[str, Floats]], rows: Sequence[int]) -> Figures:
        return {
            measure: {part: figure(sums[measure][part][rows].sum(axis=1), self._notes[part][rows]) for part in PARTS}
            for measure in MEASURES
        }


def figure(amounts: Floats, counts: NDArray[Any]) -> Figure:
    """Return a ratio of sums over pieces, and the interval that another choice of pieces would put it in.

    Parameters
    ----------
    amounts, counts : array, shape (pieces,)
        Numerator and denominator of each piece; not negative.

    Returns
    -------
    dict or None
        `value`, and `low` and `high` as the module says; the last two None for a single piece. None if the counts add up to 0.
    """
    if not counts.sum():
        return None
    low = high = None
    pieces = len(amounts)
    if pieces > 1:
        draws = _draws(pieces)
        above, below = draws @ amounts, draws @ counts
        samples = above[below > 0] / below[below > 0]
        low, high = (round(float(bound), _DIGITS) for bound in np.percentile(samples, PERCENTILES))
    return {"value": round(float(amounts.sum() / counts.sum()), _DIGITS), "low": low, "high": high}


@cache
def _draws(pieces: int) -> Floats:
    """Return how often each piece is in each sample, shape (RESAMPLES, pieces)."""
    return np.random.default_rng(_SEED).multinomial(pieces, np.full(pieces, 1 / pieces), RESAMPLES).astype(np.float64)


def _is_pedal(tokens: TokenArray) -> NDArray[np.bool_]:
    pedal: NDArray[np.bool_] = (tokens[:, 1] == CONTROL) & np.isin(tokens[:, 2], (Control.PEDAL_DOWN, Control.PEDAL_UP))
    return pedal


def _without_tempo_and_pedal(tokens: TokenArray) -> NDArray[np.bool_]:
    """Return which fields of which tokens (N, F) that measure keeps."""
    keep = np.ones(tokens.shape, bool)
    keep[:, FIELDS.index("tempo")] = False
    keep[_is_pedal(tokens)] = np.array(FIELDS) == "shift"
    return keep
