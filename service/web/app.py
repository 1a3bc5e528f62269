"""The HTTP side of the service: `create_app`, and a handler for each operation of openapi.yaml.

Stateless: nothing outlives a request but the engine.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from service.config import ServiceConfig
from service.engine.devices import runs_on_gpu
from service.engine.interface import ModelInfo
from service.engine.process import Engine, start_engine
from service.errors import EngineFailed, GenerationTimeout
from service.web.access import ASKED, CLIENT, PARTS, trace_requests
from service.web.admin import ON_ADMIN_PORT
from service.web.answers import VARY, cache_for, entity_tag, negotiate, not_modified, respond
from service.web.body import read_json, read_midi_file
from service.web.compose import assemble, make_sequence
from service.web.contract import Contract, parse_query
from service.web.docs import DocsPage
from service.web.hardening import harden
from service.web.metrics import Metrics
from service.web.player import Player
from service.web.preferences import APPLIED, PREFER, wait_preference
from service.web.quotas import Quotas, cost_of
from service.web.refusals import handle_errors
from service.web.requests import GenerateRequest
from service.web.telemetry import Tracing
from service.web.upload import Upload, read_upload
from service.web.waiting import ClientWatcher, wait_for

# What /models tells of a model's metadata, beside what can be asked of it.
_MODEL_KEYS = (
    "precision", "licence", "attribution", "nats_per_note", "commit", "representation_version", "resolution", "defaults",
    "training",
)  # fmt: skip


def create_app(config: ServiceConfig, engine: Engine | None = None, tracing: Tracing | None = None) -> Flask:
    """Make the WSGI application.

    Parameters
    ----------
    config : ServiceConfig
    engine : Engine, optional
        What composes; started by `config` if left out. It is found again as `app.extensions["engine"]`, and whoever runs the
        application closes it; before, it sets the event `app.extensions["draining"]`, and /readyz says so.
    tracing : Tracing, optional
        Where traces of requests go; nowhere if left out. Whoever runs the application closes `app.extensions["tracing"]`, too.

    Raises
    ------
    InvalidSetting, ModelMismatch
        If there is no model, or it cannot be run.
    ContractMismatch
        If openapi.yaml and the handlers do not fit together.
    """
    quotas = Quotas(config)
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
    app.extensions["metrics"] = metrics = Metrics(engine)
    handlers = _handlers(config, contract, engine, draining, metrics, quotas)
    contract.check_handlers(handlers)
    for name, operation in contract.operations.items():
        app.add_url_rule(operation.path, name, handlers[name], methods=[operation.method])
    handle_errors(app, metrics, draining)
    harden(app, config)

    @app.after_request
    def count(response: Response) -> Response:
        metrics.count(request.endpoint or "none", response.status_code)
        return response

    app.extensions["tracing"] = tracing = tracing or Tracing()
    trace_requests(app, config.access_log == "json", tracing)
    return app


def _handlers(
    config: ServiceConfig,
    contract: Contract,
    engine: Engine,
    draining: threading.Event,
    metrics: Metrics,
    quotas: Quotas,
) -> dict[str, Callable[[], Response]]:
    """Return a handler for each operation, by operationId."""
    players = Player.by_name(engine.models)
    hashes, version = {model.name: model.sha256 for model in engine.models}, contract.document["info"]["version"]
    docs, watcher = DocsPage(contract.document), ClientWatcher(engine.cancel)

    def compose(operation: str, read_fields: Callable[[], tuple[Any, Upload | None]]) -> Response:
        started = time.monotonic()
        client = quotas.identify(request.headers.get("Authorization"), request.remote_addr)
        if quotas.need_keys:
            request.environ[CLIENT] = client.name
        media_type = negotiate(request)
        given, upload = read_fields()
        fields = contract.check(operation, given)
        request.environ[ASKED] = {name: value for name, value in fields.items() if not isinstance(value, list)}
        asked = GenerateRequest.from_fields(fields, players, upload)
        kept = asked.repeatable and request.method != "POST"
        tag = entity_tag(fields, media_type, hashes[asked.model], version) if kept else None
        caching = cache_for(kept, "model" in fields, quotas.need_keys)
        if tag is not None and not_modified(request, tag):
            return Response(status=304, headers={"ETag": tag, "Cache-Control": caching, "Vary": VARY})
        cost = cost_of(asked)
        quotas.check(client, cost)
        wait_s = wait_preference(request.headers.get(PREFER), config.deadline_s)
        deadline = started + (wait_s or config.deadline_s)
        future = engine.submit(make_sequence(asked), deadline)
        quotas.charge(client, cost)  # only now: what the queue refuses costs nothing
        read = time.monotonic()
        try:
            composition = wait_for(engine, future, deadline, request.environ.get("gunicorn.socket"), watcher)
        except GenerationTimeout:
            detail = (
                f"the piece was not complete within {wait_s or config.deadline_s} seconds; ask for fewer notes or try again later"
            )
            raise GenerationTimeout(detail) from None
        composed = time.monotonic()
        response = respond(assemble(asked, composition, players[asked.model]), media_type)
        response.headers["Cache-Control"] = caching
        if tag is not None:
            response.headers["ETag"] = tag
        if wait_s is not None:
            response.headers[APPLIED] = f"wait={wait_s}"
        parts = {"read": read - started, "queue": composition.queue_s, "compose": composition.compose_s}
        now = time.monotonic()
        request.environ[PARTS] = parts | {"write": now - composed, "total": now - started}
        metrics.time(composition, now - started)
        return response

    def read_query() -> dict[str, Any]:
        return parse_query(request.args.items(multi=True))

    def read_body() -> tuple[Any, Upload | None]:
        """Read the fields from JSON; beside a MIDI file they stand in the query."""
        file = read_midi_file(request, config.max_body_bytes)
        if file is None:
            return read_json(request, config.max_body_bytes), None
        return read_query(), read_upload(file)

    def generate() -> Response:
        return compose("generate", read_body)

    def generate_by_query() -> Response:
        return compose("generateByQuery", lambda: (read_query(), None))

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

    def tell_metrics() -> Response:
        if config.admin_port and ON_ADMIN_PORT not in request.environ:
            raise NotFound("the metrics are on the admin port")
        return metrics.response()

    return {
        "generate": generate,
        "generateByQuery": generate_by_query,
        "listModels": list_models,
        "live": live,
        "ready": ready,
        "metrics": tell_metrics,
        "contract": lambda: Response(contract.text, content_type="application/yaml"),
        "docs": docs.response,
    }


def _describe(model: ModelInfo, player: Player) -> dict[str, Any]:
    """Return what /models tells of a model."""
    told = {key: model.metadata[key] for key in _MODEL_KEYS if model.metadata.get(key) is not None}
    return {"name": model.name, "provider": model.provider, "sha256": model.sha256, **told, **player.abilities()}


def _json(body: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), content_type="application/json")
