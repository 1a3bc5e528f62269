"""`evaluate`: nats per note of a run or an exported model, beside what simple models of the same data need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.engine.model import OnnxModel
from training.baselines import score_baselines
from training.breakdown import MEASURES, PERCENTILES, RESAMPLES, THIS_MODEL, Breakdown
from training.checkpoint import load_network
from training.data import Dataset, load_dataset
from training.score import Score, read_score
from training.scoring import score_dataset, score_exported


def score_target(target: Path, dataset: Dataset, with_conditions: bool = False) -> Score:
    """Score a dataset with a run's best network or with an exported model.

    Parameters
    ----------
    target : Path
        A run's folder, a checkpoint, or an .onnx file.
    dataset : Dataset
    with_conditions : bool
        Whether composer and rendition are told.

    Raises
    ------
    InvalidCheckpoint, ModelMismatch
        If `target` cannot be used.
    """
    if target.suffix == ".onnx":
        return score_exported(OnnxModel(target, threads=0), dataset, with_conditions=with_conditions)
    network, _ = load_network(target)
    return score_dataset(network, dataset, with_conditions=with_conditions)


def evaluate(
    target: Path,
    data: Path,
    split: str = "valid",
    baselines: Path | None = None,
    with_conditions: bool = False,
    scores: Sequence[Path] = (),
) -> dict[str, Any]:
    """Evaluate on one split of a training file.

    Parameters
    ----------
    target : Path
        As in `score_target`.
    data : Path
        The training file to score.
    split : str
        "train", "valid", "test" or "all".
    baselines : Path, optional
        A training file; the baselines are fitted on its train split.
    with_conditions : bool
        As in `score_target`.
    scores : sequence of Path
        Files of `training.score.save_score`: other models' scores of the same pieces.

    Returns
    -------
    dict
        `nats_per_note`, `fields`, `notes`, `pieces`, `packs` (nats per note of each), and with baselines `baselines` (total of
        each) and `baseline_fields`. And `scores`, in which every figure has an interval; see `training.breakdown`:
        `intervals` (`percentiles`, `resamples`), `repeated_share`; `packs` and `composers` (`pieces` and `notes` of each);
        `models`, this one under "model", each baseline under its name and each of `scores` under what its file says of it,
        with the figures of all pieces and, in `packs` (not of `scores`) and (this model) `composers`, of parts of them; and
        `ratios`, this model's nats over those of each baseline.
    """
    dataset = load_dataset(data).select(split)
    score = score_target(target, dataset, with_conditions)
    breakdown = Breakdown(dataset)
    packs, composers = breakdown.groups("pack"), breakdown.groups("composer")
    models = {THIS_MODEL: breakdown.figures(score)}
    models[THIS_MODEL]["packs"] = breakdown.figures_of(score, packs)
    models[THIS_MODEL]["composers"] = breakdown.figures_of(score, composers)
    ratios = {}
    result: dict[str, Any] = {
        "split": split,
        "nats_per_note": score.nats_per_note,
        "fields": score.fields,
        "baselines": {},
        "notes": int(score.notes.sum()),
        "pieces": len(dataset.pieces),
        "packs": {pack: float(score.nats[rows].sum() / score.notes[rows].sum()) for pack, rows in packs.items()},
    }
    if baselines is not None:
        result["baseline_fields"] = {}
        for name, other in score_baselines(load_dataset(baselines).select("train").pieces, dataset.pieces):
            models[name] = breakdown.figures(other)
            models[name]["packs"] = breakdown.figures_of(other, packs)
            ratios[name] = breakdown.ratios(score, other)
            result["baselines"][name] = other.nats_per_note
            result["baseline_fields"][name] = other.fields
    for path in scores:
        read = read_score(path, dataset.pieces)
        models[read.about] = breakdown.figures(read.score)
        if not read.by_field:
            for measure in MEASURES:
                del models[read.about][measure]["fields"]
        ratios[read.about] = breakdown.ratios(score, read.score)
    result["scores"] = {
        "intervals": {"percentiles": list(PERCENTILES), "resamples": RESAMPLES},
        "repeated_share": breakdown.repeated_share,
        "packs": breakdown.describe(packs),
        "composers": breakdown.describe(composers),
        "models": models,
        "ratios": ratios,
    }
    return result
