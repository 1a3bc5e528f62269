"""Errors as application/problem+json (RFC 9457). Every error body of the service has this one shape."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response

from service.errors import Violation

MEDIA_TYPE = "application/problem+json"
CLIENT_LEFT = 499  # nobody reads it; nginx's number, for whoever counts statuses


def problem(status: int, detail: str, violations: Sequence[Violation] = (), headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a response.

    Parameters
    ----------
    status : int
        HTTP status, 400 or above.
    detail : str
        What went wrong in one sentence.
    violations : sequence of Violation
        The fields at fault.
    headers : mapping, optional
        More headers, such as Retry-After.
    """
    body = orjson.dumps(_members(status, detail, violations))
    return Response(body, status, headers={"Cache-Control": "no-store", **(headers or {})}, content_type=MEDIA_TYPE)


def problem_bytes(status: int, reason: str, detail: str) -> bytes:
    """Return an error as the bytes of a whole HTTP/1.1 response, for requests so broken that no application sees them."""
    body = orjson.dumps(_members(status, detail or reason, ()))
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
    ]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin1", "replace") + body


def _members(status: int, detail: str, violations: Sequence[Violation]) -> dict[str, Any]:
    title = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Client Closed Request"
    errors = [violation._asdict() for violation in violations]
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": errors}
