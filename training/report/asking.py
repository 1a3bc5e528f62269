"""Pieces composed to a key, a metre or a tempo, judged by `training.report.control`; otherwise at the service's defaults.

Keys: all 24 in turn. Metres: those of `training.report.metre` in turn. Tempos: those of validation passages, in their order, so
that each is asked for as often as it is played. What a model does not know is None in the report.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.music.keys import KEY_NAMES
from service.music.piece import Piece
from service.music.representation import decode_tokens
from training.keys import estimate_key
from training.report.compose import Wish
from training.report.control import judge_keys, judge_metres, judge_tempos, tempo_class
from training.report.excerpts import Excerpt, take_excerpts
from training.report.failures import MIN_NOTES
from training.report.materials import LENGTH, Materials
from training.report.metre import METRES, MetreClassifier, metre_name

METRE_EXCERPTS = 3000  # of the train split, that the metre's classifier learns from
REAL_EXCERPTS = 500  # of the validation split, as the yardstick


def check_control(materials: Materials, count: int) -> dict[str, Any]:
    """Return how often key, metre and tempo are what was asked for, and how often real passages would pass."""
    excerpts = take_excerpts(materials.valid, LENGTH, REAL_EXCERPTS)
    known = materials.metadata["conditions"]
    return {
        "notes": LENGTH,
        "key": _check_keys(materials, count, excerpts) if set(KEY_NAMES) <= set(known.get("key", ())) else None,
        "metre": _check_metres(materials, count, excerpts),
        "tempo": _check_tempos(materials, count, excerpts) if len(known.get("tempo", ())) > 1 else None,
    }


def _compose(materials: Materials, name: str, values: Sequence[str]) -> tuple[list[Piece], list[str]]:
    """Return the pieces composed with each value of a condition, and the values; pieces that ended at once are left out."""
    wishes = [_ask(wish, name, value) for wish, value in zip(materials.wishes(name, len(values), LENGTH), values, strict=True)]
    pieces = [result.piece for result in materials.compose(name, wishes)]
    kept = [(piece, value) for piece, value in zip(pieces, values, strict=True) if len(piece.notes) >= MIN_NOTES]
    return [piece for piece, _ in kept], [value for _, value in kept]


def _ask(wish: Wish, name: str, value: str) -> Wish:
    """Return a wish with one more condition; a tempo is also scaled to, as the service does."""
    if name == "metre":
        return replace(wish, metre=value)
    tempo = float(value) if name == "tempo" else None
    return replace(wish, conditions={**wish.conditions, name: value}, tempo=tempo)


def _check_keys(materials: Materials, count: int, excerpts: Sequence[Excerpt]) -> dict[str, Any]:
    composed, asked = _compose(materials, "key", [KEY_NAMES[i % len(KEY_NAMES)] for i in range(count)])
    keys = [KEY_NAMES.index(name) for name in asked]
    whole = [estimate_key(decode_tokens(materials.valid.pieces[excerpt.source].tokens).notes).key for excerpt in excerpts]
    return {"composed": judge_keys(composed, keys), "real": judge_keys([excerpt.piece for excerpt in excerpts], whole)}


def _check_metres(materials: Materials, count: int, excerpts: Sequence[Excerpt]) -> dict[str, Any]:
    classifier = MetreClassifier.fit([excerpt.piece for excerpt in take_excerpts(materials.train, LENGTH, METRE_EXCERPTS)])
    composed, asked = _compose(materials, "metre", [METRES[i % len(METRES)] for i in range(count)])
    known = [excerpt.piece for excerpt in excerpts if metre_name(excerpt.piece) in METRES]
    return {
        "composed": judge_metres(composed, asked, classifier),
        "real": judge_metres(known, [metre_name(piece) for piece in known], classifier),
    }


def _check_tempos(materials: Materials, count: int, excerpts: Sequence[Excerpt]) -> dict[str, Any]:
    classes = materials.metadata["conditions"]["tempo"][1:]
    real = [excerpt.piece for excerpt in excerpts]
    theirs = [tempo_class(piece, classes) for piece in real]
    composed, asked = _compose(materials, "tempo", [theirs[i % len(theirs)] for i in range(count)])
    return {
        "composed": judge_tempos(composed, [float(name) for name in asked]),
        "real": judge_tempos(real, [float(name) for name in theirs]),
    }
