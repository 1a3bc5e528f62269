"""Clients that are slow, broken or hostile: each is answered or closed soon, and nobody else waits for them."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import CLIENT_TIMEOUT_S, FEW_THREADS, running, wait_until

POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A service with three threads."""
    log = tmp_path_factory.mktemp("few") / "errors.log"
    with running(log, **FEW_THREADS) as service:
        yield service
    assert "Traceback" not in log.read_text()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def drip(connection: socket.socket, data: bytes, stop: threading.Event) -> None:
    """Send a byte now and then, until the other side has had enough."""
    for i in range(len(data)):
        try:
            connection.sendall(data[i : i + 1])
        except OSError:
            return
        if stop.wait(0.2):
            return


def test_a_thousand_idle_connections_keep_nobody_out(few):
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(few.connect())
        assert few.compose(seed=1, length=8).status_code == 200


HALVES = {
    "nothing of the head": b"P",
    "half a head": b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Long: ",
    "half a body": POST + b'Content-Length: 40\r\n\r\n{"seed": ',
    "half of the chunks": POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"see',
}


@pytest.mark.slow
def test_what_stops_half_way_holds_no_thread_and_is_closed_with_a_reason(few):
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        halves = [stack.enter_context(few.connect()) for _ in range(40)]
        for connection, half in zip(halves, [*HALVES.values()] * 10, strict=True):
            connection.sendall(half)
        honest = pool.submit(lambda: few.compose(seed=1, length=8))
        assert honest.result().status_code == 200
        for connection in halves:
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == "the request did not arrive within 10 seconds"


@pytest.mark.slow
def test_what_drips_in_holds_no_thread_and_is_closed(few):
    body = b'{"seed": 1, "length": 8}'.ljust(2000)
    whole = {
        "head": b"GET /generate?seed=1 HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 2000,
        "body": POST + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
    }
    stop = threading.Event()
    with ExitStack() as stack:
        drops = [stack.enter_context(few.connect()) for _ in range(12)]
        threads = [
            threading.Thread(target=drip, args=(connection, data, stop))
            for connection, data in zip(drops, [*whole.values()] * 4, strict=True)
        ]
        stack.callback(stop.set)
        for thread in threads:
            thread.start()
        for seed in range(5):
            assert few.compose(seed=seed, length=8).status_code == 200
        assert all(read_all(connection).startswith(b"HTTP/1.1 408 ") for connection in drops)
        stop.set()
        for thread in threads:
            thread.join(CLIENT_TIMEOUT_S)


def test_answered_clients_that_do_not_close_their_side_delay_nobody(few):
    with ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(few.connect())
            connection.sendall(b"nonsense\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")  # and our side stays open
        assert few.compose(seed=1, length=8).status_code == 200


def test_a_client_that_does_not_read_its_answer_keeps_no_other_waiting(few):
    with ExitStack() as stack:
        for seed in range(2):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(CLIENT_TIMEOUT_S)
            connection.connect(("127.0.0.1", few.port))
            body = json.dumps({"seed": seed, "length": 2000, "end": False}).encode()
            connection.sendall(POST + b"Accept: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert wait_until(lambda: few.http.get("/livez").status_code == 200)
        assert wait_until(lambda: few.compose(seed=1, length=8).status_code == 200)


def test_requests_in_a_row_are_answered_in_a_row(few):
    one = b"GET /generate?seed=%d&length=4 HTTP/1.1\r\nHost: x\r\n%b\r\n"
    expected = [few.compose(seed=seed, length=4).content for seed in range(6)]
    last = one % (5, b"Connection: close\r\n")
    with few.connect() as connection:
        connection.sendall(b"".join(one % (seed, b"") for seed in range(5)) + last[:20])
        time.sleep(0.1)  # the last one comes in two parts
        connection.sendall(last[20:])
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 6
    for content in expected:
        head, _, answers = answers.partition(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(content) in head + b"\r\n"
        assert answers[: len(content)] == content
        answers = answers[len(content) :]


SMUGGLED = b"GET /generate?seed=7&length=1 HTTP/1.1\r\nHost: smuggled\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", {400}),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", {400}),
        (POST + b"Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}", {400}),
        (POST + b"Content-Length: 2, 2\r\n\r\n{}", {400}),
        (POST + b"Content-Length: +2\r\n\r\n{}", {400}),
        (POST + b"Content-Length: -1\r\n\r\n", {400}),
        (POST + b"Content-Length: 0x2\r\n\r\n{}", {400}),
        (POST + b"Content-Length : 2\r\n\r\n{}", {400}),
        (POST + b" Content-Length: 2\r\n\r\n{}", {400}),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400, 501}),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", {400, 501}),
        (POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (POST.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}", {400}),
        (POST + b"X: y\nContent-Length: 2\r\n\r\n{}", {400}),
        (POST + b"X: y\rContent-Length: 2\r\n\r\n{}", {400}),
        (POST + b"X: y\x00\r\nContent-Length: 2\r\n\r\n{}", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n" + bytes(2**20), {400, 413}),
        (POST + b"Content-Length: 99999999999999999999\r\n\r\n{}", {413}),
        (POST + b"Content-Length: %d\r\n\r\n" % (2**20 + 1) + bytes(2**20 + 1), {413}),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", {431}),
    ],
)
def test_framing_that_two_could_read_differently_is_refused_and_the_connection_closed(few, request_bytes, statuses):
    with few.connect() as connection:
        try:
            connection.sendall(request_bytes + SMUGGLED)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has been answered before all was sent
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 ") == 1, "what followed was taken for a request"
    assert int(answer.split()[1]) in statuses
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body)["status"] == int(answer.split()[1])


def test_what_is_refused_before_it_is_read_has_a_line_and_nothing_of_it_is_in_the_log(tmp_path):
    log = tmp_path / "errors.log"
    with running(log, **FEW_THREADS) as service:
        for head in (b"Authorization Bearer nocturne_secret", b"nocturne_secret: \x00", b"Host: x\nnocturne_secret: 1"):
            answer = service.send(b"GET /generate HTTP/1.1\r\n" + head + b"\r\n\r\n")
            assert (answer.status_code, answer.json()["status"]) == (400, 400)
        assert service.send(b"GET /models HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n").status_code == 431
        assert 'nocturne_rejections_total{cause="http"} 4.0' in service.http.get("/metrics").text
    assert "nocturne_secret" not in log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [line for line in lines if "path" not in line]
    assert [(line["status"], line["client"]) for line in refused] == [(400, "127.0.0.1")] * 3 + [(431, "127.0.0.1")]


def test_a_body_longer_than_it_said_is_not_a_part_of_the_answer(few):
    body = b'{"seed": 7, "length": 4}'
    with few.connect() as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"}}}\r\n\r\n")
        answers = read_all(connection)
    expected = few.compose(seed=7, length=4).content
    _, _, rest = answers.partition(b"\r\n\r\n")
    assert rest.startswith(expected)
    assert rest[len(expected) :].startswith(b"HTTP/1.1 400 ")


def test_a_client_that_asks_whether_its_body_is_welcome_is_told(few):
    body = b'{"seed": 7, "length": 4}'
    with few.connect() as connection:
        head = POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head)
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_all(connection).endswith(few.compose(seed=7, length=4).content)


def test_a_body_that_breaks_off_is_said_to_the_half_that_still_listens(few):
    with few.connect() as connection:
        connection.sendall(POST + b"Content-Length: 40\r\n\r\n{}")
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the body broke off after 2 of 40 bytes" in answer
