"""Waiting for the engine on behalf of a client: the deadline, and the client that leaves before."""

import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

from service.engine.process import Engine
from service.engine.sampling import Composition
from service.errors import EngineFailed, GenerationTimeout

GRACE_S = 2.0  # for the engine to say itself that a deadline passed, before the wait ends without it


class ClientLeft(Exception):
    """The client closed its connection; nobody reads the answer."""


class ClientWatcher:
    """Sees at once when a client closes its connection, or its half of it, and reads nothing from it.

    One thread for all clients, in the kernel until one of them leaves. Where the system has no epoll nothing is seen, and
    pieces are composed to their end.

    Parameters
    ----------
    leave : callable
        Called with the future of a client that left.
    """

    def __init__(self, leave: Callable[[Future[Composition]], None]) -> None:
        self._leave = leave
        # By the descriptor of the connection. No lock: a thread that holds one while it waits for the interpreter makes all
        # others wait, and what happens to a dictionary here happens at once.
        self._watched: dict[int, tuple[socket.socket, Future[Composition]]] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            threading.Thread(target=self._watch, args=(self._epoll,), name="client-watcher", daemon=True).start()

    def add(self, client: socket.socket, future: Future[Composition]) -> None:
        """Watch a client while its future is awaited; also one that has left already is noticed."""
        if self._epoll is not None:
            self._watched[client.fileno()] = client, future
            self._epoll.register(client.fileno(), select.EPOLLRDHUP | select.EPOLLONESHOT)

    def remove(self, client: socket.socket) -> None:
        """Watch a client no longer."""
        if self._epoll is not None:
            del self._watched[client.fileno()]
            self._epoll.unregister(client.fileno())

    def _watch(self, epoll: "select.epoll") -> None:
        while True:
            for descriptor, _ in epoll.poll():
                client, future = self._watched.get(descriptor, (None, None))
                # Looked at again, since the descriptor may be another client's by now.
                if client is not None and future is not None and has_left(client):
                    future.client_left = True  # type: ignore[attr-defined]
                    self._leave(future)


def has_left(client: socket.socket) -> bool:
    """Return whether the other side has closed the connection, or its half of it; reads nothing from it."""
    poll = select.poll()
    try:
        poll.register(client, select.POLLRDHUP)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # closed on this side
        return False


def wait_for(
    engine: Engine, future: Future[Composition], deadline: float, client: socket.socket | None, watcher: ClientWatcher
) -> Composition:
    """Return what the engine composed.

    Parameters
    ----------
    engine : Engine
    future : Future of Composition
        From `engine.submit`.
    deadline : float
        In the time of `time.monotonic()`.
    client : socket, optional
        The connection of the client.
    watcher : ClientWatcher
        Cancels the future of a client that leaves.

    Raises
    ------
    ClientLeft
        If the client closed its connection, or its half of it. The request is cancelled.
    GenerationTimeout
        If the deadline passed. The request is cancelled.
    EngineFailed
        If the engine failed or was closed.
    """
    if client is None:
        return _result(engine, future, deadline)
    watcher.add(client, future)
    try:
        return _result(engine, future, deadline)
    except EngineFailed:
        if getattr(future, "client_left", False):
            raise ClientLeft from None
        raise
    finally:
        watcher.remove(client)


def _result(engine: Engine, future: Future[Composition], deadline: float) -> Composition:
    try:
        return future.result(max(0.0, deadline - time.monotonic()) + GRACE_S)
    except CancelledError:
        raise EngineFailed("the service is stopping") from None
    except TimeoutError:
        if future.done():  # it was completed between the two
            return future.result()
        engine.cancel(future)
        raise GenerationTimeout("the engine did not answer before the deadline") from None
