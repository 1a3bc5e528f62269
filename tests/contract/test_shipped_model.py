"""The models in exported/: their metadata, their graph's names and shapes, and the card that speaks of them."""

import hashlib
from pathlib import Path

import onnxruntime
import pytest

from service.engine.model import OnnxModel
from service.music.representation import FIELDS, REPRESENTATION_VERSION, TIME_SIGNATURES, VOCABULARY

FOLDER = Path(__file__).parents[2] / "exported"
MODELS = sorted(FOLDER.glob("*.onnx"))
CARD = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_model_ships() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
class TestModel:
    def test_metadata(self, path: Path) -> None:
        metadata = OnnxModel(path, "cpu").info.metadata
        assert metadata["representation_version"] == REPRESENTATION_VERSION
        assert metadata["fields"] == list(FIELDS)
        assert metadata["vocabulary"] == VOCABULARY._asdict()
        assert metadata["conditions"]["metre"] == list(TIME_SIGNATURES)
        assert metadata["licence"] == "CC BY-SA 4.0"
        for name in ("Bernd Krueger", "Fryderyk Chopin Institute", "Mutopia"):
            assert name in metadata["attribution"]
        assert metadata["parity"]["max_error_nats"] < 1e-3
        assert len(metadata["commit"]) >= 12
        assert "dirty" not in metadata["commit"]

    def test_clearly_better_than_the_baseline(self, path: Path) -> None:
        evaluation = OnnxModel(path, "cpu").info.metadata["evaluation"]
        assert evaluation["nats_per_note"] < 0.95 * evaluation["baselines"]["order5"]

    def test_card_speaks_of_this_very_file(self, path: Path) -> None:
        metadata = OnnxModel(path, "cpu").info.metadata
        assert hashlib.sha256(path.read_bytes()).hexdigest() in CARD
        for figure in (metadata["evaluation"]["nats_per_note"], *metadata["evaluation"]["baselines"].values()):
            assert f"{figure:.3f}" in CARD
        assert metadata["attribution"] in CARD
        assert metadata["commit"] in CARD

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
            assert outputs[f"next_{name}"] == shape

    def test_no_weights_outside_the_file(self, path: Path) -> None:
        assert not list(FOLDER.glob("*.data"))
        assert path.stat().st_size < 60e6
