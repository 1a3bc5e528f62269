"""`export`: a run's best network to the ONNX files that the service runs, checked against PyTorch, with their model card.

Nothing is written before the check: the float32 file is composed with by the class that will serve it, and PyTorch must find the
same probabilities for every value it drew; the int8 file must need as many nats per note, within INT8_TOLERANCE.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.engine.files import file_hash, hash_line, hash_path
from service.engine.model import METADATA_KEY
from service.music.piece import RESOLUTION
from service.music.representation import FIELDS, REPRESENTATION_VERSION, VOCABULARY
from training.checkpoint import BEST, load_network, save_weights
from training.data import Dataset, load_dataset
from training.graph import build_graph
from training.model import Network
from training.model_card import insert_report, write_model_card
from training.parity import CORPUS_PIECE, Int8Parity, Parity, check_parity, compare_int8, corpus_dataset
from training.quantize import activation_ranges
from training.report.make import REPORT, REPORT_FOLDER
from training.report.markdown import report_section
from training.scoring import score_dataset
from training.storage import write_atomically

EVALUATION = "evaluation.json"  # in the run's folder, written by `evaluate`
DEFAULT_TIME_SIGNATURE = "4/4"
INT8_TOLERANCE = 0.005  # of the nats per note
CALIBRATION_PIECES = 64  # about as many; their largest values are those of hundreds of thousands of notes


@dataclass(frozen=True)
class Exported:
    """What was written, and how far each file is from PyTorch.

    Attributes
    ----------
    path : Path
        Of the float32 file.
    parity : Parity
        Of the float32 file.
    int8_path : Path, optional
        Of the int8 file, if there is one.
    int8_parity : Int8Parity
        Also of an int8 graph that was not good enough to be written.
    """

    path: Path
    parity: Parity
    int8_path: Path | None
    int8_parity: Int8Parity


def export(run: Path, out: Path, licence: str, attribution: str, data: Path | None = None) -> Exported:
    """Export a run's best network.

    Parameters
    ----------
    run : Path
        A run's folder, or a checkpoint.
    out : Path
        Name of the model. Written are `<out>.onnx` in float32; `<out>.int8.onnx`, which runs on the CPU only and several times as
        fast, if it is as good; `<out>.pt`, the weights in half precision, which `fit --init` can begin with; the
        hashes of the first two (`.sha256`), which the service checks; and the card beside them: MODEL_CARD.md, or
        MODEL_CARD.<name>.md where that is another model's. What `report` found of the very same float32
        file stays in it.
    licence : str
        Under which the weights are published.
    attribution : str
        Whose music they were learnt from; the service writes it into every MIDI file.
    data : Path, optional
        A training file: int8 is set up by pieces of its train split, and compared on its valid split. Without it, a piece of
        music21's corpus has to do.

    Raises
    ------
    InvalidCheckpoint
        If the run has no usable checkpoint.
    ParityFailed
        If the float32 graph differs from PyTorch by more than `PARITY_TOLERANCE`.
    """
    network, content = load_network(run)
    evaluation = read_evaluation(run)
    metadata = describe(network, content, evaluation, licence, attribution)
    first = build_graph(network, {METADATA_KEY: json.dumps(metadata)})
    parity = check_parity(network, first.SerializeToString())
    # So that any copy of a file can be checked later, without the checkpoint.
    corpus = corpus_dataset()
    corpus_nats = score_dataset(network, corpus, with_conditions=False).nats_per_note
    of_corpus = {"corpus_piece": CORPUS_PIECE, "corpus_nats_per_note": corpus_nats}
    metadata["parity"] = {"max_error_nats": parity.max_error, "values": parity.values, **of_corpus}
    graph = build_graph(network, {METADATA_KEY: json.dumps(metadata)}).SerializeToString()
    calibration, compared, pieces = corpus, corpus, CORPUS_PIECE
    if data is not None:
        dataset = load_dataset(data)
        calibration, compared = _for_calibration(dataset.select("train")), dataset.select("valid")
        pieces = f"valid split of {data.name}, {len(compared.pieces)} pieces"
    ranges = activation_ranges(network, calibration)
    described = {**metadata, "precision": "int8"}
    int8_parity = compare_int8(network, _int8_graph(network, described, ranges), compared, pieces)
    described["parity"] = {**asdict(int8_parity), **of_corpus}
    path, int8_path = (out.with_name(out.name.removesuffix(".onnx") + ending) for ending in (".onnx", ".int8.onnx"))
    good = abs(int8_parity.difference) <= INT8_TOLERANCE
    int8_path.unlink(missing_ok=True)  # first: stopped here, no two forms of different networks lie side by side
    hash_path(int8_path).unlink(missing_ok=True)
    _write_model(path, graph)
    if good:
        _write_model(int8_path, _int8_graph(network, described, ranges))
    exported = Exported(path, parity, int8_path if good else None, int8_parity)
    save_weights(path.with_suffix(".pt"), content)
    card = write_model_card(path, exported.int8_path, metadata, int8_parity, content, evaluation)
    report = read_report(path)
    if report is not None:
        card = insert_report(card, report_section(report, f"{REPORT_FOLDER}/"))
    with write_atomically(card_path(path)) as file:
        file.write(card.encode())
    return exported


def _write_model(path: Path, serialized: bytes) -> None:
    """Write a model's file and, beside it, its hash; stopped between the two, no hash is there rather than another's."""
    hash_path(path).unlink(missing_ok=True)
    with write_atomically(path) as file:
        file.write(serialized)
    with write_atomically(hash_path(path)) as file:
        file.write(hash_line(path).encode())


def _int8_graph(network: Network, metadata: Mapping[str, Any], ranges: Mapping[str, float]) -> bytes:
    serialized: bytes = build_graph(network, {METADATA_KEY: json.dumps(metadata)}, ranges).SerializeToString()
    return serialized


def _for_calibration(train: Dataset) -> Dataset:
    """Return the pieces whose values int8 must have room for."""
    every = max(1, len(train.pieces) // CALIBRATION_PIECES)
    return Dataset(train.pieces[::every], train.infos[::every], train.conditions)


def read_report(model: Path) -> dict[str, Any] | None:
    """Return what `report` found of an exported model; None if it was not run, or on another file of that name."""
    file = model.parent / REPORT_FOLDER / REPORT
    if not file.exists():
        return None
    report: dict[str, Any] = json.loads(file.read_text())
    return report if report["sha256"] == file_hash(model) else None


def weights_hash(run: Path) -> str:
    """Return a hash of a run's best checkpoint, the folder or the file itself."""
    return file_hash(run / BEST if run.is_dir() else run)


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
        "precision": "float32",
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
