"""How fast a saturated engine composes pieces of mixed lengths: continuous batches beside static ones and one piece at a time.

    python -m bench.engine [MODEL.onnx ...] [--rounds 5]

The same pieces of 50 to 500 notes in the same session, by 1 and by 2 threads with a batch of 32 each. Continuous: a piece joins
where another ends. Static: 32 are composed until the last of them is complete, and a row that is complete goes on idly, as it
does behind a dynamic batcher of whole requests; or it leaves the batch, which takes a batcher that can take rows out. A round
composes in all ways in turn, so that a busy machine slows all of them; the median round counts. The last line is JSON.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.load import draw_jobs
from bench.shipped import add_models
from bench.tables import finish, show
from service.engine.model import OnnxModel
from service.engine.sampling import Sequence as Piece
from service.engine.scheduler import Scheduler

SLOTS, CHUNK, CORES = 32, 16, (1, 2)
ALONE = 6  # pieces that are composed one at a time: they take as long as dozens side by side
FOREVER = float("inf")

Way = Callable[[OnnxModel, Sequence[Piece], int], tuple[int, float]]  # notes and seconds, by so many threads


def mixed_pieces(count: int) -> list[Piece]:
    """Return pieces of mixed lengths, always the same ones."""
    return [Piece(job.random_seed, job.length) for job in draw_jobs(count, seed=1)]


def compose_all(model: OnnxModel, pieces: Sequence[Piece], slots: int) -> float:
    """Return the seconds that pieces take, so many side by side."""
    scheduler = Scheduler(model, slots, CHUNK, len(pieces))
    for id, piece in enumerate(pieces):
        scheduler.add(id, piece, FOREVER)
    started = time.perf_counter()
    while scheduler.running or scheduler.waiting:
        scheduler.step(0.0)
    return time.perf_counter() - started


def continuous(model: OnnxModel, pieces: Sequence[Piece], cores: int) -> tuple[int, float]:
    """Compose as long as pieces wait for a row, so that all rows are in use all the time."""
    schedulers = Scheduler.group(model, SLOTS, CHUNK, len(pieces), cores)
    lock = threading.Lock()
    for id, piece in enumerate(pieces):
        schedulers[0].add(id, piece, FOREVER)

    def work(core: int) -> None:
        scheduler = schedulers[core]
        while True:
            with lock:
                scheduler.begin(0.0)
                if not scheduler.waiting:
                    return
            scheduler.compose()

    seconds = in_threads(work, cores)
    return sum(scheduler.notes for scheduler in schedulers), seconds


def one_at_a_time(model: OnnxModel, pieces: Sequence[Piece], cores: int) -> tuple[int, float]:
    """Compose each piece alone."""
    pieces = pieces[: ALONE * cores]
    seconds = in_threads(lambda core: compose_all(model, pieces[core::cores], 1), cores)
    return sum(piece.length for piece in pieces), seconds


def static(model: OnnxModel, pieces: Sequence[Piece], cores: int) -> tuple[int, float]:
    """Compose batches until their longest piece is complete, all rows all the time."""

    def work(core: int) -> None:
        for batch in batches(pieces)[core::cores]:
            longest = max(piece.length for piece in batch)
            compose_all(model, [replace(piece, length=longest) for piece in batch], SLOTS)

    return sum(piece.length for piece in pieces), in_threads(work, cores)


def static_leaving(model: OnnxModel, pieces: Sequence[Piece], cores: int) -> tuple[int, float]:
    """Compose batches until their longest piece is complete; complete rows leave."""

    def work(core: int) -> None:
        for batch in batches(pieces)[core::cores]:
            compose_all(model, batch, SLOTS)

    return sum(piece.length for piece in pieces), in_threads(work, cores)


def batches(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """Return pieces in batches, as they came."""
    return [pieces[start : start + SLOTS] for start in range(0, len(pieces), SLOTS)]


def in_threads(work: Callable[[int], object], count: int) -> float:
    """Return the seconds that so many threads take, each given its number."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


WAYS: dict[str, Way] = {
    "continuous": continuous,
    "static": static,
    "static, rows leave": static_leaving,
    "one at a time": one_at_a_time,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pieces", type=int, default=192, help="for each core (default %(default)s)")
    options = parser.parse_args()
    figures = {}
    for path in options.models:
        model = OnnxModel(path)
        speeds: dict[tuple[str, int], list[float]] = {(way, cores): [] for way in WAYS for cores in CORES}
        compose_all(model, mixed_pieces(SLOTS), SLOTS)  # warm-up
        for _ in range(options.rounds):
            for (way, cores), found in speeds.items():
                notes, seconds = WAYS[way](model, mixed_pieces(options.pieces * cores), cores)
                found.append(notes / seconds)
        rows = []
        for way in WAYS:
            medians = [statistics.median(speeds[way, cores]) for cores in CORES]
            ratios = [
                statistics.median(a / b for a, b in zip(speeds["continuous", c], speeds[way, c], strict=True)) for c in CORES
            ]
            rows.append([way, *medians, *(f"{ratio:.2f}x" for ratio in ratios)])
            figures |= {f"{path.stem}, {way}, {c} cores": round(m) for c, m in zip(CORES, medians, strict=True)}
            figures |= {f"{path.stem}, continuous over {way}, {c} cores": round(r, 2) for c, r in zip(CORES, ratios, strict=True)}
        title = f"{path.name}: notes/s of pieces of 50 to 500 notes, batches of {SLOTS}, median of {options.rounds} rounds"
        show(title, ["", "1 core", "2 cores", "continuous, 1 core", "2 cores"], rows)
    finish(figures)


if __name__ == "__main__":
    main()
