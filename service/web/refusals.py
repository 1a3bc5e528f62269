"""Every error as an answer: the one table from error to HTTP status, and the causes that metrics name."""

import logging
import threading
from collections.abc import Mapping, Sequence

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from service.errors import (
    EngineFailed,
    EngineOverloaded,
    GenerationTimeout,
    InvalidMusic,
    InvalidRequest,
    NocturneError,
    QuotaExceeded,
    UnknownClient,
    Violation,
    WaitOver,
)
from service.web.admin import ADMIN_PATHS
from service.web.metrics import Metrics
from service.web.problems import CLIENT_LEFT, problem
from service.web.waiting import ClientLeft

# The one table from error to HTTP status. What is not here is a fault of the service: 500.
STATUS: Mapping[type[NocturneError], int] = {
    InvalidRequest: 422,
    InvalidMusic: 422,
    UnknownClient: 401,
    QuotaExceeded: 429,
    EngineOverloaded: 503,
    EngineFailed: 503,
    GenerationTimeout: 504,
    WaitOver: 504,
}
# Why a request is refused, as the metric of rejections names it.
CAUSE: Mapping[type[NocturneError] | int, str] = {
    InvalidRequest: "invalid",
    InvalidMusic: "invalid",
    UnknownClient: "unauthorized",
    QuotaExceeded: "rate limit",
    EngineOverloaded: "queue full",
    EngineFailed: "engine failed",
    GenerationTimeout: "deadline",
    WaitOver: "wait",
    400: "malformed",
    404: "not found",
    405: "not allowed",
    406: "not acceptable",
    413: "too large",
    415: "media type",
}
RETRY_AFTER_S = 1  # after a 503: a slot becomes free, or the engine has started again, within about a second

_log = logging.getLogger(__name__)


def handle_errors(app: Flask, metrics: Metrics, draining: threading.Event) -> None:
    """Let every error of an application end in a problem, and count it.

    Parameters
    ----------
    app : Flask
    metrics : Metrics
    draining : Event
        Set while the service is stopping.
    """

    def reject(cause: str) -> None:
        if request.path not in ADMIN_PATHS:  # a probe that is told the truth was not refused
            metrics.reject(cause)

    @app.errorhandler(NocturneError)
    def refuse(error: NocturneError) -> Response:
        status, cause = STATUS.get(type(error), 500), CAUSE.get(type(error), "fault")
        reject("stopping" if cause == "engine failed" and draining.is_set() else cause)
        headers = {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        if isinstance(error, QuotaExceeded):
            headers["Retry-After"] = str(error.retry_after_s)
            # https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
            headers["RateLimit-Policy"] = f'"notes";q={error.limit};w=60'
            headers["RateLimit"] = f'"notes";r={error.left};t={error.retry_after_s}'
        if status >= 500:
            _log.warning("%s: %s", type(error).__name__, error)
        violations: Sequence[Violation] = ()
        if isinstance(error, InvalidRequest):
            violations = error.violations
        elif isinstance(error, InvalidMusic):  # of a file, which is the whole body
            violations = (Violation("", str(error)),)
        return problem(status, str(error), violations, headers)

    @app.errorhandler(HTTPException)
    def refuse_http(error: HTTPException) -> Response:
        reject(CAUSE.get(error.code or 500, "http"))
        headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
        detail = error.description or error.name
        violations = (Violation("", detail),) if error.code == 400 else ()
        return problem(error.code or 500, detail, violations, headers)

    @app.errorhandler(ClientLeft)
    def give_up(_: ClientLeft) -> Response:
        reject("client left")
        return problem(CLIENT_LEFT, "the client closed the connection")

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        reject("fault")
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return problem(500, "the service failed; this is a fault of the service, not of the request")
