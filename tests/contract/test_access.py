"""Every request has an id, a trace and a line in the log, and nothing of a client's gets in that has not the form of one."""

import json
import logging
import re

import pytest

from service.config import ServiceConfig
from service.web.app import create_app
from tests.contract.conftest import FakeEngine

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(record.getMessage()))


@pytest.fixture
def lines():
    handler, log = Lines(), logging.getLogger("nocturne.access")
    log.addHandler(handler)
    yield handler.lines
    log.removeHandler(handler)


def test_a_request_has_a_line_with_what_it_asked_for_and_what_it_took(client, lines):
    response = client.post(
        "/generate", json={"seed": ["C4", "E4"], "random_seed": 7, "length": 9}, headers={"X-Request-Id": "a.B-1_2"}
    )
    (line,) = lines
    assert response.headers["X-Request-Id"] == line["id"] == "a.B-1_2"
    expected = {
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "seed": 7,
        "notes": 9,
        "model": "fake",
        "client": "127.0.0.1",
    }
    assert expected.items() <= line.items()
    assert line["bytes"] == len(response.data)
    assert line["asked"]["length"] == 9
    assert "seed" not in line["asked"], "a melody is the client's own"
    parts = re.findall(r"(\w+);dur=([0-9.]+)", response.headers["Server-Timing"])
    assert [name for name, _ in parts] == ["read", "queue", "compose", "write", "total"]
    assert {f"{name}_ms": float(value) for name, value in parts}.items() <= line.items()


def test_refusals_are_lines_too_and_probes_are_not(client, engine, lines):
    client.post("/generate", json={"length": 0})
    client.get("/nowhere")
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.get(path).headers["X-Request-Id"]
    engine.ready = False
    client.get("/readyz")
    assert [(line["path"], line["status"]) for line in lines] == [("/generate", 422), ("/nowhere", 404), ("/readyz", 503)]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", '"}{"', "a\tb"])
def test_an_id_of_another_form_is_not_taken(client, lines, given):
    response = client.get("/models", headers={"X-Request-Id": given.encode("latin1")})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])
    assert lines[0]["id"] == response.headers["X-Request-Id"] != given


def test_a_trace_goes_on_with_a_span_of_our_own(client, lines):
    response = client.get("/models", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    version, trace, span, flags = response.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert re.fullmatch(r"[0-9a-f]{16}", span)
    assert span != SPAN
    assert lines[0]["trace"] == TRACE


@pytest.mark.parametrize(
    "given", ["", "00", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"01-{TRACE.upper()}-{SPAN}-01"]
)
def test_a_broken_trace_is_begun_anew(client, given):
    response = client.get("/models", headers={"traceparent": given})
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", response.headers["traceparent"])
    assert TRACE not in response.headers["traceparent"]


def test_a_log_that_is_off_says_nothing(lines):
    client = create_app(ServiceConfig(access_log="off"), FakeEngine()).test_client()
    assert client.get("/models").headers["X-Request-Id"]
    assert not lines
