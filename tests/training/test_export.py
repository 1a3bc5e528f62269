"""Export: the ONNX file computes what PyTorch computes, refuses what it does not, and says where it comes from."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from service.engine.interface import Chunk
from service.engine.model import OnnxModel
from service.errors import ModelMismatch
from service.music.piece import TimeSignature
from service.music.representation import CONTROL, FIELDS, Control, NoteToken, time_signature_index
from tests.e2e.conftest import ROOT
from tests.training.test_fit import CONFIG
from training import export as exporting
from training.checkpoint import load_network
from training.data import load_dataset
from training.evaluate import evaluate
from training.export import EVALUATION, export
from training.fit import fit
from training.graph import build_graph
from training.model import ModelConfig, Network
from training.parity import ParityFailed, check_parity
from training.scoring import score_dataset, score_exported


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sizes = {"layers": 2, "hidden": 32, "embedding": 24, "head": 16, "memory": 40, "key": 8, "offers": 4, "read": 12}
    small = ModelConfig(**sizes, conditions=dataset.conditions)
    fit(dataset, folder, small, CONFIG)
    return folder


def test_export_checks_itself_and_describes_itself(run, data_file, tmp_path) -> None:
    result = evaluate(run, data_file, "valid", baselines=data_file)
    record = {**result, "command": "python -m training evaluate", "weights": exporting.weights_hash(run)}
    (run / EVALUATION).write_text(json.dumps(record))
    exported = export(run, tmp_path / "tiny", "CC0", "Learnt from tunes made by a test.", data_file)
    path = exported.path
    assert path == tmp_path / "tiny.onnx"
    assert exported.parity.max_error < 1e-4
    metadata = OnnxModel(path).info.metadata
    assert metadata["attribution"] == "Learnt from tunes made by a test."
    assert metadata["licence"] == "CC0"
    assert metadata["conditions"]["composer"] == ["unknown", "Ana"]
    assert metadata["nats_per_note"] == result["nats_per_note"]
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert f"{result['baselines']['order5']:.3f}" in card
    assert f"{result['nats_per_note']:.3f}" in card
    assert "| made by a test | CC0 | 10 |" in card
    # What the report found of this very file stays in a card that is written again, that of another file does not.
    report = json.loads((ROOT / "exported" / "report" / "report.json").read_text())
    (tmp_path / "report").mkdir()
    for sha256, stays in ((hashlib.sha256(path.read_bytes()).hexdigest(), True), ("of another", False)):
        (tmp_path / "report" / "report.json").write_text(json.dumps({**report, "sha256": sha256}))
        export(run, tmp_path / "tiny", "CC0", "Learnt from tunes made by a test.", data_file)
        assert ("### Faults" in (tmp_path / "MODEL_CARD.md").read_text()) == stays
    # The weights that go with it are as good to begin with, but for the rounding.
    halves = score_dataset(
        load_network(path.with_suffix(".pt"))[0], load_dataset(data_file).select("valid"), with_conditions=False
    )
    assert halves.nats_per_note == pytest.approx(result["nats_per_note"], rel=1e-3)


def test_figures_of_other_weights_are_not_passed_on(run, tmp_path) -> None:
    (run / EVALUATION).write_text(json.dumps({"nats_per_note": 0.1, "weights": "those of yesterday"}))
    path = export(run, tmp_path / "tiny", "CC0", "").path
    (run / EVALUATION).unlink()
    assert OnnxModel(path).info.metadata["evaluation"] is None
    assert "no baselines computed" in (tmp_path / "MODEL_CARD.md").read_text()


def test_the_int8_file_is_of_the_same_model_and_as_good(run, data_file, dataset, tmp_path, monkeypatch) -> None:
    exported = export(run, tmp_path / "tiny", "CC0", "", data_file)
    assert exported.int8_path == tmp_path / "tiny.int8.onnx"
    assert exported.int8_path.stat().st_size < exported.path.stat().st_size
    model = OnnxModel(exported.int8_path)
    theirs = OnnxModel(exported.path).info.metadata
    assert {**model.info.metadata, "precision": "float32", "parity": theirs["parity"]} == theirs
    assert model.info.metadata["precision"] == "int8"
    parity = model.info.metadata["parity"]
    assert abs(parity["difference"]) < 0.005
    found = score_exported(model, dataset.select("valid"), with_conditions=False).nats_per_note
    assert found == pytest.approx(parity["nats_per_note"], abs=1e-6)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert hashlib.sha256(exported.int8_path.read_bytes()).hexdigest() in card
    assert f"{parity['nats_per_note']:.4f}" in card
    # One that is worse than that is not written, and an older one does not stay.
    monkeypatch.setattr(exporting, "INT8_TOLERANCE", -1.0)
    assert export(run, tmp_path / "tiny", "CC0", "", data_file).int8_path is None
    assert not (tmp_path / "tiny.int8.onnx").exists()
    assert "no int8 file" in (tmp_path / "MODEL_CARD.md").read_text()


def test_another_models_card_is_kept(run, tmp_path) -> None:
    for name in ("first", "second", "second"):
        export(run, tmp_path / name, "CC0", "")
    assert (tmp_path / "MODEL_CARD.md").read_text().startswith("# first\n")
    assert (tmp_path / "MODEL_CARD.second.md").read_text().startswith("# second\n")


def test_exported_model_scores_like_pytorch(run, dataset, small, tmp_path) -> None:
    path = export(run, tmp_path / "tiny", "CC0", "").path
    from training.checkpoint import load_network

    theirs = score_exported(OnnxModel(path), dataset, with_conditions=True, rows=5, steps=50)
    ours = score_dataset(load_network(run)[0], dataset, with_conditions=True)
    assert np.allclose(ours.nats, theirs.nats, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 3, "hidden": 20, "head": 12},
        {"memory": 9, "offers": 9},  # far fewer slots than tokens are composed
        {"memory": 300, "pointers": 1, "offers": 2},  # more of them
        {"pointers": 3, "key": 5, "read": 4},
    ],
)
def test_graphs_of_other_shapes(sizes, small, tmp_path) -> None:
    network = restless_network(replace(small, **sizes))
    path = build(network, tmp_path)
    assert check_parity(network, path.read_bytes()).max_error < 1e-4


def restless_network(config: ModelConfig) -> Network:
    """Return a network that listens to its memory and to what it is told more than a fresh one does."""
    torch.manual_seed(0)
    network = Network(config).eval()
    with torch.no_grad():
        network.nothing.bias.fill_(0.0)
        for embedding in (network.notes_left_embedding, network.bars_left_embedding):
            embedding.weight.mul_(10.0)
        for layer in (
            network.profile_input,
            network.profile_kernel,
            network.key_input,
            network.key_kernel,
            network.head_contexts,
        ):
            for parameter in layer.parameters():  # these begin as zeros
                torch.nn.init.normal_(parameter, std=0.3)
    return network


def build(network: Network, folder: Path) -> Path:
    """Write the graph of a network into a folder."""
    metadata = exporting.describe(network, _content(), None, "", "")
    path = folder / "model.onnx"
    onnx.save(build_graph(network, {"nocturne": json.dumps(metadata)}), path)
    return path


ROWS, STEPS, BAR, METRE = 6, 96, 72, time_signature_index(TimeSignature(0, 3, 4))


def composed(model: OnnxModel, chunk: Chunk, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and probabilities of a long chunk, run in pieces of the given sizes, the last one again and again."""
    state, results, start = model.initial_state(np.zeros(len(chunk.forced), np.int32)), [], 0
    while start < chunk.forced.shape[1]:
        part = slice(start, start + sizes[min(len(results), len(sizes) - 1)])
        arrays = {name: getattr(chunk, name)[:, part] for name in ("forced", "uniforms", "metre")}
        tokens, probabilities = model.run(replace(chunk, **arrays), state)
        results.append((tokens, probabilities))
        start = part.stop
    return tuple(np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True))


def free_chunk(model: OnnxModel, left: tuple[int, int], steps: int = STEPS) -> Chunk:
    """Return the inputs of a waltz, composed freely but playably."""
    shape, rng = (ROWS, steps, len(FIELDS)), np.random.default_rng(1)
    metre = np.broadcast_to(np.array([METRE, BAR, 0], np.int32), (*shape[:2], 3))
    conditions = np.zeros((ROWS, len(model.conditions)), np.int32)
    told = np.tile(np.array([left], np.int32), (ROWS, 1))
    chunk = Chunk.unbiased(np.full(shape, -1, np.int32), rng.random(shape, np.float32), metre, conditions, told)
    return replace(chunk, rules=np.ones((ROWS, 1), np.float32))


@pytest.mark.parametrize("memory", [40, 9])
def test_the_chunks_size_has_no_effect_on_what_is_composed(memory, small, tmp_path) -> None:
    model = OnnxModel(build(restless_network(replace(small, memory=memory)), tmp_path))
    chunk = free_chunk(model, (60, 20 * BAR))
    tokens, probabilities = composed(model, chunk, [16])
    for sizes in ([1], [5], [STEPS], [3, 50, 16]):
        others, theirs = composed(model, chunk, sizes)
        assert tokens.tobytes() == others.tobytes()
        assert probabilities.tobytes() == theirs.tobytes()
    assert len({row.tobytes() for row in tokens}) == ROWS


def test_what_is_left_counts_only_where_it_is_told(small, tmp_path) -> None:
    model = OnnxModel(build(restless_network(small), tmp_path))
    own = replace(free_chunk(model, (-1, -1)), rules=np.zeros((ROWS, 1), np.float32))
    untold = composed(model, own, [16])[1]
    for left in ((60, -1), (-1, 20 * BAR)):
        told = np.tile(np.array([left, (-1, -1)], np.int32), (ROWS // 2, 1))
        probabilities = composed(model, replace(own, left=told), [16])[1]
        assert np.array_equal(probabilities[1::2], untold[1::2])
        assert not (probabilities[::2] == untold[::2]).all(axis=(1, 2)).any()


def test_offers_that_do_not_count_are_as_pointing_at_nothing(small, tmp_path) -> None:
    network = restless_network(small)
    chunk = free_chunk(model := OnnxModel(build(network, tmp_path)), (-1, -1))
    with_memory = composed(model, chunk, [16])[1]
    without = composed(model, replace(chunk, copying=np.zeros((ROWS, 1), np.float32)), [16])
    with torch.no_grad():
        network.nothing.bias.fill_(1000.0)
    nothing = composed(OnnxModel(build(network, tmp_path)), chunk, [16])
    assert np.array_equal(without[0], nothing[0])
    assert np.allclose(without[1], nothing[1], atol=1e-5)
    unheard = composed(OnnxModel(build(restless_network(small), tmp_path)), replace(chunk, lag_bias=chunk.lag_bias - 1e3), [16])
    assert np.array_equal(unheard[0], nothing[0])
    assert np.allclose(unheard[1], nothing[1], atol=1e-5)
    assert not np.allclose(without[1], with_memory, atol=1e-2)


def pitches_after(model: OnnxModel, min_p: float, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return the pitches that rows draw after a figure of three notes again and again, and their probabilities."""
    chunk = free_chunk(model, (-1, -1), 40)
    figure = [NoteToken(12, 1, 40 + 4 * (i % 3), 12, 15, 73) for i in range(40)]
    forced = np.tile(np.array(figure, np.int32), (rows, 1, 1))
    forced[:, -1, FIELDS.index("pitch") :] = -1
    inputs = {name: np.repeat(value[:1], rows, axis=0) for name, value in vars(chunk).items() if name != "biases"}
    inputs["biases"] = {name: np.repeat(bias[:1], rows, axis=0) for name, bias in chunk.biases.items()}
    uniforms = np.random.default_rng(2).random((rows, 40, len(FIELDS)), np.float32)
    inputs |= {"forced": forced, "uniforms": uniforms, "min_p": np.full((rows, len(FIELDS)), min_p, np.float32)}
    drawn, probabilities = composed(model, Chunk(**inputs), [16])
    return drawn[:, -1, FIELDS.index("pitch")], probabilities[:, -1, FIELDS.index("pitch")]


def test_min_p_leaves_a_way_out_of_a_repetition(small, tmp_path) -> None:
    network = restless_network(small)
    with torch.no_grad():
        network.nothing.bias.fill_(-10.0)
        heads = (network.outputs["pitch"], network.relative_outputs["pitch"], network.copy_scales["pitch"])
        for layer in (*heads, network.profile_kernel, network.key_kernel):
            layer.weight.zero_()
            layer.bias.zero_()
        network.copy_scales["pitch"].bias.fill_(1.0)  # twice, by both pointers: exp(4) times as likely
    model = OnnxModel(build(network, tmp_path))
    pitches, probabilities = pitches_after(model, 0.5)
    # What nobody offers is all alike; of what is offered, some value is far likelier, and does not rule out the rest.
    assert probabilities.max() > 10 * probabilities.min()
    assert len(set(pitches.tolist())) > 20
    assert len(set(pitches_after(model, 1.0)[0].tolist())) == 1, "min-p 1 is greedy, copies or not"


def test_a_piece_ends_at_the_barline_that_is_told(dataset, small, tmp_path) -> None:
    model = OnnxModel(build(restless_network(small), tmp_path))
    melody = dataset.pieces[0].tokens[:20]
    for bars in (5, 8):
        chunk = free_chunk(model, (-1, bars * BAR), 300)
        chunk.forced[:, : len(melody)] = melody
        assert melody[:, 0].sum() < bars * BAR
        for row in composed(model, chunk, [16])[0]:
            assert (row[: len(melody)] == melody).all()
            times = row[:, 0].cumsum()
            ends = (row[:, 1] == CONTROL) & (row[:, 2] == Control.END)
            last = int(ends.argmax())
            assert ends[last]
            assert times[last] == bars * BAR
            assert (times[:last] < bars * BAR).all()
            assert last > len(melody)


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
        OnnxModel(tmp_path / "other.onnx")


def test_broken_and_missing_models_are_refused(tmp_path) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x12")
    with pytest.raises(ModelMismatch, match=r"cut\.onnx cannot be loaded as a model: "):
        OnnxModel(tmp_path / "cut.onnx")
    with pytest.raises(ModelMismatch, match=r"missing\.onnx cannot be read: No such file or directory"):
        OnnxModel(tmp_path / "missing.onnx")
