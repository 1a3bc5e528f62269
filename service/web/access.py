"""Who asked for what, and how long it took: one line of JSON a request, an id for each, and the trace that it belongs to.

The ids of a client are taken over where they have the form that such ids have, so that nothing else gets into a log or a header.
Probes that succeed are not worth a line.
"""

import logging
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Flask, Response, request

from service.web.admin import ADMIN_PATHS

ASKED = "nocturne.asked"  # in the WSGI environment: what was asked for, without a melody
_ID, _TRACE, _STARTED = "nocturne.request_id", "nocturne.traceparent", "nocturne.started"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# https://www.w3.org/TR/trace-context/: version, trace, span and flags; ids of zeros are none
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")
_log = logging.getLogger("nocturne.access")


def server_timing(milliseconds: dict[str, float]) -> str:
    """Return the header Server-Timing for parts of a request."""
    return ", ".join(f"{name};dur={value:.1f}" for name, value in milliseconds.items())


def trace_requests(app: Flask, log: bool) -> None:
    """Give every request of an application an id and a trace, and a line in the log if one is wanted."""
    if log and not _log.handlers:
        _log.addHandler(logging.StreamHandler(sys.stderr))
        _log.setLevel(logging.INFO)
        _log.propagate = False

    @app.before_request
    def begin() -> None:
        environ = request.environ
        environ[_STARTED] = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        environ[_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        found = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
        trace, flags = found.groups() if found else (secrets.token_hex(16), "00")
        environ[_TRACE] = f"00-{trace}-{secrets.token_hex(8)}-{flags}"

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = request.environ[_ID]
        response.headers["traceparent"] = request.environ[_TRACE]
        if log and not (request.path in ADMIN_PATHS and response.status_code == 200):
            _log.info(orjson.dumps(_line(response)).decode())
        return response


def _line(response: Response) -> dict[str, Any]:
    environ, headers = request.environ, response.headers
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": environ[_ID],
        "trace": environ[_TRACE].split("-")[1],
        "client": request.remote_addr,
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
    line |= {f"{name}_ms": float(value) for name, value in _TIMING.findall(headers.get("Server-Timing", ""))}
    return {name: value for name, value in line.items() if value is not None}
