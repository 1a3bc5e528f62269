"""Nats that pieces cost, token by token, whatever model they were counted with. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import NocturneError
from service.music.representation import FIELDS, EncodedPiece, count_notes
from training.storage import write_atomically

Floats = NDArray[np.float64]


class InvalidScores(NocturneError):
    """A file of scores that cannot be used, with the reason."""


@dataclass(frozen=True)
class Score:
    """What pieces cost under a model.

    Attributes
    ----------
    tokens : list of float64 arrays, shape (N, F), one for each piece
        Nats of each field of each token, controls and END included.
    notes : int array, shape (pieces,)
    """

    tokens: list[Floats]
    notes: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[EncodedPiece], tokens: list[Floats]) -> "Score":
        """Return the score of pieces from the nats of their tokens."""
        return cls(tokens, np.array([count_notes(piece.tokens) for piece in pieces]))

    @cached_property
    def nats(self) -> Floats:
        """Nats of each field of each piece, shape (pieces, F)."""
        return np.stack([piece.sum(axis=0) for piece in self.tokens])

    @property
    def nats_per_note(self) -> float:
        """All nats over all notes."""
        return float(self.nats.sum() / self.notes.sum())

    @property
    def fields(self) -> dict[str, float]:
        """Nats per note of each field; they add up to `nats_per_note`."""
        return dict(zip(FIELDS, (self.nats.sum(axis=0) / self.notes.sum()).tolist(), strict=True))


def save_score(path: Path, score: Score, about: str, by_field: bool = True) -> None:
    """Write a score (.npz), for `read_score`.

    Parameters
    ----------
    path : Path
    score : Score
    about : str
        What model it is of, as a table shall name it.
    by_field : bool
        Whether the nats stand in the fields that they are of, and not all in one.
    """
    with write_atomically(path) as file:
        nats = np.concatenate(score.tokens).astype(np.float32)
        np.savez_compressed(file, nats=nats, about=np.array(about), by_field=np.array(by_field))


class ReadScore(NamedTuple):
    """A score from a file; see `save_score`."""

    score: Score
    about: str
    by_field: bool


def read_score(path: Path, pieces: Sequence[EncodedPiece]) -> ReadScore:
    """Return the score of pieces that `save_score` wrote.

    Raises
    ------
    InvalidScores
        If this is no such file, or of other pieces.
    """
    try:
        with np.load(path) as content:
            nats = content["nats"].astype(np.float64)
            about, by_field = str(content["about"]), bool(content["by_field"])
    except (OSError, ValueError, KeyError) as error:
        raise InvalidScores(f"{path} is not a file of scores: {error}") from error
    lengths = [len(piece.tokens) for piece in pieces]
    if nats.shape != (sum(lengths), len(FIELDS)):
        raise InvalidScores(f"{path} has scores of {len(nats)} tokens; the pieces have {sum(lengths)}")
    return ReadScore(Score.of(pieces, np.split(nats, np.cumsum(lengths)[:-1])), about, by_field)
