"""The load generator of the benchmarks, on samples whose figures are known and on a tiny server."""

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from bench.load import (
    LONGEST,
    SHORTEST,
    Job,
    Result,
    Sample,
    draw_arrivals,
    draw_jobs,
    encode_post,
    median_result,
    percentile,
    run_load,
    summarise,
)

BODY = b"MThd and so on"


def test_a_percentile_is_the_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) != percentile([], 0.5)  # NaN


def test_jobs_follow_from_the_seed_alone() -> None:
    jobs = draw_jobs(5000, 1)
    assert jobs == draw_jobs(5000, 1)
    assert jobs[:50] == draw_jobs(50, 1)
    assert jobs != draw_jobs(5000, 2)
    lengths = [job.length for job in jobs]
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert sum(lengths) / len(lengths) == pytest.approx((SHORTEST + LONGEST) / 2, rel=0.05)


def test_arrivals_are_poisson() -> None:
    arrivals = draw_arrivals(5000, 20.0, 3)
    assert arrivals == draw_arrivals(5000, 20.0, 3)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1/e: exponential


def test_a_request_says_how_long_its_body_is() -> None:
    assert encode_post("/generate", b"{}").endswith(b"Content-Length: 2\r\n\r\n{}")


def test_throughput_is_that_of_the_steady_part() -> None:
    # One request a second, each answered after two, 100 notes each: 100 notes/s, however long the ends take.
    samples = [Sample(float(i), float(i), i + 2.0, 100, True) for i in range(20)]
    samples[0] = samples[0]._replace(done=0.1)
    samples[-1] = samples[-1]._replace(done=100.0)
    result = summarise(samples, 4)
    assert (result.notes_per_s, result.requests_per_s) == pytest.approx((100.0, 1.0))
    assert (result.p50, result.p95, result.p99, result.errors, result.requests) == (2000.0, 2000.0, 2000.0, 0, 12)


@pytest.mark.parametrize("margin", [20, 24, 27])
def test_a_server_that_answers_in_batches_is_measured_as_well_as_another(margin) -> None:
    # Ten at a time, every five seconds, 100 notes each; the margin falls anywhere into a batch.
    samples = [Sample(i // 10 * 5.0, i // 10 * 5.0, i // 10 * 5.0 + 5, 100, True) for i in range(160)]
    assert summarise(samples, margin).notes_per_s == pytest.approx(200, rel=0.02)


def test_latency_counts_from_when_a_request_was_due() -> None:
    samples = [Sample(i, i + 0.5, i + 1.0, 10, True) for i in range(10)]
    assert summarise(samples, 1).p50 == pytest.approx(1000)


def test_what_failed_is_counted_and_gives_no_notes() -> None:
    samples = [Sample(i, i, i + 0.5, 10, i % 2 == 0) for i in range(10)]
    result = summarise(samples, 0)
    assert result.errors == 5
    assert result.notes_per_s == pytest.approx(5)


def test_a_margin_leaves_something_to_count() -> None:
    with pytest.raises(ValueError, match="margin"):
        summarise([Sample(0, 0, 1, 1, True)] * 5, 2)


def test_the_median_is_taken_figure_by_figure() -> None:
    results = [Result(float(x), float(x), x, x + 1, x + 2, 1, 10) for x in (3, 1, 2)]
    assert median_result(results) == Result(2, 2, 2, 3, 4, 3, 30)


class Server:
    """Answers every request after `delay_s`, the first ones wrongly, with `wrong`; counts what it sees."""

    def __init__(self, delay_s: float = 0.0, per_connection: int = 10**9, bad: int = 0, wrong: bytes = b"500 No") -> None:
        self.delay_s, self.per_connection, self.bad, self.wrong = delay_s, per_connection, bad, wrong
        self.bodies: list[bytes] = []
        self.now = self.most = self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(self.per_connection):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                status = self.wrong if len(self.bodies) <= self.bad else b"200 OK"
                self.now += 1
                self.most = max(self.most, self.now)
                await asyncio.sleep(self.delay_s)
                self.now -= 1
                writer.write(b"HTTP/1.1 %b\r\ncontent-LENGTH: %d\r\n\r\n%b" % (status, len(BODY), BODY[:4]))
                await asyncio.sleep(0)
                writer.write(BODY[4:])  # an answer may come in pieces
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@contextmanager
def running(server: Server):
    ports: SimpleQueue[int] = SimpleQueue()
    ending = threading.Event()

    async def serve() -> None:
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            ports.put(listening.sockets[0].getsockname()[1])
            await asyncio.to_thread(ending.wait)
            listening.close()
            handlers = asyncio.all_tasks() - {asyncio.current_task()}
            for handler in handlers:
                handler.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield ports.get()
    finally:
        ending.set()
        thread.join()


JOBS = [Job(i, 100 + i) for i in range(40)]


def test_a_closed_loop_keeps_as_many_on_their_way_as_there_are_clients() -> None:
    server = Server(delay_s=0.005)
    with running(server) as port:
        samples = run_load(port, JOBS, clients=5)
    assert all(sample.ok for sample in samples)
    assert [sample.notes for sample in samples] == [job.length for job in JOBS]
    assert (server.most, server.connections) == (5, 5)
    assert sorted(server.bodies) == sorted(b'{"seed": %d, "length": %d}' % job for job in JOBS)
    assert summarise(samples, 5).p50 >= 5


def test_an_open_loop_sends_when_requests_are_due() -> None:
    server = Server(delay_s=0.05)
    arrivals = [i * 0.01 for i in range(len(JOBS))]
    with running(server) as port:
        started = time.perf_counter()
        samples = run_load(port, JOBS, arrivals=arrivals)
    assert all(sample.ok for sample in samples)
    assert server.most >= 3  # it did not wait for the answers
    assert all(sample.due - started >= arrival for sample, arrival in zip(samples, arrivals, strict=True))
    assert all(sample.due <= sample.sent <= sample.done for sample in samples)


def test_wrong_answers_are_errors() -> None:
    with running(Server(bad=7)) as port:
        samples = run_load(port, JOBS, clients=3)
        assert sum(not sample.ok for sample in samples) == 7
        assert not any(sample.ok for sample in run_load(port, JOBS, clients=3, begins=b"other"))


@pytest.mark.parametrize(
    ("wrong", "refused"), [(b"503 Later\r\nRETRY-after: 1", 7), (b"503 Later", 0), (b"429 Enough\r\nRetry-After: 1", 0)]
)
def test_refused_is_what_is_told_when_to_come_again(wrong, refused) -> None:
    with running(Server(bad=7, wrong=wrong)) as port:
        samples = run_load(port, JOBS, clients=3)
    assert sum(not sample.ok for sample in samples) == 7
    assert sum(sample.refused for sample in samples) == refused


def test_connections_that_the_server_closes_are_opened_again() -> None:
    server = Server(per_connection=3)
    with running(server) as port:
        samples = run_load(port, JOBS, clients=4)
    assert all(sample.ok for sample in samples)
    assert server.connections >= len(JOBS) // 3


def test_a_server_that_is_not_there_is_an_error_for_each_request() -> None:
    with running(Server()) as port:
        pass
    samples = run_load(port, JOBS, arrivals=[0.0] * len(JOBS))
    assert not any(sample.ok for sample in samples)
    assert len(samples) == len(JOBS)


def test_what_has_no_answer_in_time_has_failed() -> None:
    with running(Server(delay_s=30)) as port:
        samples = run_load(port, JOBS, clients=4, limit_s=0.2)
    assert len(samples) == len(JOBS)
    assert not any(sample.ok for sample in samples)
