"""Whether an exported graph computes what the network computes; an int8 graph, whether it is as good.

Twice: on what it composes itself, every condition used, against PyTorch; and, for whoever has only the file, on a piece of the
music21 corpus, whose nats per note under PyTorch stand in the file's metadata.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.engine.interface import Chunk
from service.engine.model import OnnxModel
from service.errors import NocturneError
from service.music.piece import RESOLUTION, TimeSignature
from service.music.representation import CONTROL, FIELDS, EncodedPiece, encode_piece, time_signature_index
from training.batches import Told, make_batch, prepare_piece
from training.conditions import bars_left_class, notes_left_class
from training.data import Dataset, PieceInfo, condition_values, piece_condition_names
from training.import_music import corpus_file, read_music_file
from training.model import Network
from training.scoring import score_dataset, score_exported

PARITY_TOLERANCE = 1e-3  # nats of one value; float32 in another order of summation gives about 1e-5
CORPUS_PIECE = "chopin/mazurka06-2.krn"
_PARITY_ROWS, _PARITY_STEPS = 8, 256
_PARITY_LEFT = (200, 20 * 3 * RESOLUTION)  # notes and ticks; less than is composed, so that both run out


class ParityFailed(NocturneError):
    """The exported graph does not compute what the network computes."""


@dataclass(frozen=True)
class Parity:
    """How far an exported graph is from PyTorch.

    Attributes
    ----------
    max_error : float
        Largest difference of the nats of one value.
    values : int
        How many were compared.
    """

    max_error: float
    values: int


@dataclass(frozen=True)
class Int8Parity:
    """How far an int8 graph is from PyTorch.

    Attributes
    ----------
    nats_per_note, pytorch_nats_per_note : float
        Of the same pieces, of which nothing is told but the metre.
    difference : float
        Of the two, as a share of PyTorch's.
    pieces : str
        Which these are.
    """

    nats_per_note: float
    pytorch_nats_per_note: float
    difference: float
    pieces: str


def compare_int8(network: Network, serialized: bytes, dataset: Dataset, pieces: str) -> Int8Parity:
    """Score a dataset with an int8 graph and with PyTorch; `pieces` says which it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(serialized)
        found = score_exported(OnnxModel(path), dataset, with_conditions=False).nats_per_note
    expected = score_dataset(network, dataset, with_conditions=False).nats_per_note
    return Int8Parity(found, expected, found / expected - 1, pieces)


def corpus_dataset() -> Dataset:
    """Return CORPUS_PIECE as a dataset of one piece, of which nothing is told but the metre."""
    infos = (PieceInfo(CORPUS_PIECE, "test"),)
    return Dataset((encode_piece(read_music_file(corpus_file(CORPUS_PIECE))),), infos, condition_values(list(infos)))


def check_parity(network: Network, serialized: bytes) -> Parity:
    """Compose with an exported graph, and compare the probabilities of what it drew with PyTorch's.

    Parameters
    ----------
    network : Network
        In evaluation mode, on the CPU.
    serialized : bytes
        The ONNX file.

    Raises
    ------
    ParityFailed
        If they differ by more than `PARITY_TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(serialized)
        tokens, probabilities, conditions, signature = _compose(OnnxModel(path), network)
    pieces = []
    for i, row in enumerate(tokens):
        times = np.cumsum(row[:, 0], dtype=np.int64)
        metres = np.full(len(row), time_signature_index(signature), np.int32)
        piece = EncodedPiece(row, (times % signature.bar_ticks).astype(np.int32), metres, 0)
        prepared = prepare_piece(
            piece, network.config.memory, Told.of(piece_condition_names(network.config.conditions), conditions[i])
        )
        if i % 2 == 0:  # as told in `_compose`
            is_note = row[:, FIELDS.index("hand")] != CONTROL
            left = _PARITY_LEFT[0] - (np.cumsum(is_note) - is_note)
            bars = -(-(_PARITY_LEFT[1] - np.concatenate([[0], times[:-1]])) // signature.bar_ticks)
            prepared = replace(prepared, notes_left=notes_left_class(left), bars_left=bars_left_class(bars))
        pieces.append(prepared)
    batch = make_batch([(piece, 0) for piece in pieces], tokens.shape[1], conditions)
    with torch.no_grad():
        logits, _ = network(batch, network.initial_state(len(pieces)))
    expected = [
        torch.log_softmax(logits[name], -1).gather(-1, batch.target[..., i : i + 1])[..., 0].T.numpy()
        for i, name in enumerate(FIELDS)
    ]
    errors = np.abs(np.log(probabilities) - np.stack(expected, axis=-1))
    if not errors.max() <= PARITY_TOLERANCE:  # "not <=" also refuses NaN
        raise ParityFailed(f"the exported graph differs from PyTorch by {errors.max():.2g} nats; {PARITY_TOLERANCE} is allowed")
    return Parity(float(errors.max()), errors.size)


def _compose(model: OnnxModel, network: Network) -> tuple[Any, Any, Any, TimeSignature]:
    """Let a model compose freely under its own distribution, every condition used."""
    rng = np.random.default_rng(0)
    signature = TimeSignature(0, 3, 4)
    names = piece_condition_names(network.config.conditions)
    sizes = [len(network.config.conditions[name]) for name in names]
    conditions = rng.integers(0, np.array(sizes, np.int64), (_PARITY_ROWS, len(sizes))).astype(np.int32)
    shape = (_PARITY_ROWS, _PARITY_STEPS, len(FIELDS))
    metre = np.array([time_signature_index(signature), signature.bar_ticks, 0], np.int32)
    forced, uniforms = np.full(shape, -1, np.int32), rng.random(shape, np.float32)
    left = np.tile(np.array([_PARITY_LEFT, [-1, -1]], np.int32), (_PARITY_ROWS // 2, 1))
    chunk = Chunk.unbiased(forced, uniforms, np.broadcast_to(metre, (*shape[:2], 3)), conditions, left)
    tokens, probabilities = model.run(chunk, model.initial_state(np.zeros(_PARITY_ROWS, np.int32)))
    return tokens, probabilities, conditions, signature
