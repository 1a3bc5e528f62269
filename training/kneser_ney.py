"""Interpolated Kneser-Ney smoothing over whole numbers, with any context symbols.

A model predicts a symbol (0..V - 1) from a row of context symbols, the most important one first; each level of back-off drops the
last. Contexts are hashed into 64 bits, so that fitting is sorting and scoring is binary search. Nothing here knows music.

Reference: Chen and Goodman, An empirical study of smoothing techniques for language modeling (1999), section 3: interpolated,
with the modified discounts of eq. 26 (one each for counts of one, two, three and more). Counts below the top level are
continuation counts: in how many different longer contexts a symbol was seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
_Keys = NDArray[np.uint64]

_DISCOUNTED = 3  # counts from here up share one discount
_DEFAULT_DISCOUNT = 0.5  # where the counts are too few to estimate one


class _Level(NamedTuple):
    """One length of context. p(symbol | context) = discounted + kept[context] * p(symbol | shorter context)."""

    grams: _Keys  # sorted keys of (context, symbol)
    discounted: Floats  # (count - discount) / count of the context, for each of `grams`
    contexts: _Keys  # sorted keys of the contexts
    kept: Floats  # probability that the discounts leave to the shorter context, for each of `contexts`


class KneserNey:
    """A fitted model.

    Parameters
    ----------
    contexts : sequence of K int arrays, each of shape (N,)
        The context symbols of each example, the most important first; any values. None of them makes a model of order 1.
    symbols : int array, shape (N,)
        What followed, 0..vocabulary - 1.
    vocabulary : int
        How many symbols there are; below the shortest context all are equally probable.
    """

    def __init__(self, contexts: Sequence[IntArray], symbols: IntArray, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        keys = _context_keys(contexts, len(symbols))
        self._levels: list[_Level] = []
        examples = np.arange(len(symbols))
        for key in reversed(keys):
            # One example is left for each distinct longer (context, symbol): that makes these counts continuation counts.
            grams, first, counts = np.unique(_mix(key[examples], symbols[examples]), return_index=True, return_counts=True)
            examples = examples[first]
            discounts = _discounts(counts)[np.minimum(counts, _DISCOUNTED) - 1]
            known, which = np.unique(key[examples], return_inverse=True)
            totals = np.bincount(which, counts)
            kept = np.bincount(which, discounts) / totals
            self._levels.append(_Level(grams, (counts - discounts) / totals[which], known, kept))
        self._levels.reverse()

    def probabilities(self, contexts: Sequence[IntArray], symbols: IntArray) -> Floats:
        """Return the probability of each of `symbols` in its context.

        Parameters
        ----------
        contexts : sequence of K int arrays, each of shape (N,)
            As in fitting.
        symbols : int array, shape (N,)

        Returns
        -------
        float64 array, shape (N,)
            Above zero. For one context they sum to 1 over all symbols.
        """
        probabilities = np.full(len(symbols), 1 / self.vocabulary)
        for key, level in zip(_context_keys(contexts, len(symbols)), self._levels, strict=True):
            seen = _look_up(level.grams, level.discounted, _mix(key, symbols), 0.0)
            probabilities = seen + _look_up(level.contexts, level.kept, key, 1.0) * probabilities
        return probabilities


def _context_keys(contexts: Sequence[IntArray], length: int) -> list[_Keys]:
    """Return the key of the empty context, of the first symbol, of the first two and so on."""
    keys = [np.zeros(length, np.uint64)]
    for symbols in contexts:
        keys.append(_mix(keys[-1], symbols))
    return keys


def _mix(keys: _Keys, symbols: IntArray) -> _Keys:
    """Return keys of (key, symbol). splitmix64's finaliser: ten million keys collide with a probability of 3e-6."""
    x = (keys ^ (symbols.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(32))


def _discounts(counts: IntArray) -> Floats:
    """Return what to take from counts of one, two, and three or more."""
    seen = [int(np.count_nonzero(counts == n)) for n in range(1, _DISCOUNTED + 2)]
    if not seen[0] or not seen[1]:
        return np.full(_DISCOUNTED, _DEFAULT_DISCOUNT)
    single = seen[0] / (seen[0] + 2 * seen[1])  # the one discount of plain Kneser-Ney
    if not all(seen):
        return np.full(_DISCOUNTED, single)
    discounts = [n - (n + 1) * single * seen[n] / seen[n - 1] for n in range(1, _DISCOUNTED + 1)]
    # Small samples can give a discount below 0 or so large that nothing is left of a count.
    return np.clip(discounts, 0.01, np.arange(1, _DISCOUNTED + 1) - 0.01)


def _look_up(keys: _Keys, values: Floats, wanted: _Keys, default: float) -> Floats:
    if not len(keys):
        return np.full(len(wanted), default)
    index = np.searchsorted(keys, wanted)
    index[index == len(keys)] = 0
    return np.where(keys[index] == wanted, values[index], default)
