"""How long a passage goes along with a piece that the model was trained on: the longest run of the same intervals and shifts.

A passage is written as steps, one from each note to the next in canonical order: (interval in semitones, shift in ticks). Equal
steps are the same music whatever the key, the dynamics, the hands and the durations. A run of L steps is L + 1 notes. Nothing is
left out as trivial: a trill, a scale or an Alberti bass goes along with much music, in real pieces as in composed ones, which is
what real passages of the same lengths are the yardstick for. `kinds`, the number of different steps in the longest run, tells
these cases.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.music.piece import Records

Codes = NDArray[np.uint64]


class Run(NamedTuple):
    """The longest run of a passage that some piece of the corpus shares."""

    steps: int  # of the run; 0 if there is none
    start: int  # the first of them in the passage
    piece: int  # the first of the corpus that has it, -1 if there is none
    kinds: int  # different steps in it


NO_RUN = Run(0, 0, -1, 0)


def _scatter(numbers: Codes) -> Codes:
    """Return numbers spread over 64 bits, different ones for different numbers (the finaliser of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: Codes = numbers ^ (numbers >> np.uint64(31))
    return scattered


def steps(notes: Records) -> Codes:
    """Return a number for each step between notes, shape (N - 1,): equal for equal steps."""
    intervals, shifts = np.diff(notes["pitch"]) + 128, np.diff(notes["time"])
    codes: Codes = (shifts * 256 + intervals).astype(np.uint64)
    return codes


class _Text:
    """Passages end to end, with a hash of every window that lies within one of them.

    The hash of 2L steps is made of those of its halves, that of any length of the two longest such windows that cover it. Of
    millions of different windows two have the same one with a probability of about 1e-6.
    """

    def __init__(self, passages: Sequence[Codes]) -> None:
        lengths = np.array([len(codes) for codes in passages], np.int64)
        self.passage = np.repeat(np.arange(len(passages)), lengths)
        self.ends = np.repeat(np.cumsum(lengths), lengths)
        self.starts = np.cumsum(lengths) - lengths
        self.codes = np.concatenate([np.empty(0, np.uint64), *passages])
        self._doubled = [_scatter(self.codes + np.uint64(1))]

    def windows(self, length: int) -> tuple[NDArray[np.int64], Codes]:
        """Return where windows of a length (at least 1) begin, and their hashes."""
        power = length.bit_length() - 1
        while len(self._doubled) <= power:
            half, reach = self._doubled[-1], 1 << (len(self._doubled) - 1)
            self._doubled.append(_join(half[: max(0, len(half) - reach)], half[reach:]))
        covers, later = self._doubled[power], length - (1 << power)
        starts = np.flatnonzero(np.arange(len(self.codes)) + length <= self.ends)
        return starts, _join(covers[starts], covers[starts + later])


def _join(first: Codes, second: Codes) -> Codes:
    return _scatter(first * np.uint64(0x9E3779B97F4A7C15) + second)


def longest_runs(passages: Sequence[Records], corpus: Sequence[Records]) -> list[Run]:
    """Return the longest run that each passage shares with any piece of a corpus.

    Found by bisection of the length, for all passages together: what shares a run of L steps shares one of L - 1.

    Parameters
    ----------
    passages : sequence of structured array of dtype NOTE
    corpus : sequence of structured array of dtype NOTE
        Two million notes take about half a minute.
    """
    text, queries = _Text([steps(notes) for notes in corpus]), _Text([steps(notes) for notes in passages])
    low = np.zeros(len(passages), np.int64)  # shared for certain
    high = np.array([max(0, len(notes) - 1) for notes in passages], np.int64)  # nothing longer is shared
    runs = [NO_RUN] * len(passages)
    while (open_ := low < high).any():
        middle = np.where(open_, (low + high + 1) // 2, 0)
        for length in np.unique(middle[open_]).tolist():
            found = _shared(queries, text, length, middle == length)
            for passage in np.flatnonzero(middle == length).tolist():
                if passage in found:
                    low[passage], runs[passage] = length, found[passage]
                else:
                    high[passage] = length - 1
    return runs


def _shared(queries: _Text, text: _Text, length: int, asked: NDArray[np.bool_]) -> dict[int, Run]:
    """Return for each passage asked about a run of a length that the text has too, if there is one."""
    starts, hashes = queries.windows(length)
    mine = asked[queries.passage[starts]]
    starts, hashes = starts[mine], hashes[mine]
    places, others = text.windows(length)
    # Only what occurs in the text can be a hit, so the text is searched for the few hashes and not sorted.
    wanted = np.unique(hashes)
    index = np.searchsorted(wanted, others).clip(0, max(0, len(wanted) - 1))
    hits = np.flatnonzero(wanted[index] == others) if len(wanted) else np.empty(0, np.int64)
    first_place = dict(zip(others[hits[::-1]].tolist(), places[hits[::-1]].tolist(), strict=True))
    found: dict[int, Run] = {}
    for start, hash_ in zip(starts.tolist(), hashes.tolist(), strict=True):
        passage = int(queries.passage[start])
        if passage not in found and hash_ in first_place:
            place = first_place[hash_]
            window = queries.codes[start : start + length]
            assert (window == text.codes[place : place + length]).all(), "two windows with one hash"
            piece = int(text.passage[place])
            found[passage] = Run(length, start - int(queries.starts[passage]), piece, len(np.unique(window)))
    return found


def summarise(composed: Sequence[Run], real: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Return how long the runs of composed passages are beside those of real ones.

    Parameters
    ----------
    composed, real : sequence of Run
    names : sequence of str
        Of the corpus' pieces.

    Returns
    -------
    dict
        For `composed` and `real` the `median`, `p95` and `longest` number of steps, the `piece` that shares the longest and the
        number of `kinds` of steps in it; and `above`, the share of composed passages whose run is longer than the real ones' p95.
    """
    figures: dict[str, Any] = {}
    for group, runs in (("composed", composed), ("real", real)):
        lengths = np.array([run.steps for run in runs])
        worst = max(runs, key=lambda run: run.steps)
        figures[group] = {
            "median": float(np.median(lengths)),
            "p95": float(np.percentile(lengths, 95)),
            "longest": worst.steps,
            "kinds": worst.kinds,
            "piece": names[worst.piece] if worst.piece >= 0 else "",
        }
    figures["above"] = float(np.mean([run.steps > figures["real"]["p95"] for run in composed]))
    return figures
