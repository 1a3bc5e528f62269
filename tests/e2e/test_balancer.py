"""Three processes of the service behind nginx, with the configuration that operators get: any of them answers, and any may go."""

import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.e2e.conftest import (
    CLIENT_TIMEOUT_S,
    FEW_THREADS,
    JSON,
    ROOT,
    Service,
    ended,
    free_port,
    is_open,
    request_bytes,
    running,
    wait_until,
)

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PROBLEM = "application/problem+json"
CLIENTS = 12
LEAST = 13  # requests of each of them

# Few slots, so that pieces wait for each other; yet room for the whole crowd in one process, so that none is ever refused.
SETTINGS = {"NOCTURNE_CORES": "1", "NOCTURNE_SLOTS": "4", "NOCTURNE_QUEUE": "16", "NOCTURNE_ACCESS_LOG": "off"}

ASKED = [{"seed": seed, "length": 30 + 8 * seed, "end": seed % 2 == 0} for seed in range(16)]
ASKED += [{"seed": ["C4", "mib4", ["C4", "G4"]], "random_seed": seed, "bars": 4 + seed, "key": "sol menor"} for seed in range(4)]

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


class Member:
    """One of the processes: whenever it is started again, it has the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, lasting_port()
        self.starts, self.stack = 0, ExitStack()

    def start(self) -> None:
        self.starts += 1
        log = self.folder / f"{self.port}-{self.starts}.log"
        self.service = self.stack.enter_context(running(log, self.port, **SETTINGS))

    def stop(self, end: Callable[[Service], None]) -> None:
        end(self.service)
        assert wait_until(lambda: not is_open(self.port)), "it still runs"
        self.stack.close()


def lasting_port() -> int:
    """Return a free port that no client is given as its own: it is free again when its process has ended."""
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(max(1024, first_of_clients - 8192), first_of_clients)
    for port in random.sample(ports, min(len(ports), 64)):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return free_port()


@contextmanager
def proxied(folder: Path, ports: list[int]) -> Iterator[Service]:
    """Run nginx before three ports, with the shipped configuration; only places differ, and what would depend on time."""
    port = free_port()
    values = {
        "user www-data;": "user root;",  # as another user it could not write here; of no effect if the tests run as one
        "/run/nginx.pid": f"{folder}/nginx.pid",
        "/var/log/nginx": f"{folder}",
        "/var/lib/nginx": f"{folder}",
        "/var/cache/nginx": f"{folder}/cache",
        "listen 80;": f"listen 127.0.0.1:{port};",
        "client_header_timeout 10s;": f"client_header_timeout {CLIENT_TIMEOUT_S}s;",
        "client_body_timeout 10s;": f"client_body_timeout {CLIENT_TIMEOUT_S}s;",
        **{f"server 127.0.0.1:{8001 + i} ": f"server 127.0.0.1:{upstream} " for i, upstream in enumerate(ports)},
    }
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    for shipped, value in values.items():
        assert shipped in text, f"nginx.conf no longer has {shipped}"
        text = text.replace(shipped, value)
    (folder / "nginx.conf").write_text(text)
    command = [NGINX, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    errors = folder / "nginx.log"
    with ended(command, errors) as process:
        assert wait_until(lambda: is_open(port) or process.poll() is not None)
        assert process.poll() is None, errors.read_text()
        proxy = Service(process, port)
        with proxy.http:
            yield proxy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("balancer")


@pytest.fixture(scope="module")
def members(folder):
    with ExitStack() as stack:
        members = [Member(folder) for _ in range(3)]
        for member in members:
            stack.push(member.stack)
        with ThreadPoolExecutor() as crowd:
            list(crowd.map(Member.start, members))
        yield members
    assert not [log for log in folder.glob("*-*.log") if "Traceback" in log.read_text()]


@pytest.fixture(scope="module")
def proxy(folder, members):
    with proxied(folder, [member.port for member in members]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def expected(members):
    return compose_all(members[0].service)


def compose_all(service: Service) -> list[bytes]:
    with ThreadPoolExecutor(CLIENTS) as crowd:
        return [answer.content for answer in crowd.map(lambda fields: service.compose(**fields), ASKED)]


def test_every_process_and_the_proxy_give_the_same_bytes(members, proxy, expected):
    for service in (*(member.service for member in members), proxy):
        assert compose_all(service) == expected
        assert service.http.get("/generate", params=ASKED[3]).content == expected[3]
        assert service.notes(**ASKED[3]) == proxy.notes(**ASKED[3])


def test_the_rest_of_the_contract_passes(members, proxy):
    for path in ("/", "/models", "/docs", "/openapi.yaml"):
        direct, passed = (service.http.get(path) for service in (members[0].service, proxy))
        assert (passed.status_code, passed.content) == (direct.status_code, direct.content)
    refused = proxy.compose(temperature=7, headers={"X-Request-Id": "mine.1"})
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, PROBLEM)
    assert refused.headers["X-Request-Id"] == "mine.1"
    assert len(proxy.compose(seed=1, length=1, headers={"X-Request-Id": "no id"}).headers["X-Request-Id"]) == 32


def terminate(service: Service) -> None:
    """Stop a process as an update does: what is under way comes to its end."""
    service.process.terminate()
    service.process.wait(CLIENT_TIMEOUT_S)


def kill_master(service: Service) -> None:
    """Kill gunicorn's master; its worker and the engine are to end by themselves."""
    service.process.kill()
    service.process.wait(CLIENT_TIMEOUT_S)


def kill_all(service: Service) -> None:
    """Kill all at once, as when a machine is lost: what is under way is lost with them."""
    ((engine, worker),) = service.engine_pids().items()
    for pid in (service.process.pid, worker, engine):
        os.kill(pid, signal.SIGKILL)
    service.process.wait(CLIENT_TIMEOUT_S)


@pytest.mark.parametrize("end", [terminate, kill_master, kill_all])
def test_each_process_in_turn_goes_and_comes_back_and_no_request_fails(members, proxy, folder, expected, end):
    over = Event()
    log = folder / "access.log"

    def ask(first: int) -> list[tuple[int, int, bytes]]:
        answers = []
        for i in count(first):
            if over.is_set() and len(answers) >= LEAST:
                return answers
            answer = proxy.compose(**ASKED[i % len(ASKED)])
            answers.append((i % len(ASKED), answer.status_code, answer.content))
            over.wait(0.05)  # a process that starts needs the processors, too

    with ThreadPoolExecutor(CLIENTS) as crowd:
        clients = [crowd.submit(ask, 5 * first) for first in range(CLIENTS)]
        try:
            for member in members:
                assert wait_until(lambda service=member.service: service.metrics()["nocturne_requests_pending"] > 0)
                begin = log.stat().st_size
                member.stop(end)
                assert wait_until(lambda port=member.port, begin=begin: f"127.0.0.1:{port}, " in log.read_text()[begin:]), (
                    "nobody was sent on to another process"
                )
                member.start()
        finally:
            over.set()
        answers = [answer for client in clients for answer in client.result()]
    assert {status for _, status, _ in answers} == {200}
    assert all(content == expected[i] for i, _, content in answers)


def test_clients_that_drip_take_no_thread_of_the_service(tmp_path):
    data = request_bytes(seed=5, length=20).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    cuts = [12] * 8 + [len(data) - 20] * 16  # in the head, in the body
    with (
        running(tmp_path / "log", **FEW_THREADS) as service,
        proxied(tmp_path, [service.port] * 3) as proxy,
        ExitStack() as stack,
    ):
        expected = service.compose(seed=5, length=20).content
        drips = [stack.enter_context(proxy.connect()) for _ in cuts]
        for connection, cut in zip(drips, cuts, strict=True):
            connection.sendall(data[:cut])
        for i in range(10):
            for connection, cut in zip(drips, cuts, strict=True):
                connection.sendall(data[cut + i : cut + i + 1])
            assert proxy.compose(seed=5, length=20).content == expected
        for connection, cut in zip(drips, cuts, strict=True):  # and they are answered, however long it took them
            connection.sendall(data[cut + 10 :])
            answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(expected)


def test_one_client_cannot_take_every_place(proxy):
    with ExitStack() as stack:

        def is_refused_beside_one_more() -> bool:
            stack.enter_context(proxy.connect()).sendall(request_bytes(seed=1)[:-1])
            return proxy.http.get("/docs").status_code == 429

        assert wait_until(is_refused_beside_one_more)
        refused = proxy.http.get("/docs")
        check_problem(refused, 429)
        assert refused.headers["Retry-After"] == "1"
    assert wait_until(lambda: proxy.http.get("/docs").status_code == 200)


HEAD = b"Host: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"TRACE / HTTP/1.1\r\n" + HEAD + b"\r\n", 405),
        (b"GET /generate?" + b"a" * 9000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: x\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n" + HEAD + b"\r\n", 505),
        *((b"GET %b HTTP/1.1\r\n%b\r\n" % (path, HEAD), 404) for path in (
            b"/metrics", b"/readyz", b"/livez", b"//metrics", b"/%6detrics", b"/%2Freadyz", b"/docs/../metrics", b"/metrics?x",
            b"http://x/metrics", b"/problem",
        )),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_nginx_refuses_has_the_shape_of_the_service(proxy, data, status):
    check_problem(proxy.send(data), status)


def check_problem(response: httpx.Response, status: int) -> None:
    assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM)
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert problem["title"] != "Error", "the status has no name in nginx.conf"
    assert len(response.headers["X-Request-Id"]) == 32
    assert "traceparent" not in response.headers, "the service said it, not nginx"


def test_a_body_up_to_the_limit_passes(proxy, expected):
    def post(content):
        return proxy.http.post("/generate", content=content, headers={"Content-Type": "application/json"})

    body = json.dumps(ASKED[0]).encode().ljust(2**20)
    assert post(body).content == expected[0]
    assert post(iter([body])).content == expected[0]
    check_problem(post(body + b" "), 413)
    check_problem(post(iter([body, b" "])), 413)


def test_where_nobody_runs_it_is_said(tmp_path):
    with proxied(tmp_path, [lasting_port() for _ in range(3)]) as proxy:
        response = proxy.compose(seed=1)
    check_problem(response, 502)
    assert response.headers["Retry-After"] == "1"


def composed(members) -> float:
    return sum(member.service.metrics()["nocturne_notes_composed_total"] for member in members)


def test_equal_links_are_composed_once(members, proxy):
    link, before = "/generate?seed=77&length=300&end=false", composed(members)
    with ThreadPoolExecutor(CLIENTS) as crowd:
        answers = list(crowd.map(lambda _: proxy.http.get(link), range(CLIENTS)))
    assert composed(members) - before == 300
    assert {answer.content for answer in answers} == {proxy.compose(seed=77, length=300, end=False).content}
    assert sorted(answer.headers["X-Cache-Status"] for answer in answers) == ["HIT"] * (CLIENTS - 1) + ["MISS"]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == CLIENTS
    assert sum("Server-Timing" in answer.headers for answer in answers) == 1
    as_json = [proxy.http.get(link, headers=JSON) for _ in range(2)]
    assert [answer.headers["X-Cache-Status"] for answer in as_json] == ["MISS", "HIT"]
    assert as_json[0].json() == as_json[1].json() == proxy.notes(seed=77, length=300, end=False)


def test_a_link_without_a_seed_is_composed_anew(proxy):
    answers = [proxy.http.get("/generate?length=10") for _ in range(3)]
    assert {answer.headers["X-Cache-Status"] for answer in answers} == {"BYPASS"}
    assert len({answer.headers["Nocturne-Seed"] for answer in answers}) == 3


def test_what_has_a_key_is_not_kept(proxy):
    link = "/generate?seed=78&length=10"
    for _ in range(2):
        assert proxy.http.get(link, headers={"Authorization": "Bearer mine"}).headers["X-Cache-Status"] == "BYPASS"
    assert proxy.http.get(link).headers["X-Cache-Status"] == "MISS"
