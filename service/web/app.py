"""The HTTP side of the service: `create_app`, a handler for each operation of openapi.yaml, and the table from error to status.

Stateless: nothing outlives a request but the engine.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from service.config import ServiceConfig
from service.engine.devices import runs_on_gpu
from service.engine.interface import ModelInfo
from service.engine.process import Engine, start_engine
from service.errors import (
    EngineFailed,
    EngineOverloaded,
    GenerationTimeout,
    InvalidMusic,
    InvalidRequest,
    NocturneError,
    Violation,
)
from service.web.access import ASKED, server_timing, trace_requests
from service.web.answers import negotiate, respond
from service.web.body import read_json
from service.web.compose import assemble, make_sequence
from service.web.contract import Contract, parse_query
from service.web.docs import DocsPage
from service.web.metrics import Metrics
from service.web.player import Player
from service.web.problems import CLIENT_LEFT, problem
from service.web.requests import GenerateRequest
from service.web.waiting import ClientLeft, ClientWatcher, wait_for

# The one table from error to HTTP status. What is not here is a fault of the service: 500.
STATUS: Mapping[type[NocturneError], int] = {
    InvalidRequest: 422,
    InvalidMusic: 422,
    EngineOverloaded: 503,
    EngineFailed: 503,
    GenerationTimeout: 504,
}
RETRY_AFTER_S = 1  # after a 503: a slot becomes free, or the engine has started again, within about a second

# What /models tells of a model's metadata, beside what can be asked of it.
_MODEL_KEYS = (
    "precision", "licence", "attribution", "nats_per_note", "commit", "representation_version", "resolution", "defaults",
    "training",
)  # fmt: skip

_log = logging.getLogger(__name__)


def create_app(config: ServiceConfig, engine: Engine | None = None) -> Flask:
    """Make the WSGI application.

    Parameters
    ----------
    config : ServiceConfig
    engine : Engine, optional
        What composes; started by `config` if left out. It is found again as `app.extensions["engine"]`, and whoever runs the
        application closes it; before, it sets the event `app.extensions["draining"]`, and /readyz says so.

    Raises
    ------
    InvalidSetting, ModelMismatch
        If there is no model, or it cannot be run.
    ContractMismatch
        If openapi.yaml and the handlers do not fit together.
    """
    if engine is None:
        on_gpu = runs_on_gpu(config.provider)
        engine = start_engine(
            *config.model_paths(on_gpu),
            cores=1 if on_gpu else config.cores,  # a GPU has one queue of work
            slots=config.slots,
            chunk=config.chunk,
            max_waiting=config.max_waiting,
            provider=config.provider,
        )
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # or //generate would be answered with a redirection in HTML
    app.extensions["engine"] = engine
    app.extensions["draining"] = draining = threading.Event()  # set by whoever runs the application when it is told to stop
    contract = Contract.load()
    metrics = Metrics(engine)
    handlers = _handlers(config, contract, engine, draining, metrics)
    contract.check_handlers(handlers)
    for name, operation in contract.operations.items():
        app.add_url_rule(operation.path, name, handlers[name], methods=[operation.method])
    _handle_errors(app, config)

    @app.after_request
    def count(response: Response) -> Response:
        metrics.count(request.endpoint or "none", response.status_code)
        return response

    trace_requests(app, log=config.access_log == "json")
    return app


def _handlers(
    config: ServiceConfig, contract: Contract, engine: Engine, draining: threading.Event, metrics: Metrics
) -> dict[str, Callable[[], Response]]:
    """Return a handler for each operation, by operationId."""
    players = Player.by_name(engine.models)
    docs, watcher = DocsPage(contract.document), ClientWatcher(engine.cancel)

    def compose(operation: str, read_fields: Callable[[], Any]) -> Response:
        started = time.perf_counter()
        media_type = negotiate(request)
        fields = contract.check(operation, read_fields())
        request.environ[ASKED] = {name: value for name, value in fields.items() if not isinstance(value, list)}
        asked = GenerateRequest.from_fields(fields, players)
        deadline = time.monotonic() + config.deadline_s
        future = engine.submit(make_sequence(asked), deadline)
        read = time.perf_counter()
        composition = wait_for(engine, future, deadline, request.environ.get("gunicorn.socket"), watcher)
        composed = time.perf_counter()
        response = respond(assemble(asked, composition, players[asked.model]), media_type, asked.repeatable)
        seconds = {"read": read - started, "queue": composition.queue_s, "compose": composition.compose_s}
        seconds |= {"write": time.perf_counter() - composed, "total": time.perf_counter() - started}
        metrics.time(composition, seconds["total"])
        response.headers["Server-Timing"] = server_timing({name: 1000 * value for name, value in seconds.items()})
        return response

    def generate() -> Response:
        return compose("generate", lambda: read_json(request, config.max_body_bytes))

    def generate_by_query() -> Response:
        return compose("generateByQuery", lambda: parse_query(request.args.items(multi=True)))

    def list_models() -> Response:
        return _json({"models": [_describe(model, players[model.name]) for model in engine.models]})

    def live() -> Response:
        if not engine.alive:
            raise EngineFailed("the engine cannot be started")
        return _json({"status": "alive"})

    def ready() -> Response:
        if draining.is_set():
            raise EngineFailed("the service is stopping")
        if not engine.ready:
            raise EngineFailed("the engine is starting")
        return _json({"status": "ready", "model": engine.info.name, "provider": engine.info.provider})

    return {
        "generate": generate,
        "generateByQuery": generate_by_query,
        "listModels": list_models,
        "live": live,
        "ready": ready,
        "metrics": metrics.response,
        "contract": lambda: Response(contract.text, content_type="application/yaml"),
        "docs": docs.response,
    }


def _handle_errors(app: Flask, config: ServiceConfig) -> None:
    @app.errorhandler(NocturneError)
    def refuse(error: NocturneError) -> Response:
        status = STATUS.get(type(error), 500)
        detail = str(error)
        violations: tuple[Violation, ...] = ()
        if isinstance(error, InvalidRequest):
            violations = error.violations
        elif isinstance(error, GenerationTimeout):
            detail = f"the piece was not complete within {config.deadline_s} seconds; ask for fewer notes or try again later"
        if status >= 500:
            _log.warning("%s: %s", type(error).__name__, error)
        return problem(status, detail, violations, {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None)

    @app.errorhandler(HTTPException)
    def refuse_http(error: HTTPException) -> Response:
        headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
        detail = error.description or error.name
        violations = (Violation("", detail),) if error.code == 400 else ()
        return problem(error.code or 500, detail, violations, headers)

    @app.errorhandler(ClientLeft)
    def give_up(_: ClientLeft) -> Response:
        return problem(CLIENT_LEFT, "the client closed the connection")

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return problem(500, "the service failed; this is a fault of the service, not of the request")

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _describe(model: ModelInfo, player: Player) -> dict[str, Any]:
    """Return what /models tells of a model."""
    told = {key: model.metadata[key] for key in _MODEL_KEYS if model.metadata.get(key) is not None}
    return {"name": model.name, "provider": model.provider, "sha256": model.sha256, **told, **player.abilities()}


def _json(body: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), content_type="application/json")
