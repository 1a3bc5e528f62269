"""How gunicorn runs the service: `python -m gunicorn -c service/gunicorn.conf.py`.

One worker with many threads, each of which waits for the engine's process on behalf of one client.
"""

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.sharedctypes import RawValue
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.errors import AppImportError  # type: ignore[import-untyped]

from service.config import InvalidSetting, ServiceConfig
from service.logs import LOGGING
from service.web.access import log_refusal
from service.web.admin import AdminServer
from service.web.problems import problem_bytes

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and later report home by default

try:
    _config = ServiceConfig.from_environment(os.environ)
except InvalidSetting as error:
    raise SystemExit(str(error)) from None

CONNECTIONS = 10_000  # open at once; the next ones wait in the kernel's queue
OTHER_DESCRIPTORS = 128  # of files, pipes and the admin port
DRAIN_S = _config.deadline_s + 5  # SIGTERM lets what is under way come to its end


def _descriptors() -> int:
    """Raise the limit of open files as far as this process may, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return CONNECTIONS + OTHER_DESCRIPTORS if most == resource.RLIM_INFINITY else most


wsgi_app = "service.web.wsgi:app"
bind = _config.bind
workers = 1
worker_class = "service.web.gthread.BufferingWorker"
threads = _config.threads
worker_connections = max(_config.threads + 1, min(CONNECTIONS, _descriptors() - OTHER_DESCRIPTORS))
preload_app = False  # the engine's process is started in the worker
timeout = 120  # of the worker's heartbeat, not of a request; loading the model falls under it
graceful_timeout = DRAIN_S
keepalive = 5
http_parser = "python"
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a heartbeat must not wait for a disk
logconfig_dict = LOGGING
accesslog = None


def when_ready(server: Any) -> None:
    """Let SIGHUP replace a worker that runs only by one that can start; gunicorn would stop altogether."""
    reload = server.reload
    server.reloads_refused = RawValue("L", 0)  # in memory shared with the workers, which tell

    def checked_reload() -> None:
        check = subprocess.run([sys.executable, "-m", "service.check"], capture_output=True, text=True)
        if check.returncode == 0:
            reload()
        else:
            server.reloads_refused.value += 1
            server.log.error("SIGHUP changes nothing, since a worker could not start: %s", check.stderr.strip())

    server.reload = checked_reload


def post_fork(server: Any, worker: Any) -> None:
    """Tell the worker the limit of a body and where refused reloads are counted, and the log what is not worth a line."""
    worker.max_body = _config.max_body_bytes
    worker.reloads_refused = server.reloads_refused
    logging.getLogger("gunicorn.error").addFilter(_is_worth_a_line)


def post_worker_init(worker: Any) -> None:
    """Open the admin port, and say in one line how to call the service, now that it answers."""
    app = worker.wsgi
    metrics = app.extensions["metrics"]
    metrics.reloads_refused = lambda: worker.reloads_refused.value

    def refused(sock: socket.socket, status: int) -> None:
        metrics.reject("too slow" if status == 408 else "http")
        if _config.access_log == "json":
            log_refusal(sock, status)

    worker.on_refusal = refused

    def write_problem(sock: socket.socket, status: int, reason: str, detail: str) -> None:
        refused(sock, status)
        util.write_nonblock(sock, problem_bytes(status, reason, detail))

    util.write_error = write_problem  # what the parser refuses has the shape of every other error
    try:
        admin = AdminServer(app, _config.host, _config.admin_port) if _config.admin_port else None
    except OSError as error:
        raise AppImportError(f"`ADMIN_PORT` must be free; {_config.admin_port} is not: {error}") from None
    end = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: Any) -> None:
        app.extensions["draining"].set()
        if admin is not None:  # in a thread: this one may be in the midst of anything
            threading.Thread(target=admin.close, daemon=True).start()
        end(number, frame)

    signal.signal(signal.SIGTERM, drain)
    host, port = worker.sockets[0].getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    command = (
        f"""curl -X POST http://{host}:{port}/generate -H 'Content-Type: application/json' -d '{{"seed": 42, "length": 64}}'"""
    )
    print(f"Nocturne is ready: {command} -o melody.mid   (documents: http://{host}:{port}/docs)", flush=True)


def worker_exit(server: Any, worker: Any) -> None:
    """End the engine's process once the last request is answered, and send the last traces."""
    if getattr(worker, "wsgi", None):  # not there if the application failed to load
        worker.wsgi.extensions["engine"].close()
        worker.wsgi.extensions["tracing"].close()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a log record is neither about a client too slow to take its answer, nor about a refusal, which has its line.

    What gunicorn says of a refusal may hold a piece of the request, a key among it.
    """
    slow = record.exc_info is not None and isinstance(record.exc_info[1], TimeoutError)
    return not slow and not record.getMessage().startswith("Invalid request from ip=")
