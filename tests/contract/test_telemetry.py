"""Traces that go to a collector of OpenTelemetry, over a real socket, as a collector reads them."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.config import InvalidSetting, ServiceConfig
from service.web.app import create_app
from service.web.telemetry import ExportedTracing, Tracing, start_tracing
from tests.contract.conftest import FakeEngine

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector(monkeypatch):
    """A collector; what it was sent, one message after another."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append(ExportTraceServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield sent
        server.shutdown()
        thread.join(10)


def spans_of(sent):
    resources = [part for message in sent for part in message.resource_spans]
    names = {a.value.string_value for part in resources for a in part.resource.attributes if a.key == "service.name"}
    return names, [span for part in resources for scope in part.scope_spans for span in scope.spans]


def test_a_request_is_a_span_of_its_clients_trace_with_its_parts_below(collector):
    tracing = start_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "set"})
    client = create_app(ServiceConfig(), FakeEngine(), tracing).test_client()
    told = client.get("/generate?seed=7&length=9", headers={"traceparent": PARENT}).headers["traceparent"]
    client.get("/livez")
    client.get("/generate?length=0")
    tracing.close()
    names, spans = spans_of(collector)
    assert names == {"nocturne"}
    first, second = (span for span in spans if span.name == "generateByQuery")
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert told == f"00-{first.trace_id.hex()}-{first.span_id.hex()}-01"
    values = {a.key: a.value.int_value or a.value.string_value for a in first.attributes}
    expected = {"http.request.method": "GET", "http.response.status_code": 200, "url.path": "/generate"}
    assert expected | {"nocturne.seed": 7, "nocturne.notes": 9, "nocturne.model": "fake"} == {
        name: values[name] for name in values if name not in ("client.address", "nocturne.request_id")
    }
    parts = [span for span in spans if span.parent_span_id == first.span_id]
    assert [span.name for span in parts] == ["read", "queue", "compose", "write"]
    for before, after in pairwise(parts):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert parts[-1].end_time_unix_nano <= first.end_time_unix_nano
    assert second.trace_id != first.trace_id
    assert len(spans) == 6, "a probe has no span, and a refusal no parts"


def test_a_fault_is_an_error_of_its_span(collector):
    tracing, engine = start_tracing({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "set"}), FakeEngine()
    engine.failure = RuntimeError("broken")
    assert create_app(ServiceConfig(), engine, tracing).test_client().get("/generate").status_code == 500
    tracing.close()
    (span,) = spans_of(collector)[1]
    assert span.status.code == span.status.STATUS_CODE_ERROR


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_exported_unless_it_is_asked_for(variables):
    assert type(start_tracing(variables)) is Tracing


def test_what_cannot_be_exported_fails_the_start_with_a_sentence(monkeypatch):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(InvalidSetting, match="`OTEL_EXPORTER_OTLP_PROTOCOL` must be http/protobuf; got grpc"):
        start_tracing(variables)

    def missing(self):
        raise ImportError("no module named opentelemetry")

    monkeypatch.setattr(ExportedTracing, "__init__", missing)
    with pytest.raises(InvalidSetting, match=r"`OTEL_EXPORTER_OTLP_ENDPOINT` needs OpenTelemetry's packages: pip install"):
        start_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"})
