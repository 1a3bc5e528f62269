"""Whether a piece is what was asked for: its key, its metre, its tempo; real passages of the same length as the yardstick.

- Key: found by `training.keys.estimate_key`. Real passages are asked whether they are in the key of their whole piece.
- Metre: found by `training.report.metre`. Real passages are asked whether they sound like the metre they are written in.
- Tempo: the mean tempo (quarter notes by minutes, so slow passages weigh more) within 10 % of the tempo asked for. Real passages
  are asked whether their mean tempo is within 10 % of the class that the median tempo of their notes falls into.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.music.piece import RESOLUTION, Piece
from training.keys import estimate_key
from training.report.failures import interval
from training.report.metre import FAMILIES, MetreClassifier

TEMPO_TOLERANCE = 0.1


def key_relation(asked: int, found: int) -> str:
    """Return how a key found relates to the one asked for.

    Parameters
    ----------
    asked, found : int
        0..23, as in `service.music.keys`.

    Returns
    -------
    str
        "same"; "relative" (the other mode with the same signature); "parallel" (the other mode on the same tonic); "fifth" (the
        same mode a fifth up or down, the dominant's or subdominant's key); or "other".
    """
    (mode, tonic), (found_mode, found_tonic) = divmod(asked, 12), divmod(found, 12)
    up = (found_tonic - tonic) % 12
    if mode == found_mode:
        return {0: "same", 7: "fifth", 5: "fifth"}.get(up, "other")
    return {0: "parallel", 3 if mode else 9: "relative"}.get(up, "other")


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Return the share of hits, how many it is of, and its 95 % interval (Wilson)."""
    if not len(hits):
        return {"share": math.nan, "of": 0, "low": 0.0, "high": 1.0}
    low, high = interval(sum(hits), len(hits))
    return {"share": sum(hits) / len(hits), "of": len(hits), "low": low, "high": high}


def judge_keys(pieces: Sequence[Piece], asked: Sequence[int]) -> dict[str, Any]:
    """Return how often the key asked for is found, and how often each other relation; of each mode asked for too."""
    relations = [key_relation(key, estimate_key(piece.notes).key) for piece, key in zip(pieces, asked, strict=True)]
    modes = {
        mode: share([relation == "same" for relation, key in zip(relations, asked, strict=True) if key // 12 == index])
        for index, mode in enumerate(("major", "minor"))
    }
    kinds = ("relative", "parallel", "fifth", "other")
    return {
        **share([relation == "same" for relation in relations]),
        "relations": {kind: relations.count(kind) / max(1, len(relations)) for kind in kinds},
        **modes,
    }


def judge_metres(pieces: Sequence[Piece], asked: Sequence[str], classifier: MetreClassifier) -> dict[str, Any]:
    """Return how often the metre asked for is found, how often one of its family, and for each metre asked what was found.

    `balanced` is the mean over metres of the share that is found, for real passages, which are not in every metre equally often.
    """
    found = [classifier.classify(piece) for piece in pieces]
    pairs = list(zip(asked, found, strict=True))
    table: dict[str, dict[str, int]] = {}
    for wish, metre in pairs:
        row = table.setdefault(wish, {})
        row[metre] = row.get(metre, 0) + 1
    return {
        **share([wish == metre for wish, metre in pairs]),
        "balanced": float(np.mean([row.get(wish, 0) / sum(row.values()) for wish, row in table.items()])) if table else math.nan,
        "family": share([FAMILIES[wish] == FAMILIES[metre] for wish, metre in pairs]),
        "found": table,
    }


def mean_tempo(piece: Piece) -> float:
    """Return the mean tempo of a piece in quarter notes per minute: its quarter notes by its minutes."""
    return piece.end / RESOLUTION / (piece.seconds() / 60)


def median_tempo(piece: Piece) -> float:
    """Return the median of the tempos at a piece's notes, in quarter notes per minute."""
    return float(np.median(piece.tempo_at(piece.notes["time"])))


def tempo_class(piece: Piece, classes: Sequence[str]) -> str:
    """Return the class nearest by ratio to a piece's median tempo, of names in quarter notes per minute such as "120"."""
    distances = np.abs(np.log(np.array([float(name) for name in classes]) / median_tempo(piece)))
    return classes[int(distances.argmin())]


def judge_tempos(pieces: Sequence[Piece], asked: Sequence[float]) -> dict[str, Any]:
    """Return how often the mean tempo is within 10 % of the one asked for, and the median of their ratio."""
    ratios = np.array([mean_tempo(piece) / qpm for piece, qpm in zip(pieces, asked, strict=True)])
    hits = (np.abs(ratios - 1) <= TEMPO_TOLERANCE).tolist()
    return {**share(hits), "median_ratio": float(np.median(ratios)) if len(ratios) else math.nan}
