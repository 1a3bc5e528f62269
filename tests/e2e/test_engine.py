"""The engine with the shipped model: playable notes, the same ones in every company, and through the death of its process."""

import os
import signal
import time
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from service.engine.model import OnnxModel
from service.engine.process import Engine, start_engine
from service.engine.sampling import SamplingParams, Sequence
from service.engine.scheduler import Scheduler
from service.errors import EngineFailed, EngineOverloaded, GenerationTimeout, ModelMismatch
from service.music.piece import NOTE, records
from service.music.representation import CONTROL, Control, count_notes, decode_tokens, encode_notes
from training.report.failures import longest_repetition, widest_stretch

MODEL = next(iter(sorted((Path(__file__).parents[2] / "exported").glob("*.onnx"))))
MELODY = encode_notes(records(NOTE, [(12 * i, 60 + step, 12, 70, 1) for i, step in enumerate((0, 2, 4, 5, 7, 5, 4, 2))]))


def random_sequences(count: int, most: int = 60) -> list[Sequence]:
    rng = np.random.default_rng(1)
    return [
        Sequence(
            int(rng.integers(2**40)),
            int(rng.integers(1, most)),
            MELODY[: int(rng.integers(0, 9))],
            SamplingParams(float(rng.choice([0.0, 0.7, 1.0, 1.3])), float(rng.choice([0.0, 0.05, 0.3]))),
            {"metre": int(rng.integers(1, 5)), "composer": int(rng.integers(0, 5)), "key": int(rng.integers(0, 25))},
            bar_ticks=int(rng.choice([96, 72, 48])),
            tell_length=bool(rng.integers(2)),
            end_time=int(rng.choice([-1, 288, 1440])),
        )
        for _ in range(count)
    ]


def run_all(model: OnnxModel, sequences: list[Sequence], slots: int, chunk: int) -> list[np.ndarray]:
    scheduler = Scheduler(model, slots, chunk, len(sequences))
    for id, sequence in enumerate(sequences):
        scheduler.add(id, sequence, float("inf"))
    results = {}
    while scheduler.running or scheduler.waiting:
        results |= {outcome.id: outcome.result.tokens for outcome in scheduler.step(0.0)}
    return [results[id] for id in range(len(sequences))]


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return OnnxModel(MODEL, "cpu")


@pytest.fixture(scope="module")
def engine():
    engine = start_engine(MODEL, slots=8, max_waiting=64, provider="cpu")
    yield engine
    engine.close()


def test_the_same_notes_in_every_company(model: OnnxModel) -> None:
    sequences = random_sequences(40)
    expected = run_all(model, sequences, slots=1, chunk=16)
    for slots, chunk in ((40, 16), (7, 16), (13, 1), (40, 5)):
        for ours, theirs in zip(expected, run_all(model, sequences, slots, chunk), strict=True):
            assert ours.tobytes() == theirs.tobytes()
    with_threads = run_all(OnnxModel(MODEL, "cpu", threads=2), sequences, slots=40, chunk=16)
    assert all(ours.tobytes() == theirs.tobytes() for ours, theirs in zip(expected, with_threads, strict=True))


def test_a_row_alone_has_the_very_state_it_has_in_a_batch(model: OnnxModel) -> None:
    sequences = random_sequences(3)
    states = []
    for company in (sequences[:1], sequences):
        scheduler = Scheduler(model, 3, 16, 3)
        for id, sequence in enumerate(company):
            scheduler.add(id, replace(sequence, length=1000, end_time=-1), float("inf"))
        for _ in range(4):
            scheduler.step(0.0)
        states.append({name: array[0] for name, array in scheduler._state.items()})
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), name


def test_forced_notes_then_free_equals_one_piece(model: OnnxModel) -> None:
    whole = Sequence(5, 40)
    tokens = run_all(model, [whole], 1, 16)[0]
    cut = 17
    # Random numbers are drawn for forced tokens, too: what follows is what followed.
    rest = run_all(model, [Sequence(5, 40 - count_notes(tokens[:cut]), tokens[:cut])], 1, 16)[0]
    assert (rest == tokens[cut:]).all()


def test_greedy_does_not_depend_on_the_seed(model: OnnxModel) -> None:
    greedy = SamplingParams(temperature=0)
    a, b = run_all(model, [Sequence(seed, 50, MELODY, greedy) for seed in (1, 2)], 2, 16)
    assert (a == b).all()


def test_composed_notes_are_playable(model: OnnxModel) -> None:
    for tokens in run_all(model, [Sequence(seed, 200) for seed in range(20)], 20, 16):
        notes = decode_tokens(tokens).notes
        assert set(notes["hand"].tolist()) <= {1, 2}
        assert longest_repetition(notes) <= 8
        assert widest_stretch(notes) <= 24
        until: dict[int, int] = {}
        for time_, pitch, duration in notes[["time", "pitch", "duration"]].tolist():
            assert until.get(pitch, 0) <= time_, "a key was struck while it was down"
            until[pitch] = time_ + duration
        pedal = tokens[(tokens[:, 1] == CONTROL), 2].tolist()
        assert all(kind in (Control.PEDAL_DOWN, Control.PEDAL_UP) for kind in pedal)
        assert all(a != b for a, b in pairwise(pedal)), "the pedal goes down and up in turn"


def test_a_piece_with_a_last_barline_ends_there_and_not_before(model: OnnxModel) -> None:
    ends = [72 * bars for bars in range(2, 22)]
    asked = [Sequence(seed, 4000, MELODY[:3], bar_ticks=72, end_time=end) for seed, end in enumerate(ends)]
    for tokens, end in zip(run_all(model, asked, 20, 16), ends, strict=True):
        assert 24 + tokens[:, 0].sum() < end
        assert count_notes(tokens) < 4000, "it went on although its barline had come"


def test_it_is_music_and_not_one_note(model: OnnxModel) -> None:
    # With the conditions that the service gives where a request says nothing.
    known, asked = model.info.metadata["conditions"], model.info.metadata["defaults"]
    defaults = {"metre": known["metre"].index(asked["time_signature"]), "rendition": known["rendition"].index(asked["rendition"])}
    pieces = run_all(model, [Sequence(seed, 200, conditions=defaults) for seed in range(20)], 20, 16)
    for tokens in pieces:
        notes = decode_tokens(tokens).notes
        most = Counter(notes["pitch"].tolist()).most_common(1)[0][1]
        assert most < 0.5 * len(notes), "one pitch makes up most of the piece"
        assert len(set(notes["pitch"].tolist())) >= 8
    assert len({tokens.tobytes() for tokens in pieces}) == 20


def test_deadline_cancel_and_overload(engine: Engine) -> None:
    long = Sequence(1, 4000)
    with pytest.raises(GenerationTimeout):
        engine.submit(long, time.monotonic() + 0.05).result()
    futures = [engine.submit(long) for _ in range(8 + 64)]
    with pytest.raises(EngineOverloaded, match="72 requests"):
        engine.submit(long)
    for future in futures:
        engine.cancel(future)
    assert count_notes(engine.submit(Sequence(1, 5)).result().tokens) == 5


def test_killed_engine_composes_the_same_notes(engine: Engine) -> None:
    sequences = random_sequences(30, most=200)
    expected = [engine.submit(sequence).result().tokens for sequence in sequences]
    restarts, pid = engine.restarts, engine.pid
    futures = [engine.submit(sequence) for sequence in sequences]
    wait(futures, return_when="FIRST_COMPLETED")
    os.kill(pid, signal.SIGKILL)
    for future, tokens in zip(futures, expected, strict=True):
        assert future.result().tokens.tobytes() == tokens.tobytes()
    assert engine.restarts == restarts + 1
    assert engine.pid != pid
    assert engine.ready


def test_closing_answers_everyone_and_leaves_no_process() -> None:
    engine = start_engine(MODEL, provider="cpu")
    future = engine.submit(Sequence(1, 4000))
    engine.close()
    with pytest.raises(EngineFailed):
        future.result()
    with pytest.raises(EngineFailed, match="closed"):
        engine.submit(Sequence(1, 1))
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


def test_a_broken_model_fails_the_start_with_a_sentence(tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(MODEL.read_bytes()[:1000])
    with pytest.raises(ModelMismatch, match=r"cut\.onnx cannot be loaded as a model"):
        start_engine(cut)


def test_cuda_where_there_is_none_fails_the_start() -> None:
    from service.engine.model import cuda_devices

    if cuda_devices():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ModelMismatch, match="no CUDA device"):
        start_engine(MODEL, provider="cuda")
