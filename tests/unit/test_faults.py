"""The arithmetic of bench.faults: what was lost, how long it took, and which bounds are kept."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bench.faults import MAX_PROBE_MS, MAX_RECOVERY_S, Overload, Recoveries, judge, latencies, probe, repeating
from bench.load import Sample
from bench.soak import Change
from service.config import ServiceConfig

RIGHT = Sample(1.0, 1.0, 3.0, 50, True)
REFUSED = Sample(1.0, 1.0, 1.5, 50, False, True)
LOST = Sample(1.0, 1.0, 9.0, 50, False)
CALM = Overload(280, 3, 2, 1, 0, 70, [2000.0, 3000.0], [5.0], [3.0, 9.0], 2, 0, Change(230, 231))


def test_a_latency_runs_from_when_the_request_was_due():
    assert latencies([RIGHT, REFUSED]) == [2000, 500]
    assert latencies([]) == []


def test_a_round_adds_what_was_lost_and_the_slowest_answer():
    recoveries = Recoveries()
    recoveries.add(0.5, [RIGHT, RIGHT._replace(done=4.0), LOST])
    recoveries.add(0.7, [LOST])
    recoveries.add(0.9)
    assert recoveries == Recoveries(False, [0.5, 0.7, 0.9], 2, 4, [3000.0])


@pytest.mark.parametrize(
    ("overload", "deaths", "broken"),
    [
        ({}, {}, []),
        ({"answered_ms": [1000.0 * ServiceConfig().deadline_s]}, {}, ["p99 of the accepted, ms"]),
        ({"lost": 1}, {}, ["neither answered nor refused"]),
        ({"wrong_bytes": 1}, {}, ["other bytes"]),
        ({"probe_ms": [1.0, MAX_PROBE_MS + 1]}, {}, ["slowest /livez, ms"]),
        ({"probe_ms": [float("inf")]}, {}, ["slowest /livez, ms"]),
        ({"rss_mib": Change(100, 102)}, {}, ["RSS drift, %"]),
        ({}, {"seconds": [1.0, MAX_RECOVERY_S + 1]}, ["longest recovery, s"]),
        ({}, {"lost": 1}, ["lost where none may be"]),
        ({}, {"lost": 1, "may_lose": True}, []),
    ],
)
def test_every_bound_can_break(overload, deaths, broken):
    verdicts = judge(
        CALM._replace(**overload), {"one": Recoveries(seconds=[1.0]), "two": Recoveries(**{"seconds": [2.0], **deaths})}
    )
    assert [verdict.what for verdict in verdicts if not verdict.kept] == broken


def test_something_is_repeated_until_the_block_ends_and_its_error_is_not_lost():
    twice = threading.Event()
    seen = []
    with repeating(lambda: (seen.append(1), len(seen) > 1 and twice.set())):
        assert twice.wait(60)
    after = len(seen)
    assert after >= 2
    with pytest.raises(ZeroDivisionError), repeating(lambda: 1 / 0):
        pass
    assert len(seen) == after


@contextmanager
def answering(status: int):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "alive"}).encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "alive"), [(200, True), (503, False)])
def test_a_probe_that_is_not_answered_200_took_for_ever(status, alive):
    with answering(status) as port:
        times = probe(port, 0.2)
    assert times
    assert all((time < float("inf")) == alive for time in times)


def test_a_probe_of_nobody_took_for_ever():
    with answering(200) as port:
        pass
    assert set(probe(port, 0.01)) == {float("inf")}
