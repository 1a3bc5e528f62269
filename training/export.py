"""`export`: a run's best network to the ONNX file that the service runs, checked against PyTorch, with its model card.

Nothing is written before the check: the file is composed with by the class that will serve it, and PyTorch must find the same
probabilities for every value it drew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.engine.model import METADATA_KEY
from service.music.piece import RESOLUTION
from service.music.representation import FIELDS, REPRESENTATION_VERSION, VOCABULARY
from training.checkpoint import BEST, load_network, save_weights
from training.graph import build_graph
from training.model import Network
from training.model_card import insert_report, write_model_card
from training.parity import CORPUS_PIECE, Parity, check_parity, corpus_dataset
from training.report.make import REPORT, REPORT_FOLDER
from training.report.markdown import report_section
from training.scoring import score_dataset
from training.storage import write_atomically

EVALUATION = "evaluation.json"  # in the run's folder, written by `evaluate`
DEFAULT_TIME_SIGNATURE = "4/4"


def export(run: Path, out: Path, licence: str, attribution: str) -> tuple[Path, Parity]:
    """Export a run's best network.

    Parameters
    ----------
    run : Path
        A run's folder, or a checkpoint.
    out : Path
        Name of the model: `<out>.onnx` is written, and its card beside it: MODEL_CARD.md, or MODEL_CARD.<name>.md where that
        is another model's; what `report` found of the very same file stays in it. And `<out>.pt`, the weights in half
        precision, which `fit --init` can begin with.
    licence : str
        Under which the weights are published.
    attribution : str
        Whose music they were learnt from; the service writes it into every MIDI file.

    Returns
    -------
    path : Path
        Of the ONNX file.
    parity : Parity

    Raises
    ------
    InvalidCheckpoint
        If the run has no usable checkpoint.
    ParityFailed
        If the graph differs from PyTorch by more than `PARITY_TOLERANCE`.
    """
    network, content = load_network(run)
    evaluation = read_evaluation(run)
    metadata = describe(network, content, evaluation, licence, attribution)
    first = build_graph(network, {METADATA_KEY: json.dumps(metadata)})
    parity = check_parity(network, first.SerializeToString())
    metadata["parity"] = {
        "max_error_nats": parity.max_error,
        "values": parity.values,
        # So that any copy of the file can be checked later, without the checkpoint.
        "corpus_piece": CORPUS_PIECE,
        "corpus_nats_per_note": score_dataset(network, corpus_dataset(), with_conditions=False).nats_per_note,
    }
    graph = build_graph(network, {METADATA_KEY: json.dumps(metadata)})
    path = out.with_name(out.name.removesuffix(".onnx") + ".onnx")
    with write_atomically(path) as file:
        file.write(graph.SerializeToString())
    save_weights(path.with_suffix(".pt"), content)
    card = write_model_card(path, metadata, content, evaluation)
    report = read_report(path)
    if report is not None:
        card = insert_report(card, report_section(report, f"{REPORT_FOLDER}/"))
    with write_atomically(card_path(path)) as file:
        file.write(card.encode())
    return path, parity


def read_report(model: Path) -> dict[str, Any] | None:
    """Return what `report` found of an exported model; None if it was not run, or on another file of that name."""
    file = model.parent / REPORT_FOLDER / REPORT
    if not file.exists():
        return None
    report: dict[str, Any] = json.loads(file.read_text())
    return report if report["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest() else None


def weights_hash(run: Path) -> str:
    """Return a hash of a run's best checkpoint, the folder or the file itself."""
    return hashlib.sha256((run / BEST if run.is_dir() else run).read_bytes()).hexdigest()


def read_evaluation(run: Path) -> dict[str, Any] | None:
    """Return what `evaluate` found of a run's best weights; None if it was not run, or on weights that are no longer the best."""
    file = (run if run.is_dir() else run.parent) / EVALUATION
    if not file.exists():
        return None
    evaluation: dict[str, Any] = json.loads(file.read_text())
    return evaluation if evaluation["weights"] == weights_hash(run) else None


def card_path(model: Path) -> Path:
    """Return MODEL_CARD.md beside the model, or MODEL_CARD.<name>.md if the first is another model's."""
    card = model.with_name("MODEL_CARD.md")
    taken = card.exists() and card.read_text(encoding="utf-8").splitlines()[:1] != [f"# {model.stem}"]
    return model.with_name(f"MODEL_CARD.{model.stem}.md") if taken else card


def describe(
    network: Network, content: Mapping[str, Any], evaluation: dict[str, Any] | None, licence: str, attribution: str
) -> dict[str, Any]:
    """Return the metadata that the service and the model card need."""
    config = network.config
    best = min(content["history"], key=lambda row: row["valid"])
    return {
        "representation_version": REPRESENTATION_VERSION,
        "resolution": RESOLUTION,
        "fields": list(FIELDS),
        "vocabulary": VOCABULARY._asdict(),
        "conditions": dict(config.conditions),
        "defaults": {"time_signature": DEFAULT_TIME_SIGNATURE, "rendition": "score"},
        "network": {
            "layers": config.layers,
            "hidden": config.hidden,
            "memory": config.memory,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        },
        "nats_per_note": best["valid"],
        "evaluation": evaluation
        and {name: evaluation[name] for name in ("nats_per_note", "fields", "baselines", "notes", "pieces")},
        "training": content["training"],
        "licence": licence,
        "attribution": attribution,
        "commit": content["commit"],
    }
