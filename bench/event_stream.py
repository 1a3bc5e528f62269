"""An LSTM over the event stream of Performance RNN, trained for as many notes as ours: nats per note of the same pieces.

    python -m bench.event_stream data/piano.npz --out runs/compare/events [--notes 1280000]

The encoding is that of I. Simon and S. Oore, Performance RNN (magenta.tensorflow.org/performance-rnn, 2017): note-on and
note-off of 128 pitches, time shifts of 10 ms to 1 s, 32 velocities. It says less than our tokens do (neither hand nor pedal,
times in steps of 10 ms, the tempo only by them), so the comparison favours it. Its network: embedding, two LSTM layers, softmax,
as large as ours. The nats of an event count for the note that it leads to. The scores go to scores.npz in the folder, for
`evaluate --scores`; they stand in the column of the shift, for they are not by field. The last line is JSON.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.music.piece import RESOLUTION, Piece
from service.music.representation import FIELDS, TokenArray, decode_tokens, is_note
from training.batches import Augmentation, augment
from training.data import Dataset, load_dataset
from training.lstm import LSTMLayer
from training.score import Score, save_score

STEPS_PER_SECOND, LONGEST = 100, 100  # steps of 10 ms; a time shift is 1..100 of them
OFF, SHIFT, VELOCITY, START, EVENTS = 128, 256, 256 + LONGEST, 256 + LONGEST + 32, 256 + LONGEST + 33
ROWS, WINDOW, WARMUP, LEARNING_RATE, DROPOUT = 16, 128, 200, 2e-3, 0.1
SCORED_ROWS = 64


class Stream(NamedTuple):
    """The events of a piece: N of them, and which note each leads to."""

    events: NDArray[np.int64]  # (N,)
    notes: NDArray[np.int64]  # (N,)


def seconds_at(piece: Piece, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the time of ticks in seconds, by the piece's tempo map."""
    starts = np.concatenate([[0], piece.tempos["time"]])
    per_tick = 60 / np.concatenate([piece.tempo_at(np.array([0])), piece.tempos["qpm"]]) / RESOLUTION
    at_start = np.concatenate([[0.0], np.cumsum(np.diff(starts) * per_tick[:-1])])
    index = np.searchsorted(starts, ticks, side="right") - 1
    found: NDArray[np.float64] = at_start[index] + (ticks - starts[index]) * per_tick[index]
    return found


def encode_events(tokens: TokenArray) -> Stream:
    """Return the event stream of a piece; of the same time note-offs come first, then notes upwards."""
    piece = decode_tokens(tokens)
    notes = piece.notes
    count = len(notes)
    on = np.round(seconds_at(piece, notes["time"]) * STEPS_PER_SECOND).astype(np.int64)
    off = np.round(seconds_at(piece, notes["time"] + notes["duration"]) * STEPS_PER_SECOND).astype(np.int64)
    off = np.maximum(off, on + 1)
    times = np.concatenate([on, off])
    starts = np.arange(2 * count) < count
    pitches = np.concatenate([notes["pitch"], notes["pitch"]])
    order = np.lexsort((pitches, starts, times))
    times, starts, pitches = times[order], starts[order], pitches[order]
    velocities = np.concatenate([notes["velocity"] // 4, np.zeros(count, np.int64)])[order]
    leads_to = np.minimum(np.cumsum(starts) - starts, count - 1)
    numbers = np.concatenate([np.arange(count), np.zeros(count, np.int64)])[order][starts]
    waits = np.diff(times, prepend=0)
    longest, rest = divmod(waits, LONGEST)
    louder = np.zeros(2 * count, bool)
    louder[starts] = np.diff(velocities[starts], prepend=-1) != 0
    parts = np.stack([longest, rest > 0, louder, np.ones(2 * count, np.int64)], axis=1)  # how many events of each kind
    kinds = np.stack(
        [np.full(2 * count, SHIFT + LONGEST - 1), SHIFT + rest - 1, VELOCITY + velocities, pitches + OFF * ~starts], 1
    )
    events = np.repeat(kinds.ravel(), parts.ravel())
    return Stream(events, numbers[np.repeat(leads_to, parts.sum(axis=1))])


class EventNetwork(nn.Module):
    """Predicts the next event from those before."""

    def __init__(self, hidden: int, embedding: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(EVENTS, embedding)
        self.layers = nn.ModuleList([LSTMLayer(embedding, hidden), LSTMLayer(hidden, hidden)])
        self.output = nn.Linear(hidden, EVENTS)

    def forward(self, before: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of the events after those before, (T, B, EVENTS), and the state after."""
        x, hs, cs = self.embedding(before), [], []
        for layer, own_h, own_c in zip(self.layers, h, c, strict=True):
            x, own_h, own_c = layer(nn.functional.dropout(x, DROPOUT, self.training), own_h, own_c)
            hs.append(own_h)
            cs.append(own_c)
        return self.output(nn.functional.dropout(x, DROPOUT, self.training)), torch.stack(hs), torch.stack(cs)


def train(dataset: Dataset, notes: int, hidden: int) -> EventNetwork:
    """Return a network that has seen so many notes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = EventNetwork(hidden)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    h, c = torch.zeros(2, 2, ROWS, hidden)
    order = iter(())
    playing: list[Stream | None] = [None] * ROWS
    offsets, seen, step, started = [0] * ROWS, 0, 0, time.monotonic()
    while seen < notes:
        before, target = np.full((WINDOW, ROWS), START), np.full((WINDOW, ROWS), -100)
        for row in range(ROWS):
            current = playing[row]
            if current is None or offsets[row] >= len(current.events):
                index = next(order, None)
                if index is None:
                    order = iter(rng.permutation(len(dataset.pieces)).tolist())
                    index = next(order)
                playing[row] = current = encode_events(augment(dataset.pieces[index].tokens, Augmentation(), rng))
                offsets[row] = 0
                h[:, row] = c[:, row] = 0
            part = slice(offsets[row], offsets[row] + WINDOW)
            events = current.events[part]
            target[: len(events), row] = events
            before[: len(events), row] = np.concatenate([[START], current.events])[part][: len(events)]
            seen += int((events < OFF).sum())
            offsets[row] += WINDOW
        progress = min(1.0, seen / notes)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = rate
        network.train()
        logits, h, c = network(torch.from_numpy(before), h, c)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(target).flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        h, c = h.detach(), c.detach()
        step += 1
        if step % 20 == 0:
            speed = seen / (time.monotonic() - started)
            print(f"step {step}  {seen:,} notes  {loss.item():.3f} nats/event  {speed:,.0f} notes/s", flush=True)
    return network


@torch.no_grad()
def score(network: EventNetwork, dataset: Dataset) -> Score:
    """Return the nats of each note of whole pieces."""
    network.eval()
    streams = [encode_events(piece.tokens) for piece in dataset.pieces]
    order = sorted(range(len(streams)), key=lambda i: len(streams[i].events))
    found = [np.zeros(piece.tokens.shape) for piece in dataset.pieces]
    for start in range(0, len(order), SCORED_ROWS):
        rows = order[start : start + SCORED_ROWS]
        length = max(len(streams[i].events) for i in rows)
        target = torch.from_numpy(
            np.stack([np.pad(streams[i].events, (0, length - len(streams[i].events))) for i in rows], axis=1)
        )
        before = torch.cat([torch.full((1, len(rows)), START), target[:-1]])
        h, c = torch.zeros(2, 2, len(rows), network.output.in_features)
        nats = []
        for at in range(0, length, WINDOW):
            logits, h, c = network(before[at : at + WINDOW], h, c)
            nats.append(nn.functional.cross_entropy(logits.movedim(-1, 1), target[at : at + WINDOW], reduction="none"))
        for i, own in zip(rows, torch.cat(nats).double().numpy().T, strict=True):
            notes = is_note(dataset.pieces[i].tokens)
            by_note = np.bincount(streams[i].notes, own[: len(streams[i].notes)], minlength=int(notes.sum()))
            found[i][notes, FIELDS.index("shift")] = by_note
    return Score.of(dataset.pieces, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--notes", type=int, default=1_280_000)
    parser.add_argument("--hidden", type=int, default=656)
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    network = train(dataset.select("train"), options.notes, options.hidden)
    result = score(network, dataset.select("valid"))
    options.out.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in network.parameters())
    about = f"event-stream LSTM, {parameters / 1e6:.2f} million parameters, {options.notes / 1e6:.2f} million notes"
    save_score(options.out / "scores.npz", result, about, by_field=False)
    print(json.dumps({"nats_per_note": result.nats_per_note, "notes": options.notes, "parameters": parameters}))


if __name__ == "__main__":
    main()
