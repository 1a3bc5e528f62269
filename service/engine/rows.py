"""The rows of a batch: the state of each sequence between two chunks, in the machine's own memory."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Chunk, State
from service.music.representation import TokenArray


class Rows(Protocol):
    """A batch with room for a number of sequences, of which the first ones are in use."""

    def start(self, row: int, position: int) -> None:
        """Let a row begin a piece; `position` is where in its bar tick 0 lies."""
        ...

    def move(self, source: int, target: int) -> None:
        """Let a row go on as another one, whose own state is lost; the source is free then."""
        ...

    def compose(self, chunk: Chunk) -> TokenArray:
        """Compose K tokens for rows 0 to B - 1, those of the chunk, (B, K, F)."""
        ...


class StatefulModel(Protocol):
    """A model whose state is arrays."""

    def initial_state(self, positions: NDArray[np.int32]) -> State:
        """Return the state before the first token of each row."""
        ...

    def run(self, chunk: Chunk, state: State) -> tuple[TokenArray, NDArray[np.float32]]:
        """Compose K tokens for every row, and advance their state."""
        ...


class HostRows:
    """Rows whose states are numpy arrays; what runs is always the first of them, so that nothing is copied to be run.

    Parameters
    ----------
    model : StatefulModel
    slots : int
        How many rows there are.
    """

    def __init__(self, model: StatefulModel, slots: int) -> None:
        self._model = model
        self.state = model.initial_state(np.zeros(slots, np.int32))

    def start(self, row: int, position: int) -> None:
        """Let a row begin a piece."""
        for name, array in self._model.initial_state(np.array([position], np.int32)).items():
            self.state[name][row] = array[0]

    def move(self, source: int, target: int) -> None:
        """Let a row go on as another one."""
        for array in self.state.values():
            array[target] = array[source]

    def compose(self, chunk: Chunk) -> TokenArray:
        """Compose K tokens for the rows of the chunk."""
        rows = len(chunk.forced)
        tokens, _ = self._model.run(chunk, {name: array[:rows] for name, array in self.state.items()})
        return tokens
