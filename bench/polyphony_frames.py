"""The sets of `bench.polyphony`: frames, notes in the order in which they are predicted, and windows of many sequences.

A frame is the ascending list of MIDI pitches that sound in a time step, a roll the same as zeros and ones. A frame is
drawn as its notes in ascending order, then `END`: the end is what makes the frame whole, and an empty frame is an `END` alone.

Shape letters: N frames of a sequence, T of a window, B rows, K keys, M frames of memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from bench.polyphony_memory import EMPTY, offer_classes

LOWEST = 21  # MIDI number of key 0
KEYS = 88
END = KEYS  # what is drawn after a frame's last note

LAGS = (1, 2, 3, 4, 6, 8, 12, 16)  # frames back that each key sees itself and its neighbours
DECAYS = (0.8, 0.95, 0.99)  # of the running means of each key
MAX_AGE = 31  # frames
CHANNELS = len(LAGS) + 1 + len(DECAYS) + 2 + 2 + 1  # as `channels` stacks them
PERIODS = (2, 3, 4, 6, 8, 12, 16)  # frames; the metre is not given, but sequences often begin with a bar

Roll = NDArray[np.uint8]  # (N, K)


def read_set(path: Path) -> dict[str, list[Roll]]:
    """Return the rolls of each split of a set."""
    return {split: [to_roll(frames) for frames in sequences] for split, sequences in json.loads(path.read_text()).items()}


def to_roll(frames: list[list[int]]) -> Roll:
    """Return frames of MIDI pitches as a roll."""
    roll = np.zeros((len(frames), KEYS), np.uint8)
    for row, pitches in zip(roll, frames, strict=True):
        row[np.array(pitches, np.int64) - LOWEST] = 1
    return roll


def encode_roll(roll: Roll) -> NDArray[np.int64]:
    """Return what is drawn, frame after frame: the keys of each in ascending order, then END."""
    ended = np.concatenate([roll, np.ones((len(roll), 1), np.uint8)], axis=1)
    return np.nonzero(ended)[1]


def decode_keys(keys: NDArray[np.int64]) -> Roll:
    """Return the roll of what was drawn; `encode_roll` backwards."""
    ends = keys == END
    frames = np.cumsum(ends) - ends
    roll = np.zeros((int(ends.sum()), KEYS), np.uint8)
    roll[frames[~ends], keys[~ends]] = 1
    return roll


def channels(roll: Roll) -> NDArray[np.float32]:
    """Return what each key knows before each frame, shape (N, CHANNELS, K), values of about 0 to 1."""
    sounding = roll.astype(np.float32)
    past = np.concatenate([np.zeros((max(LAGS), KEYS), np.float32), sounding])
    before = past[max(LAGS) - 1 : -1]
    rows = np.arange(len(roll))[:, None]
    silent = np.maximum.accumulate(np.where(before > 0, -1, rows), axis=0)
    age = np.minimum(rows - silent, MAX_AGE)
    means = [lfilter([1 - decay], [1.0, -decay], before, axis=0) for decay in DECAYS]
    classes = np.arange(KEYS) % 12
    folded = [(mean @ np.eye(12)[classes])[:, classes] for mean in means[1:]]  # of each pitch class, on all its keys
    lowest = before * (np.cumsum(before, axis=1) == 1)
    highest = before * (np.cumsum(before[:, ::-1], axis=1)[:, ::-1] == 1)
    lagged = [past[max(LAGS) - lag : len(past) - lag] for lag in LAGS]
    stacked = [*lagged, np.log2(1 + age) / np.log2(1 + MAX_AGE), *means, *folded, lowest, highest, np.ones_like(before)]
    return np.stack(stacked, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Columns:
    """A sequence as it is played once, each array with N rows."""

    roll: Roll
    channels: NDArray[np.float32]
    classes: NDArray[np.uint8]
    clock: NDArray[np.int64]  # (N, PERIODS): the number of the frame modulo each


def prepare(roll: Roll, memory: int) -> Columns:
    """Return a sequence as columns for a network with a memory of M frames."""
    clock = np.arange(len(roll))[:, None] % np.array(PERIODS)
    return Columns(roll, channels(roll), offer_classes(roll, memory), clock)


class Window(NamedTuple):
    """The same frames of several sequences side by side; what is known before frame t is in its row of all but `roll`."""

    roll: Tensor  # (T, B, K) uint8: the frames to predict
    channels: Tensor  # (T, B, CHANNELS, K) float32
    clock: Tensor  # (T, B, PERIODS) int64
    slots: Tensor  # (B, M + T, K) uint8: the M frames before the window and those in it
    classes: Tensor  # (B, T, M + T) uint8: of each slot as an offer for each frame
    mask: Tensor  # (T, B) bool, False where a row has run out of frames


def cut(parts: list[tuple[Columns, int]], steps: int) -> Window:
    """Stack the `steps` frames of each sequence from an offset on; an offset past the end gives an empty row."""
    rows, memory = len(parts), parts[0][0].classes.shape[1]
    roll = np.zeros((steps, rows, KEYS), np.uint8)
    known = np.zeros((steps, rows, CHANNELS, KEYS), np.float32)
    clock = np.zeros((steps, rows, len(PERIODS)), np.int64)
    slots = np.zeros((rows, memory + steps, KEYS), np.uint8)
    classes = np.full((rows, steps, memory + steps), EMPTY, np.uint8)
    mask = np.zeros((steps, rows), bool)
    for row, (piece, offset) in enumerate(parts):
        part = slice(offset, offset + steps)
        count = len(piece.roll[part])
        roll[:count, row], known[:count, row], clock[:count, row] = piece.roll[part], piece.channels[part], piece.clock[part]
        past = piece.roll[max(0, offset - memory) : offset + count]
        slots[row, memory + count - len(past) : memory + count] = past
        for step in range(count):
            classes[row, step, step : step + memory] = piece.classes[offset + step]
        mask[:count, row] = True
    return Window(*(torch.from_numpy(array) for array in (roll, known, clock, slots, classes, mask)))


class Stream:
    """Endless training windows: each row plays one sequence after another, in an order shuffled anew each time round."""

    def __init__(self, rolls: list[Roll], rows: int, steps: int, memory: int, seed: int) -> None:
        self._rolls, self._steps, self._memory = rolls, steps, memory
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []
        self.frames = 0  # handed out
        self._rows = [(self._next_play(), 0) for _ in range(rows)]

    def next(self) -> tuple[Window, Tensor]:
        """Return the next window, and a bool tensor (B,): False where a row begins a sequence."""
        window = cut(self._rows, self._steps)
        keep = torch.tensor([offset > 0 for _, offset in self._rows])
        for row, (piece, offset) in enumerate(self._rows):
            done = offset + self._steps >= len(piece.roll)
            self._rows[row] = (self._next_play(), 0) if done else (piece, offset + self._steps)
        self.frames += int(window.mask.sum())
        return window, keep

    def _next_play(self) -> Columns:
        self._order = self._order or self._rng.permutation(len(self._rolls)).tolist()
        return prepare(self._rolls[self._order.pop()], self._memory)


def whole(rolls: list[Roll], rows: int, steps: int, memory: int) -> Iterator[tuple[list[int], Iterator[Window]]]:
    """Yield groups of sequences of similar length, as indices and as windows from start to end."""
    order = sorted(range(len(rolls)), key=lambda i: len(rolls[i]))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        pieces = [prepare(rolls[i], memory) for i in indices]
        offsets = range(0, max(len(piece.roll) for piece in pieces), steps)
        yield indices, (cut([(piece, offset) for piece in pieces], steps) for offset in offsets)
