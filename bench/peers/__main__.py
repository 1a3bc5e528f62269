"""Our service beside LitServe and BentoML, each with its own dynamic batching, the same model, requests and load.

    python -m bench.peers [MODEL.onnx] [--rounds 3] [--counted 200] [--clients 72] [--venvs .bench-venvs]

Each runs by itself, in turn, started anew in every round; the median round counts. The peers have a worker for each core and
batches of up to as many pieces as our service has slots, which are composed by our own code, a batch at a time: rows whose pieces
are done stay in the batch, as in a batcher of whole requests, or leave it, which such a batcher cannot do by itself. First a
closed loop; then, with rows that leave, an open one at 50 % of our saturation and at 80 % of the weaker peer's. The last line is
JSON.
"""

import argparse
import base64
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

from bench.http import HEAD, free_port, row, running_server, running_service
from bench.load import (
    HOST,
    LONGEST,
    MIDI,
    SHORTEST,
    Job,
    Result,
    draw_arrivals,
    draw_jobs,
    encode_body,
    median_result,
    run_load,
    summarise,
)
from bench.peers.batch import MAX_BATCH
from bench.peers.environments import PACKAGES, make_environment
from bench.shipped import ROOT, add_model
from bench.tables import finish, show
from service.cores import available_cores

OURS, LITSERVE, BENTOML = "nocturne", "litserve", "bentoml"
CORES = available_cores()
CLIENTS = CORES * MAX_BATCH + 8  # every worker's batch filled, and a few that wait
BATCH_TIMEOUTS_MS = (5, 20, 50)  # LitServe's; BentoML learns its own
SAME = 4  # pieces that must have the same bytes from all
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Server:
    """One of those that are compared.

    Attributes
    ----------
    run : callable
        Runs it until the block ends; yields its port.
    encode : callable
        Makes a job the body of a request.
    begins : bytes
        How the body of an answer begins.
    decode : callable
        Makes the body of an answer a MIDI file.
    """

    run: Callable[[], AbstractContextManager[int]]
    encode: Callable[[Job], bytes] = encode_body
    begins: bytes = MIDI
    decode: Callable[[bytes], bytes] = bytes


def our_server(model: Path) -> Server:
    """Return our service."""

    @contextmanager
    def run() -> Iterator[int]:
        with running_service(model) as (port, _):
            yield port

    return Server(run)


def litserve_server(model: Path, programs: Path, batch_timeout_ms: float, rows_leave: bool) -> Server:
    """Return LitServe, which waits so long for a batch to fill."""

    @contextmanager
    def run() -> Iterator[int]:
        port = free_port()
        module = [str(programs / "python"), "-m", "bench.peers.litserve_server", str(model.resolve())]
        options = ["--port", str(port), "--workers", str(CORES), "--batch-timeout-ms", str(batch_timeout_ms)]
        options += ["--rows-leave"] if rows_leave else []
        with running_server([*module, *options], _settings(), port, "/health"):
            yield port

    return Server(run)


def bentoml_server(model: Path, programs: Path, home: Path, rows_leave: bool) -> Server:
    """Return BentoML, with a folder for what it keeps."""

    @contextmanager
    def run() -> Iterator[int]:
        port = free_port()
        command = [str(programs / "bentoml"), "serve", "bench.peers.bentoml_server:Nocturne", "--host", HOST, "--port", str(port)]
        own = {"PEER_MODEL": str(model.resolve()), "PEER_WORKERS": str(CORES), "BENTOML_HOME": str(home.resolve())}
        own["PEER_ROWS_LEAVE"] = str(int(rows_leave))
        with running_server(command, _settings() | own, port, "/readyz"):
            yield port

    def encode(job: Job) -> bytes:
        return b'{"requests": [%b]}' % encode_body(job)

    begins = b'["' + base64.b64encode(MIDI)[:4]  # of the four bytes, three make whole characters
    return Server(run, encode, begins, lambda body: base64.b64decode(json.loads(body)[0]))


def _settings() -> dict[str, str]:
    return QUIET | {"PYTHONPATH": str(ROOT)}


def measure(server: Server, seed: int, options: argparse.Namespace, rate: float = 0.0) -> tuple[Result, list[bytes]]:
    """Start a server, warm it up, load it; return the figures, and the files of the first jobs.

    A closed loop, unless a rate in requests a second is given.
    """
    clients = options.clients
    margin = clients if rate else 2 * clients
    jobs = draw_jobs(options.counted + 2 * margin, seed)
    load = partial(run_load, encode=server.encode, begins=server.begins)
    with server.run() as port:
        files = [_compose_one(server, port, job) for job in jobs[:SAME]]
        load(port, draw_jobs(2 * clients, 10**6), clients=clients)
        samples = load(port, jobs, arrivals=draw_arrivals(len(jobs), rate, seed)) if rate else load(port, jobs, clients=clients)
    return summarise(samples, margin), files


def measure_all(servers: Mapping[str, Server], options: argparse.Namespace, rate: float = 0.0) -> dict[str, list[Result]]:
    """Return the rounds of each server, which take turns.

    Raises
    ------
    SystemExit
        If they do not all compose the same pieces.
    """
    results: dict[str, list[Result]] = {name: [] for name in servers}
    for number in range(options.rounds):
        files = {}
        for name in sorted(servers, reverse=bool(number % 2)):
            result, files[name] = measure(servers[name], number, options, rate)
            results[name].append(result)
        if any(found != files[OURS] for found in files.values()):
            raise SystemExit("the peers composed other pieces than our service: there is nothing to compare")
    return results


def _compose_one(server: Server, port: int, job: Job) -> bytes:
    with closing(HTTPConnection(HOST, port, timeout=120)) as connection:
        connection.request("POST", "/generate", server.encode(job), {"Content-Type": "application/json"})
        return server.decode(connection.getresponse().read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counted", type=int, default=200, help="requests of a round that count")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the closed loop; default: %(default)s")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".bench-venvs", help="where the peers' environments are made")
    options = parser.parse_args()
    model = options.model
    programs = {name: make_environment(name, options.venvs) for name in PACKAGES}
    tried = {wait: litserve_server(model, programs[LITSERVE], wait, rows_leave=True) for wait in BATCH_TIMEOUTS_MS}
    trials = {wait: measure(server, 0, options)[0] for wait, server in tried.items()}
    best = max(trials, key=lambda wait: trials[wait].notes_per_s)
    home = options.venvs / "bentoml-home"
    leaving = {
        OURS: our_server(model),
        LITSERVE: tried[best],
        BENTOML: bentoml_server(model, programs[BENTOML], home, rows_leave=True),
    }
    staying = {
        f"{LITSERVE}, rows stay": litserve_server(model, programs[LITSERVE], best, rows_leave=False),
        f"{BENTOML}, rows stay": bentoml_server(model, programs[BENTOML], home, rows_leave=False),
    }
    runs = {f"closed loop, {options.clients} clients": measure_all(leaving | staying, options)}
    saturated = {name: median_result(results).requests_per_s for name, results in next(iter(runs.values())).items()}
    rates = {
        "open loop, 50% of our saturation": 0.5 * saturated[OURS],
        "open loop, 80% of the weaker peer's": 0.8 * min(saturated[LITSERVE], saturated[BENTOML]),
    }
    runs |= {title: measure_all(leaving, options, rate) for title, rate in rates.items()}

    print(f"{model.name}: {options.rounds} rounds of {options.counted} requests for {SHORTEST}-{LONGEST} notes, {CORES} workers")
    waits = ", ".join(f"{wait} ms {result.notes_per_s:,.0f} notes/s" for wait, result in trials.items())
    print(f"LitServe waits {best} ms for a batch to fill: {waits}")
    ratios = {}
    for title, results in runs.items():
        is_open = title in rates
        ratios[title] = {name: _median_ratio(results[OURS], results[name], is_open) for name in results}
        head = (*HEAD[:-1], "p95 of ours" if is_open else "ours is")
        show(title, head, [(*row(name, median_result(rows)), f"{ratios[title][name]:.2f}x") for name, rows in results.items()])
    finish(
        {
            "model": model.name,
            "versions": {name: PACKAGES[name][0] for name in PACKAGES},
            "litserve_batch_timeout_ms": best,
            "rates": rates,
            "runs": {t: {name: asdict(median_result(rows)) for name, rows in results.items()} for t, results in runs.items()},
            "ratios": ratios,
        }
    )


def _median_ratio(ours: list[Result], theirs: list[Result], is_open: bool) -> float:
    """Return our throughput over theirs, or in an open loop our p95 over theirs; the median over the rounds."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(a.p95 / b.p95 if is_open else a.notes_per_s / b.notes_per_s for a, b in pairs)


if __name__ == "__main__":
    main()
