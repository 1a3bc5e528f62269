"""What a model without a memory of its own reaches: uniform choice, and Kneser-Ney back-off models of order 3 and 5.

A model of order n predicts each field of a token from n - 1 symbols, taken from the fields already drawn and the tokens before.
Which symbols, and in which order, was chosen field by field on pieces held out of the piano data's train split: the symbol that
costs the fewest nats first, then the one that adds most to it. They are what a network could work out from the same past: the
last values of the same hand, the time that a hand still sounds, the position in the bar. The probability of a pitch is the mean
of a model of pitches and one of intervals to the hand's previous note.

Probabilities are natural logarithms; arrays of them have the shape of the tokens, (N, F). No torch here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, Hand
from service.music.representation import CONTROL, DURATIONS, FIELDS, VOCABULARY, Control, EncodedPiece
from training.kneser_ney import Floats, IntArray, KneserNey

ORDERS = (3, 5)
KEYS = HIGHEST_PITCH - LOWEST_PITCH + 1
_CONTROLS = len(Control) - 1  # START is never drawn
_NONE = -999  # a context symbol that does not exist, such as the note before the first
_LONG = 200  # ticks from which times in contexts are not told apart: beyond two bars of 4/4

Context = dict[str, IntArray]


@dataclass(frozen=True)
class _Target:
    """One symbol to predict.

    `symbol` maps tokens (N, F) and their context to 0..size - 1; `context` names the context symbols, the most important first.
    """

    field: str
    size: int
    symbol: Callable[[IntArray, Context], IntArray]
    context: tuple[str, ...]
    tokens: str = "all"  # which tokens have this symbol: all, notes or controls


_TARGETS = (
    _Target("shift", VOCABULARY.shift, lambda t, c: t[:, 0], ("right_held", "left_held", "last_step", "pedal_age")),
    _Target("hand", VOCABULARY.hand, lambda t, c: t[:, 1], ("shift", "left_held", "last_hand", "right_held")),
    _Target("pitch", _CONTROLS, lambda t, c: t[:, 2] - 1, ("pedal", "shift", "last_shift", "last_hand"), "controls"),
    _Target(
        "pitch", KEYS, lambda t, c: t[:, 2] - len(Control), ("hand_pitch1", "chord_pitch", "hand_interval1", "hand_gap"), "notes"
    ),
    _Target(
        "pitch",
        KEYS,
        # Modulo the number of keys: from any note, each key is one interval and each interval one key, so no probability is lost
        # to intervals that leave the piano.
        lambda t, c: (t[:, 2] - c["reference"]) % KEYS,
        ("hand_interval1", "chord_interval", "hand_interval2", "hand_in_chord"),
        "notes",
    ),
    _Target(
        "duration",
        VOCABULARY.duration - 1,
        lambda t, c: t[:, 3] - 1,
        ("hand_duration1", "bar_place", "chord_duration", "hand_duration2"),
        "notes",
    ),
    _Target(
        "velocity",
        VOCABULARY.velocity - 1,
        lambda t, c: t[:, 4] - 1,
        ("hand_velocity1", "hand_velocity2", "last_velocity", "pedal"),
        "notes",
    ),
    _Target(
        "tempo",
        VOCABULARY.tempo - 1,
        lambda t, c: t[:, 5] - 1,
        ("last_tempo", "chord_tempo", "tempo3", "tempo1"),
        "notes",
    ),
)


class BackoffModel:
    """Kneser-Ney models of every field; made by `fit`."""

    def __init__(self, models: list[KneserNey], order: int) -> None:
        self._models = models
        self.order = order

    @classmethod
    def fit(cls, pieces: Sequence[EncodedPiece], order: int) -> "BackoffModel":
        """Count what follows what.

        Parameters
        ----------
        pieces : sequence of EncodedPiece
            At least one.
        order : int
            One more than the number of context symbols, 1..5.
        """
        if not 1 <= order <= max(ORDERS):
            raise ValueError(f"`order` must be in 1..{max(ORDERS)}; got {order}")
        contexts = [context_symbols(piece) for piece in pieces]
        context = {name: np.concatenate([c[name] for c in contexts]) for name in contexts[0]}
        del contexts
        tokens = np.concatenate([piece.tokens for piece in pieces]).astype(np.int64)
        models = []
        for target in _TARGETS:
            rows = _rows(tokens, target)
            used = [context[name][rows] for name in target.context[: order - 1]]
            models.append(KneserNey(used, target.symbol(tokens, context)[rows], target.size))
        return cls(models, order)

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
        context = context_symbols(piece)
        tokens = piece.tokens.astype(np.int64)
        probabilities = np.ones(tokens.shape)
        by_field: dict[tuple[str, str], list[Floats]] = {}
        for target, model in zip(_TARGETS, self._models, strict=True):
            rows = _rows(tokens, target)
            used = [context[name][rows] for name in target.context[: self.order - 1]]
            found = model.probabilities(used, target.symbol(tokens, context)[rows])
            by_field.setdefault((target.field, target.tokens), []).append(found)
        for (field, which), found_by in by_field.items():
            probabilities[_token_rows(tokens, which), FIELDS.index(field)] = np.mean(found_by, axis=0)
        return np.log(probabilities)


def uniform_log_probs(piece: EncodedPiece) -> Floats:
    """Return what `BackoffModel.log_probs` does, for equal choice among the legal values of each field.

    A control is one of all but START, a note one of the piano's keys, with no "none" for duration, velocity and tempo.
    """
    tokens = piece.tokens.astype(np.int64)
    result = np.zeros(tokens.shape)
    for target in _TARGETS:
        result[_rows(tokens, target), FIELDS.index(target.field)] = -np.log(target.size)
    return result


def evaluate_baselines(train: Sequence[EncodedPiece], pieces: Sequence[EncodedPiece]) -> dict[str, dict[str, Any]]:
    """Score uniform choice and the back-off models.

    Parameters
    ----------
    train : sequence of EncodedPiece
        What the back-off models are fitted on.
    pieces : sequence of EncodedPiece
        What is scored; at least one note.

    Returns
    -------
    dict
        By name ("uniform", "order3", "order5"): `nats_per_note`, the nats of all tokens, controls and END too, over the number of
        notes; and `fields`, the share of each field in it.
    """
    result = {"uniform": _score(uniform_log_probs, pieces)}
    for order in ORDERS:
        result[f"order{order}"] = _score(BackoffModel.fit(train, order).log_probs, pieces)
    return result


def _score(log_probs: Callable[[EncodedPiece], Floats], pieces: Sequence[EncodedPiece]) -> dict[str, Any]:
    nats = -sum((log_probs(piece).sum(axis=0) for piece in pieces), np.zeros(len(FIELDS)))
    notes = sum(int((piece.tokens[:, 1] != CONTROL).sum()) for piece in pieces)
    return {
        "nats_per_note": float(nats.sum() / notes),
        "fields": dict(zip(FIELDS, (nats / notes).tolist(), strict=True)),
    }


def _rows(tokens: IntArray, target: _Target) -> Any:
    return _token_rows(tokens, target.tokens)


def _token_rows(tokens: IntArray, which: str) -> Any:
    if which == "all":
        return slice(None)
    return (tokens[:, 1] != CONTROL) == (which == "notes")


def context_symbols(piece: EncodedPiece) -> Context:
    """Return every symbol that a context may hold, for each token.

    Each is known before the field that it helps to predict: it depends on earlier tokens, and on fields of this token that are
    drawn before.

    Parameters
    ----------
    piece : EncodedPiece

    Returns
    -------
    dict of str to int64 array, shape (N,)
    """
    shift, hand, pitch, duration, velocity, tempo = piece.tokens.astype(np.int64).T
    numbers = np.arange(len(shift))
    is_note = hand != CONTROL
    times = np.cumsum(shift)
    before = np.concatenate([[0], times[:-1]])  # time of the token before
    last = _latest_before(is_note)  # the last note; -1: none, here and below
    onset = np.maximum.accumulate(np.where(shift > 0, numbers, 0))  # first token of this onset
    in_chord = (shift == 0) & (last >= onset)  # a note of this onset stands already
    hand_last = np.full(len(shift), -1)
    held = {}
    ends = times + DURATIONS[duration]
    for one in Hand:
        latest = _latest_before(is_note & (hand == one))
        hand_last = np.where(hand == one, latest, hand_last)
        held[one] = np.where(latest >= 0, np.clip(ends[latest] - before, -30, _LONG), _NONE)
    hand_second = _at(hand_last, hand_last, none=-1)
    hand_third = _at(hand_last, hand_second, none=-1)
    last_step = _latest_before(shift > 0)
    pedals = np.where(is_note, 0, np.isin(pitch, (Control.PEDAL_DOWN, Control.PEDAL_UP)) * pitch)
    last_pedal = _latest_before(pedals > 0)
    pedal = np.where(last_pedal >= 0, pedals[last_pedal], 0)
    pedal_age = np.where(last_pedal >= 0, np.minimum(before - times[last_pedal], _LONG), _LONG)
    onset1 = last[onset]  # last notes of the three onsets before this one
    onset2 = _at(last[onset], onset1, none=-1)
    onset3 = _at(last[onset], onset2, none=-1)
    reference = np.where(hand_last >= 0, _at(pitch, hand_last), np.where(last >= 0, pitch[last], 0))
    return {
        "shift": shift,
        "last_shift": np.concatenate([[_NONE], shift[:-1]]),
        "last_step": _at(shift, last_step),  # last shift that was not 0
        "last_hand": np.concatenate([[_NONE], hand[:-1]]),
        "right_held": held[Hand.RIGHT],  # ticks from the token before to the end of the hand's last note
        "left_held": held[Hand.LEFT],
        "pedal": pedal,
        "pedal_age": pedal * (_LONG + 1) + pedal_age,
        "reference": reference,
        "hand_pitch1": _at(pitch, hand_last),
        "hand_interval1": _at(pitch, hand_last) - _at(pitch, hand_second),
        "hand_interval2": _at(pitch, hand_second) - _at(pitch, hand_third),
        "hand_gap": np.where(hand_last >= 0, np.minimum(times - times[hand_last], _LONG), _NONE),
        "hand_in_chord": hand * 2 + (shift == 0),
        "hand_duration1": _at(duration, hand_last),
        "hand_duration2": _at(duration, hand_second),
        "hand_velocity1": _at(velocity, hand_last),
        "hand_velocity2": _at(velocity, hand_second),
        "last_velocity": _at(velocity, last) * 2 + (shift == 0),
        "chord_pitch": np.where(in_chord, _at(pitch, last), _NONE),
        "chord_interval": np.where(in_chord, _at(pitch, last) - reference, _NONE),
        "chord_duration": np.where(in_chord, _at(duration, last), _NONE),
        "chord_tempo": np.where(in_chord, _at(tempo, last), _NONE),
        "last_tempo": _at(tempo, last),
        "tempo1": _at(tempo, onset1),
        "tempo3": _at(tempo, onset3),
        "bar_place": piece.metres.astype(np.int64) * _LONG + piece.positions,  # MAX_BAR is below _LONG
    }


def _latest_before(mask: Any) -> IntArray:
    """Return for each token the number of the last one before it where `mask` holds; -1 if none."""
    numbers = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
    return np.concatenate([[-1], numbers[:-1]])


def _at(values: IntArray, index: IntArray, none: int = _NONE) -> IntArray:
    """Return `values[index]`, and `none` where the index is negative."""
    return np.where(index >= 0, values[index], none)
