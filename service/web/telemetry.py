"""The trace of a request: W3C trace context in and out, and spans for OpenTelemetry where its standard variables ask for them."""

import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from service.config import InvalidSetting

# https://www.w3.org/TR/trace-context/: version, trace, span and flags; ids of zeros are none
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_NAME = "nocturne"  # of the service and of the instrumentation


class Trace:
    """The trace that a request belongs to.

    Attributes
    ----------
    traceparent : str
        What is told to the client: its own trace, with a span of ours; a new one if it has none.
    exported : bool
        Whether `end` does anything.
    """

    exported = False

    def __init__(self, given: str) -> None:
        found = _TRACEPARENT.fullmatch(given)
        trace, flags = found.groups() if found else (secrets.token_hex(16), "00")
        self.traceparent = f"00-{trace}-{secrets.token_hex(8)}-{flags}"

    @property
    def id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return self.traceparent.split("-")[1]

    def end(self, operation: str, attributes: Mapping[str, Any], parts_ms: Mapping[str, float]) -> None:
        """Say how the request ended.

        Parameters
        ----------
        operation : str
            Its operationId.
        attributes : mapping
            By the names of OpenTelemetry's semantic conventions; None is left out.
        parts_ms : mapping of str to float
            How long its parts took, one after another; the last ended now.
        """


class Tracing:
    """Begins traces, and exports nothing."""

    def begin(self, given: str) -> Trace:
        """Return the trace of a request that begins.

        Parameters
        ----------
        given : str
            Its header `traceparent`, or "".
        """
        return Trace(given)

    def close(self) -> None:
        """Send what has not been sent yet."""


class ExportedTracing(Tracing):
    """Begins traces whose spans go to a collector by OTLP over HTTP."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME)).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: _NAME}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer(_NAME)
        self.propagator = TraceContextTextMapPropagator()

    def begin(self, given: str) -> Trace:
        """Return the trace of a request that begins."""
        return _ExportedTrace(given, self)

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


class _ExportedTrace(Trace):
    exported = True

    def __init__(self, given: str, tracing: ExportedTracing) -> None:
        from opentelemetry import trace

        self._api, self._tracer = trace, tracing.tracer
        parent = tracing.propagator.extract({"traceparent": given})
        self._span = tracing.tracer.start_span("request", context=parent, kind=trace.SpanKind.SERVER)
        context = self._span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, operation: str, attributes: Mapping[str, Any], parts_ms: Mapping[str, float]) -> None:
        """End the request's span, and make one for each of its parts."""
        api, span, now = self._api, self._span, time.time_ns()
        span.update_name(operation)
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if attributes["http.response.status_code"] >= 500:
            span.set_status(api.Status(api.StatusCode.ERROR))
        start = now - int(sum(parts_ms.values()) * 1e6)
        for name, milliseconds in parts_ms.items():
            part = self._tracer.start_span(name, context=api.set_span_in_context(span), start_time=start)
            start += int(milliseconds * 1e6)
            part.end(end_time=start)
        span.end(end_time=now)


def start_tracing(environment: Mapping[str, str]) -> Tracing:
    """Return what traces requests: exported where an endpoint is set (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).

    Parameters
    ----------
    environment : mapping
        With OpenTelemetry's own variables; its packages read the rest of them themselves.

    Raises
    ------
    InvalidSetting
        If they ask for what is not there: the packages of the extra `otel`, or another protocol.
    """
    endpoint = next((name for name in _ENDPOINTS if environment.get(name)), None)
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    if endpoint is None or off:
        return Tracing()
    name = next((name for name in _PROTOCOLS if environment.get(name)), None)
    if name is not None and environment[name] != _PROTOCOL:
        raise InvalidSetting(f"`{name}` must be {_PROTOCOL}; got {environment[name]}")
    try:
        return ExportedTracing()
    except ImportError:
        raise InvalidSetting(f"`{endpoint}` needs OpenTelemetry's packages: pip install 'nocturne[otel]'") from None
