"""The published benchmark of polyphonic music: nats per frame of a network trained on a set's own train split, on its test split.

    python -m bench.polyphony FOLDER/JSB_Chorales.json --minutes 7 --dropout 0.4
    python -m bench.polyphony FOLDER/Nottingham.json --dropout 0.1 --key-dropout 0.05 --weight-decay 0.02 --memory 256 --ema 0.999
    python -m bench.polyphony FOLDER/MuseData.json --dropout 0.2 --weight-decay 0.02 --memory 256 --ema 0.999
    python -m bench.polyphony FOLDER/Piano_midi.json --dropout 0.4 --memory 256 --ema 0.999

**What is counted.** A frame is drawn as its notes in ascending order, then its end (in the words of `NoteToken`: the pitches of
an onset with shift 0, then a shift that is not 0; hand, duration, velocity and tempo do not exist here). Each draw is one softmax
over the 88 keys and the end, keys at or below the last one drawn being impossible. So every frame, the empty one too, is written
in exactly one way, the probabilities of all 2^88 frames sum to 1, and the sum of the nats of a frame's draws is the negative log
of the joint probability of all its keys given the frames before: what RNN-NADE reports, and not the sum of 88 independent
sigmoids. The end of a sequence is not drawn. `test` is the mean over all frames of all sequences, the first and last included;
beside it stand the mean of the sequences' own means, and the mean without first frames (the protocol of the TCN), because the
papers do not all say which they took. No other data is read, and the test split only once, after the weights were chosen.

**The network** is of our kind, with frames where ours has tokens: LSTM layers over frames, a memory of past frames whose pointers
choose by content, match and lag, and a sequential head that draws note after note, may copy what the pointers offer, and knows
pitches by intervals too. Our own tokens would serve badly: in a piano roll a held note is a new note in every frame, so that
three notes of four only repeat, and the LSTM would spend five steps on each frame. New is the scorer of keys: for every key the
past frames within an octave of it (a convolution), the notes already drawn below it, and the head, all through one small layer
that is the same for every key. The sets come transposed to one tonality (C major and C minor), so a note's pitch is its degree,
and training does not transpose.

A line a validation; the last line is JSON. Weights are averaged (EMA), and those of the best validation are tested. The learning
rate falls to zero over `--minutes` of processor time, validations not included; an idle core spends them in as many minutes.
"""

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.polyphony_frames import Roll, Stream, read_set, whole
from bench.polyphony_network import PolyphonyConfig, PolyphonyNetwork, State, frame_nats
from training.fit import FitConfig, choose_precision
from training.options import option

PUBLISHED = {  # nats per frame on the test split; sources in the README of the sets
    "JSB_Chorales": {"RNN-NADE, best": 5.19, "RNN-NADE": 5.56, "RNN": 8.71, "LSTM": 8.45, "TCN": 8.10},
    "Nottingham": {"RNN-NADE": 2.31, "RNN": 4.46, "LSTM": 3.29, "TCN": 3.07},
    "MuseData": {"RNN-NADE": 5.60, "RNN": 8.13},
    "Piano_midi": {"RNN-NADE": 7.05, "RNN": 8.37},
}
LOG_EVERY_S = 30


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    minutes: float = option(50.0, "processor minutes of training")
    rows: int = option(16, "sequences trained on side by side (B)")
    window: int = option(64, "frames that gradients flow back through (T)")
    learning_rate: float = option(3e-3, "of AdamW, at its highest")
    warmup: int = option(100, "steps over which it rises")
    weight_decay: float = option(0.05, "of AdamW, on matrices")
    clip: float = option(1.0, "largest norm of the gradient")
    ema: float = option(0.998, "decay of the averaged weights, which are what is tested")
    validations: int = option(25, "evenly over the time")
    patience: int = option(6, "validations without a better one before training ends")
    precision: str = option(
        "auto", "bf16 or fp32 factors of matrix products in training, auto as in `fit`; the last scores are fp32"
    )
    seed: int = option(0, "decides weights, order and dropout")


@torch.no_grad()
def sequence_nats(
    network: PolyphonyNetwork, rolls: list[Roll], product: torch.dtype = torch.float32
) -> list[NDArray[np.float32]]:
    """Return the nats of each frame of each sequence."""
    network.eval()
    found: list[list[NDArray[np.float32]]] = [[] for _ in rolls]
    for indices, windows in whole(rolls, 16, 64, network.config.memory):
        state = network.initial_state(len(indices))
        for window in windows:
            with torch.autocast("cpu", torch.bfloat16, enabled=product == torch.bfloat16):
                logits, drawn, state = network(window, state, product)
            nats = torch.zeros(window.mask.shape)
            nats[window.mask] = frame_nats(logits, drawn, int(window.mask.sum()))
            for row, index in enumerate(indices):
                found[index].append(nats[window.mask[:, row], row].numpy())
    return [np.concatenate(parts) for parts in found]


def summary(nats: list[NDArray[np.float32]], name: str) -> dict[str, float]:
    """Return the means of a split's nats in the three ways of the module's docstring."""
    return {
        name: float(np.concatenate(nats).mean()),
        f"{name}_mean_of_sequences": float(np.mean([n.mean() for n in nats])),
        f"{name}_without_first": float(np.concatenate([n[1:] for n in nats]).mean()),
    }


class Trainer:
    """A network, its average, its optimiser, and where they are in the stream of windows."""

    def __init__(self, rolls: list[Roll], shape: PolyphonyConfig, how: TrainConfig) -> None:
        torch.manual_seed(how.seed)
        self.how = how
        self.product = choose_precision(FitConfig(precision=how.precision, device="cpu"))
        self.network = PolyphonyNetwork(shape)
        self.average = copy.deepcopy(self.network)
        self.stream = Stream(rolls, how.rows, how.window, shape.memory, how.seed)
        self.state = self.network.initial_state(how.rows)
        matrices = [p for n, p in self.network.named_parameters() if p.ndim >= 2 and "embedding" not in n]
        others = [p for p in self.network.parameters() if not any(p is m for m in matrices)]
        groups = [{"params": matrices, "weight_decay": how.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=how.learning_rate, betas=(0.9, 0.98))
        self.steps, self.spent_s = 0, 0.0

    def step(self) -> float:
        """Make one update; return the nats per frame of its window."""
        started, how = time.process_time(), self.how
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent_s / (how.minutes * 60))))
        for group in self.optimiser.param_groups:
            group["lr"] = how.learning_rate * min(1.0, (self.steps + 1) / how.warmup) * falling
        self.network.train()
        window, keep = self.stream.next()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.product == torch.bfloat16):
            logits, drawn, state = self.network(window, self.state.rows(keep), self.product)
        loss = torch.nn.functional.cross_entropy(logits, drawn.target, reduction="sum") / window.mask.sum()
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), how.clip)
        self.optimiser.step()
        self.state = State(*(tensor.detach() for tensor in state))
        self.steps += 1
        decay = min(how.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        self.spent_s += time.process_time() - started
        return loss.item()


def train(splits: dict[str, list[Roll]], shape: PolyphonyConfig, how: TrainConfig) -> tuple[PolyphonyNetwork, dict[str, Any]]:
    """Return the network of the best validation, and figures of the training."""
    trainer = Trainer(splits["train"], shape, how)
    epoch = sum(map(len, splits["train"]))
    best, best_nats, best_epochs = copy.deepcopy(trainer.average), math.inf, 0.0
    valid, losses, validations, since_best, logged_s = math.inf, [], 0, 0, 0.0
    while trainer.spent_s < how.minutes * 60 and since_best < how.patience:
        losses.append(trainer.step())
        epochs, spent_s = trainer.stream.frames / epoch, trainer.spent_s
        if spent_s >= (validations + 1) * how.minutes * 60 / how.validations:
            validations += 1
            since_best += 1
            valid = float(np.concatenate(sequence_nats(trainer.average, splits["valid"], trainer.product)).mean())
            if valid < best_nats:
                best, best_nats, best_epochs, since_best = copy.deepcopy(trainer.average), valid, epochs, 0
        elif spent_s < logged_s + LOG_EVERY_S:
            continue
        logged_s = spent_s
        progress = f"{spent_s / 60:6.1f} min  step {trainer.steps:6d}  epoch {epochs:7.2f}"
        speed = trainer.stream.frames / spent_s
        nats = f"train {np.mean(losses):.3f}  valid {valid:.4f}  best {best_nats:.4f}"
        print(f"{progress}  {speed:6.0f} frames/s  {nats}", flush=True)
        losses = []
    figures = {"epochs": trainer.stream.frames / epoch, "best_epochs": best_epochs, "minutes": trainer.spent_s / 60}
    return best, {**figures, "frames_per_s": trainer.stream.frames / trainer.spent_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    for config in (TrainConfig, PolyphonyConfig):
        for field in fields(config):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=type(field.default), default=field.default, help=field.metadata["help"])
    options = vars(parser.parse_args())
    how = TrainConfig(**{field.name: options[field.name] for field in fields(TrainConfig)})
    shape = PolyphonyConfig(**{field.name: options[field.name] for field in fields(PolyphonyConfig)})
    splits = read_set(options["set"])
    network, figures = train(splits, shape, how)
    name = options["set"].stem
    result = {"set": name, "parameters": sum(p.numel() for p in network.parameters()), **figures}
    for split in ("valid", "test"):
        result |= summary(sequence_nats(network, splits[split]), split)
    print(json.dumps({**result, "published": PUBLISHED.get(name, {})}))


if __name__ == "__main__":
    main()
