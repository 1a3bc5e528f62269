"""How fast the shipped model composes: one piece alone against a full batch, side by side in one run.

    python -m bench.engine [MODEL.onnx] [--rounds 5]

Each round composes the same pieces in both ways, in turn, so that a busy machine slows both; the median round counts. The last
line is JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from service.engine.model import OnnxModel
from service.engine.sampling import Sequence
from service.engine.scheduler import Scheduler

PIECES, LENGTH, CHUNK = 32, 100, 16


def compose_all(model: OnnxModel, slots: int) -> float:
    """Return the seconds that all pieces take with so many rows."""
    scheduler = Scheduler(model, slots, CHUNK, PIECES)
    for seed in range(PIECES):
        scheduler.add(seed, Sequence(seed, LENGTH), float("inf"))
    started = time.perf_counter()
    while scheduler.running or scheduler.waiting:
        scheduler.step(0.0)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=next(iter(sorted(Path("exported").glob("*.onnx"))), None))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = OnnxModel(options.model, "cpu")
    compose_all(model, PIECES)  # warm-up
    rows = (1, 8, PIECES)
    rounds = [[compose_all(model, slots) for slots in rows] for _ in range(options.rounds)]
    notes = PIECES * LENGTH
    speeds = {slots: statistics.median(notes / seconds[i] for seconds in rounds) for i, slots in enumerate(rows)}
    ratios = {slots: statistics.median(r[0] / r[i] for r in rounds) for i, slots in enumerate(rows)}
    print(f"{options.model.name}, one thread, {PIECES} pieces of {LENGTH} notes, median of {options.rounds} rounds")
    print(f"{'rows':>6} {'notes/s':>10} {'against one':>12}")
    for slots in rows:
        print(f"{slots:>6} {speeds[slots]:>10,.0f} {ratios[slots]:>11.1f}x")
    print(json.dumps({"notes_per_s": speeds, "against_one": ratios}))


if __name__ == "__main__":
    main()
