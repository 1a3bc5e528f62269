"""The HTTP side of the service: `create_app`, and a handler for each operation of openapi.yaml.

Stateless: nothing outlives a request but the engine.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from service.config import ServiceConfig
from service.engine.devices import runs_on_gpu
from service.engine.interface import ModelInfo
from service.engine.process import Engine, start_engine
from service.errors import EngineFailed
from service.web.access import trace_requests
from service.web.admin import ON_ADMIN_PORT
from service.web.contract import Contract
from service.web.docs import DocsPage
from service.web.generation import Generation
from service.web.hardening import harden
from service.web.metrics import Metrics
from service.web.player import Player
from service.web.quotas import Quotas
from service.web.refusals import handle_errors
from service.web.telemetry import Tracing

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
    generation = Generation(config, contract, engine, players, metrics, quotas)
    docs = DocsPage(contract.document)

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
        "generate": generation.by_body,
        "generateByQuery": generation.by_query,
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
