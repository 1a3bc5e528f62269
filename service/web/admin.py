"""Probes and metrics on a port of their own: answered while every thread of the service is busy, and not for the public.

A small threaded server of the standard library beside gunicorn, in the same process, with the same application; it knows
ADMIN_PATHS and nothing else.
"""

import socket
import threading
from collections.abc import Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from flask import Flask

from service.web.problems import problem

ADMIN_PATHS = ("/livez", "/readyz", "/metrics")
ON_ADMIN_PORT = "nocturne.on_admin_port"  # in the WSGI environment
_TIMEOUT_S = 5  # for a client to send its request


class AdminServer:
    """Serves ADMIN_PATHS of an application until it is closed.

    Parameters
    ----------
    app : Flask
    host : str
    port : int
        0 takes one that is free.

    Raises
    ------
    OSError
        If the port cannot be had.
    """

    def __init__(self, app: Flask, host: str, port: int) -> None:
        server_class = _Server6 if ":" in host else _Server
        self._server = server_class((host, port), _Handler)
        self._server.set_app(_only(app))
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="admin", daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more; what is under way is answered."""
        self._server.shutdown()
        self._server.server_close()


def _only(app: Flask) -> Any:
    """Return the application with the paths of ADMIN_PATHS alone."""

    def admin(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") in ADMIN_PATHS:
            return app({**environ, ON_ADMIN_PORT: True}, start_response)
        return problem(404, f"this port has {', '.join(ADMIN_PATHS)} only")(environ, start_response)

    return admin


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = allow_reuse_port = True  # a worker that takes over begins before the one before it has ended

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, as the base class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every few seconds."""
