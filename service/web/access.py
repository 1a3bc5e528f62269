"""Who asked for what, and how long it took: one line of JSON a request, an id for each, and the trace that it belongs to.

The ids of a client are taken over where they have the form that such ids have, so that nothing else gets into a log or a header.
Probes that succeed are not worth a line, nor a span.
"""

import logging
import re
import secrets
import socket
import sys
import time
from typing import Any

import orjson
from flask import Flask, Response, request

from service.logs import timestamp
from service.web.admin import ADMIN_PATHS
from service.web.telemetry import Trace, Tracing

# In the WSGI environment: what was asked for, without a melody; the client's name where it has a key; how many seconds each part
# of a request took, one after another, and then "total"
ASKED, CLIENT, PARTS = "nocturne.asked", "nocturne.client", "nocturne.parts"
_ID, _TRACE, _STARTED = "nocturne.request_id", "nocturne.trace", "nocturne.started"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("nocturne.access")


def trace_requests(app: Flask, log: bool, tracing: Tracing) -> None:
    """Give every request of an application an id and a trace, and a line in the log if one is wanted."""
    if log and not _log.handlers:
        _log.addHandler(logging.StreamHandler(sys.stderr))
        _log.setLevel(logging.INFO)
        _log.propagate = False
    for_probes = Tracing()

    @app.before_request
    def begin() -> None:
        environ = request.environ
        environ[_STARTED] = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        environ[_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        begins = for_probes if request.path in ADMIN_PATHS else tracing
        environ[_TRACE] = begins.begin(request.headers.get("traceparent", ""))

    @app.after_request
    def end(response: Response) -> Response:
        trace: Trace = request.environ[_TRACE]
        response.headers["X-Request-Id"] = request.environ[_ID]
        response.headers["traceparent"] = trace.traceparent
        parts_ms = {name: 1000 * seconds for name, seconds in request.environ.get(PARTS, {}).items()}
        if parts_ms:
            response.headers["Server-Timing"] = ", ".join(f"{name};dur={value:.1f}" for name, value in parts_ms.items())
        logged = log and not (request.path in ADMIN_PATHS and response.status_code == 200)
        if logged or trace.exported:
            line = _line(response, trace.id, parts_ms)
            parts_ms.pop("total", None)
            trace.end(request.endpoint or "none", _attributes(line), parts_ms)
            if logged:
                _log.info(orjson.dumps(line).decode())
        return response


def log_refusal(sock: socket.socket, status: int) -> None:
    """Log a request that was refused before the application saw it; nothing of it is believed."""
    try:
        client = sock.getpeername()[0]
    except OSError:  # it has gone
        client = None
    _log.info(orjson.dumps({"time": timestamp(time.time()), "client": client, "status": status}).decode())


def _line(response: Response, trace: str, parts_ms: dict[str, float]) -> dict[str, Any]:
    environ, headers = request.environ, response.headers
    line: dict[str, Any] = {
        "time": timestamp(time.time()),
        "id": environ[_ID],
        "trace": trace,
        "client": request.remote_addr,
        "key": environ.get(CLIENT),
        "method": request.method,
        "path": request.path,
        "status": response.status_code,
        "bytes": response.calculate_content_length(),
        "ms": round(1000 * (time.perf_counter() - environ[_STARTED]), 1),
        "asked": environ.get(ASKED),
        "seed": headers.get("Nocturne-Seed", type=int),
        "notes": headers.get("Nocturne-Notes", type=int),
        "model": headers.get("Nocturne-Model"),
    }
    line |= {f"{name}_ms": round(value, 1) for name, value in parts_ms.items()}
    return {name: value for name, value in line.items() if value is not None}


def _attributes(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a span tells (https://opentelemetry.io/docs/specs/semconv/http/http-spans/), and what only we know."""
    return {
        "http.request.method": line["method"],
        "url.path": line["path"],
        "http.response.status_code": line["status"],
        "client.address": line.get("client"),
        "nocturne.request_id": line["id"],
        "nocturne.seed": line.get("seed"),
        "nocturne.notes": line.get("notes"),
        "nocturne.model": line.get("model"),
    }
