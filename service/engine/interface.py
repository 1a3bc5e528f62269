"""What passes between the parts of the engine: how a model describes itself, the inputs of one run, the state between runs.

Plain data: importing it costs no onnxruntime, which only the engine's own process loads.
Shape letters: B rows, K steps, F fields in `NoteToken` order, V vocabulary of a field, C conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.music.representation import VOCABULARY

State = dict[str, NDArray[Any]]  # by the names of the graph, each with the rows first
# Classes of how long ago something in the model's memory was: 0 no whole number of bars, 1 at the same onset, 2 to 9 so many bars
# less one, 10 twelve or sixteen bars, 11 another number of bars.
LAGS = 12


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself.

    Attributes
    ----------
    name : str
        The file's name without its ending.
    metadata : mapping
        As `training export` wrote it: representation, conditions, defaults, licence, attribution, figures, commit.
    provider : str
        "cpu" or "cuda": where it runs.
    sha256 : str
        Of its file, in hexadecimal digits.
    """

    name: str
    metadata: Mapping[str, Any]
    provider: str
    sha256: str


@dataclass(frozen=True)
class Load:
    """What an engine is doing, as it said last.

    Attributes
    ----------
    running, waiting : int
        Sequences in a batch, and those in the queue.
    chunks, steps, notes : int
        Composed so far; a chunk has K steps.
    rows : int
        Sequences of all these chunks together.
    seconds : float
        That they took together.
    """

    running: int = 0
    waiting: int = 0
    chunks: int = 0
    steps: int = 0
    notes: int = 0
    rows: int = 0
    seconds: float = 0.0

    def after(self, before: "Load") -> "Load":
        """Return this load with the sums of an engine before it."""
        counted = ("chunks", "steps", "notes", "rows", "seconds")
        return replace(self, **{name: getattr(before, name) + getattr(self, name) for name in counted})


@dataclass(frozen=True)
class Chunk:
    """The inputs of one run, beside the state.

    Attributes
    ----------
    forced : int32 array, shape (B, K, F)
        Values to take, -1 where one is to be drawn.
    uniforms : float32 array, shape (B, K, F)
        In [0, 1).
    metre : int32 array, shape (B, K, 3)
        Index of the time signature, ticks of a bar, offset: position in the bar = (time + offset) mod bar.
    inverse_temperature, min_p : float32 array, shape (B, F)
    biases : dict of str to float32 array, shape (B, V)
        Added to the logits of each field.
    conditions : int32 array, shape (B, C)
    left : int32 array, shape (B, 2)
        Notes of the whole piece, and the tick of its last barline, both from its beginning; -1 where the network is not told.
    copying : float32 array, shape (B, 1)
        Factor of the weight of what the memory offers to copy; 1: as the network has learnt it.
    lag_bias : float32 array, shape (B, LAGS)
        Added to the score of what the memory offers, by how long ago it was; 0: as the network has learnt it.
    rules : float32 array, shape (B, 1)
        1 keeps the notes playable, and ends the piece at its last barline if that is told; 0 leaves the network's own
        distribution, for scoring.
    """

    forced: NDArray[np.int32]
    uniforms: NDArray[np.float32]
    metre: NDArray[np.int32]
    inverse_temperature: NDArray[np.float32]
    min_p: NDArray[np.float32]
    biases: Mapping[str, NDArray[np.float32]]
    conditions: NDArray[np.int32]
    left: NDArray[np.int32]
    copying: NDArray[np.float32]
    lag_bias: NDArray[np.float32]
    rules: NDArray[np.float32]

    @classmethod
    def unbiased(
        cls,
        forced: NDArray[np.int32],
        uniforms: NDArray[np.float32],
        metre: NDArray[np.int32],
        conditions: NDArray[np.int32],
        left: NDArray[np.int32] | None = None,
    ) -> "Chunk":
        """Return the inputs that leave the network's own distribution as it is: for scoring, and for comparing with PyTorch."""
        rows, _, fields = forced.shape
        return cls(
            forced=forced,
            uniforms=uniforms,
            metre=metre,
            inverse_temperature=np.ones((rows, fields), np.float32),
            min_p=np.zeros((rows, fields), np.float32),
            biases={name: np.zeros((rows, size), np.float32) for name, size in VOCABULARY._asdict().items()},
            conditions=conditions,
            left=np.full((rows, 2), -1, np.int32) if left is None else left,
            copying=np.ones((rows, 1), np.float32),
            lag_bias=np.zeros((rows, LAGS), np.float32),
            rules=np.zeros((rows, 1), np.float32),
        )

    def twice(self) -> "Chunk":
        """Return the chunk with every row twice."""
        arrays = {name: np.repeat(value, 2, axis=0) for name, value in vars(self).items() if name != "biases"}
        return Chunk(**arrays, biases={name: np.repeat(bias, 2, axis=0) for name, bias in self.biases.items()})
