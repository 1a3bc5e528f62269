"""Waiting for the engine on behalf of a client: the deadline, and the client that leaves before."""

import socket
import time
from concurrent.futures import CancelledError, Future

from service.engine.process import Engine
from service.engine.sampling import Composition
from service.errors import EngineFailed, GenerationTimeout

LOOK_INTERVAL_S = 0.25  # between two looks at the client: short against a piece that nobody wants any more
GRACE_S = 2.0  # for the engine to say itself that a deadline passed, before the wait ends without it


class ClientLeft(Exception):
    """The client closed its connection; nobody reads the answer."""


def wait_for(engine: Engine, future: Future[Composition], deadline: float, client: socket.socket | None) -> Composition:
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

    Raises
    ------
    ClientLeft
        If the client closed its connection, or its half of it. The request is cancelled.
    GenerationTimeout
        If the deadline passed. The request is cancelled.
    EngineFailed
        If the engine failed or was closed.
    """
    while True:
        try:
            return future.result(LOOK_INTERVAL_S)
        except CancelledError:
            raise EngineFailed("the service is stopping") from None
        except TimeoutError:
            if future.done():
                continue  # it was completed between the two
        if client is not None and has_left(client):
            engine.cancel(future)
            raise ClientLeft
        if time.monotonic() > deadline + GRACE_S:
            engine.cancel(future)
            raise GenerationTimeout("the engine did not answer before the deadline")


def has_left(client: socket.socket) -> bool:
    """Return whether the other side has closed the connection; reads nothing from it."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
