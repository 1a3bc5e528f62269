"""What the engine is doing, in the Prometheus text format, read when it is asked for."""

from collections.abc import Iterator

from flask import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from service.engine.process import Engine


class EngineCollector(Collector):
    """The figures of an engine, as it said them last, a chunk ago at most."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield each figure with its help text."""
        engine, load = self._engine, self._engine.load
        yield GaugeMetricFamily(
            "nocturne_engine_ready", "1 if the engine takes requests, 0 while it is started again", engine.ready
        )
        yield GaugeMetricFamily("nocturne_slots_in_use", "Pieces that are being composed", load.running)
        yield GaugeMetricFamily("nocturne_queue_length", "Requests that wait for a slot", load.waiting)
        yield GaugeMetricFamily("nocturne_requests_pending", "Requests that the engine has not answered", engine.pending)
        yield CounterMetricFamily("nocturne_chunks", "Chunks composed since the engine was last started", load.chunks)
        yield CounterMetricFamily("nocturne_notes_composed", "Notes composed", load.notes)
        yield CounterMetricFamily(
            "nocturne_requests_cancelled", "Requests given up because the client left or its time was over", engine.cancelled
        )
        yield CounterMetricFamily("nocturne_engine_restarts", "Times that the engine died and was started again", engine.restarts)


class Metrics:
    """The page that Prometheus reads."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(EngineCollector(engine))

    def response(self) -> Response:
        """Return the page as it is now."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
