"""The engine's own process, and the client of it that the web side holds.

The only owner of threads and pipes. `Engine.submit` returns a future; the process runs `service.engine.worker`. If the process
dies, the client starts another and hands it everything that was not answered: what a sequence gets follows from the sequence
alone, so nobody can tell but by the wait.
"""

import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from service.engine.interface import Load, ModelInfo
from service.engine.sampling import Composition, SamplingParams, Sequence
from service.engine.wire import Message, pack, unpack
from service.errors import EngineFailed, EngineOverloaded, GenerationTimeout, ModelMismatch

log = logging.getLogger(__name__)

Outbox = SimpleQueue[Message | None]
MAX_FAILED_STARTS = 10  # of a process in a row, after which it is not to be expected any more
MAX_TRIES = 3  # of one sequence: an engine that dies that often under it is not killed by chance
_RESTART_PAUSE_S = 0.2
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class EngineConfig:
    """How an engine's process is started.

    Attributes
    ----------
    models : tuple of Path
        The .onnx files, of the model that composes unless another is asked for first.
    cores : int
        Batches that are composed at the same time, each by a thread of its own; 1 on a GPU.
    slots : int
        Sequences of one model side by side in each.
    chunk : int
        Tokens of each between two looks at the queue.
    max_waiting : int
        Sequences that wait at most, beyond those that run.
    provider : str
        "auto", "cpu" or "cuda".
    """

    models: tuple[Path, ...]
    cores: int = 1
    slots: int = 32
    chunk: int = 16
    max_waiting: int = 256
    provider: str = "auto"


@dataclass
class _Pending:
    """A submitted sequence without an answer."""

    sequence: Sequence
    deadline: float  # on time.monotonic()
    future: "Future[Composition]"
    tries: int = 1  # engines it was handed to


class Engine:
    """Client of an engine's process.

    Parameters
    ----------
    config : EngineConfig

    Raises
    ------
    ModelMismatch
        If the model cannot be run.
    EngineFailed
        If the process does not start.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._lock = threading.Lock()  # guards everything below
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count()
        self._closing = False
        self._ready = False
        self._load = self._load_before = Load()  # the second: of processes that ended
        self._failed_starts = 0  # in a row
        self.restarts = self.cancelled = 0
        self._process, self._connection = _spawn(config)
        self._outbox: Outbox = SimpleQueue()  # to the process; None ends its sender
        self.models = self._await_ready()
        self._open()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()

    @property
    def ready(self) -> bool:
        """Whether the process takes sequences right now; False while it is started again."""
        return self._ready

    @property
    def alive(self) -> bool:
        """Whether the process runs, or can be expected to run again."""
        return self._failed_starts < MAX_FAILED_STARTS

    @property
    def info(self) -> ModelInfo:
        """The model that composes unless another is asked for; the first of `models`."""
        return self.models[0]

    @property
    def slots(self) -> int:
        """Sequences of one model that can be composed at the same time."""
        return self._config.cores * self._config.slots

    @property
    def max_waiting(self) -> int:
        """Sequences that can wait beside them."""
        return self._config.max_waiting

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def load(self) -> Load:
        """What the process was doing when it said so last; its sums include those of processes before it."""
        return self._load.after(self._load_before)

    @property
    def pending(self) -> int:
        """Sequences that have no answer yet."""
        return len(self._pending)

    def submit(self, sequence: Sequence, deadline: float | None = None) -> "Future[Composition]":
        """Hand a sequence over.

        Parameters
        ----------
        sequence : Sequence
        deadline : float, optional
            On `time.monotonic()`. After it the future raises GenerationTimeout.

        Returns
        -------
        Future of Composition
            Raises GenerationTimeout, or EngineFailed if the engine died again and again under this sequence.

        Raises
        ------
        EngineOverloaded
            At once, if as many sequences as the queue holds are waiting.
        EngineFailed
            If the engine is closed.
        """
        future: Future[Composition] = Future()
        with self._lock:
            if self._closing:
                raise EngineFailed("the engine is closed")
            if len(self._pending) >= self.slots + self.max_waiting:
                raise EngineOverloaded(f"{len(self._pending)} requests are being served or waiting already")
            id = next(self._ids)
            pending = _Pending(sequence, float("inf") if deadline is None else deadline, future)
            self._pending[id] = pending
            future.nocturne_id = id  # type: ignore[attr-defined]
            if self._ready:  # else it goes out with all the others once the process is there again
                self._outbox.put(_sequence_message(id, pending))
        return future

    def cancel(self, future: "Future[Composition]") -> None:
        """Give a submitted sequence up; its row in the batch is free at the next chunk. No error if it has ended."""
        with self._lock:
            pending = self._pending.pop(future.nocturne_id, None)  # type: ignore[attr-defined]
            if pending is not None:
                self.cancelled += 1
                if self._ready:
                    self._outbox.put({"kind": "cancel", "id": future.nocturne_id})  # type: ignore[attr-defined]
        future.cancel()

    def close(self) -> None:
        """End the process; what has no answer yet raises EngineFailed."""
        with self._lock:
            self._closing, self._ready = True, False
            pending, self._pending = list(self._pending.values()), {}
            self._outbox.put(None)
        self._process.terminate()
        self._process.wait()
        self._reader.join()  # the process's end of the socket is closed: it has nothing more to read
        self._connection.close()
        for entry in pending:
            _settle(entry.future, EngineFailed("the engine was closed"))

    def _open(self) -> None:
        """Send to a process that is ready, from now on, and first of all what has no answer yet."""
        lost = []
        with self._lock:
            self._outbox = SimpleQueue()
            for id, pending in list(self._pending.items()):
                pending.tries += 1
                if pending.tries > MAX_TRIES:
                    lost.append(self._pending.pop(id))
                else:
                    self._outbox.put(_sequence_message(id, pending))
            # A thread of its own, since sending can block until the process reads: whoever holds the lock, or reads its
            # answers, must never wait for that.
            threading.Thread(target=_send_all, args=(self._outbox, self._connection), name="engine-sender", daemon=True).start()
            self._ready = True
        for pending in lost:
            _settle(pending.future, EngineFailed(f"the engine died {MAX_TRIES} times while it composed this piece"))

    def _await_ready(self) -> tuple[ModelInfo, ...]:
        if not self._connection.poll(_START_TIMEOUT_S):
            self._process.kill()
            raise EngineFailed(f"the engine was not ready within {_START_TIMEOUT_S:g} s")
        try:
            message = unpack(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise EngineFailed(f"the engine ended with exit code {self._process.wait()} before it was ready") from error
        if message["kind"] == "failed":
            self._process.wait()
            raise ModelMismatch(message["error"])
        return tuple(ModelInfo(**model) for model in message["models"])

    def _check_same(self, found: tuple[ModelInfo, ...]) -> None:
        """Raise ModelMismatch if a file has changed since the start: under one name there must not be two models."""
        for before, now in zip(self.models, found, strict=True):
            if before.sha256 != now.sha256:
                raise ModelMismatch(f"the file of {now.name} has changed since the start; SIGHUP takes the new one")

    def _read(self) -> None:
        while True:
            try:
                message = unpack(self._connection.recv_bytes())
            except (EOFError, OSError):
                if self._closing:
                    return
                self._restart()
                continue
            if message["kind"] == "load":
                self._load = Load(**{field.name: message[field.name] for field in fields(Load)})
                continue
            with self._lock:
                pending = self._pending.pop(message["id"], None)
            if pending is not None:
                _settle(pending.future, _result(message))

    def _restart(self) -> None:
        with self._lock:
            self._ready = False
            self._outbox.put(None)
            self._load_before, self._load = self.load, Load()
        log.error("the engine ended with exit code %s; starting it again", self._process.wait())
        while not self._closing:
            time.sleep(_RESTART_PAUSE_S)
            process, connection = _spawn(self._config)
            with self._lock:
                if self._closing:
                    process.terminate()
                    return
                self._connection.close()
                self._process, self._connection = process, connection
            try:
                self._check_same(self._await_ready())
            except (EngineFailed, ModelMismatch) as error:
                log.error("the engine cannot be started: %s", error)
                process.kill()
                process.wait()
                self._failed_starts += 1
                continue
            self.restarts, self._failed_starts = self.restarts + 1, 0
            self._open()
            return


def start_engine(*models: Path, **config: Any) -> Engine:
    """Start an engine's process and wait until it is ready; the parameters are those of `EngineConfig`."""
    return Engine(EngineConfig(models, **config))


def _spawn(config: EngineConfig) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Start the process with one end of a socket pair; a fresh interpreter, never a fork of one with threads."""
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(config).items() if name != "models"]
    arguments += map(str, config.models)
    with theirs:
        command = [sys.executable, "-m", "service.engine.worker", f"--fd={theirs.fileno()}", *arguments]
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    return process, Connection(ours.detach())


def _send_all(outbox: Outbox, connection: Connection) -> None:
    while (message := outbox.get()) is not None:
        try:
            connection.send_bytes(pack(message))
        except OSError:  # the process is gone; the reader sees it too, and everything is sent again to the next one
            return


def _settle(future: "Future[Composition]", result: Composition | Exception) -> None:
    try:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:  # cancelled in the meantime
        pass


def _sequence_message(id: int, pending: _Pending) -> Message:
    sequence = pending.sequence
    # Deadlines travel as what is left of them: another process need not share our clock.
    left = pending.deadline - time.monotonic()
    return {
        "kind": "sequence",
        "id": id,
        "left_s": None if left == float("inf") else left,
        "random_seed": sequence.random_seed,
        "length": sequence.length,
        "forced": sequence.forced,
        "params": asdict(sequence.params),
        "conditions": sequence.conditions,
        "bar_ticks": sequence.bar_ticks,
        "bar_offset": sequence.bar_offset,
        "tell_length": sequence.tell_length,
        "end_time": sequence.end_time,
        "model": sequence.model,
    }


def read_sequence(message: Mapping[str, Any]) -> Sequence:
    """Return the sequence in a message of kind "sequence"."""
    names = ("random_seed", "length", "forced", "conditions", "bar_ticks", "bar_offset", "tell_length", "end_time", "model")
    return Sequence(**{name: message[name] for name in names}, params=SamplingParams(**message["params"]))


_ERRORS = {"timeout": GenerationTimeout, "overloaded": EngineOverloaded, "failed": EngineFailed}


def _result(message: Message) -> Composition | Exception:
    if message["kind"] == "composition":
        return Composition(**{field.name: message[field.name] for field in fields(Composition)})
    return _ERRORS[message["error"]](message["detail"])
