"""`export`: a run's best network to the ONNX file that the service runs, checked against PyTorch, with its model card.

Nothing is written before the check: the file is composed with by the class that will serve it, and PyTorch must find the same
probabilities for every value it drew.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.engine.interface import Chunk
from service.engine.model import METADATA_KEY, OnnxModel
from service.errors import NocturneError
from service.music.piece import RESOLUTION, TimeSignature
from service.music.representation import (
    FIELDS,
    REPRESENTATION_VERSION,
    VOCABULARY,
    EncodedPiece,
    time_signature_index,
)
from training.batches import make_batch, prepare_piece
from training.checkpoint import BEST, load_network
from training.data import piece_condition_names
from training.graph import build_graph
from training.model import Network
from training.model_card import write_model_card
from training.storage import write_atomically

PARITY_TOLERANCE = 1e-3  # nats of one value; float32 in another order of summation gives about 1e-5
_PARITY_ROWS, _PARITY_STEPS = 8, 256
EVALUATION = "evaluation.json"  # in the run's folder, written by `evaluate`
DEFAULT_TIME_SIGNATURE = "4/4"


class ParityFailed(NocturneError):
    """The exported graph does not compute what the network computes."""


@dataclass(frozen=True)
class Parity:
    """How far an exported graph is from PyTorch.

    Attributes
    ----------
    max_error : float
        Largest difference of the nats of one value.
    values : int
        How many were compared.
    """

    max_error: float
    values: int


def export(run: Path, out: Path, licence: str, attribution: str) -> tuple[Path, Parity]:
    """Export a run's best network.

    Parameters
    ----------
    run : Path
        A run's folder, or a checkpoint.
    out : Path
        Name of the model: `<out>.onnx` is written, and its card beside it: MODEL_CARD.md, or MODEL_CARD.<name>.md where that
        is another model's.
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
    metadata = describe(network, content, read_evaluation(run), licence, attribution)
    first = build_graph(network, {METADATA_KEY: json.dumps(metadata)})
    parity = check_parity(network, first.SerializeToString())
    metadata["parity"] = {"max_error_nats": parity.max_error, "values": parity.values}
    graph = build_graph(network, {METADATA_KEY: json.dumps(metadata)})
    path = out.with_name(out.name.removesuffix(".onnx") + ".onnx")
    with write_atomically(path) as file:
        file.write(graph.SerializeToString())
    with write_atomically(_card_path(path)) as file:
        file.write(write_model_card(path, metadata, content).encode())
    return path, parity


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


def _card_path(model: Path) -> Path:
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
        "defaults": {"time_signature": DEFAULT_TIME_SIGNATURE, "rendition": "performed"},
        "network": {
            "layers": config.layers,
            "hidden": config.hidden,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        },
        "nats_per_note": best["valid"],
        "evaluation": evaluation,
        "training": content["training"],
        "licence": licence,
        "attribution": attribution,
        "commit": content["commit"],
    }


def check_parity(network: Network, serialized: bytes) -> Parity:
    """Compose with an exported graph, and compare the probabilities of what it drew with PyTorch's.

    Parameters
    ----------
    network : Network
        In evaluation mode, on the CPU.
    serialized : bytes
        The ONNX file.

    Raises
    ------
    ParityFailed
        If they differ by more than `PARITY_TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(serialized)
        tokens, probabilities, conditions, signature = _compose(OnnxModel(path, "cpu"), network)
    pieces = []
    for row in tokens:
        times = np.cumsum(row[:, 0])
        metres = np.full(len(row), time_signature_index(signature), np.int32)
        pieces.append(EncodedPiece(row, (times % signature.bar_ticks).astype(np.int32), metres, 0))
    batch = make_batch([(prepare_piece(piece), 0) for piece in pieces], tokens.shape[1], conditions)
    with torch.no_grad():
        logits, _ = network(batch, network.initial_state(len(pieces)))
    expected = [
        torch.log_softmax(logits[name], -1).gather(-1, batch.target[..., i : i + 1])[..., 0].T.numpy()
        for i, name in enumerate(FIELDS)
    ]
    errors = np.abs(np.log(probabilities) - np.stack(expected, axis=-1))
    if not errors.max() <= PARITY_TOLERANCE:  # "not <=" also refuses NaN
        raise ParityFailed(f"the exported graph differs from PyTorch by {errors.max():.2g} nats; {PARITY_TOLERANCE} is allowed")
    return Parity(float(errors.max()), errors.size)


def _compose(model: OnnxModel, network: Network) -> tuple[Any, Any, Any, TimeSignature]:
    """Let a model compose freely under its own distribution, every condition used."""
    rng = np.random.default_rng(0)
    signature = TimeSignature(0, 3, 4)
    names = piece_condition_names(network.config.conditions)
    sizes = [len(network.config.conditions[name]) for name in names]
    conditions = rng.integers(0, np.array(sizes, np.int64), (_PARITY_ROWS, len(sizes))).astype(np.int32)
    shape = (_PARITY_ROWS, _PARITY_STEPS, len(FIELDS))
    metre = np.array([time_signature_index(signature), signature.bar_ticks, 0], np.int32)
    forced, uniforms = np.full(shape, -1, np.int32), rng.random(shape, np.float32)
    chunk = Chunk.unbiased(forced, uniforms, np.broadcast_to(metre, (*shape[:2], 3)), conditions)
    tokens, _, probabilities = model.run(chunk, model.initial_state(np.zeros(_PARITY_ROWS, np.int32)))
    return tokens, probabilities, conditions, signature
