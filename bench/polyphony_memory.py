"""The memory of `bench.polyphony`: which frame of the past comes back. `training.memory` and `training.model` do it for notes.

Each frame of the past offers itself as the next one. A pointer chooses by what the LSTM makes of the past, by how many frames
before the offer equal the last ones (the match), and by how many frames ago it was.

Shape letters: N frames of a sequence, T of a window, B rows, F frames of a window that exist, K keys, M frames of memory, P
pointers, k offers.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model import UNREACHABLE

# Lengths of a match from which on it is of the next class, as in `training.memory`, but in frames and of equal frames only.
MATCH_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24)
MATCHES = len(MATCH_EDGES) + 1
LONGEST_MATCH = MATCH_EDGES[-1]
MATCH_CLASS = np.searchsorted(MATCH_EDGES, np.arange(LONGEST_MATCH + 1), side="right").astype(np.uint8)
_OWN_CLASS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # lags in frames
_FACTORS = (16, 12, 8, 6, 4, 3, 2)  # else the largest of these that divides the lag
LAG_CLASSES = len(_OWN_CLASS) + len(_FACTORS) + 1
EMPTY = MATCHES * LAG_CLASSES  # the class of a slot that holds no frame


def lag_classes(memory: int) -> NDArray[np.uint8]:
    """Return the class of each lag from `memory` frames down to 1."""
    classes = []
    for lag in range(memory, 0, -1):
        factor = next((i for i, factor in enumerate(_FACTORS) if lag % factor == 0), len(_FACTORS))
        classes.append(_OWN_CLASS.index(lag) if lag in _OWN_CLASS else len(_OWN_CLASS) + factor)
    return np.array(classes, np.uint8)


def offer_classes(roll: NDArray[np.uint8], memory: int) -> NDArray[np.uint8]:
    """Return the class of each of the M frames before each frame as an offer for it, the oldest first, shape (N, M).

    The frame d back offers itself; its match is the number of frames, back from the last one, that equal those d before them.
    """
    count = len(roll)
    numbers = np.unique(np.packbits(roll, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    padded = np.concatenate([np.full(memory, -1), numbers])
    earlier = np.lib.stride_tricks.sliding_window_view(padded, memory)[:count]  # (N, M): frame n - d
    rows = np.arange(count)[:, None]
    run = rows - np.maximum.accumulate(np.where(earlier == numbers[:, None], -1, rows), axis=0)
    run = np.concatenate([np.zeros((1, memory), np.int64), run[:-1]])  # up to the frame before; no further than the start
    distance = np.arange(memory, 0, -1)
    run = np.minimum(run, (rows - distance).clip(0))
    classes = MATCH_CLASS[np.minimum(run, LONGEST_MATCH)] * np.uint8(LAG_CLASSES) + lag_classes(memory)
    return np.where(distance <= rows, classes, np.uint8(EMPTY))


class Pointers(nn.Module):
    """P pointers into the frames before.

    Parameters
    ----------
    hidden, key, pointers, offers : int
        Widths of the LSTM and of the keys of the slots, P and k.
    """

    def __init__(self, hidden: int, key: int, pointers: int, offers: int) -> None:
        super().__init__()
        self.pointers, self.count = pointers, offers
        self.query = nn.Linear(hidden, pointers * key)
        self.key = nn.Linear(hidden, pointers * key)
        self.sharpness = nn.Parameter(torch.full((pointers,), 4.0))
        self.class_scores = nn.Linear(hidden, pointers * (MATCHES + LAG_CLASSES))
        self.nothing = nn.Linear(hidden, pointers)  # the score of pointing at nothing
        with torch.no_grad():  # begin with what is known of repeats, as training.model does
            bias = self.class_scores.bias.view(pointers, MATCHES + LAG_CLASSES)
            bias[:, :MATCHES] = torch.linspace(0, 6, MATCHES)
            bias[:, MATCHES:] = 0.0
            self.nothing.bias.fill_(4.0)

    def forward(self, x: Tensor, classes: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight that each pointer gives to each slot, (T, B, P, M + T), and the keys of the last M slots.

        Parameters
        ----------
        x : Tensor
            The first LSTM layer's outputs, (T, B, H).
        classes : Tensor
            Of each slot as an offer for each frame, uint8 (B, T, M + T).
        keys : Tensor
            Of the M slots before the window, (B, M, P * key).
        """
        memory, split = keys.shape[1], (self.pointers, -1)
        x = x.transpose(0, 1)
        keys = torch.cat([keys, _unit(self.key(x).float().unflatten(-1, split)).flatten(-2)], dim=1)
        queries = _unit(self.query(x).float().unflatten(-1, split)) * self.sharpness[:, None]  # (B, T, P, key)
        scores = torch.einsum("btpk,bspk->btps", queries, keys.view(*keys.shape[:2], *split)).float()
        of_match, of_lag = self.class_scores(x).float().unflatten(-1, split).split([MATCHES, LAG_CLASSES], dim=-1)
        of_class = (of_match[..., None] + of_lag[..., None, :]).flatten(-2)
        of_class = nn.functional.pad(of_class, (0, 1), value=UNREACHABLE)  # (B, T, P, EMPTY + 1)
        scores = scores + of_class.gather(-1, classes.long()[:, :, None].expand(-1, -1, self.pointers, -1))
        scores = torch.cat([scores, self.nothing(x).float()[..., None]], dim=-1)
        return scores.softmax(-1)[..., :-1].transpose(0, 1), keys[:, -memory:].detach()

    def expected(self, weights: Tensor, slots: Tensor) -> Tensor:
        """Return how likely the pointers make each key, (T, B, P, K), from weights (T, B, P, M + T) and slots (B, M + T, K)."""
        by_row = weights.transpose(0, 1)
        found = by_row.flatten(1, 2) @ slots.to(weights.dtype)  # (B, T * P, K)
        return found.view(*by_row.shape[:3], -1).transpose(0, 1)

    def offers(self, weights: Tensor, slots: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames pointed at most for frames `at` (F,) of T * B: (F, P * k, K), and their weights, (F, P * k)."""
        best, slot = weights.flatten(0, 1)[at].topk(self.count, dim=-1)  # (F, P, k)
        return slots[(at % len(slots))[:, None], slot.flatten(1)], best.flatten(1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(-1, keepdim=True) + 1e-6).sqrt()
