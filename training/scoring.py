"""Nats per note of a network over whole pieces."""

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.interface import Chunk
from service.engine.model import OnnxModel
from training.batches import whole_pieces
from training.data import Dataset, piece_condition_names
from training.model import Batch, Network, field_nats
from training.score import Floats, Score

_ENDLESS_BAR = 2**30  # ticks: an exported model is told positions outright, for pieces whose metre changes


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
    conditions, names = dataset.piece_conditions(network.config.conditions), piece_condition_names(network.config.conditions)
    if not with_conditions:
        conditions = np.zeros_like(conditions)
    tokens = _room(dataset)
    for indices, windows in whole_pieces(dataset, rows, steps, network.config.memory, conditions, names):
        state = network.initial_state(len(indices))
        for number, window in enumerate(windows):
            batch = window.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=product == torch.bfloat16):
                logits, state = network(batch, state, product)
            nats = torch.stack(list(field_nats(logits, batch).values()), dim=-1)  # (T, B, F)
            _put(tokens, indices, number * steps, nats.transpose(0, 1).double().cpu().numpy())
    return Score.of(dataset.pieces, tokens)


def score_exported(model: OnnxModel, dataset: Dataset, *, with_conditions: bool, rows: int = 64, steps: int = 256) -> Score:
    """Score whole pieces with an exported model: the very graph that composes, its tokens forced.

    Parameters
    ----------
    model : OnnxModel
    dataset, with_conditions, rows, steps
        As in `score_dataset`.
    """
    conditions, names = dataset.piece_conditions(model.info.metadata["conditions"]), model.conditions
    if not with_conditions:
        conditions = np.zeros_like(conditions)
    tokens = _room(dataset)
    # The graph keeps its own memory: none has to be laid out for it.
    for indices, windows in whole_pieces(dataset, rows, steps, 1, conditions, names):
        state = model.initial_state(np.array([dataset.pieces[i].start_position for i in indices], np.int32))
        times = np.zeros(len(indices), np.int64)
        for number, window in enumerate(windows):
            chunk, times = forced_chunk(window, times)
            _, probabilities = model.run(chunk, state)
            certain = np.where(window.mask.numpy().T[..., None], probabilities, 1.0)  # no logarithm of what padding gets
            _put(tokens, indices, number * steps, -np.log(certain.astype(np.float64)))
    return Score.of(dataset.pieces, tokens)


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


def _room(dataset: Dataset) -> list[Floats]:
    return [np.zeros(piece.tokens.shape) for piece in dataset.pieces]


def _put(tokens: list[Floats], indices: list[int], start: int, nats: Floats) -> None:
    """Write a window's nats (B, T, F), from token `start` of each piece on, into its pieces; the padding is left out."""
    for row, index in enumerate(indices):
        part = tokens[index][start : start + nats.shape[1]]
        part[:] = nats[row, : len(part)]
