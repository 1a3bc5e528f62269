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

from service.engine.devices import cuda_devices
from service.engine.model import OnnxModel
from service.engine.process import Engine, start_engine
from service.engine.sampling import SamplingParams, Sequence
from service.engine.scheduler import Scheduler
from service.errors import EngineFailed, EngineOverloaded, GenerationTimeout, ModelMismatch
from service.music.piece import NOTE, records
from service.music.representation import CONTROL, Control, count_notes, decode_tokens, encode_notes
from tests.composing import compose_all
from tests.e2e.conftest import wait_until
from training.report.failures import longest_repetition, widest_stretch

MODELS = sorted((Path(__file__).parents[2] / "exported").glob("*.onnx"))  # int8 and float32
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


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def model(path: Path) -> OnnxModel:
    return OnnxModel(path)


@pytest.fixture(scope="module")
def engine(path: Path):
    engine = start_engine(path, cores=2, slots=4, max_waiting=64, provider="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone(model: OnnxModel) -> tuple[list[Sequence], list[bytes]]:
    """200 random requests, and what each gets where there is nothing else."""
    sequences = random_sequences(200)
    return sequences, [tokens.tobytes() for tokens in compose_all(model, sequences, slots=1, chunk=16)]


class TestTheSameNotesInEveryCompany:
    def test_among_64_others(self, model: OnnxModel, alone) -> None:
        sequences, expected = alone
        assert [tokens.tobytes() for tokens in compose_all(model, sequences, slots=65, chunk=16)] == expected

    def test_in_other_slots(self, model: OnnxModel, alone) -> None:
        sequences, expected = alone
        found = compose_all(model, sequences[::-1], slots=13, chunk=16)
        assert [tokens.tobytes() for tokens in found[::-1]] == expected

    def test_after_neighbours_were_cancelled(self, model: OnnxModel, alone) -> None:
        sequences, expected = alone
        scheduler = Scheduler(model, 16, 16, 400)
        for id, sequence in enumerate(sequences):
            scheduler.add(id, sequence, float("inf"))
            scheduler.add(1000 + id, replace(sequence, random_seed=id, length=400), float("inf"))
        results: dict[int, bytes] = {}
        doomed = 1000
        while len(results) < len(sequences):
            results |= {outcome.id: outcome.result.tokens.tobytes() for outcome in scheduler.step(0.0) if outcome.id < 1000}
            for _ in range(3):  # whatever these are doing: waiting, running for a while, or over
                scheduler.cancel(doomed)
                doomed = 1000 + (doomed + 7) % 200
        assert [results[id] for id in range(len(sequences))] == expected

    @pytest.mark.parametrize("chunk", [1, 5])
    def test_in_chunks_of_other_sizes(self, model: OnnxModel, alone, chunk: int) -> None:
        sequences, expected = (part[:60] for part in alone)
        assert [tokens.tobytes() for tokens in compose_all(model, sequences, slots=40, chunk=chunk)] == expected

    def test_with_two_threads_in_each_operator(self, path: Path, alone) -> None:
        sequences, expected = alone
        assert [tokens.tobytes() for tokens in compose_all(OnnxModel(path, threads=2), sequences, slots=40, chunk=16)] == expected

    def test_with_two_schedulers_in_a_process_of_their_own(self, engine: Engine, alone) -> None:
        sequences, expected = (part[:72] for part in alone)
        futures = [engine.submit(sequence) for sequence in sequences]
        assert [future.result().tokens.tobytes() for future in futures] == expected


def test_a_row_alone_has_the_very_state_it_has_in_a_batch(model: OnnxModel) -> None:
    sequences = random_sequences(3)
    states = []
    for company in (sequences[:1], sequences):
        scheduler = Scheduler(model, 3, 16, 3)
        for id, sequence in enumerate(company):
            scheduler.add(id, replace(sequence, length=1000, end_time=-1), float("inf"))
        for _ in range(4):
            scheduler.step(0.0)
        states.append({name: array[0] for name, array in scheduler._batch.state.items()})
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), name


def test_forced_notes_then_free_equals_one_piece(model: OnnxModel) -> None:
    whole = Sequence(5, 40)
    tokens = compose_all(model, [whole], 1, 16)[0]
    cut = 17
    # Random numbers are drawn for forced tokens, too: what follows is what followed.
    rest = compose_all(model, [Sequence(5, 40 - count_notes(tokens[:cut]), tokens[:cut])], 1, 16)[0]
    assert (rest == tokens[cut:]).all()


def test_greedy_does_not_depend_on_the_seed(model: OnnxModel) -> None:
    greedy = SamplingParams(temperature=0)
    a, b = compose_all(model, [Sequence(seed, 50, MELODY, greedy) for seed in (1, 2)], 2, 16)
    assert (a == b).all()


def test_composed_notes_are_playable(model: OnnxModel) -> None:
    for tokens in compose_all(model, [Sequence(seed, 200) for seed in range(20)], 20, 16):
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
    for tokens, end in zip(compose_all(model, asked, 20, 16), ends, strict=True):
        assert 24 + tokens[:, 0].sum() < end
        assert count_notes(tokens) < 4000, "it went on although its barline had come"


def test_it_is_music_and_not_one_note(model: OnnxModel) -> None:
    # With the conditions that the service gives where a request says nothing.
    known, asked = model.info.metadata["conditions"], model.info.metadata["defaults"]
    defaults = {"metre": known["metre"].index(asked["time_signature"]), "rendition": known["rendition"].index(asked["rendition"])}
    pieces = compose_all(model, [Sequence(seed, 200, conditions=defaults) for seed in range(20)], 20, 16)
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
    sequences = random_sequences(50, most=200)
    expected = [future.result().tokens for future in [engine.submit(sequence) for sequence in sequences]]
    restarts, pid, notes = engine.restarts, engine.pid, engine.load.notes
    futures = [engine.submit(sequence) for sequence in sequences]
    wait(futures, return_when="FIRST_COMPLETED")
    os.kill(pid, signal.SIGKILL)
    for future, tokens in zip(futures, expected, strict=True):
        assert future.result().tokens.tobytes() == tokens.tobytes()
    assert engine.restarts == restarts + 1
    assert engine.pid != pid
    assert engine.ready
    assert engine.load.notes > notes  # what was composed before is not forgotten


def test_load_says_what_runs_and_what_waits(engine: Engine) -> None:
    before, cancelled = engine.load.chunks, engine.cancelled
    futures = [engine.submit(Sequence(seed, 4000)) for seed in range(20)]
    assert wait_until(lambda: (engine.load.running, engine.load.waiting) == (8, 12))
    assert engine.pending == 20
    for future in futures:
        engine.cancel(future)
    assert wait_until(lambda: (engine.load.running, engine.load.waiting) == (0, 0))
    assert engine.pending == 0
    assert engine.cancelled == cancelled + 20
    assert engine.load.chunks > before


def test_closing_answers_everyone_and_leaves_no_process(path: Path) -> None:
    engine = start_engine(path, provider="cpu")
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
    cut.write_bytes(MODELS[0].read_bytes()[:1000])
    with pytest.raises(ModelMismatch, match=r"cut\.onnx cannot be loaded as a model"):
        start_engine(cut)


def test_cuda_where_there_is_none_fails_the_start() -> None:
    if cuda_devices():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ModelMismatch, match="no CUDA device"):
        start_engine(MODELS[-1], provider="cuda")
