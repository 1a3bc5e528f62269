"""What overload and deaths do to the service, in figures: what is refused, how late it is, how soon it is back.

    python -m bench.faults [MODEL.onnx] [--seconds 60] [--times 4] [--rounds 5] [--rate REQUESTS_PER_S]

A closed loop over HTTP measures how many requests a second saturate the service, unless `--rate` says it. Then four times as
many, for 50 to 500 notes, arrive at random for a minute. Beside them come a few that must get the bytes that they had before, and
a process of its own asks for /livez on the admin port every 50 ms, each time by a new connection.

The deaths come while half of what saturates arrives: kill -9 of the engine and of the worker, and SIGHUP. How long it takes is
from the signal until a request sent after it, again whenever it fails, has its right answer; for SIGHUP until all of the old
processes have gone. kill -9 of everything stands for the end of a container, which is started again at once. SIGTERM comes when
as many requests are under way as there are slots. A request whose connection breaks is sent again if the connection had served
others before, as every HTTP client does; it is lost if that fails too. The last line is JSON; the exit status is 1 if a bound is
broken.
"""

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from bench.http import CLIENTS, DEFAULTS, answers, free_port, running_service
from bench.load import Job, Sample, draw_arrivals, draw_jobs, percentile, run_load
from bench.processes import read_usage
from bench.shipped import add_model
from bench.soak import MAX_DRIFT, SATURATION_S, Change, change, compose, saturate
from bench.tables import Verdict, finish, show, show_verdicts

PROBE_S = 0.05  # between two questions to /livez
MAX_PROBE_MS, MAX_RECOVERY_S = 100.0, 10.0
READING_S = 1.0  # between two looks at the memory
WARM_UP_S = 120.0  # of the overload: each of some 350 threads grows with its first pieces, and few are composed a second
SHARE, SPAN_S, BEFORE_S = 0.5, 15.0, 5.0  # of the saturation, for so long, the death after so many seconds
SHORT = Job(7, 8)  # what is asked for after a death
PINNED = draw_jobs(8, 10**6)
IN_FLIGHT = DEFAULTS.cores * DEFAULTS.slots


class Overload(NamedTuple):
    """What became of the requests of an overload.

    Attributes
    ----------
    rate : float
        At which they came, a second.
    requests, answered, refused, lost : int
        Sent; answered with a piece; with 503 and `Retry-After`; neither.
    per_s : float
        Answered with a piece, a second.
    answered_ms, refused_ms, probe_ms : list of float
        Latencies of these and of /livez.
    pinned, wrong_bytes : int
        Pieces whose bytes were known, and how many had others.
    rss_mib : Change
        Of all processes.
    """

    rate: float
    requests: int
    answered: int
    refused: int
    lost: int
    per_s: float
    answered_ms: list[float]
    refused_ms: list[float]
    probe_ms: list[float]
    pinned: int
    wrong_bytes: int
    rss_mib: Change


@dataclass
class Recoveries:
    """What a kind of death has done, a figure for each round.

    Attributes
    ----------
    seconds : list of float
        Until a request was answered rightly, or what was to end had ended.
    lost, requests : int
        Requests without a right answer, of all that were sent meanwhile.
    slowest_ms : list of float
        The slowest answer.
    may_lose : bool
        Whether requests may be lost at all.
    """

    may_lose: bool = False
    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    requests: int = 0
    slowest_ms: list[float] = field(default_factory=list)

    def add(self, seconds: float, samples: Sequence[Sample] = ()) -> None:
        """Add a round."""
        self.seconds.append(seconds)
        self.lost += sum(not sample.ok for sample in samples)
        self.requests += len(samples)
        answered_ms = latencies(sample for sample in samples if sample.ok)
        self.slowest_ms += [max(answered_ms)] if answered_ms else []


def latencies(samples: Iterable[Sample]) -> list[float]:
    """Return how many ms after it was due each request was answered."""
    return [(sample.done - sample.due) * 1000 for sample in samples]


def probe(port: int, seconds: float) -> list[float]:
    """Ask /livez again and again, each time by a new connection; return how many ms each took, infinity where it was not 200."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        alive = answers(port, "/livez")
        times.append((time.monotonic() - started) * 1000 if alive else float("inf"))
        time.sleep(max(0.0, started + PROBE_S - time.monotonic()))
    return times


@contextmanager
def repeating(action: Callable[[], None], pause_s: float = 0.0) -> Iterator[None]:
    """Do something again and again in a thread of its own, until the block ends."""
    ending = threading.Event()

    def repeat() -> None:
        while not ending.wait(pause_s):
            action()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(repeat)
        try:
            yield
        finally:
            ending.set()
    future.result()


def overload(port: int, admin: int, pid: int, rate: float, seconds: float) -> Overload:
    """Send more requests than can be answered, and return what became of them."""
    jobs = draw_jobs(round(rate * seconds), 1)
    warm_up = round(rate * WARM_UP_S)
    expected = {job: compose(port, job) for job in PINNED}
    run_load(port, draw_jobs(warm_up, 2), arrivals=draw_arrivals(warm_up, rate, 2))
    memory: list[tuple[float, float]] = []
    right, pinned = [], cycle(PINNED)
    started = time.monotonic()

    def read() -> None:
        memory.append(((time.monotonic() - started) / seconds, sum(one.rss_mib for one in read_usage(pid))))

    def compare() -> None:
        job = next(pinned)
        answer = compose(port, job)
        if answer is not None:
            right.append(answer == expected[job])

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as beside:
        probes = beside.submit(probe, admin, seconds)
        with repeating(read, READING_S), repeating(compare, PROBE_S):
            samples = run_load(port, jobs, arrivals=draw_arrivals(len(jobs), rate, 1))
        probe_ms = probes.result()
    answered = [sample for sample in samples if sample.ok]
    refused = [sample for sample in samples if sample.refused]
    span_s = max(sample.done for sample in samples) - min(sample.due for sample in samples)
    return Overload(
        rate,
        len(samples),
        len(answered),
        len(refused),
        len(samples) - len(answered) - len(refused),
        len(answered) / span_s,
        latencies(answered),
        latencies(refused),
        probe_ms,
        len(right),
        right.count(False),
        change(memory),
    )


def until_answered(port: int, expected: bytes | None) -> None:
    """Wait until a request has its right answer, and send it again until then."""
    while compose(port, SHORT) != expected:
        time.sleep(0.01)


def until_others(pid: int, before: Sequence[int]) -> None:
    """Wait until none of some processes is left among those that a process has started, and there are others."""
    while not (now := descendants(pid)) or set(now) & set(before) or len(now) < len(before):
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Return the worker and the engine of a service."""
    return [one.pid for one in read_usage(pid) if one.depth]


def under_load(port: int, rate: float, seed: int, hit: Callable[[], None]) -> tuple[float, list[Sample]]:
    """Do something in the midst of a load; return the seconds that it took, and what became of the load's requests."""
    jobs = draw_jobs(round(rate * SPAN_S), seed)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run_load, port, jobs, arrivals=draw_arrivals(len(jobs), rate, seed))
        time.sleep(BEFORE_S)
        started = time.monotonic()
        hit()
        return time.monotonic() - started, load.result()


def deaths(model: Path, rate: float, rounds: int) -> dict[str, Recoveries]:
    """Return what each kind of death does."""
    found = {
        "kill -9 of the engine": Recoveries(),
        "kill -9 of gunicorn's worker": Recoveries(may_lose=True),
        "SIGHUP, until the old processes have gone": Recoveries(),
    }
    with running_service(model) as (port, pid):
        expected = compose(port, SHORT)

        def kill(depth: int) -> None:
            os.kill(next(one.pid for one in read_usage(pid) if one.depth == depth), signal.SIGKILL)
            until_answered(port, expected)

        def hang_up() -> None:
            before = descendants(pid)
            os.kill(pid, signal.SIGHUP)
            until_others(pid, before)

        hits = [lambda: kill(2), lambda: kill(1), hang_up]
        for number in range(rounds):
            for recoveries, hit in zip(found.values(), hits, strict=True):
                recoveries.add(*under_load(port, rate, number, hit))
    found["SIGTERM, until it has ended"] = ends = Recoveries()
    found["kill -9 of all, and started again"] = again = Recoveries(may_lose=True)
    for number in range(rounds):
        ends.add(*end_under_load(model, number))
        again.add(start_again(model, expected))
    return found


def end_under_load(model: Path, seed: int) -> tuple[float, list[Sample]]:
    """Return the seconds from SIGTERM to the end of a service that composes, and what became of what it was composing."""
    with running_service(model) as (port, pid), ThreadPoolExecutor(1) as pool:
        load = pool.submit(run_load, port, draw_jobs(IN_FLIGHT, seed), clients=IN_FLIGHT)
        time.sleep(0.3)  # all are under way, none is answered
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - started
        if ended is None or ended.si_status != 0:
            raise RuntimeError(f"the service was to end with exit code 0; it ended with {ended}")
        return seconds, load.result()


def start_again(model: Path, expected: bytes | None) -> float:
    """Return the seconds from the death of all processes of a service to a right answer of the one that takes its place."""
    port = free_port()
    with running_service(model, port=port) as (_, pid):
        until_answered(port, expected)
        os.killpg(pid, signal.SIGKILL)
        started = time.monotonic()
        with running_service(model, port=port):
            until_answered(port, expected)
            return time.monotonic() - started


def judge(load: Overload, found: dict[str, Recoveries]) -> list[Verdict]:
    """Return the verdict on each bound."""
    deadline_ms = DEFAULTS.deadline_s * 1000
    p99, slowest = percentile(load.answered_ms, 0.99), max(load.probe_ms)
    longest = max(seconds for one in found.values() for seconds in one.seconds)
    lost = sum(one.lost for one in found.values() if not one.may_lose)
    drift = load.rss_mib.drift
    return [
        Verdict("p99 of the accepted, ms", p99, f"under {deadline_ms}", p99 < deadline_ms),
        Verdict("neither answered nor refused", load.lost, "0", not load.lost),
        Verdict("other bytes", load.wrong_bytes, "0", not load.wrong_bytes),
        Verdict("slowest /livez, ms", slowest, f"{MAX_PROBE_MS:g}", slowest <= MAX_PROBE_MS),
        Verdict("RSS drift, %", drift, f"under {MAX_DRIFT:g}", drift < MAX_DRIFT),
        Verdict("longest recovery, s", longest, f"{MAX_RECOVERY_S:g}", longest <= MAX_RECOVERY_S),
        Verdict("lost where none may be", lost, "0", not lost),
    ]


def show_overload(load: Overload, saturation: float) -> None:
    """Print what an overload did."""
    title = f"{load.rate:.0f} requests/s, {load.rate / saturation:.1f} times the {saturation:.1f} that saturate"
    rows = [
        ("answered", load.answered, load.answered_ms),
        ("refused with 503 and Retry-After", load.refused, load.refused_ms),
        ("/livez on the admin port", len(load.probe_ms), load.probe_ms),
    ]
    show(
        title,
        ("", "count", "p50 ms", "p99 ms", "slowest ms"),
        [(name, count, percentile(ms, 0.5), percentile(ms, 0.99), max(ms, default=0.0)) for name, count, ms in rows],
    )
    show(
        "Beside it",
        ("", ""),
        [
            ("requests", load.requests),
            ("neither answered nor refused", load.lost),
            ("answered a second", load.per_s),
            ("of those, with known bytes", load.pinned),
            ("had others", load.wrong_bytes),
            ("resident memory, MiB, early", f"{load.rss_mib.early:.1f}"),
            ("late", f"{load.rss_mib.late:.1f}"),
        ],
    )


def show_deaths(found: dict[str, Recoveries]) -> None:
    """Print what deaths did."""

    def cells(one: Recoveries) -> tuple[object, ...]:
        slowest = max(one.slowest_ms, default=None)
        return (
            statistics.median(one.seconds),
            max(one.seconds),
            f"{one.lost} of {one.requests:,}" if one.requests else "-",
            "-" if slowest is None else slowest,
        )

    head = ("", "s, median", "s, worst", "requests lost", "slowest answer, ms")
    show("Back again", head, [(name, *cells(one)) for name, one in found.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload; default: %(default)g")
    parser.add_argument("--times", type=float, default=4.0, help="what saturates the service; default: %(default)g")
    parser.add_argument("--rounds", type=int, default=5, help="of each death; default: %(default)d")
    parser.add_argument("--rate", type=float, help="requests a second that saturate it; default: measured first")
    options = parser.parse_args()
    admin = free_port()
    with running_service(options.model, ADMIN_PORT=str(admin)) as (port, pid):
        run_load(port, draw_jobs(2 * CLIENTS, 3), clients=CLIENTS)
        saturation = options.rate or saturate(port, SATURATION_S).requests_per_s
        load = overload(port, admin, pid, options.times * saturation, options.seconds)
    show_overload(load, saturation)
    found = deaths(options.model, SHARE * saturation, options.rounds)
    show_deaths(found)
    verdicts = judge(load, found)
    kept = show_verdicts(verdicts)
    shares = {"p50": 0.5, "p99": 0.99, "slowest": 1.0}
    kinds = {"answered_ms": load.answered_ms, "refused_ms": load.refused_ms, "probe_ms": load.probe_ms}
    finish(
        {
            "model": options.model.name,
            "saturation_per_s": saturation,
            "overload": {
                **{name: value for name, value in load._asdict().items() if name not in kinds},
                "rss_mib": load.rss_mib._asdict(),
                **{kind: {name: percentile(ms, share) for name, share in shares.items()} for kind, ms in kinds.items()},
            },
            "deaths": {name: vars(one) for name, one in found.items()},
            "verdicts": [one._asdict() for one in verdicts],
        }
    )
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
