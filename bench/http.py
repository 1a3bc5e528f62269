"""How fast the service is over HTTP, beside its bare engine: throughput, latency, start-up, memory.

    python -m bench.http [MODEL.onnx] [--rounds 5] [--counted 200] [--clients 72]

gunicorn and the load generator share this machine's cores. In each round the same pieces, in the same order, go over HTTP and to
the engine itself, as many under way in both; the rounds take turns, so that a busy machine slows both, and the median counts.
Then requests arrive at random, at 50 and 80 % of what the closed loop has reached. The last line is JSON.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.load import HOST, LONGEST, SHORTEST, Job, Result, Sample, draw_arrivals, draw_jobs, median_result, run_load, summarise
from bench.processes import Usage, read_usage
from bench.shipped import INT8, ROOT, add_model, precision
from bench.tables import finish, show
from service.config import ServiceConfig
from service.engine.process import Engine, start_engine
from service.engine.sampling import Composition
from service.engine.sampling import Sequence as Piece
from service.web.compose import make_sequence
from service.web.contract import Contract
from service.web.player import Player
from service.web.requests import GenerateRequest

DEFAULTS = ServiceConfig()
CLIENTS = DEFAULTS.cores * DEFAULTS.slots + 8  # all slots filled, and a few that wait
OPEN_SHARES = (0.5, 0.8)
START_LIMIT_S, END_LIMIT_S = 120.0, 90.0
HEAD = ("", "notes/s", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "of the engine")
_NAMES = ("gunicorn", "worker", "engine")  # by depth


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(command: Sequence[str], settings: Mapping[str, str], port: int, ready_path: str) -> Iterator[int]:
    """Run a server until the block ends; yields the id of its process once it answers on `ready_path`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NOCTURNE_")}
    environment = {**inherited, **settings}
    # What it logs is written as in earnest, and thrown away. A group of its own, so that nothing it started can outlive it; not a
    # session, since Linux shares the processor out among sessions first, and then a process that ran little can wait 100 ms
    # for its turn: that would be measured, and not the server.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log, process_group=0)
        try:
            if not _becomes_ready(port, process, ready_path):
                log.seek(0)
                said = log.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"no answer on {ready_path}: the server ended with {process.poll()}, or is too slow; {said}")
            yield process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_LIMIT_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running_service(model: Path, port: int | None = None, **settings: str) -> Iterator[tuple[int, int]]:
    """Run the service as it ships, but for some settings; yields its port, and the id of gunicorn's process."""
    port = port or free_port()
    where = {"HOST": HOST, "PORT": str(port)}
    name = model.stem.removesuffix(INT8)
    what = {"NOCTURNE_MODEL_DIR": str(model.parent.resolve()), "NOCTURNE_MODEL": name}
    how = {"NOCTURNE_PROVIDER": "cpu", "NOCTURNE_PRECISION": precision(model)}
    command = [sys.executable, "-m", "gunicorn", "-c", "service/gunicorn.conf.py"]
    with running_server(command, where | what | how | settings, port, "/readyz") as pid:
        yield port, pid


def answers(port: int, path: str) -> bool:
    """Return whether a server answers a GET, by a connection of its own, with status 200."""
    try:
        with closing(HTTPConnection(HOST, port, timeout=5)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def _becomes_ready(port: int, process: "subprocess.Popen[bytes]", path: str) -> bool:
    """Return whether a server answers on a path, which it may take a while to do."""
    give_up = time.monotonic() + START_LIMIT_S
    while time.monotonic() < give_up and process.poll() is None:
        if answers(port, path):
            return True
        time.sleep(0.05)
    return False


def start_bare(model: Path) -> Engine:
    """Start an engine as the service does."""
    sizes = {name: getattr(DEFAULTS, name) for name in ("cores", "slots", "chunk", "max_waiting")}
    return start_engine(model, provider="cpu", **sizes)


def make_pieces(jobs: Sequence[Job], engine: Engine) -> list[Piece]:
    """Return what the service makes of the requests for its engine."""
    contract = Contract.load()
    players = Player.by_name(engine.models)
    fields = (contract.check("generate", {"seed": job.random_seed, "length": job.length}) for job in jobs)
    return [make_sequence(GenerateRequest.from_fields(given, players)) for given in fields]


def drive_engine(engine: Engine, pieces: Sequence[Piece], under_way: int) -> list[Sample]:
    """Have the engine compose all pieces, so many under way at any time; a closed loop without HTTP."""
    samples: dict[int, Sample] = {}
    indices = iter(range(len(pieces)))  # `next` of it is atomic: callbacks may come from several threads
    finished = threading.Event()

    def submit_next() -> None:
        index = next(indices, None)
        if index is not None:
            engine.submit(pieces[index]).add_done_callback(partial(take, index, time.perf_counter()))

    def take(index: int, sent: float, future: "Future[Composition]") -> None:
        ok = future.exception() is None
        samples[index] = Sample(sent, sent, time.perf_counter(), pieces[index].length, ok)
        submit_next()
        if len(samples) == len(pieces):
            finished.set()

    for _ in range(under_way):
        submit_next()
    finished.wait()
    return [samples[index] for index in range(len(pieces))]


def measure_start(model: Path, rounds: int) -> dict[str, float]:
    """Return the seconds from the spawn of the engine's process to its word that it is ready, and of a bare interpreter."""
    engine_s, python_s = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        python_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        engine = start_bare(model)
        engine_s.append(time.perf_counter() - started)
        engine.close()
    engine_median, python_median = statistics.median(engine_s), statistics.median(python_s)
    return {"engine_ready": engine_median, "bare_interpreter": python_median, "difference": engine_median - python_median}


def measure_closed(
    pid: int, port: int, engine: Engine, options: argparse.Namespace
) -> tuple[list[Result], list[Result], list[dict[str, float]]]:
    """Return the rounds of the closed loop over HTTP, of the bare engine, and the ms of processor time of a request."""
    clients = options.clients
    # Pieces begun together are out of step after about two generations, and the last that counts ends before the load does.
    margin = 2 * clients
    warm_up = draw_jobs(clients, 10**6)
    run_load(port, warm_up, clients=clients)
    drive_engine(engine, make_pieces(warm_up, engine), clients)
    over_http, bare, spent = [], [], []
    for number in range(options.rounds):
        jobs = draw_jobs(options.counted + 2 * margin, number)
        pieces = make_pieces(jobs, engine)
        for over in (True, False) if number % 2 else (False, True):
            if not over:
                bare.append(summarise(drive_engine(engine, pieces, clients), margin))
                continue
            before, own = read_usage(pid), time.process_time()
            over_http.append(summarise(run_load(port, jobs, clients=clients), margin))
            own_ms = (time.process_time() - own) / len(jobs) * 1000
            spent.append({**_processor_ms(before, read_usage(pid), len(jobs)), "load generator": own_ms})
    return over_http, bare, spent


def measure_open(port: int, rate: float, options: argparse.Namespace, seeds: Sequence[int]) -> list[Result]:
    """Return the runs of an open loop with so many requests a second, one for each seed."""
    margin = options.clients
    total = options.counted + 2 * margin
    return [
        summarise(run_load(port, draw_jobs(total, seed), arrivals=draw_arrivals(total, rate, seed)), margin) for seed in seeds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counted", type=int, default=200, help="requests of a round that count")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the closed loop; default: %(default)s")
    options = parser.parse_args()
    start = measure_start(options.model, options.rounds)
    with running_service(options.model) as (port, pid):
        with closing(start_bare(options.model)) as engine:
            over_http, bare, spent = measure_closed(pid, port, engine, options)
        saturated = statistics.median(result.requests_per_s for result in over_http)
        opened: dict[float, list[Result]] = {share: [] for share in OPEN_SHARES}
        for number in range(options.rounds):
            for share in OPEN_SHARES:
                opened[share] += measure_open(port, share * saturated, options, [number])
        usage = read_usage(pid)

    runs = {"bare engine": median_result(bare), f"HTTP, closed loop, {options.clients} clients": median_result(over_http)}
    runs |= {f"HTTP, open loop, {share:.0%} of that": median_result(results) for share, results in opened.items()}
    ratios = [a.notes_per_s / b.notes_per_s for a, b in zip(over_http, bare, strict=True)]
    engine_notes = median_result(bare).notes_per_s
    shares = [1.0, statistics.median(ratios), *(median_result(results).notes_per_s / engine_notes for results in opened.values())]
    title = f"{options.model.name}: {options.rounds} rounds of {options.counted} requests for {SHORTEST}-{LONGEST} notes"
    show(title, HEAD, [(*row(*run), f"{share:.1%}") for run, share in zip(runs.items(), shares, strict=True)])
    processor_ms = {name: statistics.median(one[name] for one in spent) for name in spent[0]}
    show("Processor time of a request in the closed loop", ("", "ms"), list(processor_ms.items()))
    show("Start-up", ("", "s"), [(name.replace("_", " "), seconds) for name, seconds in start.items()])
    together = [one for one in usage if one.depth]
    rss_mib, pss_mib = sum(one.rss_mib for one in together), sum(one.pss_mib for one in together)
    memory = [(_name(one), one.rss_mib, one.pss_mib) for one in usage]
    show("Memory after the load", ("", "VmRSS MiB", "Pss MiB"), [*memory, ("worker and engine together", rss_mib, pss_mib)])
    finish(
        {
            "model": options.model.name,
            "runs": {name: {**asdict(run), "share": share} for (name, run), share in zip(runs.items(), shares, strict=True)},
            "ratios": ratios,
            "processor_ms": processor_ms,
            "start_s": start,
            "rss_mib": rss_mib,
            "pss_mib": pss_mib,
        }
    )


def row(name: str, result: Result) -> tuple[object, ...]:
    """Return a run as a row under all of `HEAD` but its last."""
    return (name, result.notes_per_s, result.requests_per_s, result.p50, result.p95, result.p99, result.errors)


def _processor_ms(before: Sequence[Usage], after: Sequence[Usage], requests: int) -> dict[str, float]:
    """Return the processor time that each kind of process has spent on a request."""
    spent: dict[str, float] = {}
    for sign, usages in ((-1, before), (1, after)):
        for usage in usages:
            spent[_name(usage)] = spent.get(_name(usage), 0.0) + sign * usage.processor_s * 1000 / requests
    return spent


def _name(usage: Usage) -> str:
    return _NAMES[min(usage.depth, len(_NAMES) - 1)]


if __name__ == "__main__":
    main()
