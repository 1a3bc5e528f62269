"""What befalls a service in its years: overload, deaths, signals, new models, files that are not what they should be."""

import io
import json
import os
import select
import shutil
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import onnx
import pytest

from bench.processes import read_usage
from service.engine.files import hash_line, hash_path
from service.web.quotas import hash_key
from tests.e2e.conftest import (
    CLIENT_TIMEOUT_S,
    FEW_THREADS,
    GUNICORN,
    ROOT,
    Service,
    free_port,
    is_open,
    request_bytes,
    running,
    wait_until,
)
from tests.metrics import plain_values

EXPORTED = ROOT / "exported"
FEW = {"NOCTURNE_CORES": "1", "NOCTURNE_SLOTS": "8"}


def test_a_killed_engine_costs_no_request_and_no_byte(tmp_path):
    asked = [{"seed": seed, "length": 50 + 9 * (seed % 50), "end": seed % 2 == 0} for seed in range(50)]
    with running(tmp_path / "log", NOCTURNE_SLOTS="8") as service, ThreadPoolExecutor(50) as crowd:
        expected = [answer.content for answer in crowd.map(lambda fields: service.compose(**fields), asked)]
        answers = [crowd.submit(lambda fields: service.compose(**fields), fields) for fields in asked]
        assert wait_until(lambda: sum(answer.done() for answer in answers) >= 5)
        assert not all(answer.done() for answer in answers)
        os.kill(service.engine_pid(), signal.SIGKILL)
        assert wait_until(lambda: service.http.get("/readyz").status_code == 503)
        assert [answer.result().status_code for answer in answers] == [200] * 50
        assert [answer.result().content for answer in answers] == expected
        assert service.http.get("/readyz").status_code == 200
        assert service.metrics()["nocturne_engine_restarts_total"] == 1


def test_a_full_queue_is_said_at_once_and_nothing_else_is_refused(tmp_path):
    with (
        running(tmp_path / "log", NOCTURNE_CORES="1", NOCTURNE_SLOTS="1", NOCTURNE_QUEUE="1") as service,
        ThreadPoolExecutor(16) as crowd,
    ):
        answers = list(crowd.map(lambda seed: service.compose(seed=seed, length=800, end=False), range(16)))
        assert {answer.status_code for answer in answers} == {200, 503}
        for refused in (answer for answer in answers if answer.status_code == 503):
            assert refused.headers["Retry-After"]
            assert refused.headers["Content-Type"] == "application/problem+json"


def test_four_times_what_fits_is_answered_right_or_refused_at_once_and_takes_no_memory(tmp_path):
    admin_port = free_port()
    settings = {"NOCTURNE_CORES": "1", "NOCTURNE_SLOTS": "2", "NOCTURNE_QUEUE": "6", "ADMIN_PORT": str(admin_port)}
    asked = [{"seed": seed, "length": 150, "end": False} for seed in range(8)]
    memory_mib = []
    with running(tmp_path / "log", **settings) as service, ThreadPoolExecutor(32) as crowd:
        expected = [service.compose(**fields).content for fields in asked]
        for _ in range(3):  # every thread grows with its first pieces: the first time does not count
            answers = [crowd.submit(lambda fields: service.compose(**fields), asked[i % 8]) for i in range(160)]
            while not all(answer.done() for answer in answers):
                assert httpx.get(f"http://127.0.0.1:{admin_port}/livez", timeout=CLIENT_TIMEOUT_S).status_code == 200
                assert service.metrics()["nocturne_requests_pending"] <= 8
            statuses = Counter(answer.result().status_code for answer in answers)
            assert set(statuses) == {200, 503}
            for i, answer in enumerate(answer.result() for answer in answers):
                if answer.status_code == 200:
                    assert answer.content == expected[i % 8]
                else:
                    assert answer.headers["Retry-After"]
            assert wait_until(lambda: service.metrics()["nocturne_slots_in_use"] == 0)
            assert service.metrics()["nocturne_requests_pending"] == 0
            memory_mib.append(sum(one.rss_mib for one in read_usage(service.process.pid)))
        assert memory_mib[2] < 1.05 * memory_mib[1], f"a hundred and sixty requests more took memory: {memory_mib}"


def test_a_deadline_that_passes_is_said(tmp_path):
    with (
        running(tmp_path / "log", NOCTURNE_CORES="1", NOCTURNE_SLOTS="1", NOCTURNE_DEADLINE_S="1") as service,
        ThreadPoolExecutor(50) as crowd,
    ):
        answers = list(crowd.map(lambda seed: service.compose(seed=seed, length=4096, end=False), range(50)))
        assert {answer.status_code for answer in answers} <= {200, 504}
        assert any(answer.status_code == 504 for answer in answers)


def test_the_admin_port_has_probes_and_metrics_and_nothing_else(tmp_path):
    admin_port = free_port()
    with running(tmp_path / "log", ADMIN_PORT=str(admin_port), **FEW_THREADS) as service, ExitStack() as stack:
        admin = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{admin_port}", timeout=CLIENT_TIMEOUT_S))
        assert admin.get("/readyz").json()["status"] == "ready"
        assert admin.get("/metrics").text.startswith("# HELP nocturne_")
        for path in ("/generate", "/models", "/"):
            assert admin.get(path).status_code == 404
            assert admin.get(path).headers["Content-Type"] == "application/problem+json"
        for seed in range(2):  # one composes, one waits
            stack.enter_context(service.connect()).sendall(request_bytes(seed=seed, length=4096, end=False))
        assert wait_until(lambda: plain_values(admin.get("/metrics").text)["nocturne_requests_pending"] == 2)
        assert admin.get("/livez").status_code == 200


def test_sigterm_lets_what_is_under_way_come_to_its_end(tmp_path):
    admin_port = free_port()
    with (
        running(tmp_path / "log", ADMIN_PORT=str(admin_port)) as service,
        service.connect() as connection,
        io.BytesIO() as answer,
    ):
        assert httpx.get(f"http://127.0.0.1:{admin_port}/readyz").status_code == 200
        assert service.http.get("/livez").status_code == 200
        connection.sendall(request_bytes(seed=1, length=4096, end=False))
        select.select([connection], [], [], 0.3)  # enough for gunicorn to take the request
        service.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: not is_open(admin_port)), "it still says that it is ready"
        assert not select.select([connection], [], [], 0)[0], "readiness was to drop before the last answer"
        while data := connection.recv(65536):
            answer.write(data)
        assert answer.getvalue().startswith(b"HTTP/1.1 200 ")
        assert b"Nocturne-Notes: 4096" in answer.getvalue()
        assert service.process.wait(CLIENT_TIMEOUT_S) == 0
        with pytest.raises(ConnectionRefusedError):
            service.connect()


def test_sighup_replaces_the_worker_and_no_request_is_lost(tmp_path):
    asked = [{"seed": seed, "length": 200 + 10 * seed, "end": False} for seed in range(16)]
    with running(tmp_path / "log", NOCTURNE_CORES="1", NOCTURNE_SLOTS="8") as service, ThreadPoolExecutor(16) as crowd:
        expected = [service.compose(**fields).content for fields in asked]
        before = set(service.engine_pids())
        answers = [crowd.submit(lambda fields: service.compose(**fields), fields) for fields in asked * 3]
        assert wait_until(lambda: sum(answer.done() for answer in answers) >= 3)
        service.process.send_signal(signal.SIGHUP)
        assert [answer.result().status_code for answer in answers] == [200] * len(answers)
        assert [answer.result().content for answer in answers] == expected * 3
        assert wait_until(lambda: (now := service.engine_pids()) and not now.keys() & before), "the old engine still runs"
        assert service.compose(**asked[0]).content == expected[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NOCTURNE_SLOT": "1"}, "`NOCTURNE_SLOT` is not a setting; did you mean `NOCTURNE_SLOTS`?"),
        ({"NOCTURNE_MODEL": "none"}, "`NOCTURNE_MODEL` must be one of"),
        ({"ADMIN_PORT": "{PORT}"}, "`ADMIN_PORT` must be free; "),
        ({"NOCTURNE_MODEL_DIR": "/nowhere"}, "`NOCTURNE_MODEL_DIR` must be a folder with exported models (*.onnx); got /nowhere"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_sentence(settings, message):
    port = str(free_port())
    assert message in failed_start({"PORT": port} | {name: value.format(PORT=port) for name, value in settings.items()})


@pytest.mark.parametrize("victim", ["worker", "master"])
def test_after_a_kill_there_is_no_half_answer_and_a_service_again(tmp_path, victim):
    asked = [{"seed": seed, "length": 100 + 10 * seed, "end": False} for seed in range(16)]
    port = free_port()
    with running(tmp_path / "log", port=port, **FEW) as service, ThreadPoolExecutor(16) as crowd:
        expected = [service.compose(**fields).content for fields in asked]
        before = set(service.engine_pids())
        answers = [crowd.submit(attempt, service, fields) for fields in asked * 4]
        assert wait_until(lambda: sum(answer.done() for answer in answers) >= 8)
        os.kill(service.process.pid if victim == "master" else service.worker_pid(), signal.SIGKILL)
        contents = [answer.result() for answer in answers]
        if victim == "worker":  # that of a killed master answers what it has, and ends
            assert None in contents, "the kill was to cost something"
        assert all(content in (None, right) for content, right in zip(contents, expected * 4, strict=True))
        if victim == "worker":
            assert wait_until(lambda: attempt(service, asked[0]) == expected[0])
            assert not service.engine_pids().keys() & before
        assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before)), "an engine outlived its service"
    if victim == "master":  # nothing of it is left, and what restarts a container starts another one
        assert wait_until(lambda: not is_open(port))
        with running(tmp_path / "log", port=port, **FEW) as service:
            assert service.compose(**asked[0]).content == expected[0]


def attempt(service: Service, fields: dict) -> bytes | None:
    """Return the piece, or None if no whole answer came."""
    try:
        return service.compose(**fields).content
    except httpx.TransportError:
        return None


def test_a_model_put_beside_the_old_one_is_offered_after_sighup_and_the_old_one_plays_on(tmp_path):
    folder, log = tmp_path / "models", tmp_path / "log"
    folder.mkdir()
    for name in ("nocturne.int8.onnx", "nocturne.int8.onnx.sha256"):
        shutil.copy(EXPORTED / name, folder)
    pinned = {"seed": 7, "length": 60, "model": "nocturne.int8"}
    with running(log, NOCTURNE_MODEL_DIR=str(folder), **FEW) as service, ThreadPoolExecutor(16) as crowd:
        old = service.compose(**pinned).content
        assert service.compose(**{**pinned, "model": "another"}).status_code == 422
        add_model(EXPORTED / "nocturne.onnx", folder / "another.onnx")
        service.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: names(service) == ["nocturne.int8", "another"])
        assert service.compose(**pinned).content == old
        assert service.compose(seed=7, length=60).content == old
        new = service.compose(**{**pinned, "model": "another"})
        assert new.headers["Nocturne-Model"] == "another"
        assert new.content != old
        asked = [{**pinned, "model": name} for name in ("nocturne.int8", "another")]
        both = list(crowd.map(lambda fields: service.compose(**fields).content, asked * 16))
        assert both == [old, new.content] * 16
        refused = service.compose(seed=7, model="nobody")
        assert refused.json()["detail"] == '`model` must be one of "nocturne.int8", "another"; got "nobody"'

        # A file that cannot be loaded is no reason to stop what runs.
        engine = service.engine_pids()
        (folder / "broken.onnx").write_bytes(b"nothing")
        service.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: "SIGHUP changes nothing, since a worker could not start" in log.read_text())
        assert "broken.onnx cannot be loaded as a model" in log.read_text()
        assert service.engine_pids() == engine
        assert service.compose(**pinned).content == old


def test_an_engine_that_dies_does_not_come_back_as_another_under_the_same_name(tmp_path):
    folder, log = tmp_path / "models", tmp_path / "log"
    folder.mkdir()
    model = add_model(EXPORTED / "nocturne.int8.onnx", folder / "mine.onnx")
    with running(log, NOCTURNE_MODEL_DIR=str(folder), **FEW) as service:
        old = service.compose(seed=7, length=60).content
        add_model(EXPORTED / "nocturne.onnx", model)
        os.kill(service.engine_pid(), signal.SIGKILL)
        assert wait_until(lambda: "the file of mine has changed since the start" in log.read_text())
        assert service.http.get("/readyz").status_code == 503
        # What cannot heal itself is given to whoever restarts containers.
        assert wait_until(lambda: service.http.get("/livez").status_code == 503)
        add_model(EXPORTED / "nocturne.int8.onnx", model)
        assert wait_until(lambda: service.http.get("/readyz").status_code == service.http.get("/livez").status_code == 200)
        assert service.compose(seed=7, length=60).content == old


def add_model(source: Path, model: Path) -> Path:
    """Put a model there as an operator should: the file under another name first, so that it is whole or not there."""
    shutil.copy(source, model.with_suffix(".part"))
    os.replace(model.with_suffix(".part"), model)
    hash_path(model).write_text(hash_line(model))
    return model


def names(service: Service) -> list[str]:
    return [model["name"] for model in service.http.get("/models").json()["models"]]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def of_another_version(path: Path) -> None:
    model = onnx.load(path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "nocturne")
    entry.value = json.dumps({**json.loads(entry.value), "representation_version": 99})
    onnx.save(model, path)


def with_another_hash(path: Path) -> None:
    hash_path(path).write_text(f"{'0' * 64}  {path.name}\n")


def with_a_broken_hash(path: Path) -> None:
    hash_path(path).write_text("0123")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "`NOCTURNE_MODEL_DIR` must be a folder with exported models (*.onnx); got "),
        (cut_short, "mine.onnx cannot be loaded as a model: "),
        (of_another_version, "mine.onnx does not fit: its representation_version is 99, this program's is 1"),
        (with_another_hash, "mine.onnx is not the file that was exported: its SHA-256 is "),
        (with_a_broken_hash, "mine.onnx.sha256 must be what `sha256sum mine.onnx` prints; got '0123'"),
    ],
)
def test_a_model_that_is_not_what_it_should_be_ends_the_start_with_one_sentence(spoil, message, tmp_path):
    path = tmp_path / "mine.onnx"
    shutil.copy(EXPORTED / "nocturne.int8.onnx", path)
    spoil(path)
    assert message in failed_start({"NOCTURNE_MODEL_DIR": str(tmp_path)})


def failed_start(settings: dict[str, str]) -> str:
    """Return what a service says that cannot start."""
    environment = {**os.environ, "PORT": str(free_port()), **settings}
    ended = subprocess.run(GUNICORN, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_keys_are_changed_by_sighup(tmp_path):
    keys, asked = tmp_path / "keys.toml", {"seed": 1, "length": 4}

    def write(key: str) -> None:
        keys.write_text(f'[[keys]]\nname = "school"\nsha256 = "{hash_key(key)}"\n')

    def status(key: str) -> int:
        return service.compose({"Authorization": f"Bearer {key}"}, **asked).status_code

    write("first")
    with running(tmp_path / "log", NOCTURNE_API_KEYS_FILE=str(keys), **FEW) as service:
        assert [status("first"), status("second")] == [200, 401]
        write("second")
        service.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: status("second") == 200)
        assert status("first") == 401
        keys.write_text("[[keys]]")
        service.process.send_signal(signal.SIGHUP)
        assert wait_until(
            lambda: "SIGHUP changes nothing, since a worker could not start: `NOCTURNE_API_KEYS_FILE`" in log_of(tmp_path)
        )
        assert status("second") == 200
        assert service.metrics()["nocturne_reloads_refused_total"] == 1
        keys.write_text("keys = []")
        service.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: status("second") == 401), "nobody was to be let in"
        assert service.metrics()["nocturne_reloads_refused_total"] == 1
    assert '"key":"school"' in log_of(tmp_path)
    assert not any(f"Bearer {key}" in log_of(tmp_path) for key in ("first", "second"))


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()
