"""What the service is doing and has done, in the Prometheus text format."""

from collections.abc import Callable, Iterator

from flask import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from service.engine.process import Engine
from service.engine.sampling import Composition

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, of which nobody asks
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # a few notes alone, to the default deadline

# Why a request is refused; the names of the metric's label.
CAUSES = (
    "malformed", "unauthorized", "not found", "not allowed", "not acceptable", "too slow", "too large", "media type", "invalid",
    "rate limit", "queue full", "stopping", "engine failed", "deadline", "wait", "client left", "fault", "http",
)  # fmt: skip


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
        yield GaugeMetricFamily("nocturne_slots", "Pieces of one model that can be composed at the same time", engine.slots)
        yield GaugeMetricFamily("nocturne_slots_in_use", "Pieces that are being composed", load.running)
        yield GaugeMetricFamily("nocturne_queue_limit", "Requests that can wait for a slot; more are refused", engine.max_waiting)
        yield GaugeMetricFamily("nocturne_queue_length", "Requests that wait for a slot", load.waiting)
        yield GaugeMetricFamily("nocturne_requests_pending", "Requests that the engine has not answered", engine.pending)
        yield CounterMetricFamily("nocturne_notes_composed", "Notes composed", load.notes)
        yield CounterMetricFamily("nocturne_chunks", "Chunks composed: runs of the model, for all pieces of a batch", load.chunks)
        yield SummaryMetricFamily("nocturne_batch_rows", "Pieces in each chunk's batch", load.chunks, load.rows)
        yield SummaryMetricFamily(
            "nocturne_step_seconds", "A step of the model, a token for each piece", load.steps, load.seconds
        )
        yield CounterMetricFamily(
            "nocturne_requests_cancelled", "Requests given up because the client left or its time was over", engine.cancelled
        )
        yield CounterMetricFamily("nocturne_engine_restarts", "Times that the engine died and was started again", engine.restarts)


class _ReloadCollector(Collector):
    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        refused = self._metrics.reloads_refused()
        yield CounterMetricFamily(
            "nocturne_reloads_refused", "SIGHUPs that changed nothing: the files could not be used", refused
        )


class Metrics:
    """The page that Prometheus reads: the engine's figures, those of requests, and what this process uses.

    Attributes
    ----------
    reloads_refused : callable
        Returns how often SIGHUP has changed nothing; whoever runs the application knows.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        registry.register(EngineCollector(engine))
        ProcessCollector(registry=registry)
        self.reloads_refused: Callable[[], int] = lambda: 0
        registry.register(_ReloadCollector(self))
        self._requests = Counter("nocturne_requests", "Requests answered", ["operation", "status"], registry=registry)
        self._rejections = Counter("nocturne_rejections", "Requests refused, by cause", ["cause"], registry=registry)
        # There with 0, so that a first one is seen as one more.
        for cause in CAUSES:
            self._rejections.labels(cause)
        for operation in ("generate", "generateByQuery"):
            for status in (200, 500, 503, 504):
                self._requests.labels(operation, status)

        def histogram(name: str, help: str) -> Histogram:
            return Histogram(name, help, buckets=_SECONDS, registry=registry)

        self._queue = histogram("nocturne_queue_seconds", "What pieces that were composed waited for a slot")
        self._first = histogram("nocturne_first_note_seconds", "From the engine's taking a request to its first note")
        self._compose = histogram("nocturne_compose_seconds", "What pieces had a slot for, until their last note")
        self._total = histogram("nocturne_answer_seconds", "From a request to its answer, of pieces that were composed")

    def count(self, operation: str, status: int) -> None:
        """Count an answer; `operation` is the operationId, "none" where no operation was meant."""
        self._requests.labels(operation, status).inc()

    def reject(self, cause: str) -> None:
        """Count a request that was refused, by one of CAUSES."""
        self._rejections.labels(cause).inc()

    def time(self, composition: Composition, total_s: float) -> None:
        """Record how long a piece took."""
        self._queue.observe(composition.queue_s)
        self._first.observe(composition.first_s)
        self._compose.observe(composition.compose_s)
        self._total.observe(total_s)

    def response(self) -> Response:
        """Return the page as it is now."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
