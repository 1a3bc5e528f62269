"""Whether the service stays what it is under load for a long time: its answers, memory, threads, descriptors and latency.

    python -m bench.soak [MODEL.onnx] [--minutes 30] [--share 0.8] [--rate REQUESTS_PER_S]

A closed loop over HTTP measures for a minute how many requests a second saturate the service, unless `--rate` says it. Then
requests for 50 to 500 notes arrive at random, at 80 % of that, for so many minutes. They go in windows of a minute, of which only
the latencies are kept, so that the load generator itself does not grow; a window begins when the one before has sent its last
request, not when that is answered, so the load never pauses. Among them a few requests come again and again, and must get the
bytes that they got first. What the processes use is read every five seconds.

What drifts is the median of the last fifth of the time against the median of the fifth after a tenth of it. Connections that
neither side has closed are not counted as descriptors: how many there are is up to who calls. One that the service keeps after
its client has left is counted. Pss is shown and not judged: it goes up and down with others that have the same files in memory.
Whatever else runs on the machine slows the service, whose memory then grows with its queue: look at the cores that others took
before you believe that a bound is broken. The last line is JSON; the exit status is 1 if one is.
"""

import argparse
import math
import resource
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import pairwise, takewhile
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bench.http import CLIENTS, DEFAULTS, free_port, running_service
from bench.load import (
    HOST,
    MIDI,
    Job,
    Result,
    draw_arrivals,
    draw_jobs,
    encode_body,
    median_result,
    percentile,
    run_load,
    summarise,
)
from bench.processes import Usage, busy_s, read_usage
from bench.shipped import add_model
from bench.tables import Verdict, finish, show, show_verdicts

EARLY, LATE = (0.1, 0.3), (0.8, 1.0)  # the spans of the time that are compared
WINDOW_S, WINDOWS = 60.0, 10  # a window's length, but so many windows at least
READING_S, READINGS = 5.0, 60  # between two readings, but so many at least
PROGRESS_S = 120.0
WARM_UP = 20 * CLIENTS  # requests that are sent first
SATURATION_S, COUNTED = 60.0, 200  # of the closed loop; requests of a round of it that count
PINNED, PINNED_PER_S, PINNED_SHARE = 20, 1.0, 0.05  # different ones; how many a second, but no more than this share of all
SEED = 10**6  # of the first window; the rounds of the closed loop count from 0, and the pinned requests have the one below
MAX_DRIFT = 2.0  # per cent
NAMES = ("master", "worker", "engine")  # by depth
TOGETHER = "together"
RESTARTS, PENDING = "nocturne_engine_restarts_total", "nocturne_requests_pending"


class Change(NamedTuple):
    """A figure in the early and in the late span of the time."""

    early: float
    late: float

    @property
    def growth(self) -> float:
        """By how much it has grown."""
        return self.late - self.early

    @property
    def drift(self) -> float:
        """By how many per cent it has grown."""
        return 100 * self.growth / self.early if self.early else math.inf if self.growth else 0.0


class Held(NamedTuple):
    """What a process, or several, hold; connections that are open at both ends left out."""

    rss_mib: float
    pss_mib: float
    threads: int
    descriptors: int

    def plus(self, other: "Held") -> "Held":
        """Return what both hold together."""
        threads, descriptors = self.threads + other.threads, self.descriptors + other.descriptors
        return Held(self.rss_mib + other.rss_mib, self.pss_mib + other.pss_mib, threads, descriptors)


class Reading(NamedTuple):
    """The processes and the metrics at some time.

    Attributes
    ----------
    at : float
        The share of the time that has passed.
    processes : mapping of str to Held
        By name, and together.
    pids : tuple of int
        Of the worker and the engine.
    metrics : mapping of str to float
        Empty where the service did not say them.
    others : float
        Cores that were busy with something else since the reading before.
    """

    at: float
    processes: Mapping[str, Held]
    pids: tuple[int, ...]
    metrics: Mapping[str, float]
    others: float = 0.0


class Window(NamedTuple):
    """What became of the requests of a window.

    Attributes
    ----------
    at : float
        The share of the time that had passed when it began.
    requests, errors, notes : int
        Sent; not answered rightly; notes of the others.
    latencies_ms : array of double
        Of those answered.
    """

    at: float
    requests: int
    errors: int
    notes: int
    latencies_ms: "array[float]"


@dataclass
class Pinned:
    """What became of the requests that come again and again."""

    requests: int = 0
    failed: int = 0
    wrong_bytes: int = 0
    notes: int = 0


def within(at: float, span: tuple[float, float]) -> bool:
    """Return whether a share of the time lies in a span of it."""
    return span[0] <= at < span[1]


def change(figures: Iterable[tuple[float, float]]) -> Change:
    """Return the medians of a figure in the early and in the late span; NaN where it was never seen.

    Parameters
    ----------
    figures : iterable of (float, float)
        The share of the time that has passed, and the figure then.
    """
    figures = list(figures)
    parts = ([figure for at, figure in figures if within(at, span)] for span in (EARLY, LATE))
    return Change(*(statistics.median(part) if part else math.nan for part in parts))


def changes(readings: Sequence[Reading]) -> dict[str, dict[str, Change]]:
    """Return how each figure of each process has changed, by the process and the figure."""
    names = [*NAMES, TOGETHER]
    return {
        name: {
            figure: change((one.at, getattr(one.processes[name], figure)) for one in readings if name in one.processes)
            for figure in Held._fields
        }
        for name in names
    }


def by_tenth(readings: Sequence[Reading]) -> list[float]:
    """Return the median resident memory of all processes in each tenth of the time: whether what drifts still does."""
    tenths = [[one.processes[TOGETHER].rss_mib for one in readings if int(10 * one.at) == tenth] for tenth in range(10)]
    return [statistics.median(tenth) if tenth else math.nan for tenth in tenths]


def count_restarts(readings: Sequence[Reading]) -> int:
    """Return how often the worker or the engine was another one than before, or how often the engine says that it was."""
    counted = [reading.metrics[RESTARTS] for reading in readings if RESTARTS in reading.metrics]
    told = int(counted[-1] - counted[0]) if counted else 0
    seen = sum(len(set(before.pids) - set(after.pids)) for before, after in pairwise(readings))
    return max(told, seen)


def judge(changed: Mapping[str, Mapping[str, Change]], errors: int, restarts: int) -> list[Verdict]:
    """Return the verdict on each bound; what may not grow may not in any process, and one that has gone keeps no bound."""

    def worst(values: Iterable[float]) -> float:
        return max(values, key=lambda value: math.inf if math.isnan(value) else value)

    drift = worst(figures["rss_mib"].drift for figures in changed.values())
    grown = {what: worst(figures[what].growth for figures in changed.values()) for what in ("threads", "descriptors")}
    return [
        Verdict("RSS drift, %", drift, f"under {MAX_DRIFT:g}", drift < MAX_DRIFT),
        *(Verdict(f"more {what}", growth, "0", growth <= 0) for what, growth in grown.items()),
        Verdict("errors", errors, "0", not errors),
        Verdict("restarts", restarts, "0", not restarts),
    ]


def latencies(windows: Iterable[Window], span: tuple[float, float]) -> dict[str, float]:
    """Return the percentiles in ms of the windows that began in a span of the time."""
    values = [value for window in windows if within(window.at, span) for value in window.latencies_ms]
    return {f"p{share}": percentile(values, share / 100) for share in (50, 95, 99)} | {"requests": len(values)}


def processes(usages: Iterable[Usage]) -> dict[str, Held]:
    """Return what each process holds, by name, and all together."""
    rows: dict[str, Held] = {}
    for usage in usages:
        own = Held(usage.rss_mib, usage.pss_mib, usage.threads, usage.descriptors - usage.connections)
        for name in (NAMES[min(usage.depth, len(NAMES) - 1)], TOGETHER):
            rows[name] = rows[name].plus(own) if name in rows else own
    return rows


def own_s(usages: Iterable[Usage]) -> float:
    """Return the processor time so far of the service and of this load generator."""
    return sum(usage.processor_s for usage in usages) + time.process_time()


def draw_window(rate: float, window_s: float, seed: int) -> tuple[list[Job], list[float]]:
    """Return the requests of a window and when they arrive, in seconds after its begin."""
    mean = rate * window_s
    enough = math.ceil(mean + 8 * math.sqrt(mean) + 8)
    arrivals = list(takewhile(lambda at: at < window_s, draw_arrivals(enough, rate, seed)))
    return draw_jobs(len(arrivals), seed), arrivals


def read_metrics(port: int) -> dict[str, float]:
    """Return all that a service says of itself, a value for each series; nothing if it does not answer."""
    try:
        with closing(HTTPConnection(HOST, port, timeout=5)) as connection:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
    except (OSError, HTTPException):
        return {}
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {sample.name + "".join(f" {key}={value}" for key, value in sample.labels.items()): sample.value for sample in samples}


def saturate(port: int, seconds: float) -> Result:
    """Return what a closed loop reaches, the median of rounds for so long."""
    margin = 2 * CLIENTS
    rounds: list[Result] = []
    give_up = time.monotonic() + seconds
    while not rounds or time.monotonic() < give_up:
        jobs = draw_jobs(COUNTED + 2 * margin, len(rounds))
        rounds.append(summarise(run_load(port, jobs, clients=CLIENTS), margin))
    return median_result(rounds)


class Soak:
    """A run of the load: what it sends, and what it sees meanwhile.

    Parameters
    ----------
    port, admin : int
        Where the service and its metrics are.
    pid : int
        Of gunicorn's process.
    rate : float
        Requests a second, on average.
    seconds : float
        How long.

    Attributes
    ----------
    windows, readings, pinned : list of Window, list of Reading, Pinned
        What became of the requests, and what was seen.
    """

    def __init__(self, port: int, admin: int, pid: int, rate: float, seconds: float) -> None:
        self._port, self._admin, self._pid, self.seconds = port, admin, pid, seconds
        self._count = max(WINDOWS, round(seconds / WINDOW_S))
        self._pinned_rate = min(PINNED_PER_S, PINNED_SHARE * rate)
        self._rate = rate - self._pinned_rate
        self._ending = threading.Event()
        self._started = 0.0
        self.windows: list[Window] = []
        self.readings: list[Reading] = []
        self.pinned = Pinned()

    def run(self) -> None:
        """Send everything, and return when all is answered."""
        self._started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            beside = [pool.submit(self._read), pool.submit(self._send_pinned)]
            try:
                self._send_windows()
            finally:
                self._ending.set()
        for future in beside:
            future.result()

    @property
    def _at(self) -> float:
        return (time.monotonic() - self._started) / self.seconds

    def _send_windows(self) -> None:
        # A thread each: one that is still waiting for answers must not keep the next one from its begin.
        with ThreadPoolExecutor(self._count) as pool:
            futures: list[Future[Window]] = []
            told = self._started
            for number in range(self._count):
                time.sleep(max(0.0, number / self._count - self._at) * self.seconds)
                futures.append(pool.submit(self._send_window, number))
                if time.monotonic() - told >= PROGRESS_S:
                    told = time.monotonic()
                    self._tell([future.result() for future in futures if future.done()])
        self.windows = [future.result() for future in futures]

    def _send_window(self, number: int) -> Window:
        window_s = self.seconds / self._count
        jobs, arrivals = draw_window(self._rate, window_s, SEED + number)
        limit_s = window_s + DEFAULTS.deadline_s + 10
        samples = run_load(self._port, jobs, arrivals=arrivals, limit_s=limit_s) if jobs else []
        good = [sample for sample in samples if sample.ok]
        times = array("d", ((sample.done - sample.due) * 1000 for sample in good))
        return Window(number / self._count, len(samples), len(samples) - len(good), sum(s.notes for s in good), times)

    def _read(self) -> None:
        pause_s = min(READING_S, self.seconds / READINGS)
        before, spent = time.monotonic(), busy_s() - own_s(read_usage(self._pid))
        while not self._ending.wait(pause_s):
            at, usages = self._at, read_usage(self._pid)
            now, spent_now = time.monotonic(), busy_s() - own_s(usages)
            others, before, spent = max(0.0, spent_now - spent) / (now - before), now, spent_now
            pids = tuple(usage.pid for usage in usages if usage.depth)
            self.readings.append(Reading(at, processes(usages), pids, read_metrics(self._admin), others))

    def _send_pinned(self) -> None:
        jobs, first = draw_jobs(PINNED, SEED - 1), dict[Job, bytes]()
        pause_s = 1 / self._pinned_rate
        while not self._ending.wait(max(0.0, self._started + self.pinned.requests * pause_s - time.monotonic())):
            job = jobs[self.pinned.requests % PINNED]
            self.pinned.requests += 1
            answer = compose(self._port, job)
            if answer is None:
                self.pinned.failed += 1
                continue
            self.pinned.notes += job.length
            self.pinned.wrong_bytes += answer != first.setdefault(job, answer)

    def _tell(self, windows: Sequence[Window]) -> None:
        minutes, whole = self._at * self.seconds / 60, self.seconds / 60
        errors = sum(window.errors for window in windows) + self.pinned.failed + self.pinned.wrong_bytes
        rss = self.readings[-1].processes[TOGETHER].rss_mib if self.readings else math.nan
        p95 = percentile(windows[-1].latencies_ms, 0.95) if windows else math.nan
        sent = sum(window.requests for window in windows) + self.pinned.requests
        line = f"{minutes:.1f} of {whole:g} min: {sent:,} requests, {errors} errors, {rss:.1f} MiB, p95 {p95:.0f} ms"
        print(line, file=sys.stderr, flush=True)


def compose(port: int, job: Job) -> bytes | None:
    """Return the MIDI file that answers a request; None if none does."""
    try:
        with closing(HTTPConnection(HOST, port, timeout=DEFAULTS.deadline_s + 10)) as connection:
            connection.request("POST", "/generate", encode_body(job), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
    except (OSError, HTTPException):
        return None
    return body if response.status == 200 and body.startswith(MIDI) else None


def count(soak: Soak) -> dict[str, float]:
    """Return how many requests, notes and errors there were, by name."""
    windows, readings, pinned = soak.windows, soak.readings, soak.pinned
    requests = sum(window.requests for window in windows) + pinned.requests
    failed = sum(window.errors for window in windows) + pinned.failed
    unread = sum(not reading.metrics for reading in readings)
    errors = failed + pinned.wrong_bytes + unread
    return {
        "requests": requests,
        "notes": sum(window.notes for window in windows) + pinned.notes,
        "requests not answered rightly": failed,
        "pinned requests": pinned.requests,
        "of these, other bytes than the first time": pinned.wrong_bytes,
        "metrics not answered": unread,
        "errors, all together": errors,
        "errors, per cent of requests": 100 * errors / requests,
        "restarts": count_restarts(readings),
        "most requests pending": int(max((reading.metrics.get(PENDING, 0) for reading in readings), default=0)),
    }


def show_processes(changed: Mapping[str, Mapping[str, Change]]) -> None:
    """Print what each process held, early and late."""

    def cells(figures: Mapping[str, Change]) -> Iterator[str]:
        for name in ("rss_mib", "pss_mib"):
            one = figures[name]
            yield from (f"{one.early:.1f}", f"{one.late:.1f}", f"{one.drift:+.2f} %")
        for name in ("threads", "descriptors"):
            yield f"{figures[name].early:g} > {figures[name].late:g}"

    head = ("", "VmRSS MiB", "late", "drift", "Pss MiB", "late", "drift", "threads", "descriptors")
    show("The processes, early and late", head, [(name, *cells(figures)) for name, figures in changed.items()])


def report(soak: Soak, model: str, saturation: float, rate: float) -> bool:
    """Print what a run has found; return whether every bound is kept."""
    totals, changed = count(soak), changes(soak.readings)
    times = {"early": latencies(soak.windows, EARLY), "late": latencies(soak.windows, LATE)}
    others = change((one.at, one.others) for one in soak.readings)
    verdicts = judge(changed, int(totals["errors, all together"]), int(totals["restarts"]))
    title = f"{model}: {soak.seconds / 60:g} minutes at {rate:.1f} requests/s, {rate / saturation:.0%} of {saturation:.1f}"
    show(title, ("", ""), list(totals.items()))
    show_processes(changed)
    head = ("", "p50 ms", "p95 ms", "p99 ms", "requests", "cores taken by others")
    beside = zip(times.items(), others, strict=True)
    show("Latency, and what else ran", head, [(name, *row.values(), f"{cores:.2f}") for (name, row), cores in beside])
    kept = show_verdicts(verdicts)
    finish(
        {
            "model": model,
            "minutes": soak.seconds / 60,
            "saturation_per_s": saturation,
            "rate_per_s": rate,
            "totals": totals,
            "processes": {
                name: {figure: one._asdict() | {"growth": one.growth, "drift_per_cent": one.drift} for figure, one in row.items()}
                for name, row in changed.items()
            },
            "rss_mib_by_tenth": by_tenth(soak.readings),
            "latency_ms": times,
            "cores_taken_by_others": others._asdict(),
            "load_generator_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "verdicts": [one._asdict() for one in verdicts],
        }
    )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)g")
    parser.add_argument("--share", type=float, default=0.8, help="of what saturates the service; default: %(default)s")
    parser.add_argument("--rate", type=float, help="requests a second that saturate it; default: measured first")
    options = parser.parse_args()
    for name in ("minutes", "share", "rate"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be more than 0; got {value:g}")

    admin = free_port()
    with running_service(options.model, ADMIN_PORT=str(admin)) as (port, pid):
        # A thread is started when more requests are under way than ever before, and its memory grows with its first ones.
        run_load(port, draw_jobs(WARM_UP, SEED - 2), clients=2 * CLIENTS)
        saturation = options.rate or saturate(port, SATURATION_S).requests_per_s
        rate = options.share * saturation
        print(f"{options.minutes:g} minutes at {rate:.1f} requests/s", file=sys.stderr, flush=True)
        soak = Soak(port, admin, pid, rate, 60 * options.minutes)
        soak.run()
    kept = report(soak, options.model.name, saturation, rate)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
