"""The network of `bench.polyphony`: LSTM layers over frames, a memory with pointers between them, a sequential head over notes.

Shape letters: T steps, B rows, F = frames of a window that exist, N notes and ends to draw, K keys, H width of the LSTM, D of the
head, C of a key, M frames of memory, P pointers, k offers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.polyphony_frames import CHANNELS, KEYS, LAGS, PERIODS, Window
from bench.polyphony_memory import Pointers
from training.lstm import LSTMLayer
from training.model import AGREEMENT_FLOOR, IMPOSSIBLE
from training.options import option

MAX_NOTES = 16  # more notes of a frame than these are not told apart
REACH = 2 * KEYS + 1  # intervals, and one that says there is none
READ_CHANNELS = (0, len(LAGS), len(LAGS) + 2)  # what the first layer reads: the frame before, ages, a running mean


@dataclass(frozen=True)
class PolyphonyConfig:
    """The shape of a network."""

    layers: int = option(1, "LSTM layers over the frames")
    hidden: int = option(256, "width H of the LSTM")
    embedding: int = option(192, "width of what the first layer reads")
    head: int = option(192, "width D of the head")
    key_width: int = option(32, "width C of what is known of each key")
    reach: int = option(12, "keys up and down that each key sees of the past")
    memory: int = option(128, "frames M that the network can point back to")
    pointers: int = option(2, "places P that it points to at a time")
    offers: int = option(8, "frames k, the best ones, that a pointer offers to copy notes of")
    match_key: int = option(24, "width of the keys of the memory")
    dropout: float = option(0.3, "share of the inputs and outputs of layers set to zero in training")
    key_dropout: float = option(0.1, "share of what is known of each key set to zero in training")


class State(NamedTuple):
    """What is carried from window to window."""

    h: Tensor  # (L, B, H)
    c: Tensor  # (L, B, H)
    keys: Tensor  # (B, M, P * match_key)

    def rows(self, keep: Tensor) -> "State":
        """Return the state with the rows where `keep` (B,) is False set to zero."""
        return State(self.h * keep[None, :, None], self.c * keep[None, :, None], self.keys * keep[:, None, None])


class Draws(NamedTuple):
    """The notes and ends to draw of the F frames of a window, N in all."""

    frame: Tensor  # (N,) int64: index among the F frames
    target: Tensor  # (N,) int64: key or END
    last: Tensor  # (N,) int64: key drawn before it in the frame, -1 if none
    drawn: Tensor  # (N, K) bool: keys drawn before it


def draws(roll: Tensor) -> Draws:
    """Return what is to be drawn of frames (F, K)."""
    frame, target = torch.nonzero(nn.functional.pad(roll, (0, 1), value=1), as_tuple=True)  # by frame, then ascending
    first = torch.ones_like(frame, dtype=torch.bool)
    first[1:] = frame[1:] != frame[:-1]
    last = torch.where(first, -1, target.roll(1))
    drawn = (roll[frame] > 0) & (torch.arange(KEYS) <= last[:, None])
    return Draws(frame, target, last, drawn)


class PolyphonyNetwork(nn.Module):
    """Predicts each note of a frame, or its end, from the frames before and the notes below."""

    def __init__(self, config: PolyphonyConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, head, c, pointers = config.embedding, config.hidden, config.head, config.key_width, config.pointers
        self.known = nn.Linear(len(READ_CHANNELS) * KEYS, width)
        self.clock_embeddings = nn.ModuleList(nn.Embedding(period, width) for period in PERIODS)
        self.layers = nn.ModuleList(LSTMLayer(size, hidden) for size in [width, *[2 * hidden] * (config.layers - 1)])
        self.memory = Pointers(hidden, config.match_key, pointers, config.offers)
        self.read = nn.Linear(pointers * KEYS, hidden)
        self.neighbours = nn.Conv1d(CHANNELS + pointers, 2 * c, 2 * config.reach + 1, padding=config.reach)
        self.of_key = nn.Linear(2 * c, c)
        self.below = nn.Embedding(2 * KEYS, c)  # by the interval up from each note drawn; the same from the last one
        self.to_head = nn.Linear(hidden, head)
        self.drawn_input = nn.Linear(2 * KEYS, head, bias=False)  # the notes drawn, the frame before
        self.head_embeddings = nn.ModuleList(nn.Embedding(size, head) for size in (KEYS + 1, MAX_NOTES, REACH, REACH))
        self.agreement = nn.Linear(pointers, head, bias=False)
        self.middle = nn.Linear(head, head)
        self.to_keys = nn.Linear(head, c)
        self.weigh = nn.Linear(head, c)
        self.output = nn.Linear(head, KEYS + 1)
        self.copy_scales = nn.Linear(head, pointers)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)
        with torch.no_grad():
            self.copy_scales.bias.fill_(1.0)

    def initial_state(self, rows: int) -> State:
        """Return the state before the first frame of `rows` sequences."""
        config = self.config
        zeros = torch.zeros(config.layers, rows, config.hidden)
        return State(zeros, zeros.clone(), torch.zeros(rows, config.memory, config.pointers * config.match_key))

    def forward(self, window: Window, state: State, product: torch.dtype = torch.float32) -> tuple[Tensor, Draws, State]:
        """Return the logits of every draw, (N, K + 1), what was drawn, and the state after.

        `product` is the type of the factors of the LSTM's matrix products.
        """
        x = self._drop(self.embed(window))
        hs, cs = [], []
        for i, (layer, h, c) in enumerate(zip(self.layers, state.h, state.c, strict=True)):
            x, h, c = layer(x, h, c, product)
            x = self._drop(x)
            hs.append(h)
            cs.append(c)
            if i == 0:
                weights, keys = self.memory(x, window.classes, state.keys)
                expected = self.memory.expected(weights, window.slots)
                if self.config.layers > 1:
                    x = torch.cat([x, self.read(expected.flatten(2))], dim=-1)
        at = torch.nonzero(window.mask.flatten())[:, 0]  # (F,): the frames that exist
        drawn = draws(window.roll.flatten(0, 1)[at])
        offered, shares = self.memory.offers(weights, window.slots, at)
        known = torch.cat([window.channels.flatten(0, 1)[at], expected.flatten(0, 1)[at]], dim=1)  # (F, CHANNELS + P, K)
        logits = self.score(x.flatten(0, 1)[at], known, drawn, offered, shares)
        return logits, drawn, State(torch.stack(hs), torch.stack(cs), keys)

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.config.dropout, self.training)

    def embed(self, window: Window) -> Tensor:
        """Return what the first layer reads, (T, B, E)."""
        x: Tensor = self.known(self._drop(window.channels[:, :, READ_CHANNELS].flatten(2)))
        for embedding, clock in zip(self.clock_embeddings, window.clock.unbind(-1), strict=True):
            x = x + embedding(clock)
        return x

    def score(self, x: Tensor, known: Tensor, drawn: Draws, offered: Tensor, weights: Tensor) -> Tensor:
        """Return the logits of every draw, (N, K + 1)."""
        frame, last = drawn.frame, drawn.last
        before = known[:, 0]  # (F, K)
        above = torch.arange(KEYS) > last[:, None]  # (N, K)
        copied, share, agreement = self._copies(drawn, offered[frame], weights[frame], above)
        count = drawn.drawn.sum(-1)
        expected = _next(before[frame], above)  # the note of the frame before that comes next, going up
        same_place = _nth(before, count, frame)  # the note of the frame before in the same place, counted from the lowest
        z = self.to_head(x)[frame] + self.agreement(agreement)
        z = z + self.drawn_input(torch.cat([drawn.drawn.float(), before[frame]], dim=-1))
        inputs = (last + 1, count.clamp(max=MAX_NOTES - 1), _interval(expected, last), _interval(same_place, last))
        for embedding, index in zip(self.head_embeddings, inputs, strict=True):
            z = z + embedding(index)
        z = self._drop(torch.relu(z))
        z = self._drop(torch.relu(self.middle(z)))
        # What is known of each key: the past around it, the notes drawn below it, and what the head makes of all.
        around = self.of_key(torch.relu(self.neighbours(self._drop_key(known, 2))).transpose(1, 2))  # (F, K, C)
        newest = nn.functional.one_hot(last + 1, KEYS + 1)[:, 1:]
        below = torch.cat([drawn.drawn.long(), newest], dim=-1).to(around.dtype) @ self._by_interval().to(around.dtype)
        keys = torch.relu(around[frame] + below.view(len(below), KEYS, -1) + self.to_keys(z)[:, None])
        scores = (self._drop_key(keys, 1) @ self.weigh(z)[..., None])[..., 0].float()
        scores = nn.functional.pad(scores, (0, 1)) + self.output(z).float()
        scores = scores.scatter_add(-1, copied, (share * self.copy_scales(z).float()[..., None]).flatten(1))
        allowed: Tensor = scores + nn.functional.pad(torch.where(above, 0.0, IMPOSSIBLE), (0, 1))
        return allowed

    def _copies(self, drawn: Draws, offered: Tensor, weights: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what each offer would draw next, (N, P * k), its share (N, P, k) and what agrees of each pointer, (N, P).

        An offer that disagrees with a note drawn, or with one left out, has no share.
        """
        agrees = (((offered > 0) == drawn.drawn[:, None]) | above[:, None]).all(-1)
        copied = nn.functional.pad(offered * above[:, None], (0, 1), value=1).argmax(-1)  # its lowest note, or its end
        share = (weights * agrees).view(len(agrees), self.config.pointers, -1)
        agreement = share.sum(-1)
        return copied, share / (agreement[..., None] + AGREEMENT_FLOOR), agreement

    def _drop_key(self, x: Tensor, shared: int) -> Tensor:
        """Set features to zero in training, each in all keys at once; `shared` is the axis of the keys."""
        if not self.training:
            return x
        shape = list(x.shape)
        shape[shared] = 1
        keep = 1 - self.config.key_dropout
        return x * (torch.empty(shape, dtype=x.dtype).bernoulli_(keep) / keep)

    def _by_interval(self) -> Tensor:
        """Return what a note below adds to each key, twice over: for each note drawn and for the last one, (2 * K, K * C)."""
        keys = torch.arange(KEYS)
        interval = (keys - keys[:, None]).clamp(min=0)  # (from, to)
        return torch.cat([self.below(interval), self.below(interval + KEYS)]).flatten(1)


def _next(before: Tensor, above: Tensor) -> Tensor:
    """Return the lowest key of a frame among those allowed, -1 if there is none, (N,)."""
    key = nn.functional.pad(before * above, (0, 1), value=0.5).argmax(-1)
    return torch.where(key == KEYS, -1, key)


def _nth(before: Tensor, count: Tensor, frame: Tensor) -> Tensor:
    """Return the key of the note number `count` of the frame before, -1 if it has fewer, (N,)."""
    ranks = before.cumsum(-1) * (before > 0)
    found = ranks[frame] == count[:, None] + 1
    key = nn.functional.pad(found.float(), (0, 1), value=0.5).argmax(-1)
    return torch.where(key == KEYS, -1, key)


def _interval(key: Tensor, last: Tensor) -> Tensor:
    """Return the index of an interval up from the last note; 0 where one of them does not exist."""
    return torch.where((key < 0) | (last < 0), 0, key - last + KEYS)


def frame_nats(logits: Tensor, drawn: Draws, frames: int) -> Tensor:
    """Return the nats of each frame, (F,): the sum over its notes and its end."""
    nats = nn.functional.cross_entropy(logits, drawn.target, reduction="none")
    return torch.zeros(frames).index_add(0, drawn.frame, nats)
