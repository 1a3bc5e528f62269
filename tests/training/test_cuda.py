"""The way of running on a GPU: on the CPU with the same code, and, where there is a device, beside the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine.cuda import CudaModel
from service.engine.devices import cuda_devices
from service.engine.interface import Chunk
from service.engine.load import load_model
from service.engine.model import OnnxModel
from service.engine.sampling import SamplingParams, Sequence
from service.errors import ModelMismatch
from service.music.representation import FIELDS, TokenArray
from tests.composing import compose_all
from tests.training.test_export import build, restless_network

EXPORTED = Path(__file__).parents[2] / "exported"
LOGIT_GAP = 1e-3  # nats between two values, below which it is rounding that decides


@pytest.mark.parametrize(("slots", "chunk"), [(5, 4), (3, 13)])
def test_the_unrolled_graph_composes_what_the_loop_does(small, tmp_path, slots, chunk) -> None:
    path = build(restless_network(replace(small, memory=24)), tmp_path)
    ends = [-1, 300, -1]
    sequences = [
        Sequence(seed, 10 + 7 * seed, bar_offset=24 * (seed % 2), end_time=ends[seed % 3], tell_length=seed % 2 == 0)
        for seed in range(11)
    ]
    expected = compose_all(OnnxModel(path), sequences, slots, chunk)
    model = CudaModel(path, slots, chunk, device="cpu")
    found = compose_all(model, sequences, slots, chunk)
    assert model.info.metadata == OnnxModel(path).info.metadata
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_batch_has_one_size_and_int8_is_for_the_cpu(small, tmp_path) -> None:
    model = CudaModel(build(restless_network(small), tmp_path), 4, 2, device="cpu")
    with pytest.raises(ValueError, match="4 slots, not 5"):
        model.rows(5)
    with pytest.raises(ModelMismatch, match=r"nocturne\.int8\.onnx is in int8, which runs on the CPU only"):
        CudaModel(EXPORTED / "nocturne.int8.onnx", 4, 2, device="cpu")
    with pytest.raises(ModelMismatch, match="cannot be read: No such file"):
        CudaModel(tmp_path / "none.onnx", 4, 2, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_cuda_composes_what_the_cpu_does() -> None:
    """Greedy, 500 notes: the same tokens, or a first difference where two values were as likely but for rounding."""
    path = EXPORTED / "nocturne.onnx"
    asked = [Sequence(0, 500, params=SamplingParams(temperature=0), conditions={"metre": metre}) for metre in range(1, 5)]
    on_cpu = compose_all(OnnxModel(path), asked, 8, 16)
    on_gpu = compose_all(load_model(path, "cuda", 8, 16), asked, 8, 16)
    for sequence, ours, theirs in zip(asked, on_gpu, on_cpu, strict=True):
        steps = min(len(ours), len(theirs))
        differ = np.argwhere(ours[:steps] != theirs[:steps])
        if len(differ):
            step, field = differ[0]
            assert nats(OnnxModel(path), sequence, theirs, step, field, theirs[step, field]) == pytest.approx(
                nats(OnnxModel(path), sequence, theirs, step, field, ours[step, field]), abs=LOGIT_GAP
            )


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_cuda_composes_the_same_in_every_company() -> None:
    model = load_model(EXPORTED / "nocturne.onnx", "cuda", 16, 16)
    sequences = [Sequence(seed, 20 + 5 * seed) for seed in range(40)]
    crowd = compose_all(model, sequences, 16, 16)
    for sequence, expected in list(zip(sequences, crowd, strict=True))[::7]:
        assert compose_all(model, [sequence], 16, 16)[0].tobytes() == expected.tobytes()


def nats(model: OnnxModel, sequence: Sequence, tokens: TokenArray, step: int, field: int, value: int) -> float:
    """Return what a value of one field of one token costs after the tokens before it, as the request has its distributions."""
    forced = tokens[None, : step + 1].copy()
    forced[0, step, field] = value
    metre = np.array([sequence.conditions["metre"], sequence.bar_ticks, sequence.bar_offset], np.int32)
    conditions = np.zeros((1, len(model.conditions)), np.int32)
    chunk = Chunk.unbiased(forced, np.zeros(forced.shape, np.float32), np.tile(metre, (1, step + 1, 1)), conditions)
    chunk = replace(
        chunk, copying=np.full((1, 1), sequence.params.copying, np.float32), lag_bias=sequence.params.lag_bias()[None]
    )
    _, probabilities = model.run(chunk, model.initial_state(np.zeros(1, np.int32)))
    assert probabilities.shape[-1] == len(FIELDS)
    return float(-np.log(probabilities[0, step, field]))
