"""Nats per note of a network over whole pieces."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.music.representation import FIELDS, is_note
from training.batches import whole_pieces
from training.data import Dataset
from training.model import Network


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
            for i, name in enumerate(FIELDS):
                loss = torch.nn.functional.cross_entropy(
                    logits[name].flatten(0, 1), batch.target[..., i].flatten(), reduction="none"
                )
                nats[indices, i] += (loss.view(batch.mask.shape) * batch.mask).sum(dim=0).double().cpu().numpy()
    return Score(nats, np.array([int(is_note(piece.tokens).sum()) for piece in dataset.pieces]))
