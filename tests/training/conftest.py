"""A few small pieces, made here, and networks small enough to train in seconds."""

from pathlib import Path

import numpy as np
import pytest

from service.music.piece import NOTE, PEDAL, TEMPO, Hand, Piece, TimeSignature, records, sort_notes
from service.music.representation import encode_piece
from training.data import Dataset, PieceInfo, condition_values, save_dataset
from training.model import ModelConfig


def make_piece(seed: int, bars: int = 8) -> Piece:
    """Return a tune in the right hand over chords in the left, with a pick-up, pedal and a slower second half."""
    rng = np.random.default_rng(seed)
    signature = TimeSignature(0, *((3, 4), (4, 4), (6, 8))[seed % 3])
    pickup = 12 if seed % 2 else 0
    tonic = int(rng.integers(55, 66))
    notes, time = [], 0
    while time < pickup + bars * signature.bar_ticks:
        duration = int(rng.choice([6, 12, 24]))
        notes.append((time, tonic + int(rng.choice([0, 2, 4, 5, 7, 9, 11, 12])), duration, int(rng.integers(50, 90)), Hand.RIGHT))
        time += duration
    for start in range(pickup, time, signature.bar_ticks):
        notes += [(start, tonic - 24 + step, signature.bar_ticks, 50, Hand.LEFT) for step in (0, 7)]
    pedals = [(pickup, True), (pickup + 48, False)]
    tempos = [(0, 120.0), (time // 2, 90.0)]
    return Piece(sort_notes(records(NOTE, notes)), records(TEMPO, tempos), records(PEDAL, pedals), (signature,), pickup=pickup)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    composers = ["Ana", "Ana", "Ana", "Ana", "Ana", "Ben"]
    infos = []
    for i in range(12):
        split = "valid" if i >= 10 else "train"
        key, tempo = "C major", "120"
        origin = {"pack": "tunes", "seconds": 30.0, "licence": "CC0", "attribution": "made by a test"}
        infos.append(PieceInfo(f"piece{i}", split, composers[i % 6], "score", key, tempo, **origin))
    pieces = tuple(encode_piece(make_piece(i)) for i in range(12))
    return Dataset(pieces, tuple(infos), condition_values(infos))


@pytest.fixture(scope="session")
def data_file(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tunes.npz"
    save_dataset(path, dataset)
    return path


@pytest.fixture
def small(dataset: Dataset) -> ModelConfig:
    """Return the shape of a network whose memory is shorter than the pieces."""
    sizes = {"layers": 2, "hidden": 32, "embedding": 24, "head": 16, "memory": 40, "key": 8, "offers": 4, "read": 12}
    return ModelConfig(**sizes, dropout=0.1, conditions=dataset.conditions)
