"""How fast one request composes that is alone: our step, one row on one thread, against PyTorch's steps and a re-run window.

    OMP_NUM_THREADS=1 taskset -c 0 python -m bench.step [MODEL.onnx ...] [--rounds 5]

All methods take turns in each round; the median round counts. Of ours, only notes count, not the pedal's tokens between them; of
the others, which draw without a meaning, every token. The targets are the project's for a plain 2 x 512 network;
ours does more for a note, so each also stands scaled by the multiply-adds of both. The last line is JSON.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.shipped import ROOT, add_models, precision
from bench.step_torch import CellStep, EagerStep, Method, Plain, WindowMethod, difference
from bench.tables import finish, show
from service.engine.model import OnnxModel
from service.engine.sampling import Sequence
from service.engine.scheduler import Scheduler
from service.music.representation import VOCABULARY
from training.checkpoint import load_network
from training.lstm import LSTMLayer
from training.model import Network

CHUNK = 16
STEPS = 320  # tokens in a round, of each method but the window's
WINDOW_NOTES = 16  # which takes a hundred times as long for one
WINDOW, EAGER, CELL = "window of 100 notes, 3 x 512", "nn.LSTM step", "hand-written cell step"
TARGETS = {("int8", WINDOW): 140.0, ("int8", EAGER): 14.0, ("int8", CELL): 4.5, ("float32", WINDOW): 75.0}
TOLERANCE = 1e-5  # of the hand-written cell: float32 in another order of summation


def count_multiply_adds(network: Network) -> int:
    """Return the multiply-adds of one step of ours: of every matrix that a note is multiplied with, and of the pointers.

    Embeddings are looked up and cost none. What is read of the memory is multiplied once for each pointer.
    """
    config = network.config
    total = config.pointers * config.key * (config.memory + CHUNK)
    for name, module in network.named_modules():
        if isinstance(module, LSTMLayer):
            total += module.weight_x.numel() + module.weight_h.numel()
        elif isinstance(module, torch.nn.Linear) and name != "key_input":  # which is multiplied once for a piece
            total += module.weight.numel() * (config.pointers if name == "slot_embedding" else 1)
    return total


def make_plain(network: Network) -> Plain:
    """Return the plain LSTM of the same size; its fields have more values than ours, so that its heads cost the same."""
    config, fields = network.config, VOCABULARY._asdict()
    heads = [network.to_heads, *network.outputs.values(), *network.relative_outputs.values()]
    columns = sum(head.weight.numel() for head in heads) / config.hidden
    sizes = [round(size * columns / sum(fields.values())) for size in fields.values()]
    return Plain(config.embedding, config.hidden, config.layers, sizes)


def compose(model: OnnxModel) -> int:
    """Return how many notes there are among the tokens of one round."""
    scheduler = Scheduler(model, 1, CHUNK, 1)
    scheduler.add(0, Sequence(0, 2 * STEPS), float("inf"))  # longer than the round, so that every step is a full one
    for _ in range(STEPS // CHUNK):
        scheduler.step(0.0)
    return scheduler.notes


def compose_torch(method: Method, notes: int) -> int:
    """Return how many notes another method has drawn."""
    return len(method.compose(notes))


def speed(method: Callable[[], int]) -> float:
    """Return notes/s of one round."""
    started = time.perf_counter()
    notes = method()
    return notes / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--weights", type=Path, default=ROOT / "exported" / "nocturne.pt", help="whose products are counted")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, _ = load_network(options.weights)
    plain = make_plain(network)
    eager, cell = EagerStep(plain), CellStep(plain)
    assert difference(eager, cell) < TOLERANCE, "the hand-written cell does not compute nn.LSTM"
    others: dict[str, tuple[Method, int]] = {
        EAGER: (eager, STEPS),
        CELL: (cell, STEPS),
        WINDOW: (WindowMethod(), WINDOW_NOTES),
    }
    ours = {f"ours, {precision(path)}": OnnxModel(path) for path in options.models}
    methods: dict[str, Callable[[], int]] = {name: partial(compose, model) for name, model in ours.items()}
    methods |= {name: partial(compose_torch, method, notes) for name, (method, notes) in others.items()}
    for run in methods.values():  # warm-up
        run()
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.rounds):
        for name, run in methods.items():
            speeds[name].append(speed(run))

    own = count_multiply_adds(network)
    counts = dict.fromkeys(ours, own) | {name: method.multiply_adds for name, (method, _) in others.items()}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rows = [(name, counts[name] / 1e6, medians[name], counts[name] * medians[name] / 1e9) for name in methods]
    title = f"One request alone, one thread, {STEPS} tokens in a round, median of {options.rounds} rounds"
    show(title, ("", "million multiply-adds a note", "notes/s", "billion multiply-adds/s"), rows)

    scale = plain.multiply_adds / own
    ratios, compared = {}, []
    for name in ours:
        for other in others:
            ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))
            target = TARGETS.get((name.split()[-1], other))
            ratios[f"{name} / {other}"] = ratio
            cells = (f"{target:g}x", f"{target * scale:.3g}x") if target else ("-", "-")
            compared.append((f"{name} / {other}", f"{ratio:.3g}x", *cells))
    show("How many times as fast, median of the rounds' ratios", ("", "measured", "target", f"target x {scale:.2f}"), compared)
    finish({"notes_per_s": medians, "multiply_adds": counts, "ratios": ratios, "target_scale": scale, "rounds": options.rounds})


if __name__ == "__main__":
    main()
