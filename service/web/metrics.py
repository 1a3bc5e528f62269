"""What the service is doing and has done, in the Prometheus text format."""

from collections.abc import Iterator

from flask import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from service.engine.process import Engine
from service.engine.sampling import Composition

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # a few notes alone, to the default deadline


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
    """The page that Prometheus reads, and the figures of requests that stand in it beside the engine's."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        registry.register(EngineCollector(engine))
        self._requests = Counter("nocturne_requests", "Requests answered", ["operation", "status"], registry=registry)
        self._queue = Histogram(
            "nocturne_queue_seconds", "What pieces that were composed waited for a slot", buckets=_SECONDS, registry=registry
        )
        self._compose = Histogram(
            "nocturne_compose_seconds", "What pieces had a slot for, until their last note", buckets=_SECONDS, registry=registry
        )
        self._total = Histogram(
            "nocturne_answer_seconds",
            "From a request to its answer, of pieces that were composed",
            buckets=_SECONDS,
            registry=registry,
        )

    def count(self, operation: str, status: int) -> None:
        """Count an answer; `operation` is the operationId, "none" where no operation was meant."""
        self._requests.labels(operation, status).inc()

    def time(self, composition: Composition, total_s: float) -> None:
        """Record how long a piece took."""
        self._queue.observe(composition.queue_s)
        self._compose.observe(composition.compose_s)
        self._total.observe(total_s)

    def response(self) -> Response:
        """Return the page as it is now."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
