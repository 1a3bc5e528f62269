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
from training.conditions import bars_left, key_and_tempo, notes_left, tempo_class
from training.data import Dataset, piece_condition_names
from training.memory import EMPTY, memory_columns
from training.mishear import Misheard, mishear
from training.model import Batch, expect, running_values


@dataclass(frozen=True)
class Augmentation:
    """What changes each time a piece is played; steps are drawn uniformly.

    Attributes
    ----------
    transpose : int
        Semitones up or down at most, fewer where the piece would leave the piano.
    tempo, velocity : int
        Steps of the vocabulary up or down at most (a tempo step is 4 %, a velocity step 4).
    endings : float
        Share of the plays that begin so late in the piece that only its end is left, so that short pieces are known too.
    tell_notes, tell_bars : float
        Share of the plays in which the network is told how many notes, or bars, are left.
    hide : float
        Share of the plays in which composer, rendition, key or tempo, each by itself, is not told.
    misheard, wrong : float
        Share of the plays in which some of the notes are heard wrong (`training.mishear`), and of the notes in them.
    """

    transpose: int = 6
    tempo: int = 2
    velocity: int = 2
    endings: float = 0.6
    tell_notes: float = 0.5
    tell_bars: float = 0.5
    hide: float = 0.25
    misheard: float = 0.5
    wrong: float = 0.03


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
    elapsed: NDArray[np.int64]
    matched: NDArray[np.int64]
    slots: NDArray[np.int16]
    classes: NDArray[np.uint8]
    notes_left: NDArray[np.int64]
    bars_left: NDArray[np.int64]
    target: NDArray[np.int64]
    target_position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Told:
    """What a network is told of a piece beside its per-piece conditions.

    Attributes
    ----------
    key, tempo : int
        Index of the condition, 0 if not told.
    notes, bars : bool
        Whether it is told how many of them are left.
    """

    key: int = 0
    tempo: int = 0
    notes: bool = False
    bars: bool = False

    @classmethod
    def of(cls, names: list[str], conditions: NDArray[np.int32], notes: bool = False, bars: bool = False) -> "Told":
        """Return what conditions (C,) of these names tell."""
        values = dict(zip(names, conditions.tolist(), strict=True))
        return cls(values.get("key", 0), values.get("tempo", 0), notes, bars)


def prepare_piece(piece: EncodedPiece, memory: int, told: Told = Told(), heard: Misheard | None = None) -> PreparedPiece:
    """Lay a piece out for a network with a memory of some tokens, which hears it as it is, or otherwise."""
    heard = heard or Misheard(piece.tokens, piece.positions, piece.tokens, piece.positions)
    running = expect(running_values(heard.tokens), heard.tokens, told.key, told.tempo)
    untold = np.zeros(len(piece.tokens), np.int64)
    return PreparedPiece(
        before=np.concatenate([np.array([START]), heard.tokens[:-1]]).astype(np.int64),
        position=np.concatenate([[piece.start_position], heard.positions[:-1]]),
        metre=piece.metres.astype(np.int64),
        **running._asdict(),
        **memory_columns(heard.tokens, piece.metres, running.last[:, :, 0], memory)._asdict(),
        notes_left=notes_left(piece.tokens) if told.notes else untold,
        bars_left=bars_left(piece) if told.bars else untold,
        target=heard.target.astype(np.int64),
        target_position=heard.target_positions.astype(np.int64),
    )


@dataclass(frozen=True)
class Play:
    """How a piece is played once."""

    number: int  # of all plays
    piece: int
    start: int  # the token it begins with; not 0 where only the end of the piece is played


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
    memory : int
        M of the network.
    how : Augmentation
    seed : int
        Decides order and augmentation.
    own : slice, optional
        The rows of each window that `next` makes, where others make the rest; the order of the plays is that of all rows.
    """

    def __init__(
        self, dataset: Dataset, rows: int, steps: int, memory: int, how: Augmentation, seed: int, own: slice = slice(None)
    ) -> None:
        self.dataset = dataset
        self._conditions = dataset.piece_conditions()
        self._condition_names = piece_condition_names(dataset.conditions)
        self._steps, self._memory, self._how, self._seed, self._own = steps, memory, how, seed, own
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._played = 0  # pieces given out so far
        self._rows: list[tuple[Play, int]] = [(self._next_play(), 0) for _ in range(rows)]  # play and offset
        self._prepared: dict[int, tuple[PreparedPiece, NDArray[np.int32]]] = {}

    @property
    def epochs(self) -> float:
        """How many times round the pieces the stream has gone."""
        return self._played / len(self.dataset.pieces)

    def skip(self, windows: int) -> None:
        """Go on by some windows without making them."""
        for _ in range(windows):
            self._advance()

    def next(self) -> tuple[Batch, torch.Tensor]:
        """Return the next batch, and a bool tensor (B,): False where a row begins a piece and its state must be zero."""
        rows = self._rows[self._own]
        for play, _ in rows:
            if play.number not in self._prepared:
                self._prepared[play.number] = self._prepare(play)
        parts = [(self._prepared[play.number][0], offset) for play, offset in rows]
        conditions = np.stack([self._prepared[play.number][1] for play, _ in rows])
        keep = torch.tensor([offset > 0 for _, offset in rows])
        batch = make_batch(parts, self._steps, conditions)
        self._advance()
        playing = {play.number for play, _ in self._rows}
        self._prepared = {number: piece for number, piece in self._prepared.items() if number in playing}
        return batch, keep

    def _advance(self) -> None:
        for row, (play, offset) in enumerate(self._rows):
            done = play.start + offset + self._steps >= len(self.dataset.pieces[play.piece].tokens)
            self._rows[row] = (self._next_play(), 0) if done else (play, offset + self._steps)

    def _next_play(self) -> Play:
        epoch, at = divmod(self._played, len(self.dataset.pieces))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(len(self.dataset.pieces)))
        number, self._played = self._played, self._played + 1
        piece = int(self._order[1][at])
        rng = np.random.default_rng([self._seed, 2, number])
        start = _ending(self.dataset.pieces[piece], rng) if rng.random() < self._how.endings else 0
        return Play(number, piece, start)

    def _prepare(self, play: Play) -> tuple[PreparedPiece, NDArray[np.int32]]:
        """Return a piece as it is played this time, moved at random, and its conditions as far as they are told."""
        rng = np.random.default_rng([self._seed, play.number])
        piece = self.dataset.pieces[play.piece]
        played = piece.from_token(play.start, augment(piece.tokens, self._how, rng))
        key, tempo = key_and_tempo(played.tokens)
        true = {"key": 1 + key, "tempo": tempo_class(tempo)}  # of what is played, not of the piece as it is written
        conditions = self._conditions[play.piece].copy()
        for i, name in enumerate(self._condition_names):
            conditions[i] = true.get(name, conditions[i])
        conditions *= rng.random(len(conditions)) >= self._how.hide
        left = rng.random(2) < (self._how.tell_notes, self._how.tell_bars)
        if play.start and not left.any():
            left[rng.integers(2)] = True  # else the network could not know that so little is to come
        told = Told.of(self._condition_names, conditions, *map(bool, left))
        heard = mishear(played, self._how.wrong, rng) if rng.random() < self._how.misheard else None
        return prepare_piece(played, self._memory, told, heard), conditions


def _ending(piece: EncodedPiece, rng: np.random.Generator) -> int:
    """Return a token from which on little of the piece is left, at the beginning of a bar; 0 if there is none.

    How many notes are left is drawn so that each doubling from 16 to 512 is equally likely.
    """
    wanted = 2 ** rng.uniform(4, 9)
    is_note = piece.tokens[:, FIELDS.index("hand")] != CONTROL
    left = is_note[::-1].cumsum()[::-1]
    starts = np.flatnonzero((piece.positions == 0) & (piece.tokens[:, 0] > 0) & is_note & (left >= 8))
    if not len(starts):
        return 0
    return int(starts[np.abs(np.log(left[starts] / wanted)).argmin()])


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
    memory = parts[0][0].classes.shape[1]
    by_step = [name for name in vars(parts[0][0]) if name not in ("slots", "classes")]
    columns = {n: np.zeros((steps, rows, *(value := vars(parts[0][0])[n]).shape[1:]), value.dtype) for n in by_step}
    mask = np.zeros((steps, rows), bool)
    slots = np.zeros((rows, memory + steps, parts[0][0].slots.shape[1]), np.int16)
    classes = np.full((rows, steps, memory + steps), EMPTY, np.uint8)
    for row, (piece, offset) in enumerate(parts):
        count = max(0, min(steps, len(piece) - offset))
        for name in by_step:
            columns[name][:count, row] = vars(piece)[name][offset : offset + count]
        mask[:count, row] = True
        known = piece.slots[max(0, offset - memory) : offset + count]
        end = memory + count
        slots[row, end - len(known) : end] = known
        for step in range(count):  # each token's own M slots
            classes[row, step, step : step + memory] = piece.classes[offset + step]
    columns |= {"slots": slots, "classes": classes}
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return Batch(**tensors, conditions=torch.from_numpy(conditions.astype(np.int64)), mask=torch.from_numpy(mask))


def whole_pieces(
    dataset: Dataset, rows: int, steps: int, memory: int, conditions: NDArray[np.int32], names: list[str]
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
        pieces = [prepare_piece(dataset.pieces[i], memory, Told.of(names, conditions[i])) for i in indices]
        offsets = range(0, max(map(len, pieces)), steps)
        yield indices, (make_batch([(p, offset) for p in pieces], steps, conditions[indices]) for offset in offsets)
