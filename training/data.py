"""The training file: many encoded pieces in one compressed .npz, each with its split, conditions and origin.

Knows the representation; reads no music. Splits are by piece (and by group of related pieces), never by window.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import NocturneError
from service.music.piece import RESOLUTION
from service.music.representation import (
    REPRESENTATION_VERSION,
    TIME_SIGNATURES,
    VOCABULARY,
    EncodedPiece,
    count_notes,
)
from training.conditions import KEYS, RENDITIONS, TEMPO_CLASSES, UNKNOWN
from training.storage import write_atomically

SPLITS = ("train", "valid", "test")
MIN_COMPOSER_PIECES = 5  # of the train split; what a composer with fewer pieces sounds like cannot be learnt


class InvalidDataset(NocturneError):
    """A training file that cannot be used, with the reason."""


@dataclass(frozen=True)
class PieceInfo:
    """Where a piece comes from; all of it is written into the training file."""

    name: str
    split: str
    composer: str = UNKNOWN
    rendition: str = UNKNOWN
    key: str = UNKNOWN
    tempo: str = UNKNOWN
    pack: str = ""
    seconds: float = 0.0
    licence: str = ""
    attribution: str = ""


@dataclass(frozen=True)
class Dataset:
    """Encoded pieces of one or more splits.

    Attributes
    ----------
    pieces : tuple of EncodedPiece
    infos : tuple of PieceInfo
        One for each piece.
    conditions : dict of str to list of str
        The values of each condition, index 0 being "not given". `metre` goes by token, the others by piece.
    """

    pieces: tuple[EncodedPiece, ...]
    infos: tuple[PieceInfo, ...]
    conditions: Mapping[str, list[str]]

    def select(self, split: str) -> "Dataset":
        """Return the pieces of one split, or all for "all".

        Raises
        ------
        InvalidDataset
            If the split has no pieces.
        """
        keep = [i for i, info in enumerate(self.infos) if split in (info.split, "all")]
        if not keep:
            raise InvalidDataset(f"the split {split!r} has no pieces; the file has {sorted({i.split for i in self.infos})}")
        return Dataset(tuple(self.pieces[i] for i in keep), tuple(self.infos[i] for i in keep), self.conditions)

    @property
    def notes(self) -> int:
        """Number of notes, controls not counted."""
        return sum(count_notes(piece.tokens) for piece in self.pieces)

    def piece_conditions(self, vocabulary: Mapping[str, list[str]] | None = None) -> NDArray[np.int32]:
        """Return the index of each per-piece condition, shape (pieces, C), C in the order of `piece_condition_names`.

        Parameters
        ----------
        vocabulary : mapping, optional
            The values that a model knows, if they are not this file's own; a value it does not know becomes 0.
        """
        vocabulary = self.conditions if vocabulary is None else vocabulary
        names = piece_condition_names(vocabulary)
        rows = [[vocabulary[n].index(v) if (v := getattr(info, n)) in vocabulary[n] else 0 for n in names] for info in self.infos]
        return np.array(rows, np.int32).reshape(len(self.infos), len(names))


def piece_condition_names(conditions: Mapping[str, list[str]]) -> list[str]:
    """Return the names of the conditions that hold for a whole piece, in the order of the model's inputs."""
    return [name for name in conditions if name != "metre"]


def condition_values(infos: list[PieceInfo]) -> dict[str, list[str]]:
    """Return the conditions and their values as the train split supports them."""
    composers = [info.composer for info in infos if info.split == "train"]
    known = sorted({c for c in composers if c != UNKNOWN and composers.count(c) >= MIN_COMPOSER_PIECES})
    return {
        "metre": list(TIME_SIGNATURES),
        "composer": [UNKNOWN, *known],
        "rendition": list(RENDITIONS),
        "key": list(KEYS),
        "tempo": list(TEMPO_CLASSES),
    }


def save_dataset(path: Path, dataset: Dataset) -> None:
    """Write a training file, whole or not at all."""
    header = {
        "representation_version": REPRESENTATION_VERSION,
        "resolution": RESOLUTION,
        "vocabulary": VOCABULARY._asdict(),
        "conditions": dataset.conditions,
        "pieces": [vars(info) for info in dataset.infos],
    }
    lengths = np.array([len(piece.tokens) for piece in dataset.pieces])
    with write_atomically(path) as file:
        np.savez_compressed(
            file,
            header=np.array(json.dumps(header)),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            tokens=np.concatenate([piece.tokens for piece in dataset.pieces]).astype(np.int16),
            positions=np.concatenate([piece.positions for piece in dataset.pieces]).astype(np.int16),
            metres=np.concatenate([piece.metres for piece in dataset.pieces]).astype(np.int8),
            start_positions=np.array([piece.start_position for piece in dataset.pieces]),
        )


def load_dataset(path: Path) -> Dataset:
    """Read a training file.

    Raises
    ------
    InvalidDataset
        If the file is missing, broken, or was prepared for another version of the representation.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header: dict[str, Any] = json.loads(str(arrays["header"]))
            offsets, starts = arrays["offsets"].tolist(), arrays["start_positions"].tolist()
            tokens, positions, metres = (arrays[name].astype(np.int32) for name in ("tokens", "positions", "metres"))
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} does not exist; make it with `python -m training prepare`") from error
    except Exception as error:  # zipfile, zlib, numpy and json each raise their own for a broken file
        raise InvalidDataset(f"{path} is not a training file: {error}") from error
    version = header.get("representation_version")
    if version != REPRESENTATION_VERSION or header["vocabulary"] != VOCABULARY._asdict():
        raise InvalidDataset(
            f"{path} was prepared for representation {version}, this is {REPRESENTATION_VERSION}: prepare it again"
        )
    pieces = tuple(
        EncodedPiece(tokens[a:b], positions[a:b], metres[a:b], start)
        for a, b, start in zip(offsets[:-1], offsets[1:], starts, strict=True)
    )
    return Dataset(pieces, tuple(PieceInfo(**row) for row in header["pieces"]), header["conditions"])
