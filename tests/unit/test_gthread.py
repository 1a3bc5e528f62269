"""The worker's account of memory: what arrives and what is being answered together hold no more than they may."""

import socket
from concurrent.futures import Future
from contextlib import ExitStack
from unittest.mock import MagicMock

import pytest

from service.web.gthread import SMALL_BYTES, TOTAL_BYTES, BufferingWorker, _Incoming
from service.web.received import Received


def request_of(size: int) -> bytes:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %010d\r\n\r\n"
    return head % (size - len(head % 0)) + b" " * (size - len(head % 0))


class Bench:
    """A worker without gunicorn: connections are halves of socket pairs, and its threads never begin."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.worker = worker = BufferingWorker.__new__(BufferingWorker)
        worker._incoming, worker._held, worker._leaving, worker._total = {}, {}, {}, 0
        worker.poller, worker.tpool, worker.method_queue, worker.nr_conns = MagicMock(), MagicMock(), MagicMock(), 0
        worker.alive, worker.keepalived_conns = True, []
        self.refused = []
        worker.on_refusal = lambda sock, status: self.refused.append(status)

    def connect(self):
        ours, theirs = map(self.stack.enter_context, socket.socketpair())
        theirs.settimeout(60)
        conn = MagicMock(sock=ours)
        conn.parser.unreader.buf.getvalue.return_value = b""
        return conn, theirs

    def send(self, conn, data: bytes, whole: bool = True) -> None:
        incoming = _Incoming(Received(2**21), float("inf"))
        self.worker._incoming[conn] = incoming
        assert self.worker._take(conn, incoming, data) == (whole or bool(self.refused))

    def finish(self, conn, keep: bool) -> None:
        answered: Future[bool] = Future()
        answered.set_result(keep)
        self.worker.finish_request(conn, answered)


@pytest.fixture
def bench():
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.mark.parametrize(("size", "limit"), [(2**20, TOTAL_BYTES // 2), (SMALL_BYTES, TOTAL_BYTES)])
@pytest.mark.parametrize("keep", [True, False])
def test_requests_that_wait_for_a_thread_count_until_they_are_answered(bench, size, limit, keep):
    data = request_of(size)
    assert len(data) == size
    conns = [bench.connect() for _ in range(limit // size)]
    for conn, _ in conns:
        bench.send(conn, data)
    assert (bench.worker._total, bench.refused) == (limit, [])

    late, client = bench.connect()
    bench.send(late, data)
    assert bench.refused == [503]
    assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert bench.worker._total == limit

    bench.finish(conns[0][0], keep)
    assert bench.worker._total == limit - size
    other, _ = bench.connect()
    bench.send(other, data)
    assert bench.refused == [503]
    for conn, _ in [*conns[1:], (other, None)]:
        bench.finish(conn, keep)
    assert bench.worker._total == 0


def test_what_is_half_here_counts_too(bench):
    half = request_of(2**20)[: 2**19]
    for _ in range(TOTAL_BYTES // 2 // len(half)):
        bench.send(bench.connect()[0], half, whole=False)
    bench.send(bench.connect()[0], half, whole=False)
    assert bench.refused == [503]
    bench.refused.clear()
    bench.send(bench.connect()[0], request_of(100))  # small ones have room of their own
    assert not bench.refused
