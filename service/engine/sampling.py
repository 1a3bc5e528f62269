"""What a request asks of the engine, and the random numbers and biases that the model's graph takes for it.

Knows the representation, not HTTP, not onnxruntime. Everything random about a piece is drawn from its own seed, one number
per field and token in order, so that neighbours, slots and chunk sizes cannot change a note.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.music.representation import CONTROL, FIELDS, VOCABULARY, Control, TokenArray, count_notes

MAX_SEED = 2**53 - 1  # what a JSON number holds exactly in every language
MIN_TEMPERATURE = 1e-3  # below it the likeliest value is taken, as at 0: dividing by less would overflow the logits
NOT_TOLD = -1  # where a model is told nothing of the end of a piece
FORBIDDEN = np.float32(-1e9)  # as a logit bias: never drawn, yet finite, so that no softmax becomes NaN

# min-p as asked for applies to the pitch. At full strength on the rhythm it flattened it (0.2 % of onsets off the beat where
# music has 8 %), so the other fields take this share of it.
MIN_P_SHARE = {"shift": 0.3, "hand": 0.1, "pitch": 1.0, "duration": 0.1, "velocity": 0.1, "tempo": 0.1}


# What is added to the scores of the memory's offers, by the class of their lag (`service.engine.interface.LAGS`). Music comes
# back after 1, 2, 4, 8, 12 or 16 bars rather than after any other time; a model that composes falls into circles within a bar.
# Chosen so that the similarity of bars falls and rises over their distance as it does in music (`python -m training report`).
LAG_BIAS = np.array([-1, -2, 0.7, 1, -0.7, 1.7, -1, -1, -1, 2.2, 2.2, -1], np.float32)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn from the model's distributions.

    Attributes
    ----------
    temperature : float
        0..2. Below 1 the likely becomes likelier; 0 takes the most likely value of every field.
    min_p : float
        0..1. Pitches less likely than this share of the likeliest one are never drawn; the other fields take a part of it.
    copying : float
        0..1. Factor of the weight of what the model's memory offers: how much a piece keeps to what it has said. At 1 it is as
        the model learnt it from music that never errs; composing so, a piece that once repeats itself tends to go on with it.
    """

    temperature: float = 1.0
    min_p: float = 0.15
    copying: float = 0.6

    @property
    def greedy(self) -> bool:
        """Whether the most likely value of every field is taken, whatever the random numbers."""
        return self.temperature < MIN_TEMPERATURE

    def lag_bias(self) -> NDArray[np.float32]:
        """Return what is added to the score of what the memory offers, by how long ago it was, shape (LAGS,)."""
        return LAG_BIAS

    def inverse_temperatures(self) -> NDArray[np.float32]:
        """Return the factor of each field's logits, shape (F,)."""
        return np.full(len(FIELDS), 1.0 if self.greedy else 1.0 / self.temperature, np.float32)

    def min_ps(self) -> NDArray[np.float32]:
        """Return min-p of each field, shape (F,). 1 keeps the likeliest value only, which is temperature 0."""
        shares = np.array([MIN_P_SHARE[name] for name in FIELDS], np.float32)
        return np.ones_like(shares) if self.greedy else shares * np.float32(self.min_p)


@dataclass(frozen=True, eq=False)
class Sequence:
    """One piece to compose: all that decides its notes.

    Attributes
    ----------
    random_seed : int
        0..MAX_SEED.
    length : int
        Notes to compose after the forced ones, at least 1; where the piece ends at a barline, at most.
    forced : int32 array, shape (S, F)
        Tokens that the piece begins with (`encode_notes` of a seed melody); may be empty.
    params : SamplingParams
    conditions : dict of str to int
        Index of each condition that the model knows by name; what is left out is 0, "not given".
    bar_ticks : int
        Length of a bar in ticks.
    bar_offset : int
        Position in the bar at tick 0: a bar less the pick-up, or 0.
    tell_length : bool
        Whether the model is told how many notes the piece will have, so that it can come to a close with the last one.
    end_time : int
        Tick of the barline at which the piece ends: the model is told, no note starts there or later, and END comes there and
        not before. -1: the piece goes on until its length. Must lie after the last forced token.
    model : str
        Name of the one that composes it; "": the engine's first.
    """

    random_seed: int
    length: int
    forced: TokenArray = field(default_factory=lambda: np.empty((0, len(FIELDS)), np.int32))
    params: SamplingParams = SamplingParams()
    conditions: dict[str, int] = field(default_factory=dict)
    bar_ticks: int = 96
    bar_offset: int = 0
    tell_length: bool = False
    end_time: int = NOT_TOLD
    model: str = ""

    def left(self) -> NDArray[np.int32]:
        """Return what the model is told of the end: notes of the whole piece, tick of its last barline; shape (2,)."""
        notes = count_notes(self.forced) + self.length
        return np.array([notes if self.tell_length else NOT_TOLD, self.end_time], np.int32)


@dataclass(frozen=True, eq=False)
class Composition:
    """What the engine composed for a `Sequence`.

    Attributes
    ----------
    tokens : int32 array, shape (N, F)
        The tokens after the forced ones, controls among them, END not. Exactly `length` of them are notes, or fewer where the
        piece ended at its barline.
    ended : bool
        Whether the piece came to its end: at its barline, or with the last of the notes that the model was told of.
    queue_s, compose_s : float
        Seconds that it waited for a row, and that it had one.
    first_s : float
        Seconds until the chunk with its first note was composed.
    """

    tokens: TokenArray
    ended: bool
    queue_s: float = 0.0
    compose_s: float = 0.0
    first_s: float = 0.0


class UniformStream:
    """Uniform random numbers in [0, 1) of one sequence, in order, from Philox4x64 keyed by its seed.

    Made from the raw 64-bit words, whose values numpy promises to keep, not from `Generator`, whose methods may change.
    """

    def __init__(self, random_seed: int) -> None:
        self._bits = np.random.Philox(key=random_seed)

    def draw(self, steps: int) -> NDArray[np.float32]:
        """Return the next numbers, shape (steps, F): the upper 24 bits of a word each, which float32 holds exactly."""
        words = self._bits.random_raw(steps * len(FIELDS))
        numbers = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return numbers.reshape(steps, len(FIELDS))


def biases() -> dict[str, NDArray[np.float32]]:
    """Return what is added to the logits of each field, shape (V_field,)."""
    biases = {name: np.zeros(size, np.float32) for name, size in VOCABULARY._asdict().items()}
    biases["hand"][3] = FORBIDDEN  # a hand nobody knows cannot be written on a staff
    biases["pitch"][Control.WAIT] = FORBIDDEN  # no silence of more than eight quarter notes
    biases["pitch"][Control.END] = FORBIDDEN  # a piece ends with its length, or where the graph's rules put END at its barline
    return biases


def is_end(tokens: TokenArray) -> NDArray[np.bool_]:
    """Return for each token (N, F) whether it ends the piece."""
    ends: NDArray[np.bool_] = (tokens[..., 1] == CONTROL) & (tokens[..., 2] == Control.END)
    return ends
