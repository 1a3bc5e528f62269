"""A load generator for HTTP/1.1 on 127.0.0.1: closed loop (N clients) or open loop (Poisson arrivals). Standard library only.

    python -m bench.load PORT [--clients 40 | --rate 10] [--counted 200] [--margin 80]

Times are in seconds on `time.perf_counter`, latencies in ms. The requests, their order and their arrivals follow from one seed.
The last line is JSON.

Of all requests the first and the last `margin` do not count: they bring the load up, and hold it until what counts is answered.
Throughput is the slope of the line through what has been answered so far, over the time (least squares): a window with two ends
would be off by a whole batch at each end where a server answers batch by batch. A latency runs from when the request was *due*:
in an open loop the scheduled arrival, so that a server that is late cannot hide it; in a closed loop the sending.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import NamedTuple

HOST = "127.0.0.1"
SHORTEST, LONGEST = 50, 500  # notes of a request
SEED_BITS = 32
MIDI = b"MThd"  # what a right answer begins with
LIMIT_S = 600.0  # of a run; what has no answer by then has failed


class Job(NamedTuple):
    """What a request asks for."""

    random_seed: int
    length: int


class Sample(NamedTuple):
    """One request as it was served; `refused` if it was answered 503, and told when to come again."""

    due: float
    sent: float
    done: float
    notes: int
    ok: bool
    refused: bool = False


@dataclass(frozen=True)
class Result:
    """What a run has measured.

    Attributes
    ----------
    notes_per_s, requests_per_s : float
        Answered without failing.
    p50, p95, p99 : float
        Latency in ms of the requests that count and did not fail.
    errors : int
        Requests of the whole run with another answer than 200 and MIDI, or without one.
    requests : int
        Those that count.
    """

    notes_per_s: float
    requests_per_s: float
    p50: float
    p95: float
    p99: float
    errors: int
    requests: int


def draw_jobs(count: int, seed: int) -> list[Job]:
    """Return jobs with uniform lengths, the same for the same seed."""
    draw = random.Random(seed)
    return [Job(draw.getrandbits(SEED_BITS), draw.randint(SHORTEST, LONGEST)) for _ in range(count)]


def draw_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return the seconds at which requests arrive, in order, `rate` a second on average, the gaps exponential."""
    draw = random.Random(seed)
    return list(accumulate(draw.expovariate(rate) for _ in range(count)))


def encode_body(job: Job) -> bytes:
    """Return the JSON of a job for our service."""
    return json.dumps({"seed": job.random_seed, "length": job.length}).encode()


def encode_post(path: str, body: bytes) -> bytes:
    """Return a POST request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed, the nearest rank; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def summarise(samples: Sequence[Sample], margin: int) -> Result:
    """Return the figures of a run.

    Parameters
    ----------
    samples : sequence of Sample
        In the order in which they were due.
    margin : int
        Samples at each end that do not count.
    """
    counted = samples[margin : len(samples) - margin]
    if len(counted) < 2:
        raise ValueError(f"`margin` must leave two requests that count; got {margin} of {len(samples)}")
    in_order = sorted(samples, key=lambda sample: sample.done)[margin : len(samples) - margin]
    answered = [sample for sample in in_order if sample.ok]
    latencies = [(sample.done - sample.due) * 1000 for sample in counted if sample.ok]
    return Result(
        notes_per_s=_slope([sample.done for sample in answered], list(accumulate(sample.notes for sample in answered))),
        requests_per_s=_slope([sample.done for sample in answered], range(len(answered))),
        p50=percentile(latencies, 0.50),
        p95=percentile(latencies, 0.95),
        p99=percentile(latencies, 0.99),
        errors=sum(not sample.ok for sample in samples),
        requests=len(counted),
    )


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    return statistics.linear_regression(times, values).slope if len(set(times)) > 1 else 0.0


def median_result(results: Sequence[Result]) -> Result:
    """Return the median of each figure over several runs; the errors and the requests are summed."""
    rows = [asdict(result) for result in results]
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    totals = {name: sum(row[name] for row in rows) for name in ("errors", "requests")}
    return Result(**{**figures, **totals})


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request on it.

    A protocol and not a stream: a stream costs two tasks and several wake-ups a request, which the server's cores pay for.
    """

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._head_end = self._end = 0  # of the answer that is coming in; 0 until its head is there
        self.index: int | None = None  # of the request that has no answer yet
        self.answered = 0

    @property
    def open(self) -> bool:
        """Whether it can take a request."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, index: int, data: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        assert self.index is None
        self.index = index
        self._transport.write(data)

    def close(self) -> None:
        """Close it, whatever is on it."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio calls this)."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect an answer; tell the run when it is whole (asyncio calls this)."""
        self._data += data
        if not self._end:
            head_end = self._data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                return
            self._head_end, self._end = head_end, head_end + _content_length(bytes(self._data[:head_end]))
        if len(self._data) < self._end or self.index is None:
            return
        ok = self._data.startswith(b"HTTP/1.1 200") and self._data.startswith(self._run.begins, self._head_end)
        refused = self._data.startswith(b"HTTP/1.1 503") and b"\r\nretry-after:" in self._data[: self._head_end].lower()
        index, self.index, self._end = self.index, None, 0
        self._data.clear()
        self.answered += 1
        self._run.take_answer(self, index, ok, refused)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the run of a request that will have no answer (asyncio calls this)."""
        if self.index is not None:
            index, self.index = self.index, None
            # A server may close an idle connection just when we send on it; every client then sends again on another.
            self._run.take_loss(index, again=bool(self.answered) and not self._data)


class _Run:
    """Requests on their way to a server: which are sent, and what became of them."""

    def __init__(self, port: int, requests: Sequence[bytes], notes: Sequence[int], begins: bytes) -> None:
        self.begins = begins
        self._port, self._requests, self._notes = port, requests, notes
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []  # the last one used on top, so that few are kept warm
        self._all: list[_Connection] = []
        self._due = [0.0] * len(requests)
        self._sent = [0.0] * len(requests)
        self._samples: dict[int, Sample] = {}
        self._next = 0
        self._closed_loop = False
        self._finished = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def closed(self, clients: int) -> None:
        """Keep so many requests on their way until all are answered."""
        self._closed_loop = True
        self._idle = [await self._connect() for _ in range(min(clients, len(self._requests)))]
        for _ in range(len(self._idle)):
            self._send_next(time.perf_counter())
        await self._finished.wait()

    async def open(self, arrivals: Sequence[float]) -> None:
        """Send each request when it arrives, whatever became of those before."""
        started = time.perf_counter()
        for arrival in arrivals:
            late = time.perf_counter() - started - arrival
            if late < 0:
                await asyncio.sleep(-late)
            self._send_next(started + arrival)
        await self._finished.wait()

    def take_answer(self, connection: _Connection, index: int, ok: bool, refused: bool) -> None:
        """Note an answer; the connection is free."""
        self._idle.append(connection)
        self._note(index, ok, refused)

    def take_loss(self, index: int, again: bool) -> None:
        """Note that a connection broke under a request, or send it again."""
        if again:
            self._send(index)
        else:
            self._note(index, False)

    def end(self) -> list[Sample]:
        """Close all connections; return a sample for each request, failed where there is no answer."""
        for connection in self._all:
            connection.index = None
            connection.close()
        now = time.perf_counter()
        missing = (Sample(due or now, sent or now, now, 0, False) for due, sent in zip(self._due, self._sent, strict=True))
        return [self._samples.get(index, sample) for index, sample in enumerate(missing)]

    def _send_next(self, due: float) -> None:
        index, self._next = self._next, self._next + 1
        self._due[index] = due
        self._send(index)

    def _send(self, index: int) -> None:
        self._sent[index] = time.perf_counter()
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                connection.send(index, self._requests[index])
                return
        task = self._loop.create_task(self._connect_and_send(index))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _connect_and_send(self, index: int) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self._note(index, False)
        else:
            connection.send(index, self._requests[index])

    async def _connect(self) -> _Connection:
        _, connection = await self._loop.create_connection(lambda: _Connection(self), HOST, self._port)
        self._all.append(connection)
        return connection

    def _note(self, index: int, ok: bool, refused: bool = False) -> None:
        now = time.perf_counter()
        self._samples[index] = Sample(self._due[index], self._sent[index], now, self._notes[index], ok, refused)
        if len(self._samples) == len(self._requests):
            self._finished.set()
        elif self._closed_loop and self._next < len(self._requests):
            self._send_next(now)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError("an answer must say its Content-Length")
    return int(rest.partition(b"\r\n")[0])


def run_load(
    port: int,
    jobs: Sequence[Job],
    *,
    clients: int = 0,
    arrivals: Sequence[float] = (),
    path: str = "/generate",
    encode: Callable[[Job], bytes] = encode_body,
    begins: bytes = MIDI,
    limit_s: float = LIMIT_S,
) -> list[Sample]:
    """Send the jobs to a server and return what became of them, in the order of the jobs.

    Parameters
    ----------
    port : int
        On 127.0.0.1; nothing else is ever loaded.
    jobs : sequence of Job
    clients : int
        Closed loop: requests on their way at any time.
    arrivals : sequence of float
        Open loop: when each job arrives, in seconds after the start, ascending. Give either this or `clients`.
    path : str
    encode : callable
        Makes a job the body of a request, before the run begins.
    begins : bytes
        How the body of a right answer begins.
    limit_s : float
        What has no answer after so long has failed.
    """
    requests = [encode_post(path, encode(job)) for job in jobs]

    async def run() -> list[Sample]:
        load = _Run(port, requests, [job.length for job in jobs], begins)
        try:
            await asyncio.wait_for(load.closed(clients) if clients else load.open(arrivals), limit_s)
        except TimeoutError:
            pass
        return load.end()

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, in an open loop; 0: a closed one")
    parser.add_argument("--counted", type=int, default=200, help="requests that count")
    parser.add_argument("--margin", type=int, default=80, help="requests before them, and after them, that do not")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs = draw_jobs(options.counted + 2 * options.margin, options.seed)
    processor = time.process_time()
    if options.rate:
        samples = run_load(options.port, jobs, arrivals=draw_arrivals(len(jobs), options.rate, options.seed))
    else:
        samples = run_load(options.port, jobs, clients=options.clients)
    cost_us = (time.process_time() - processor) / len(jobs) * 1e6
    print(f"{cost_us:.0f} us of processor time a request for the load generator itself")
    print(json.dumps(asdict(summarise(samples, options.margin))))


if __name__ == "__main__":
    main()
