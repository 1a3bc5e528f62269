"""Export: the ONNX file computes what PyTorch computes, refuses what it does not, and says where it comes from."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from service.engine.model import OnnxModel
from service.errors import ModelMismatch
from tests.training.test_fit import CONFIG
from training import export as exporting
from training.evaluate import evaluate
from training.export import EVALUATION, ParityFailed, check_parity, export
from training.fit import fit
from training.graph import build_graph
from training.model import Network
from training.scoring import score_dataset, score_exported


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    from training.model import ModelConfig

    folder = tmp_path_factory.mktemp("run")
    small = ModelConfig(layers=2, hidden=32, embedding=24, head=16, conditions=dataset.conditions)
    fit(dataset, folder, small, CONFIG)
    return folder


def test_export_checks_itself_and_describes_itself(run, data_file, tmp_path) -> None:
    result = evaluate(run, data_file, "valid", baselines=data_file)
    record = {**result, "command": "python -m training evaluate", "weights": exporting.weights_hash(run)}
    (run / EVALUATION).write_text(json.dumps(record))
    path, parity = export(run, tmp_path / "tiny", "CC0", "Learnt from tunes made by a test.")
    assert path == tmp_path / "tiny.onnx"
    assert parity.max_error < 1e-4
    metadata = OnnxModel(path, "cpu").info.metadata
    assert metadata["attribution"] == "Learnt from tunes made by a test."
    assert metadata["licence"] == "CC0"
    assert metadata["conditions"]["composer"] == ["unknown", "Ana"]
    assert metadata["nats_per_note"] == result["nats_per_note"]
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert f"{result['baselines']['order5']:.3f}" in card
    assert f"{result['nats_per_note']:.3f}" in card
    assert "| made by a test | CC0 | 10 |" in card


def test_figures_of_other_weights_are_not_passed_on(run, tmp_path) -> None:
    (run / EVALUATION).write_text(json.dumps({"nats_per_note": 0.1, "weights": "those of yesterday"}))
    path, _ = export(run, tmp_path / "tiny", "CC0", "")
    (run / EVALUATION).unlink()
    assert OnnxModel(path, "cpu").info.metadata["evaluation"] is None
    assert "no baselines computed" in (tmp_path / "MODEL_CARD.md").read_text()


def test_another_models_card_is_kept(run, tmp_path) -> None:
    for name in ("first", "second", "second"):
        export(run, tmp_path / name, "CC0", "")
    assert (tmp_path / "MODEL_CARD.md").read_text().startswith("# first\n")
    assert (tmp_path / "MODEL_CARD.second.md").read_text().startswith("# second\n")


def test_exported_model_scores_like_pytorch(run, dataset, small, tmp_path) -> None:
    path, _ = export(run, tmp_path / "tiny", "CC0", "")
    from training.checkpoint import load_network

    theirs = score_exported(OnnxModel(path, "cpu"), dataset, with_conditions=True, rows=5, steps=50)
    ours = score_dataset(load_network(run)[0], dataset, with_conditions=True)
    assert np.allclose(ours.nats, theirs.nats, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", [1, 3])
def test_graphs_of_other_shapes(layers, dataset, small) -> None:
    network = Network(replace(small, layers=layers, hidden=20, head=12)).eval()
    metadata = exporting.describe(network, _content(), None, "", "")
    graph = build_graph(network, {"nocturne": json.dumps(metadata)})
    assert check_parity(network, graph.SerializeToString()).max_error < 1e-4


def _content():
    return {"history": [{"valid": 1.0}], "training": {}, "commit": "0" * 12}


def test_a_graph_that_computes_something_else_is_refused(dataset, small) -> None:
    network = Network(small).eval()
    metadata = {"nocturne": json.dumps(exporting.describe(network, _content(), None, "", ""))}
    graph = build_graph(network, metadata).SerializeToString()
    network.layers[1].weight_h.data *= 3.0
    with pytest.raises(ParityFailed, match="differs from PyTorch"):
        check_parity(network, graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"representation_version": 0}, "representation_version is 0"),
        ({"vocabulary": {}}, "vocabulary"),
        (None, "no entry 'nocturne'"),
    ],
)
def test_models_of_another_kind_are_refused(change, message, small, tmp_path) -> None:
    network = Network(small).eval()
    metadata = exporting.describe(network, _content(), None, "", "")
    entries = {} if change is None else {"nocturne": json.dumps({**metadata, **change})}
    onnx.save(build_graph(network, entries), tmp_path / "other.onnx")
    with pytest.raises(ModelMismatch, match=message):
        OnnxModel(tmp_path / "other.onnx", "cpu")


def test_broken_and_missing_models_are_refused(tmp_path) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x12")
    for name in ("cut.onnx", "missing.onnx"):
        with pytest.raises(ModelMismatch, match="cannot be loaded"):
            OnnxModel(tmp_path / name, "cpu")
