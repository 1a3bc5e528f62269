"""Where the time of one request goes: each part of the way from its JSON to its MIDI file, measured by itself in this process.

    python -m bench.request [MODEL.onnx] [--notes 275] [--repeats 200]

Twice: for a request that has the engine for itself, and for one of a full batch, whose steps are shared by all of it. All is
processor time, so that what else runs on the machine does not count; the parts are medians over requests with different random
seeds. What gunicorn and the sockets cost cannot be had in-process: it is the time of a real worker for /livez, less that of the
application. The last line is JSON.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from flask import Flask, Request
from werkzeug.test import EnvironBuilder

from bench.http import DEFAULTS, running_service
from bench.load import HOST, Job, draw_jobs, encode_body
from bench.processes import read_usage
from bench.shipped import add_model
from bench.tables import finish, show
from service.engine.interface import ModelInfo
from service.engine.model import OnnxModel
from service.engine.process import read_sequence
from service.engine.sampling import Composition, Sequence
from service.engine.scheduler import Scheduler
from service.engine.wire import Message, pack, unpack
from service.music.midi_writer import write_midi
from service.web.answers import negotiate
from service.web.app import create_app
from service.web.body import read_json
from service.web.compose import assemble, make_sequence
from service.web.contract import Contract
from service.web.player import Player
from service.web.requests import GenerateRequest

STEP_ROUNDS = 3
LIVE_REQUESTS = 3000
FAR = float("inf")  # a deadline
WSGI, GUNICORN = "Flask: routing, headers, response", "gunicorn and sockets"
GRAPH, SCHEDULER = "steps: OnnxModel.run", "steps: the scheduler"


class TimedModel(OnnxModel):
    """A model that adds up the seconds of its runs."""

    seconds = 0.0
    _running = False

    def run(self, *arguments: Any, **options: Any) -> Any:
        """Compose a chunk."""
        if self._running:  # a run of one row is a run of two
            return super().run(*arguments, **options)
        self._running, started = True, time.thread_time()
        result = super().run(*arguments, **options)
        self._running, self.seconds = False, self.seconds + time.thread_time() - started
        return result


class ReadyEngine:
    """An engine that has composed already: what is left of a request is the web side."""

    ready = alive = True

    def __init__(self, info: ModelInfo, compositions: dict[int, Composition]) -> None:
        self.models, self._compositions = [info], compositions

    def submit(self, sequence: Sequence, deadline: float | None = None) -> "Future[Composition]":
        """Return a future that is done."""
        future: Future[Composition] = Future()
        future.set_result(self._compositions[sequence.random_seed])
        return future

    def cancel(self, future: "Future[Composition]") -> None:
        """Do nothing: all is composed."""


def median_us(function: Callable[[Any], Any], inputs: Iterable[Any]) -> tuple[float, list[Any]]:
    """Return the median microseconds of a call, and what the calls returned."""
    times, results = [], []
    for given in inputs:
        started = time.thread_time()
        results.append(function(given))
        times.append(time.thread_time() - started)
    return statistics.median(times) * 1e6, results


def compose(model: TimedModel, sequences: list[Sequence], slots: int) -> tuple[float, float, dict[int, Composition]]:
    """Return the microseconds a piece in the graph and in the scheduler, and the compositions by random seed."""
    scheduler = Scheduler(model, slots, DEFAULTS.chunk, len(sequences))
    model.seconds = 0.0
    compositions = {}
    started = time.thread_time()
    for id, sequence in enumerate(sequences):
        scheduler.add(id, sequence, FAR)
    while scheduler.running or scheduler.waiting:
        for outcome in scheduler.step(0.0):
            assert isinstance(outcome.result, Composition)
            compositions[sequences[outcome.id].random_seed] = outcome.result
    whole = time.thread_time() - started
    return model.seconds / len(sequences) * 1e6, (whole - model.seconds) / len(sequences) * 1e6, compositions


def time_steps(model: TimedModel, sequences: list[Sequence], slots: int) -> tuple[dict[str, float], dict[int, Composition]]:
    """Return the microseconds of a piece's steps where so many share them, and the compositions by random seed."""
    compose(model, sequences[:slots], slots)  # warm-up
    rounds = [compose(model, sequences, slots) for _ in range(STEP_ROUNDS)]
    graph, scheduler = statistics.median(one[0] for one in rounds), statistics.median(one[1] for one in rounds)
    return {GRAPH: graph, SCHEDULER: scheduler}, rounds[0][2]


def time_web(jobs: list[Job], info: ModelInfo, compositions: dict[int, Composition]) -> tuple[dict[str, float], Flask]:
    """Return the microseconds of each part but the steps, by name, and the application."""
    contract, players = Contract.load(), Player.by_name([info])
    bodies = [encode_body(job) for job in jobs]
    parts = {}
    parts["read the JSON"], fields = median_us(_read_body, [Request(_environ(body)) for body in bodies])
    parts["validate, fill in defaults"], fields = median_us(lambda given: contract.check("generate", given), fields)
    parts["make the request record"], asked = median_us(lambda given: GenerateRequest.from_fields(given, players), fields)
    parts["make_sequence"], sequences = median_us(make_sequence, asked)
    composed = [compositions[sequence.random_seed] for sequence in sequences]
    there, _ = median_us(lambda sequence: read_sequence(unpack(pack(_sequence_message(sequence)))), sequences)
    back, _ = median_us(lambda composition: unpack(pack(_composition_message(composition))), composed)
    parts["pack and unpack, both ways"] = there + back
    parts["decode and assemble"], answers = median_us(
        lambda pair: assemble(pair[0], pair[1], players[info.name]), list(zip(asked, composed, strict=True))
    )
    parts["write MIDI"], _ = median_us(lambda answer: write_midi(answer.piece, answer.end), answers)
    app = create_app(DEFAULTS, ReadyEngine(info, compositions))  # type: ignore[arg-type]
    whole, _ = median_us(lambda environ: _call(app, environ), [_environ(body) for body in bodies])
    parts[WSGI] = whole - (sum(parts.values()) - parts["pack and unpack, both ways"])
    return parts, app


def time_gunicorn(model: Path, app: Flask) -> float:
    """Return the microseconds of processor time that a worker spends on a request beside the application."""
    environ = EnvironBuilder(path="/livez").get_environ()
    inside, _ = median_us(lambda environ: _call(app, environ), [dict(environ) for _ in range(LIVE_REQUESTS)])
    with running_service(model) as (port, pid), closing(HTTPConnection(HOST, port, timeout=30)) as connection:
        for count in (LIVE_REQUESTS // 10, LIVE_REQUESTS):  # the first is a warm-up
            before = _worker_s(pid)
            for _ in range(count):
                connection.request("GET", "/livez")
                connection.getresponse().read()
            spent = _worker_s(pid) - before
    return spent / LIVE_REQUESTS * 1e6 - inside


def _worker_s(pid: int) -> float:
    return next(usage.processor_s for usage in read_usage(pid) if usage.depth == 1)


def _read_body(request: Request) -> Any:
    negotiate(request)
    return read_json(request, DEFAULTS.max_body_bytes)


def _environ(body: bytes) -> dict[str, Any]:
    return EnvironBuilder(path="/generate", method="POST", content_type="application/json", data=body).get_environ()


def _call(app: Flask, environ: dict[str, Any]) -> bytes:
    statuses: list[str] = []
    answer = b"".join(app(environ, lambda status, headers: statuses.append(status)))  # type: ignore[arg-type]
    assert statuses == ["200 OK"], (statuses, answer)
    return answer


def _sequence_message(sequence: Sequence) -> Message:
    return {"kind": "sequence", "id": 1, "left_s": 60.0, **vars(sequence), "params": asdict(sequence.params)}


def _composition_message(composition: Composition) -> Message:
    return {"kind": "composition", "id": 1, **vars(composition)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--notes", type=int, default=275)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    model = TimedModel(options.model)
    slots = DEFAULTS.slots
    jobs = [job._replace(length=options.notes) for job in draw_jobs(slots, 0)]
    contract, players = Contract.load(), Player.by_name([model.info])
    checked = [contract.check("generate", {"seed": job.random_seed, "length": job.length}) for job in jobs]
    sequences = [make_sequence(GenerateRequest.from_fields(fields, players)) for fields in checked]

    alone, _ = time_steps(model, sequences[:2], 1)
    shared, compositions = time_steps(model, sequences, slots)
    repeated = [jobs[i % slots] for i in range(options.repeats)]
    web, app = time_web(repeated, model.info, compositions)
    web[GUNICORN] = time_gunicorn(options.model, app)
    names = [*list(web)[:5], GRAPH, SCHEDULER, *list(web)[5:]]  # in the order of a request's way
    columns = [{**web, **steps} for steps in (alone, shared)]
    totals = [sum(column.values()) for column in columns]
    rows = [
        (
            name,
            *(
                cell
                for column, total in zip(columns, totals, strict=True)
                for cell in (column[name], f"{column[name] / total:.1%}")
            ),
        )
        for name in names
    ]
    head = ("", "alone: us", "share", f"one of {slots}: us", "share")
    title = f"{options.model.name}: one request for {options.notes} notes"
    show(title, head, [*rows, ("together", totals[0], "100%", totals[1], "100%")])
    finish({"model": options.model.name, "notes": options.notes, "alone_us": columns[0], f"one_of_{slots}_us": columns[1]})


if __name__ == "__main__":
    main()
