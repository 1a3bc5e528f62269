"""Passages of real pieces to lay beside composed ones: as many notes, from the beginning of a piece or from a barline on.

A composed piece has one metre and begins with a bar, so an excerpt is taken from within a stretch of one metre with bars of one
length. Stretches in a metre that is none of TIME_SIGNATURES are left out, since their bars are not known; so are pieces shorter
than the excerpt. Notes that began before the excerpt are not in it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.music.piece import TEMPO, Piece, TimeSignature, records
from service.music.representation import TIME_SIGNATURES, EncodedPiece, decode_tokens, is_note
from training.data import Dataset, InvalidDataset


class Excerpt(NamedTuple):
    """A passage, and the piece of the data set that it comes from."""

    piece: Piece
    source: int


def parse_metre(name: str) -> TimeSignature:
    """Return the metre that a name such as "3/4" stands for."""
    numerator, denominator = name.split("/")
    return TimeSignature(0, int(numerator), int(denominator))


def metre_of(piece: Piece) -> TimeSignature:
    """Return the one metre of a passage."""
    return piece.time_signatures[0]


def cut_notes(piece: Piece, count: int) -> Piece:
    """Return a passage with its first notes only."""
    return replace(piece, notes=piece.notes[:count])


_METRES = [None, *(parse_metre(name) for name in TIME_SIGNATURES[1:])]
_BARS = np.array([metre.bar_ticks if metre else 0 for metre in _METRES])


def _passage(piece: Piece, first: int, last: int, barline: int, metre: TimeSignature) -> Piece:
    """Return notes `first` to `last` with tick 0 at a barline, or at the piece's own where that lies within the bar."""
    origin = max(barline, 0)
    notes = piece.notes[first:last].copy()
    notes["time"] -= origin
    tempos = piece.tempos[piece.tempos["time"] > origin].copy()
    tempos["time"] -= origin
    tempos = np.concatenate([records(TEMPO, [(0, piece.tempo_at(np.array([origin]))[0])]), tempos])
    return Piece(notes, tempos, time_signatures=(metre,), pickup=(barline - origin) % metre.bar_ticks)


def stretches(encoded: EncodedPiece) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Yield the first and last note (exclusive) of each stretch of one known metre, and the tick of each note's barline."""
    played = is_note(encoded.tokens)
    times = np.cumsum(encoded.tokens[:, 0], dtype=np.int64)[played]
    barlines, metres = times - encoded.positions[played], encoded.metres[played]
    bars = _BARS[metres]
    phases = barlines % np.maximum(bars, 1)
    breaks = np.flatnonzero((np.diff(metres) != 0) | (np.diff(phases) != 0)) + 1
    for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(times)], strict=True):
        if last > first and bars[first]:
            yield first, last, barlines[first:last]


def excerpts_of(encoded: EncodedPiece, length: int) -> list[Piece]:
    """Return the excerpts of a piece, one after another: each begins with the first bar after the one before.

    Parameters
    ----------
    encoded : EncodedPiece
    length : int
        Notes of each.
    """
    piece = decode_tokens(encoded.tokens)
    metres = encoded.metres[is_note(encoded.tokens)]
    found = []
    for first, last, barlines in stretches(encoded):
        metre = _METRES[metres[first]]
        assert metre is not None
        starts = np.flatnonzero(np.diff(barlines, prepend=barlines[0] - 1)) + first
        free = first
        for start in starts.tolist():
            if start >= free and start + length <= last:
                found.append(_passage(piece, start, start + length, int(barlines[start - first]), metre))
                free = start + length
    return found


def take_excerpts(dataset: Dataset, length: int, count: int, seed: int = 0) -> list[Excerpt]:
    """Return excerpts of equal length from as many pieces as there are: first one of each piece, then a second, and so on.

    Parameters
    ----------
    dataset : Dataset
    length : int
        Notes of each.
    count : int
        How many at most; there are fewer if the pieces hold no more.
    seed : int
        Decides the order of the pieces, and so which of them give one excerpt more.

    Raises
    ------
    InvalidDataset
        If no piece is long enough.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.pieces)).tolist()
    found = {source: excerpts_of(dataset.pieces[source], length) for source in order}
    rounds = range(max((len(pieces) for pieces in found.values()), default=0))
    taken = [Excerpt(found[source][turn], source) for turn in rounds for source in order if turn < len(found[source])]
    if not taken:
        raise InvalidDataset(f"no piece has {length} notes in one metre: the report has nothing to compare with")
    return taken[:count]
