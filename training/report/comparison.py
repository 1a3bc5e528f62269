"""Composed pieces beside validation excerpts: statistics, originality, form and faults.

For the comparison as many pieces are composed as are asked for, each at the service's default settings but with the rendition and
the metre of an excerpt, so that both sets mix scores, performances and metres alike; composer, key and tempo are not told. A
piece may end early, like a request's; the excerpt beside it is cut to as many notes. Faults are counted at the defaults alone,
and form is looked at both ways.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.music.piece import Piece
from service.music.representation import decode_tokens
from training.report import form, originality, overlap, pictures, similarity, statistics
from training.report.compose import unknown_wishes
from training.report.excerpts import cut_notes, take_excerpts
from training.report.failures import MIN_NOTES, count_faults
from training.report.materials import LENGTH, Materials

LONG = 512  # notes of a piece whose form is looked at: some 40 bars
FAULT_LENGTHS = (64, LENGTH)  # notes of the pieces whose faults are counted


def compare(materials: Materials, count: int, folder: Path) -> dict[str, Any]:
    """Return statistics, originality and form of composed pieces beside real ones; draw overlap.png and distributions.png."""
    tell = materials.progress
    excerpts = take_excerpts(materials.valid, LENGTH, count)
    wishes = materials.wishes_like("comparison", count, LENGTH, excerpts)
    results = materials.compose("comparison", wishes)
    composed = [result.piece for result in results if len(result.piece.notes) >= MIN_NOTES]
    lengths = [max(MIN_NOTES, len(result.piece.notes)) for result in results]
    real = [cut_notes(excerpt.piece, length) for excerpt, length in zip(excerpts, lengths, strict=False)]
    sources = np.array([excerpt.source for excerpt in excerpts])

    tell("statistics", 0, 3)
    mine, theirs = statistics.features(composed), statistics.features(real)
    tell("statistics", 1, 3)
    compared = overlap.compare(theirs, mine, sources, statistics.FEATURES)
    pictures.draw_overlap(compared, folder / "overlap.png")
    pictures.draw_distributions(mine, theirs, folder / "distributions.png")
    tell("statistics", 2, 3)
    train = [decode_tokens(piece.tokens).notes for piece in materials.train.pieces]
    runs = originality.longest_runs([piece.notes for piece in [*composed, *real]], train)
    names = [info.name for info in materials.train.infos]
    tell("statistics", 3, 3)
    return {
        "compared": {
            "composed": len(composed),
            "too_short": len(results) - len(composed),
            "excerpts": len(real),
            "valid_pieces": len(np.unique(sources)),
            "notes": LENGTH,
            "mean_notes": float(np.mean([len(piece.notes) for piece in composed])),
            "halvings": overlap.HALVINGS,
        },
        "skipped": unknown_wishes(wishes, materials.metadata),
        "statistics": {
            "headline": overlap.headline(compared),
            "features": compared,
            "figures": {
                name: {"composed": statistics.summarise(mine[name]), "real": statistics.summarise(theirs[name])}
                for name in (*statistics.METRICS, statistics.DENSITY)
            },
            "shared_mass": {name: statistics.shared_mass(mine[name], theirs[name]) for name in pictures.DISTRIBUTIONS},
        },
        "originality": originality.summarise(runs[: len(composed)], runs[len(composed) :], names),
        "form": {"composed": form.mean_form(composed), "real": form.mean_form(real)},
    }


def look_at_form(materials: Materials, count: int, folder: Path) -> dict[str, Any]:
    """Return the form of long pieces, and draw similarity.png and matrices.png."""
    excerpts = take_excerpts(materials.valid, LONG, count)
    wishes = materials.wishes_like("long", count, LONG, excerpts)
    composed = [result.piece for result in materials.compose("long", wishes)]
    real = [excerpt.piece for excerpt in excerpts]
    (mine, my_counts), (theirs, their_counts) = similarity.lag_curve(composed), similarity.lag_curve(real)
    pictures.draw_similarity(mine.tolist(), theirs.tolist(), folder / "similarity.png")
    examples = similarity.self_similarity(_typical(composed)), similarity.self_similarity(_typical(real))
    pictures.draw_matrices(*examples, folder / "matrices.png")
    return {
        "notes": LONG,
        "pieces": {"composed": len(composed), "real": len(real)},
        "composed": form.mean_form(composed),
        "real": form.mean_form(real),
        "similarity": {
            "composed": mine.tolist(),
            "real": theirs.tolist(),
            "composed_peak": similarity.phrase_peak(mine),
            "real_peak": similarity.phrase_peak(theirs),
            "composed_pieces": my_counts,
            "real_pieces": their_counts,
        },
    }


def _typical(pieces: Sequence[Piece]) -> Piece:
    """Return the piece whose share of returning figures is the median one: an example that nobody chose."""
    shares = [form.returning_figures(piece.notes) for piece in pieces]
    return pieces[int(np.argsort(shares)[len(shares) // 2])]


def count_failures(materials: Materials, count: int) -> dict[str, Any]:
    """Return faults and form of pieces at the default settings and of validation excerpts, for each of FAULT_LENGTHS."""
    table: dict[str, Any] = {}
    forms: dict[str, Any] = {}
    for length in FAULT_LENGTHS:
        series = f"{length} notes"
        results = materials.compose(series, materials.wishes(series, count, length))
        real = [excerpt.piece for excerpt in take_excerpts(materials.valid, length, count)]
        table[str(length)] = {
            "composed": count_faults([result.piece for result in results], [result.chance_of_end for result in results]),
            "real": count_faults(real),
        }
        pieces = [result.piece for result in results if len(result.piece.notes) >= MIN_NOTES]
        forms[str(length)] = {"composed": form.mean_form(pieces), "real": form.mean_form(real)}
    return {"failures": table, "form_default": forms}
