"""Nats per note of a network over whole pieces."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.interface import Chunk
from service.engine.model import OnnxModel
from service.music.representation import FIELDS, count_notes
from training.batches import whole_pieces
from training.data import Dataset
from training.model import Batch, Network, field_nats

_ENDLESS_BAR = 2**30  # ticks: an exported model is told positions outright, for pieces whose metre changes


@dataclass(frozen=True)
class Score:
    """Nats that pieces cost.

    Attributes
    ----------
    nats : float array, shape (pieces, F)
        Sum over the tokens of each piece, controls and END included.
    notes : int array, shape (pieces,)
    """

    nats: NDArray[np.float64]
    notes: NDArray[np.int64]

    @property
    def nats_per_note(self) -> float:
        """All nats over all notes."""
        return float(self.nats.sum() / self.notes.sum())

    @property
    def fields(self) -> dict[str, float]:
        """Nats per note of each field; they add up to `nats_per_note`."""
        return dict(zip(FIELDS, (self.nats.sum(axis=0) / self.notes.sum()).tolist(), strict=True))


@torch.no_grad()
def score_dataset(
    network: Network,
    dataset: Dataset,
    *,
    with_conditions: bool,
    product: torch.dtype = torch.float32,
    rows: int = 64,
    steps: int = 256,
) -> Score:
    """Score whole pieces, the state carried from start to end.

    Parameters
    ----------
    network : Network
        In whatever mode it is; left in evaluation mode.
    dataset : Dataset
    with_conditions : bool
        Whether the network is told composer and rendition; if not, they are "not given". The metre is always known.
    product : torch.dtype
        Type of the factors of matrix products on the CPU.
    rows, steps : int
        How many pieces and tokens are scored at a time; no effect on the result beyond rounding.
    """
    network.eval()
    device = network.to_heads.weight.device
    conditions = dataset.piece_conditions(network.config.conditions)
    if not with_conditions:
        conditions = np.zeros_like(conditions)
    nats = np.zeros((len(dataset.pieces), len(FIELDS)))
    for indices, windows in whole_pieces(dataset, rows, steps, conditions):
        state = network.initial_state(len(indices))
        for window in windows:
            batch = window.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=product == torch.bfloat16):
                logits, state = network(batch, state, product)
            for i, loss in enumerate(field_nats(logits, batch).values()):
                nats[indices, i] += loss.sum(dim=0).double().cpu().numpy()
    return Score(nats, _count_notes(dataset))


def score_exported(model: OnnxModel, dataset: Dataset, *, with_conditions: bool, rows: int = 64, steps: int = 256) -> Score:
    """Score whole pieces with an exported model: the very graph that composes, its tokens forced.

    Parameters
    ----------
    model : OnnxModel
    dataset, with_conditions, rows, steps
        As in `score_dataset`.
    """
    conditions = dataset.piece_conditions(model.info.metadata["conditions"])
    if not with_conditions:
        conditions = np.zeros_like(conditions)
    nats = np.zeros((len(dataset.pieces), len(FIELDS)))
    for indices, windows in whole_pieces(dataset, rows, steps, conditions):
        state = model.initial_state(np.array([dataset.pieces[i].start_position for i in indices], np.int32))
        times = np.zeros(len(indices), np.int64)
        for window in windows:
            chunk, times = forced_chunk(window, times)
            _, state, probabilities = model.run(chunk, state)
            certain = np.where(window.mask.numpy().T[..., None], probabilities, 1.0)  # padding costs nothing
            nats[indices] -= np.log(certain.astype(np.float64)).sum(axis=1)
    return Score(nats, _count_notes(dataset))


def forced_chunk(window: Batch, times: NDArray[np.int64]) -> tuple[Chunk, NDArray[np.int64]]:
    """Return the inputs that make an exported model take the tokens of a window under its own distribution.

    Parameters
    ----------
    window : Batch
    times : int array, shape (B,)
        Ticks that passed before the window in each row.

    Returns
    -------
    chunk : Chunk
    times : int array, shape (B,)
        Ticks that passed after it.
    """
    forced = window.target.numpy().transpose(1, 0, 2).astype(np.int32)
    rows, steps, fields = forced.shape
    now = times[:, None] + forced[..., 0].cumsum(axis=1)
    bars = np.full((rows, steps), _ENDLESS_BAR)
    metre = np.stack([window.metre.numpy().T, bars, window.target_position.numpy().T - now], axis=-1).astype(np.int32)
    uniforms = np.zeros((rows, steps, fields), np.float32)
    chunk = Chunk.unbiased(forced, uniforms, metre, window.conditions.numpy().astype(np.int32))
    return chunk, now[:, -1]


def _count_notes(dataset: Dataset) -> NDArray[np.int64]:
    return np.array([count_notes(piece.tokens) for piece in dataset.pieces])
