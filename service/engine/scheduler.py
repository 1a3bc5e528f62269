"""Which sequences run, which wait, and one step of all that run.

Continuous batching: a sequence joins the batch as soon as a row is free and leaves it with its last note, between two chunks.
Plain data and no surprises: no threads, no clock, no pipes, no onnxruntime. Time comes in as an argument; the model is any
object that can run a chunk. What a sequence gets depends on the sequence alone, never on its neighbours.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Chunk, State
from service.engine.sampling import Composition, Sequence, UniformStream, biases, is_end
from service.errors import EngineOverloaded, GenerationTimeout, NocturneError
from service.music.representation import FIELDS, VOCABULARY, TokenArray, is_note


class ChunkModel(Protocol):
    """What the scheduler needs of a model; `OnnxModel` is one."""

    conditions: list[str]

    def initial_state(self, positions: NDArray[np.int32]) -> State:
        """Return the state before the first token of each row."""
        ...

    def run(self, chunk: Chunk, state: State) -> tuple[TokenArray, State, NDArray[np.float32]]:
        """Compose K tokens for every row."""
        ...


class Outcome(NamedTuple):
    """How a sequence ended."""

    id: int
    result: Composition | NocturneError


@dataclass
class _Row:
    """A sequence that runs, and how far it is."""

    id: int
    sequence: Sequence
    deadline: float
    stream: UniformStream
    constants: dict[str, NDArray[Any]]  # this row of the inputs that stay the same
    done: int = 0  # tokens so far, the forced ones included
    notes: int = 0  # composed so far
    tokens: list[TokenArray] = field(default_factory=list)


class _Waiting(NamedTuple):
    id: int
    sequence: Sequence
    deadline: float


class Scheduler:
    """First come, first served, in chunks.

    Parameters
    ----------
    model : ChunkModel
    slots : int
        Sequences that run side by side at most.
    chunk : int
        Tokens composed for each of them in one step (K).
    max_waiting : int
        Sequences that wait at most.
    """

    def __init__(self, model: ChunkModel, slots: int, chunk: int, max_waiting: int) -> None:
        self._model = model
        self._slots, self._chunk, self._max_waiting = slots, chunk, max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Row] = []
        self._state: State = model.initial_state(np.empty(0, np.int32))

    @property
    def waiting(self) -> int:
        """How many sequences wait for a row."""
        return len(self._waiting)

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
            On the clock that `step` is given; after it the sequence is given up.

        Raises
        ------
        EngineOverloaded
            If the queue is full.
        """
        if len(self._waiting) >= self._max_waiting:
            raise EngineOverloaded(f"{self._max_waiting} requests are waiting already")
        self._waiting.append(_Waiting(id, sequence, deadline))

    def cancel(self, id: int) -> None:
        """Forget a sequence; it has no outcome. Its row is free at the next step. An unknown id is no error."""
        self._waiting = deque(w for w in self._waiting if w.id != id)
        self._keep([row.id != id for row in self._running])

    def step(self, now: float) -> list[Outcome]:
        """Give up what is late, let waiting sequences join, compose one chunk for all.

        Parameters
        ----------
        now : float
            The time, on the deadlines' clock.

        Returns
        -------
        list of Outcome
            Of the sequences that ended.
        """
        outcomes = self._expire(now)
        self._join()
        if self._running:
            tokens, self._state, _ = self._model.run(self._make_chunk(), self._state)
            going_on = []
            for row, composed in zip(self._running, tokens, strict=True):
                result = self._collect(row, composed)
                going_on.append(result is None)
                if result is not None:
                    outcomes.append(Outcome(row.id, result))
            self._keep(going_on)
        return outcomes

    def _expire(self, now: float) -> list[Outcome]:
        late = [w.id for w in self._waiting if w.deadline <= now] + [r.id for r in self._running if r.deadline <= now]
        for id in late:
            self.cancel(id)
        return [Outcome(id, GenerationTimeout("the deadline passed before the last note was composed")) for id in late]

    def _join(self) -> None:
        joining = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._slots - len(self._running)))]
        if not joining:
            return
        positions = np.array([w.sequence.bar_offset for w in joining], np.int32)
        fresh = self._model.initial_state(positions)
        self._state = {name: np.concatenate([old, fresh[name]]) for name, old in self._state.items()}
        for id, sequence, deadline in joining:
            stream = UniformStream(sequence.random_seed)
            self._running.append(_Row(id, sequence, deadline, stream, self._constants(sequence)))

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
        rows, steps = self._running, self._chunk
        forced = np.full((len(rows), steps, len(FIELDS)), -1, np.int32)
        for i, row in enumerate(rows):
            part = row.sequence.forced[row.done : row.done + steps]
            forced[i, : len(part)] = part

        def stacked(name: str) -> NDArray[Any]:
            return np.stack([row.constants[name] for row in rows])

        return Chunk(
            forced=forced,
            uniforms=np.stack([row.stream.draw(steps) for row in rows]),
            metre=np.repeat(stacked("metre")[:, None], steps, axis=1),
            inverse_temperature=stacked("inverse_temperature"),
            min_p=stacked("min_p"),
            biases={name: stacked(name) for name in VOCABULARY._fields},
            conditions=stacked("conditions"),
            left=stacked("left"),
            copying=stacked("copying"),
            lag_bias=stacked("lag_bias"),
            rules=np.ones((len(rows), 1), np.float32),
        )

    def _collect(self, row: _Row, composed: TokenArray) -> Composition | None:
        """Take a row's new tokens; return the composition if that was the last of them."""
        free = composed[max(0, len(row.sequence.forced) - row.done) :]
        row.done += len(composed)
        ends = np.flatnonzero(is_end(free))
        if len(ends):
            free = free[: ends[0]]
        counts = row.notes + np.cumsum(is_note(free))
        full = np.flatnonzero(counts >= row.sequence.length)
        if len(full):
            free = free[: full[0] + 1]
        if len(free):
            row.tokens.append(free.copy())
            row.notes = int(counts[len(free) - 1])
        if not len(full) and not len(ends):
            return None
        tokens = np.concatenate(row.tokens) if row.tokens else np.empty((0, len(FIELDS)), np.int32)
        return Composition(tokens, ended=not len(full) or row.sequence.tell_length)

    def _keep(self, keep: list[bool]) -> None:
        if all(keep):
            return
        chosen = np.flatnonzero(keep)
        self._state = {name: array[chosen] for name, array in self._state.items()}
        self._running = [self._running[i] for i in chosen]
