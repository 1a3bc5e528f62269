"""`evaluate`: nats per note of a run or an exported model, beside what simple models of the same data need."""

from pathlib import Path
from typing import Any

from service.engine.model import OnnxModel
from training.baselines import evaluate_baselines
from training.checkpoint import load_network
from training.data import Dataset, load_dataset
from training.scoring import Score, score_dataset, score_exported


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
        return score_exported(OnnxModel(target, "cpu", threads=0), dataset, with_conditions=with_conditions)
    network, _ = load_network(target)
    return score_dataset(network, dataset, with_conditions=with_conditions)


def evaluate(
    target: Path, data: Path, split: str = "valid", baselines: Path | None = None, with_conditions: bool = False
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

    Returns
    -------
    dict
        `nats_per_note`, `fields`, `notes`, `pieces`, `packs` (nats per note of each), and with baselines `baselines` (total
        of each) and `baseline_fields`.
    """
    dataset = load_dataset(data).select(split)
    score = score_target(target, dataset, with_conditions)
    result: dict[str, Any] = {
        "nats_per_note": score.nats_per_note,
        "fields": score.fields,
        "baselines": {},
        "notes": int(score.notes.sum()),
        "pieces": len(dataset.pieces),
        "packs": {},
    }
    for pack in sorted({info.pack for info in dataset.infos}):
        rows = [i for i, info in enumerate(dataset.infos) if info.pack == pack]
        result["packs"][pack] = float(score.nats[rows].sum() / score.notes[rows].sum())
    if baselines is not None:
        fitted = evaluate_baselines(load_dataset(baselines).select("train").pieces, dataset.pieces)
        result["baselines"] = {name: figures["nats_per_note"] for name, figures in fitted.items()}
        result["baseline_fields"] = {name: figures["fields"] for name, figures in fitted.items()}
    return result
