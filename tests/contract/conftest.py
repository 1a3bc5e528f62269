"""A fake engine behind the real web side: deterministic notes at once, or the failure that a test asks for."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from service.config import ServiceConfig
from service.engine.interface import Load, ModelInfo
from service.engine.sampling import Composition, Sequence, UniformStream
from service.errors import EngineOverloaded
from service.music.keys import KEY_NAMES
from service.music.representation import Control, NoteToken, tempo_index
from service.web.app import create_app

METADATA = {
    "representation_version": 1,
    "resolution": 24,
    "conditions": {
        "metre": ["other", "4/4", "3/4"],
        "composer": ["unknown", "Bach, Johann Sebastian", "Chopin, Fryderyk", "Schumann, Clara", "Schumann, Robert"],
        "rendition": ["unknown", "score", "performed"],
        "key": ["unknown", *KEY_NAMES],
        "tempo": ["unknown", "60", "90", "120"],
    },
    "defaults": {"time_signature": "3/4", "rendition": "performed"},
    "licence": "CC BY-SA 4.0",
    "attribution": "Music by nobody",
    "nats_per_note": 3.5,
    "commit": "abc1234",
    "training": {"notes": 1000},
}
NOTE_TICKS = 6  # a fake piece with a last barline reaches it, or runs out of notes, at this pace


def compose(sequence: Sequence) -> Composition:
    """Return a pattern that depends on the seed, the parameters and the melody."""
    count, ended = sequence.length, sequence.tell_length
    if sequence.end_time >= 0:
        room = (sequence.end_time - int(sequence.forced[:, 0].sum()) - NOTE_TICKS - 1) // NOTE_TICKS
        count, ended = min(count, room), room < count
    uniforms = UniformStream(sequence.random_seed).draw(count) * min(sequence.params.temperature, 0.999)
    tokens = np.zeros((count + 1, len(NoteToken._fields)), np.int32)
    tokens[0] = NoteToken(NOTE_TICKS, 0, Control.PEDAL_DOWN, 0, 0, 0)
    tokens[1:, 0] = NOTE_TICKS if sequence.end_time >= 0 else (uniforms[:, 0] * 13).astype(np.int32)
    tokens[1:, 1] = 1 + (uniforms[:, 1] > 0.7)
    tokens[1:, 2] = len(Control) + (uniforms[:, 2] * 88).astype(np.int32)
    tokens[1:, 3] = 1 + (uniforms[:, 3] * 48).astype(np.int32)
    tokens[1:, 4] = 10 + len(sequence.forced) % 10
    tokens[1:, 5] = tempo_index(np.array([90.0]))
    return Composition(tokens, ended)


class FakeEngine:
    """Behaves as `service.engine.process.Engine`.

    `failure` is raised by `submit`; `outcome`, an exception, by the future; with `stuck` the future never completes.
    """

    def __init__(self, max_waiting: int = 10) -> None:
        self.models = [ModelInfo("fake", METADATA, "cpu", "0" * 64)]
        self.ready = self.alive = True
        self.load = Load(running=3, waiting=2, chunks=50, steps=800, notes=700, rows=150, seconds=2.5)
        self.slots = 64
        self.pending, self.restarts = 5, 1
        self.failure: Exception | None = None
        self.outcome: Exception | None = None
        self.stuck = False
        self.max_waiting = max_waiting
        self.submitted: list[Sequence] = []
        self.gave_up = threading.Event()

    @property
    def info(self) -> ModelInfo:
        return self.models[0]

    def submit(self, sequence: Sequence, deadline: float | None) -> "Future[Composition]":
        if self.failure:
            raise self.failure
        if self.stuck and len(self.submitted) >= self.max_waiting:
            raise EngineOverloaded("the queue is full")
        self.submitted.append(sequence)
        future: Future[Composition] = Future()
        if self.outcome:
            future.set_exception(self.outcome)
        elif not self.stuck:
            future.set_result(compose(sequence))
        return future

    @property
    def cancelled(self) -> int:
        return int(self.gave_up.is_set())

    def cancel(self, future: "Future[Composition]") -> None:
        future.cancel()
        self.gave_up.set()

    def close(self) -> None:
        pass


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def app(engine):
    return create_app(ServiceConfig(max_body_bytes=20_000, deadline_s=1), engine)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def bare_client():
    """A client of a service whose model says nothing of itself but what every model must."""
    engine = FakeEngine()
    engine.models = [ModelInfo("fake", {"representation_version": 1, "resolution": 24}, "cpu", "0" * 64)]
    return create_app(ServiceConfig(), engine).test_client()
