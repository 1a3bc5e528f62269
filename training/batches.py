"""Windows of many pieces for truncated back-propagation, and whole pieces for scoring.

Each row of a batch plays one piece after another, a window of T tokens at a time; the last window of a piece is padded, so that
a new piece, and with it a state of zeros, always begins at the start of a window. The whole order follows from the seed alone,
which is what lets a stopped training go on where it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.music.representation import (
    CONTROL,
    FIELDS,
    START,
    VOCABULARY,
    Control,
    EncodedPiece,
    TokenArray,
)
from training.data import Dataset
from training.model import Batch, running_values


@dataclass(frozen=True)
class Augmentation:
    """How far a piece is moved each time it is played, uniformly.

    Attributes
    ----------
    transpose : int
        Semitones up or down at most, fewer where the piece would leave the piano.
    tempo, velocity : int
        Steps of the vocabulary up or down at most (a tempo step is 4 %, a velocity step 4).
    """

    transpose: int = 6
    tempo: int = 2
    velocity: int = 2


@dataclass(frozen=True)
class PreparedPiece:
    """A piece as the columns of a `Batch`, each with N rows."""

    before: NDArray[np.int64]
    position: NDArray[np.int64]
    metre: NDArray[np.int64]
    tempo: NDArray[np.int64]
    last: NDArray[np.int64]
    held: NDArray[np.int64]
    profile: NDArray[np.float32]
    target: NDArray[np.int64]
    target_position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.target)


def prepare_piece(piece: EncodedPiece, tokens: TokenArray | None = None) -> PreparedPiece:
    """Lay a piece out for the network; `tokens` are its own unless they were augmented."""
    tokens = piece.tokens if tokens is None else tokens
    target = tokens.astype(np.int64)
    return PreparedPiece(
        before=np.concatenate([np.array([START]), target[:-1]]),
        position=np.concatenate([[piece.start_position], piece.positions[:-1]]),
        metre=piece.metres.astype(np.int64),
        **running_values(tokens)._asdict(),
        target=target,
        target_position=piece.positions.astype(np.int64),
    )


def augment(tokens: TokenArray, how: Augmentation, rng: np.random.Generator) -> TokenArray:
    """Return a copy of tokens (N, F), transposed, and shifted in tempo and velocity by one random step each for all notes."""
    tokens = tokens.copy()
    notes = tokens[:, FIELDS.index("hand")] != CONTROL
    for name, most in (("pitch", how.transpose), ("tempo", how.tempo), ("velocity", how.velocity)):
        column = tokens[:, FIELDS.index(name)]
        values = column[notes]
        lowest = len(Control) if name == "pitch" else 1
        down = min(most, int(values.min()) - lowest)
        up = min(most, getattr(VOCABULARY, name) - 1 - int(values.max()))
        column[notes] += rng.integers(-down, up + 1)
    return tokens


class WindowStream:
    """An endless stream of training windows.

    Parameters
    ----------
    dataset : Dataset
        The pieces to play, in an order shuffled anew each time round.
    rows, steps : int
        B and T.
    how : Augmentation
    seed : int
        Decides order and augmentation.
    """

    def __init__(self, dataset: Dataset, rows: int, steps: int, how: Augmentation, seed: int) -> None:
        self.dataset = dataset
        self._conditions = dataset.piece_conditions()
        self._steps, self._how, self._seed = steps, how, seed
        self._lengths = [len(piece.tokens) for piece in dataset.pieces]
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._played = 0  # pieces given out so far
        self._rows: list[tuple[int, int, int]] = [self._next_piece() for _ in range(rows)]  # (play, piece, offset)
        self._prepared: dict[int, PreparedPiece] = {}

    @property
    def epochs(self) -> float:
        """How many times round the pieces the stream has gone."""
        return self._played / len(self._lengths)

    def skip(self, windows: int) -> None:
        """Go on by some windows without making them."""
        for _ in range(windows):
            self._advance()

    def next(self) -> tuple[Batch, torch.Tensor]:
        """Return the next batch, and a bool tensor (B,): False where a row begins a piece and its state must be zero."""
        parts = []
        for play, index, offset in self._rows:
            if play not in self._prepared:
                rng = np.random.default_rng([self._seed, play])
                piece = self.dataset.pieces[index]
                self._prepared[play] = prepare_piece(piece, augment(piece.tokens, self._how, rng))
            parts.append((self._prepared[play], offset))
        conditions = self._conditions[[index for _, index, _ in self._rows]]
        keep = torch.tensor([offset > 0 for _, _, offset in self._rows])
        batch = make_batch(parts, self._steps, conditions)
        self._advance()
        playing = {play for play, _, _ in self._rows}
        self._prepared = {play: piece for play, piece in self._prepared.items() if play in playing}
        return batch, keep

    def _advance(self) -> None:
        for row, (play, index, offset) in enumerate(self._rows):
            done = offset + self._steps >= self._lengths[index]
            self._rows[row] = self._next_piece() if done else (play, index, offset + self._steps)

    def _next_piece(self) -> tuple[int, int, int]:
        epoch, at = divmod(self._played, len(self._lengths))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._lengths)))
        play, self._played = self._played, self._played + 1
        return play, int(self._order[1][at]), 0


def make_batch(parts: list[tuple[PreparedPiece, int]], steps: int, conditions: NDArray[np.int32]) -> Batch:
    """Cut `steps` tokens out of each piece from an offset on, and stack them as rows.

    Parameters
    ----------
    parts : list of (PreparedPiece, int)
        A piece and an offset for each row; an offset past the end gives an empty row.
    steps : int
        T.
    conditions : int array, shape (B, C)
    """
    rows = len(parts)
    columns = {name: np.zeros((steps, rows, *value.shape[1:]), value.dtype) for name, value in vars(parts[0][0]).items()}
    mask = np.zeros((steps, rows), bool)
    for row, (piece, offset) in enumerate(parts):
        count = max(0, min(steps, len(piece) - offset))
        for name, value in vars(piece).items():
            columns[name][:count, row] = value[offset : offset + count]
        mask[:count, row] = True
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return Batch(**tensors, conditions=torch.from_numpy(conditions.astype(np.int64)), mask=torch.from_numpy(mask))


def whole_pieces(
    dataset: Dataset, rows: int, steps: int, conditions: NDArray[np.int32]
) -> Iterator[tuple[list[int], Iterator[Batch]]]:
    """Yield groups of at most `rows` pieces of similar length, and each group's windows from start to end.

    Yields
    ------
    indices : list of int
        Which pieces of the dataset the rows are.
    windows : iterator of Batch
        Of `steps` tokens each, the state to be carried on from one to the next.
    """
    order = sorted(range(len(dataset.pieces)), key=lambda i: len(dataset.pieces[i].tokens))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        pieces = [prepare_piece(dataset.pieces[i]) for i in indices]
        offsets = range(0, max(map(len, pieces)), steps)
        yield indices, (make_batch([(p, offset) for p in pieces], steps, conditions[indices]) for offset in offsets)
