"""gunicorn's threaded worker, but for one thing: only a request that has arrived whole takes a thread.

gunicorn's own gives every connection a thread as it is accepted, reads the request there however slowly it comes, and closes
connections in its main loop, where it waits up to two seconds for a client that does not close its side: a few hundred idle or
slow clients keep everybody else out. Here requests come in, and connections go, by events in the main loop; the parser then reads
from memory and never from the socket. HTTP/1.1 without TLS only.
"""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker  # type: ignore[import-untyped]

from service.web.problems import problem_bytes
from service.web.received import MAX_HEAD_BYTES, Arrival, Received

RECEIVE_S = 10.0  # for a request to arrive whole, from its first byte on
LINGER_S = 2.0  # for a client to close its side once it was answered for the last time (RFC 9112 section 9.6)
LINGER_BYTES = 2**24  # that it may still send meanwhile, so that it comes to read why its request was refused
SEND_S = 30.0  # for a client to take its whole answer
# Requests together hold no more than so many bytes, those that are being answered included: larger ones may take half of it.
TOTAL_BYTES = 2**27
SMALL_BYTES = 65536
_PIECE_BYTES = 65536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("gunicorn.error")


class _Incoming:
    """A request that is arriving on a connection."""

    def __init__(self, received: Received, deadline: float) -> None:
        self.received, self.deadline = received, deadline


class _Collected:
    """A socket whose answer goes out in one call: a process that is killed has sent all of it or nothing.

    gunicorn sends head and body one after the other; a balancer that has got a head alone cannot ask another process any more.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._parts = sock, list[bytes]()

    def sendall(self, data: bytes) -> None:
        self._parts.append(data)

    def send_collected(self) -> None:
        self._sock.sendall(b"".join(self._parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class BufferingWorker(ThreadWorker):  # type: ignore[misc]
    """A threaded worker of gunicorn whose threads never wait for a client to send.

    Attributes
    ----------
    max_body : int
        Bytes of a body that is taken in; a longer one goes to the application as far as it came, which refuses it.
    on_refusal : callable
        Called with the socket and the status of each request that was refused before the application saw it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_body = 2**20
        self.on_refusal: Callable[[socket.socket, int], None] = lambda sock, status: None
        self._incoming: dict[Any, _Incoming] = {}  # by connection
        self._leaving: dict[Any, tuple[float, int]] = {}  # until when a connection may linger, and the bytes it sent since
        self._held: dict[Any, int] = {}  # bytes of a request that is being answered, by connection
        self._total = 0  # bytes of all that is incoming or being answered
        self._swept = 0.0

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept or not; a worker that stops closes its listeners: who comes is refused, and does not wait in their queue."""
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                listener.close()

    def is_parent_alive(self) -> bool:
        """Stop as after SIGTERM when the master is gone; gunicorn's own goes on with connections that are kept alive."""
        if not super().is_parent_alive():
            self.alive = False
        return self.alive

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; where there is no descriptor left for one, leave it in the queue and go on."""
        try:
            super().accept(listener)
        except OSError as error:
            _log.error("no connection can be accepted: %s", error)
            time.sleep(0.01)  # the listener stays readable: do not spin

    def enqueue_req(self, conn: Any) -> None:
        """Receive the next request of a connection, and only then hand it to a thread."""
        if conn.parser is None:
            # What it reads lies in memory; after that, the connection has ended as far as it knows.
            conn.parser = http.get_parser(self.cfg, [], conn.client)
            conn.data_ready = True
        conn.sock.setblocking(False)
        left_over = conn.parser.unreader.take_buffered()  # of a pipeline
        now = time.monotonic()
        incoming = _Incoming(Received(self.max_body), now + (RECEIVE_S if left_over else self.cfg.keepalive))
        self._incoming[conn] = incoming
        if not self._take(conn, incoming, left_over):
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request in its thread."""
        conn.sock.settimeout(SEND_S)
        if not conn.whole:  # whatever comes after what was read is no request
            req.force_close()
        sock, conn.sock = conn.sock, _Collected(conn.sock)
        try:
            keep = super().handle_request(req, conn)
            conn.sock.send_collected()
        finally:
            conn.sock = sock
        return keep

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep a connection for its next request, or end it without waiting for the client."""
        self._total -= self._held.pop(conn, 0)
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
        else:
            self._leave(conn)

    def murder_pending(self) -> None:
        """End what took too long; gunicorn calls this in every round of its loop."""
        now = time.monotonic()
        if now - self._swept < 0.5:
            return
        self._swept = now
        for conn, incoming in list(self._incoming.items()):
            idle = not incoming.received.data
            if now > incoming.deadline - (0.0 if self.alive or not idle else self.cfg.keepalive - STOP_KEEPALIVE_LINGER):
                self._forget(conn)
                if not idle:
                    detail = f"the request did not arrive within {RECEIVE_S:g} seconds"
                    self._refuse(conn, 408, "Request Timeout", detail)
                else:
                    self._close(conn)
        for conn, (deadline, _) in list(self._leaving.items()):
            if now > deadline:
                self._end(conn)

    def _on_readable(self, conn: Any, _: Any) -> None:
        incoming, data = self._incoming[conn], _receive(conn.sock)
        if data is None:
            return
        if not data:
            # It has gone, or wants its answer now; what it left half is read as what broke off.
            self._forget(conn)
            if incoming.received.data:
                self._hand_over(conn, incoming, whole=False)
            else:
                self._close(conn)
            return
        if not incoming.received.data:
            incoming.deadline = time.monotonic() + RECEIVE_S
        self._take(conn, incoming, data)

    def _take(self, conn: Any, incoming: _Incoming, data: bytes) -> bool:
        """Add what has come to a request; return whether no more of it is waited for."""
        arrival = incoming.received.add(data) if data else Arrival.PART
        self._total += len(data)
        if data and self._total > (TOTAL_BYTES if len(incoming.received.data) <= SMALL_BYTES else TOTAL_BYTES // 2):
            self._forget(conn)
            self._refuse(conn, 503, "Service Unavailable", "too many large requests arrive at once; try again later")
            return True
        if arrival is Arrival.PART:
            if data and incoming.received.expects_continue():
                with contextlib.suppress(OSError):
                    conn.sock.send(_CONTINUE)
            return False
        self._forget(conn)
        if arrival is Arrival.HEAD_TOO_LONG:
            detail = f"the request line and the headers must not be longer than {MAX_HEAD_BYTES} bytes"
            self._refuse(conn, 431, "Request Header Fields Too Large", detail)
        else:
            self._hand_over(conn, incoming, arrival is Arrival.WHOLE)
        return True

    def _hand_over(self, conn: Any, incoming: _Incoming, whole: bool) -> None:
        conn.whole = whole
        self._held[conn] = len(incoming.received.data)
        self._total += self._held[conn]
        conn.parser.unreader.unread(bytes(incoming.received.data))
        super().enqueue_req(conn)

    def _forget(self, conn: Any) -> None:
        self._total -= len(self._incoming.pop(conn).received.data)
        with contextlib.suppress(KeyError, ValueError, OSError):  # not there if the request came with the one before it
            self.poller.unregister(conn.sock)

    def _refuse(self, conn: Any, status: int, reason: str, detail: str) -> None:
        self.on_refusal(conn.sock, status)
        with contextlib.suppress(OSError):
            conn.sock.send(problem_bytes(status, reason, detail))
        self._leave(conn)

    def _leave(self, conn: Any) -> None:
        """Send the end, and let the client close its side for a while: what it gets must not be cut off by a reset."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_leaving, conn))
        except (OSError, KeyError, ValueError):
            self._close(conn)
        else:
            self._leaving[conn] = time.monotonic() + LINGER_S, 0

    def _on_leaving(self, conn: Any, _: Any) -> None:
        (deadline, sent), data = self._leaving[conn], _receive(conn.sock)
        if data is None:
            return
        if not data or sent + len(data) > LINGER_BYTES:
            self._end(conn)
        else:
            self._leaving[conn] = deadline, sent + len(data)

    def _end(self, conn: Any) -> None:
        del self._leaving[conn]
        self.poller.unregister(conn.sock)
        self._close(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()


def _receive(sock: socket.socket) -> bytes | None:
    """Return what has come on a socket; b"" if it has ended, in whichever way, and None if nothing is there after all."""
    try:
        return sock.recv(_PIECE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
