"""Which sequences run, which wait, and one step of all that run.

Continuous batching: a sequence joins the batch as soon as a row is free and leaves it with its last note, between two chunks.
Several schedulers may share one queue, each with a batch of its own, as one for every core.
Plain data and no surprises: no threads, no clock, no pipes, no onnxruntime. Time comes in as an argument; the model is any
object that can run a chunk. What a sequence gets depends on the sequence alone, never on its neighbours.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import LAGS, Chunk
from service.engine.rows import Rows
from service.engine.sampling import Composition, Sequence, UniformStream, biases, is_end
from service.errors import EngineOverloaded, GenerationTimeout, NocturneError
from service.music.representation import FIELDS, VOCABULARY, TokenArray, is_note


class ChunkModel(Protocol):
    """What the scheduler needs of a model; `OnnxModel` is one."""

    conditions: list[str]

    def rows(self, slots: int) -> Rows:
        """Return a batch with room for so many sequences."""
        ...


class Outcome(NamedTuple):
    """How a sequence ended; `started` is when it was given a row, None if it never was."""

    id: int
    result: Composition | NocturneError
    started: float | None = None


class _Waiting(NamedTuple):
    """A sequence that waits for a row."""

    id: int
    sequence: Sequence
    deadline: float


@dataclass
class _Row:
    """A sequence that runs, and how far it is."""

    id: int
    sequence: Sequence
    deadline: float
    started: float
    stream: UniformStream
    done: int = 0  # tokens so far, the forced ones included
    notes: int = 0  # composed so far
    tokens: list[TokenArray] = field(default_factory=list)


class Scheduler:
    """First come, first served, in chunks.

    A step is `begin` and `compose`: only `begin`, which is short, touches what schedulers of a group share.

    Parameters
    ----------
    model : ChunkModel
    slots : int
        Sequences that run side by side at most.
    chunk : int
        Tokens composed for each of them in one step (K).
    max_waiting : int
        Sequences that wait at most.

    Attributes
    ----------
    chunks : int
        Chunks composed so far.
    notes : int
        Notes composed so far, of sequences that ended or still run.
    rows : int
        Sequences in all those chunks together.
    begun : list of int
        Ids of the sequences whose first note came in the last chunk.
    """

    def __init__(self, model: ChunkModel, slots: int, chunk: int, max_waiting: int) -> None:
        self._model = model
        self._slots, self._chunk, self._max_waiting = slots, chunk, max_waiting
        self._queue: deque[_Waiting] = deque()
        self._group: list[Scheduler] = [self]
        self.chunks = self.notes = self.rows = 0
        self.begun: list[int] = []
        self._cancelled: set[int] = set()
        self._running: list[_Row] = []  # row i of those below
        self._batch = model.rows(slots)
        self._inputs = _constant_inputs(slots, len(model.conditions))

    @classmethod
    def group(cls, model: ChunkModel, slots: int, chunk: int, max_waiting: int, count: int) -> list["Scheduler"]:
        """Return schedulers that share a model and a queue; `slots` are those of each."""
        schedulers = [cls(model, slots, chunk, max_waiting) for _ in range(count)]
        for scheduler in schedulers:
            scheduler._queue, scheduler._group = schedulers[0]._queue, schedulers
        return schedulers

    @property
    def waiting(self) -> int:
        """How many sequences wait for a row, of this scheduler or another of its group."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many sequences are in the batch."""
        return len(self._running)

    def add(self, id: int, sequence: Sequence, deadline: float) -> None:
        """Put a sequence at the end of the queue.

        Parameters
        ----------
        id : int
            Names the sequence in `cancel` and in its `Outcome`.
        sequence : Sequence
        deadline : float
            On the clock that `begin` is given; after it the sequence is given up.

        Raises
        ------
        EngineOverloaded
            If the queue is full.
        """
        if len(self._queue) >= self._max_waiting:
            raise EngineOverloaded(f"{self._max_waiting} requests are waiting already")
        self._queue.append(_Waiting(id, sequence, deadline))

    def cancel(self, id: int) -> None:
        """Forget a sequence, in whichever scheduler of the group; it has no outcome. Its row is free at the next step.

        An unknown id is no error.
        """
        for waiting in [w for w in self._queue if w.id == id]:
            self._queue.remove(waiting)
        for scheduler in self._group:
            if scheduler._running:
                scheduler._cancelled.add(id)

    def step(self, now: float) -> list[Outcome]:
        """Return the outcomes of `begin` and `compose`."""
        return self.begin(now) + self.compose()

    def begin(self, now: float) -> list[Outcome]:
        """Give up what is late or cancelled, and let waiting sequences join.

        Parameters
        ----------
        now : float
            The time, on the deadlines' clock.

        Returns
        -------
        list of Outcome
            Of the sequences that were late.
        """
        late = [w for w in self._queue if w.deadline <= now]
        for waiting in late:
            self._queue.remove(waiting)
        expired = [waiting.id for waiting in late] + [row.id for row in self._running if row.deadline <= now]
        gone = self._cancelled | set(expired)
        self._cancelled.clear()
        if gone:
            self._free([i for i, row in enumerate(self._running) if row.id in gone])
        self._join(now)
        return [Outcome(id, GenerationTimeout("the deadline passed before the last note was composed")) for id in expired]

    def compose(self) -> list[Outcome]:
        """Compose one chunk for all that run; return the outcomes of those that ended."""
        self.begun = []
        if not self._running:
            return []
        self.rows += len(self._running)
        tokens = self._batch.compose(self._make_chunk())
        self.chunks += 1
        outcomes, ended = [], []
        ends: list[bool] = np.any(is_end(tokens), axis=1).tolist()
        counts: list[int] = np.count_nonzero(is_note(tokens), axis=1).tolist()
        for i, (row, composed) in enumerate(zip(self._running, tokens, strict=True)):
            result = self._collect(row, composed, counts[i], ends[i])
            if result is not None:
                outcomes.append(Outcome(row.id, result, row.started))
                ended.append(i)
        self._free(ended)
        return outcomes

    def _join(self, now: float) -> None:
        # Not more than this batch's share of all there is: who comes first does not take what another core would begin at once.
        total = len(self._queue) + sum(scheduler.running for scheduler in self._group)
        share = min(self._slots, -(-total // len(self._group)))
        while self._queue and len(self._running) < share:
            id, sequence, deadline = self._queue.popleft()
            row = len(self._running)
            self._batch.start(row, sequence.bar_offset)
            for name, value in self._constants(sequence).items():
                self._inputs[name][row] = value
            self._running.append(_Row(id, sequence, deadline, now, UniformStream(sequence.random_seed)))

    def _constants(self, sequence: Sequence) -> dict[str, NDArray[Any]]:
        params = sequence.params
        return {
            "inverse_temperature": params.inverse_temperatures(),
            "min_p": params.min_ps(),
            "conditions": np.array([sequence.conditions.get(name, 0) for name in self._model.conditions], np.int32),
            "metre": np.array([sequence.conditions.get("metre", 0), sequence.bar_ticks, sequence.bar_offset], np.int32),
            "left": sequence.left(),
            "copying": np.array([params.copying], np.float32),
            "lag_bias": params.lag_bias(),
            **biases(),
        }

    def _make_chunk(self) -> Chunk:
        rows, steps = len(self._running), self._chunk
        forced = np.full((rows, steps, len(FIELDS)), -1, np.int32)
        for i, row in enumerate(self._running):
            part = row.sequence.forced[row.done : row.done + steps]
            forced[i, : len(part)] = part
        inputs = {name: array[:rows] for name, array in self._inputs.items()}
        return Chunk(
            forced=forced,
            uniforms=np.stack([row.stream.draw(steps) for row in self._running]),
            metre=np.repeat(inputs.pop("metre")[:, None], steps, axis=1),
            biases={name: inputs.pop(name) for name in VOCABULARY._fields},
            rules=np.ones((rows, 1), np.float32),
            **inputs,
        )

    def _collect(self, row: _Row, composed: TokenArray, count: int, has_end: bool) -> Composition | None:
        """Take a row's new tokens, so many notes and perhaps an end; return the composition if that was the last of them."""
        free = composed[max(0, len(row.sequence.forced) - row.done) :]
        row.done += len(composed)
        if len(free) == len(composed) and not has_end and row.notes + count < row.sequence.length:
            # As in most chunks of most rows: there is nothing to look for.
            self._keep(row, free, count)
            return None
        ends = np.flatnonzero(is_end(free))
        if len(ends):
            free = free[: ends[0]]
        counts = row.notes + np.cumsum(is_note(free))
        full = np.flatnonzero(counts >= row.sequence.length)
        if len(full):
            free = free[: full[0] + 1]
        if len(free):
            self._keep(row, free, int(counts[len(free) - 1]) - row.notes)
        if not len(full) and not len(ends):
            return None
        tokens = np.concatenate(row.tokens) if row.tokens else np.empty((0, len(FIELDS)), np.int32)
        return Composition(tokens, ended=not len(full) or row.sequence.tell_length)

    def _keep(self, row: _Row, tokens: TokenArray, notes: int) -> None:
        if notes and not row.notes:
            self.begun.append(row.id)
        row.tokens.append(tokens.copy())
        row.notes += notes
        self.notes += notes

    def _free(self, indices: list[int]) -> None:
        """Empty some rows, given in ascending order; the last ones move into their place, so that what runs stays together."""
        for i in reversed(indices):
            last = len(self._running) - 1
            if i < last:
                self._batch.move(last, i)
                for array in self._inputs.values():
                    array[i] = array[last]
                self._running[i] = self._running[last]
            self._running.pop()


def _constant_inputs(slots: int, conditions: int) -> dict[str, NDArray[Any]]:
    """Return room for what stays the same from chunk to chunk, a row for each slot, by the names of `Chunk` and of the biases."""
    fields = len(FIELDS)
    floats = {"inverse_temperature": fields, "min_p": fields, "copying": 1, "lag_bias": LAGS, **VOCABULARY._asdict()}
    integers = {"conditions": conditions, "metre": 3, "left": 2}
    return {name: np.zeros((slots, size), np.float32) for name, size in floats.items()} | {
        name: np.zeros((slots, size), np.int32) for name, size in integers.items()
    }
