"""How fast a layer trains: our loop against torch.nn.LSTM, forward and backward, side by side in one run.

    python -m bench.lstm [--rounds 5] [--rows 64] [--steps 128] [--hidden 512]

The ways take turns in each round; the median round counts. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from training.lstm import LSTMLayer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("rows", 64), ("steps", 128), ("hidden", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows, steps, hidden = options.rows, options.steps, options.hidden
    ours, torchs = LSTMLayer(hidden, hidden), torch.nn.LSTM(hidden, hidden)
    x = torch.randn(steps, rows, hidden, requires_grad=True)
    zeros = torch.zeros(rows, hidden)

    def with_autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torchs(x, (zeros[None], zeros[None]))[0]

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "torch.nn.LSTM, float32": lambda: torchs(x, (zeros[None], zeros[None]))[0],
        "torch.nn.LSTM, bfloat16 autocast": with_autocast,
        "ours, float32 products": lambda: ours(x, zeros, zeros)[0],
        "ours, bfloat16 products": lambda: ours(x, zeros, zeros, torch.bfloat16)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way().float().sum().backward()
            seconds[name].append(time.perf_counter() - started)
    base = next(iter(seconds))
    print(f"{rows} rows, {steps} steps, width {hidden}, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    result = {}
    for name, times in seconds.items():  # the first round is a warm-up
        speed = statistics.median(rows * steps / t for t in times[1:])
        ratio = statistics.median(b / t for b, t in zip(seconds[base][1:], times[1:], strict=True))
        result[name] = {"tokens_per_s": speed, "ratio": ratio}
        print(f"{name:<34} {speed:>9,.0f} tokens/s {ratio:>6.2f}x")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
