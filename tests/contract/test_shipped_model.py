"""The models in exported/: their metadata, their graph's names and shapes, and the card that speaks of them."""

import hashlib
import json
from pathlib import Path

import onnxruntime
import pytest

from service.engine.model import OnnxModel
from service.music.representation import FIELDS, REPRESENTATION_VERSION, TIME_SIGNATURES, VOCABULARY
from training.checkpoint import load_network
from training.parity import corpus_dataset
from training.report.make import PICTURES, REPORT
from training.report.markdown import report_section
from training.scoring import score_dataset, score_exported

FOLDER = Path(__file__).parents[2] / "exported"
MODELS = sorted(FOLDER.glob("*.onnx"))
CARD = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


def precision_of(path: Path) -> str:
    return "int8" if path.stem.endswith(".int8") else "float32"


def test_a_model_ships_in_both_forms() -> None:
    assert [precision_of(path) for path in MODELS] == ["int8", "float32"]
    ours, theirs = (OnnxModel(path).info.metadata for path in MODELS)
    assert {**ours, "precision": "float32", "parity": theirs["parity"]} == theirs


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
class TestModel:
    def test_metadata(self, path: Path) -> None:
        metadata = OnnxModel(path).info.metadata
        assert metadata["representation_version"] == REPRESENTATION_VERSION
        assert metadata["fields"] == list(FIELDS)
        assert metadata["vocabulary"] == VOCABULARY._asdict()
        assert metadata["conditions"]["metre"] == list(TIME_SIGNATURES)
        assert metadata["licence"] == "CC BY-SA 4.0"
        for name in ("Bernd Krueger", "Fryderyk Chopin Institute", "Mutopia"):
            assert name in metadata["attribution"]
        assert metadata["precision"] == precision_of(path)
        if metadata["precision"] == "int8":
            assert abs(metadata["parity"]["difference"]) < 0.005
        else:
            assert metadata["parity"]["max_error_nats"] < 1e-3
        assert len(metadata["commit"]) >= 12
        assert "dirty" not in metadata["commit"]

    def test_clearly_better_than_every_baseline(self, path: Path) -> None:
        evaluation = OnnxModel(path).info.metadata["evaluation"]
        assert evaluation["nats_per_note"] < 0.55 * evaluation["baselines"]["order5"]
        assert evaluation["nats_per_note"] < 0.8 * min(evaluation["baselines"].values())

    def test_it_is_the_network_that_was_trained(self, path: Path) -> None:
        model, corpus = OnnxModel(path), corpus_dataset()
        expected = model.info.metadata["parity"]["corpus_nats_per_note"]
        tolerance = {"int8": 0.005 * expected, "float32": 1e-4}[precision_of(path)]
        assert score_exported(model, corpus, with_conditions=False).nats_per_note == pytest.approx(expected, abs=tolerance)
        network, _ = load_network(path.with_name(path.stem.removesuffix(".int8") + ".pt"))
        assert score_dataset(network, corpus, with_conditions=False).nats_per_note == pytest.approx(expected, rel=2e-3)

    def test_the_report_is_of_this_file_and_in_the_card(self, path: Path) -> None:
        report = json.loads((FOLDER / "report" / REPORT).read_text())
        if precision_of(path) == "int8":
            path = path.with_name(path.name.replace(".int8", ""))  # the report is of the reference
        assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert report_section(report, "report/").strip() in CARD
        for picture in PICTURES:
            assert f"](report/{picture})" in CARD
            assert (FOLDER / "report" / picture).stat().st_size > 10_000

    def test_card_speaks_of_this_very_file(self, path: Path) -> None:
        metadata = OnnxModel(path).info.metadata
        assert hashlib.sha256(path.read_bytes()).hexdigest() in CARD
        for figure in (metadata["evaluation"]["nats_per_note"], *metadata["evaluation"]["baselines"].values()):
            assert f"{figure:.3f}" in CARD
        assert metadata["attribution"] in CARD
        assert metadata["commit"] in CARD
        if metadata["precision"] == "int8":
            assert f"{metadata['parity']['nats_per_note']:.4f}" in CARD

    def test_names_and_shapes(self, path: Path) -> None:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = {i.name: i.shape for i in session.get_inputs()}
        outputs = {o.name: o.shape for o in session.get_outputs()}
        assert inputs["forced"] == inputs["uniforms"] == ["K", "B", len(FIELDS)]
        for name, size in VOCABULARY._asdict().items():
            assert inputs[f"bias_{name}"] == ["B", size]
        states = {name.removeprefix("state_"): shape for name, shape in inputs.items() if name.startswith("state_")}
        assert states
        for name, shape in states.items():
            assert shape[0] == "B"
            if name in ("keys", "memory"):  # of these a run gives what is to be appended
                assert outputs[f"new_{name}"] == [*shape[:-1], "K"]
            else:
                assert outputs[f"next_{name}"] == shape

    def test_no_weights_outside_the_file(self, path: Path) -> None:
        assert not list(FOLDER.glob("*.data"))
        assert sum(file.stat().st_size for file in FOLDER.glob("nocturne.*")) < 60e6
