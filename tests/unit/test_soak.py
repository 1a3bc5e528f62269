"""The arithmetic of the soak: what has drifted, what has grown, and which bounds are kept."""

import math
import os
import socket
import time
from array import array

import pytest

from bench.load import SHORTEST
from bench.processes import Usage, busy_s, read_usage
from bench.soak import (
    RESTARTS,
    TOGETHER,
    Change,
    Held,
    Reading,
    Window,
    by_tenth,
    change,
    changes,
    count_restarts,
    draw_window,
    judge,
    latencies,
    processes,
)

STEADY = {"rss_mib": Change(100, 100), "pss_mib": Change(90, 90), "threads": Change(80, 80), "descriptors": Change(13, 13)}


def readings(rss_mib) -> list[Reading]:
    """Readings at every hundredth of the time, of a worker whose memory follows from it; the master and the engine stay."""
    usages = [
        (Usage(1, 0, 10, 5, 0, 1, 5), Usage(2, 1, rss_mib(at / 100), 50, 0, 80, 20, 7), Usage(3, 2, 90, 80, 0, 4, 4))
        for at in range(100)
    ]
    return [Reading(at / 100, processes(three), (2, 3), {RESTARTS: 1.0}) for at, three in enumerate(usages)]


def test_a_change_is_from_the_fifth_after_the_warm_up_to_the_last_fifth() -> None:
    figures = [(at / 100, float(at)) for at in range(110)]  # 10 to 29, and 80 to 99; what comes after the end does not count
    assert change(figures) == Change(19.5, 89.5)
    assert change([(0.05, 1000.0), (0.2, 50.0), (0.5, 1000.0), (0.9, 51.0)]) == Change(50, 51)


def test_drift_is_the_growth_in_per_cent_of_what_was_there_before() -> None:
    assert Change(50, 51).growth == 1
    assert Change(50, 51).drift == pytest.approx(2)
    assert Change(50, 49).drift == pytest.approx(-2)
    assert (Change(0, 0).drift, Change(0, 1).drift) == (0, math.inf)


def test_a_figure_that_was_not_seen_in_time_is_no_number() -> None:
    assert math.isnan(change([(0.2, 1.0)]).late)
    assert math.isnan(change([(0.2, 1.0)]).drift)


def test_processes_are_named_by_depth_and_added_up_without_open_connections() -> None:
    usages = [
        Usage(1, 0, 10, 5, 0, 1, 5),
        Usage(2, 1, 80, 60, 0, 80, 20, 7),
        Usage(3, 2, 90, 80, 0, 4, 4),
        Usage(4, 2, 1, 1, 0, 1, 3),
    ]
    assert processes(usages) == {
        "master": Held(10, 5, 1, 5),
        "worker": Held(80, 60, 80, 13),
        "engine": Held(91, 81, 5, 7),
        TOGETHER: Held(181, 146, 86, 25),
    }


def test_each_figure_of_each_process_is_compared() -> None:
    changed = changes(readings(lambda at: 100 + 10 * at))
    assert changed["worker"]["rss_mib"] == Change(pytest.approx(101.95), pytest.approx(108.95))
    assert changed[TOGETHER]["rss_mib"].growth == pytest.approx(7)
    assert changed["worker"]["descriptors"] == Change(13, 13)
    assert changed["engine"] == {
        "rss_mib": Change(90, 90), "pss_mib": Change(80, 80), "threads": Change(4, 4), "descriptors": Change(4, 4)
    }  # fmt: skip


def test_memory_is_told_tenth_by_tenth() -> None:
    assert by_tenth(readings(lambda at: 100 * at)) == pytest.approx([104.5 + 10 * tenth for tenth in range(10)])
    assert math.isnan(by_tenth(readings(lambda at: 1.0)[:90])[9])


def test_all_bounds_are_kept_by_what_stays_as_it_is() -> None:
    verdicts = judge(changes(readings(lambda at: 100.0)), 0, 0)
    assert [verdict.value for verdict in verdicts] == [0, 0, 0, 0, 0]
    assert all(verdict.kept for verdict in verdicts)


@pytest.mark.parametrize(
    ("broken", "changed", "errors", "restarts"),
    [
        (None, {"rss_mib": Change(100, 101.9)}, 0, 0),
        (None, {"rss_mib": Change(100, 50), "threads": Change(80, 79)}, 0, 0),
        ("RSS drift, %", {"rss_mib": Change(100, 102)}, 0, 0),
        ("RSS drift, %", {"rss_mib": Change(100, math.nan)}, 0, 0),
        ("more threads", {"threads": Change(80, 81)}, 0, 0),
        ("more descriptors", {"descriptors": Change(13, 13.5)}, 0, 0),
        ("errors", {}, 1, 0),
        ("restarts", {}, 0, 1),
    ],
)
def test_one_process_is_enough_to_break_a_bound(broken, changed, errors, restarts) -> None:
    verdicts = judge({"master": STEADY, "worker": {**STEADY, **changed}, "engine": STEADY}, errors, restarts)
    assert [verdict.what for verdict in verdicts if not verdict.kept] == ([broken] if broken else [])


def test_restarts_are_those_that_the_service_tells_or_those_that_are_seen() -> None:
    def reading(pids, told):
        return Reading(0.5, {}, pids, {RESTARTS: told} if told is not None else {})

    assert count_restarts([]) == 0
    assert count_restarts([reading((2, 3), 1.0), reading((2, 3), 1.0)]) == 0
    assert count_restarts([reading((2, 3), 0.0), reading((2, 3), 2.0)]) == 2
    assert count_restarts([reading((2, 3), 0.0), reading((2,), None), reading((2, 4), 1.0)]) == 1
    assert count_restarts([reading((2, 3), 1.0), reading((4, 5), 0.0)]) == 2  # the worker, and its engine with it


def test_latencies_are_those_of_the_windows_that_began_in_a_span() -> None:
    windows = [Window(i / 10, 10, 0, 100, array("d", [100.0 * i] * 10)) for i in range(10)]
    assert latencies(windows, (0.1, 0.3)) == {"p50": 100, "p95": 200, "p99": 200, "requests": 20}
    assert latencies(windows, (0.8, 1.0)) == {"p50": 800, "p95": 900, "p99": 900, "requests": 20}


def test_a_window_has_all_that_arrives_before_its_end() -> None:
    counts = []
    for seed in range(200):
        jobs, arrivals = draw_window(50.0, 10.0, seed)
        assert len(jobs) == len(arrivals)
        assert arrivals[-1] < 10 < arrivals[-1] + 0.5
        assert min(job.length for job in jobs) >= SHORTEST
        counts.append(len(jobs))
    assert sum(counts) / len(counts) == pytest.approx(500, rel=0.01)
    assert draw_window(50.0, 10.0, 0) == draw_window(50.0, 10.0, 0)


def test_what_a_process_uses_is_read_of_this_one(tmp_path) -> None:
    def own() -> Usage:
        return read_usage(os.getpid())[0]

    before = own()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        with accepted, (tmp_path / "file").open("w"):
            during = own()
            client.close()
            left = own()
    assert (before.depth, before.rss_mib > 1, before.threads >= 1) == (0, True, True)
    assert during.descriptors - before.descriptors == 4
    assert during.connections - before.connections == 2
    assert left.connections - before.connections == 0  # nobody has closed `accepted`, but its client has left
    assert left.descriptors - before.descriptors == 3


def test_the_machine_is_at_least_as_busy_as_this_process() -> None:
    before, own = busy_s(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert busy_s() - before >= 0.1  # in ticks of a hundredth of a second
