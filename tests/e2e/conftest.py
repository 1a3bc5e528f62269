"""A service over a real socket: gunicorn, the engine's process and the shipped model."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.metrics import plain_values

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Accept": "application/json"}
GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "service/gunicorn.conf.py"]
FEW_THREADS = {"NOCTURNE_CORES": "1", "NOCTURNE_SLOTS": "1", "NOCTURNE_QUEUE": "1", "NOCTURNE_THREADS": "3"}
CLIENT_TIMEOUT_S = 120  # of a test that would otherwise hang; no test asserts a time


class Service:
    """A running service: its process, and a client of it."""

    def __init__(self, process: subprocess.Popen, port: int, admin_port: int = 0) -> None:
        self.process, self.port, self.admin_port = process, port, admin_port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=CLIENT_TIMEOUT_S)

    def compose(self, headers=None, **fields):
        return self.http.post("/generate", json=fields, headers=headers)

    def notes(self, **fields):
        response = self.compose(JSON, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.admin_port}/metrics" if self.admin_port else "/metrics"
        return plain_values(self.http.get(url).text)

    def engine_pids(self) -> dict[int, int]:
        """Return the ids of the processes that compose, and of the worker of each: one takes over from another at times."""
        processes = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
            except OSError:  # it has just ended
                continue
            processes[int(folder.name)] = int(status.rpartition(")")[2].split()[1]), b"service.engine.worker" in command
        workers = {pid for pid, (parent, _) in processes.items() if parent == self.process.pid}
        return {pid: parent for pid, (parent, composes) in processes.items() if composes and parent in workers}

    def engine_pid(self) -> int:
        """Return the id of the one process that composes."""
        (pid,) = self.engine_pids()
        return pid

    def worker_pid(self) -> int:
        """Return the id of gunicorn's one worker."""
        (pid,) = self.engine_pids().values()
        return pid

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=CLIENT_TIMEOUT_S)

    def send(self, data: bytes) -> httpx.Response:
        """Send raw bytes, and read the answer until the service closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Return whether a condition came true, before a test would otherwise hang."""
    end = time.monotonic() + CLIENT_TIMEOUT_S
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return met


def request_bytes(**fields) -> bytes:
    body = json.dumps(fields).encode()
    return b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    """Return whether a connection to a port is taken; some are refused, others closed before they are."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=CLIENT_TIMEOUT_S).close()
    except ConnectionError:
        return False
    return True


@contextmanager
def ended(command: list[str], log: Path, **options):
    """Run a process whose errors go to a file, and end it with the block."""
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(CLIENT_TIMEOUT_S)


@contextmanager
def running(log: Path, port: int | None = None, **settings):
    port = port or free_port()
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port), **settings}
    with ended(GUNICORN, log, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("Nocturne is ready: curl"), log.read_text()
        service = Service(process, port, int(settings.get("ADMIN_PORT", 0)))
        with service.http:
            yield service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    log = tmp_path_factory.mktemp("service") / "errors.log"
    with running(log) as service:
        yield service
    assert "Traceback" not in log.read_text()
