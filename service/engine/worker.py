"""The program of the engine's process: schedulers, one thread each, a model that they share, and a socket to the service.

Started by `service.engine.process`, never by hand. Ends when the service closes the socket, so that no engine outlives it.
"""

import argparse
import logging.config
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from service.engine.interface import Load
from service.engine.load import load_model
from service.engine.process import read_sequence
from service.engine.sampling import Composition
from service.engine.scheduler import ChunkModel, Outcome, Scheduler
from service.engine.wire import Message, pack, unpack
from service.errors import EngineOverloaded, GenerationTimeout, ModelMismatch
from service.logs import LOGGING

log = logging.getLogger(__name__)

_NICE = 5  # what composes never rests; probes, refusals and answers, which take a millisecond, go before it


class Worker:
    """Takes sequences and gives compositions until the other side closes the connection.

    Parameters
    ----------
    connection : Connection
    models : mapping of str to ChunkModel
        By name, the one that composes unless another is asked for first; used by all threads at once.
    cores : int
        Threads; each has a scheduler for each model.
    slots : int
        Sequences side by side in each of these.
    chunk : int
        Tokens of each between two looks at the queue.
    max_waiting : int
        Sequences that wait at most.
    """

    def __init__(
        self,
        connection: Connection,
        models: Mapping[str, ChunkModel],
        cores: int,
        slots: int,
        chunk: int,
        max_waiting: int,
    ) -> None:
        self._connection, self._chunk = connection, chunk
        # The client counts what is out; the queues here hold all of it, so that nothing sent again after a restart is refused.
        room = cores * slots + max_waiting
        self._groups = {name: Scheduler.group(model, slots, chunk, room, cores) for name, model in models.items()}
        self._first = next(iter(models))
        self._changed = threading.Condition()  # guards the schedulers, but for what each composes
        self._sending = threading.Lock()
        self._load = Load()
        self._seconds = [0.0] * cores  # that each thread has composed
        self._taken: dict[int, float] = {}  # when each sequence came
        self._begun: dict[int, float] = {}  # when its first note was there

    def serve(self) -> None:
        """Read messages; compose in threads of its own.

        Raises
        ------
        EOFError, OSError
            When the other side has closed the connection.
        """
        for core in range(len(self._seconds)):
            threading.Thread(target=self._compose, args=(core,), name=f"core-{core}", daemon=True).start()
        while True:
            self._take(unpack(self._connection.recv_bytes()))

    def _take(self, message: Message) -> None:
        with self._changed:
            if message["kind"] == "cancel":
                for group in self._groups.values():
                    group[0].cancel(message["id"])
                self._taken.pop(message["id"], None)
                self._begun.pop(message["id"], None)
            else:
                self._taken[message["id"]] = time.monotonic()
                left = message["left_s"]
                deadline = float("inf") if left is None else time.monotonic() + left
                try:
                    sequence = read_sequence(message)
                    self._groups[sequence.model or self._first][0].add(message["id"], sequence, deadline)
                except EngineOverloaded as error:
                    self._send(self._outcome_message(Outcome(message["id"], error)))
            self._changed.notify_all()

    def _compose(self, core: int) -> None:
        """Run the schedulers of one core in turn, for ever."""
        schedulers = [group[core] for group in self._groups.values()]
        try:
            while True:
                with self._changed:
                    while not any(scheduler.running or scheduler.waiting for scheduler in schedulers):
                        self._changed.wait()
                    outcomes = [outcome for scheduler in schedulers for outcome in scheduler.begin(time.monotonic())]
                for scheduler in schedulers:
                    started = time.monotonic()
                    outcomes += scheduler.compose()
                    now = time.monotonic()
                    self._seconds[core] += now - started
                    if scheduler.begun:
                        with self._changed:  # one that was cancelled meanwhile must not be remembered for ever
                            self._begun |= {id: now for id in scheduler.begun if id in self._taken}
                self._report(outcomes)
        except OSError:  # the service has gone; the thread that reads sees it too
            return
        except BaseException:
            # Half an engine would leave sequences without an answer; a new one composes them again.
            log.exception("a scheduler failed; ending the engine")
            os._exit(1)

    def _report(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self._send(self._outcome_message(outcome))
        with self._sending:  # whoever comes last has seen what all others did
            every = [scheduler for group in self._groups.values() for scheduler in group]
            chunks = sum(one.chunks for one in every)
            load = Load(
                running=sum(one.running for one in every),
                waiting=sum(group[0].waiting for group in self._groups.values()),
                chunks=chunks,
                steps=chunks * self._chunk,
                notes=sum(one.notes for one in every),
                rows=sum(one.rows for one in every),
                seconds=sum(self._seconds),
            )
            if load != self._load:
                self._load = load
                self._connection.send_bytes(pack({"kind": "load", **asdict(load)}))

    def _outcome_message(self, outcome: Outcome) -> Message:
        result, now = outcome.result, time.monotonic()
        taken, begun = self._taken.pop(outcome.id, now), self._begun.pop(outcome.id, now)
        if isinstance(result, Composition):
            started = now if outcome.started is None else outcome.started
            times = {"queue_s": started - taken, "compose_s": now - started, "first_s": begun - taken}
            return {"kind": "composition", "id": outcome.id, "tokens": result.tokens, "ended": result.ended, **times}
        names = {GenerationTimeout: "timeout", EngineOverloaded: "overloaded"}
        return {"kind": "error", "id": outcome.id, "error": names.get(type(result), "failed"), "detail": str(result)}

    def _send(self, message: Message) -> None:
        with self._sending:
            self._connection.send_bytes(pack(message))


def main() -> None:
    """Load the model, say that it is ready or why not, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("models", type=Path, nargs="+")
    for name in ("cores", "slots", "chunk", "max-waiting"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--provider", required=True)
    options = parser.parse_args()
    logging.config.dictConfig(LOGGING)
    # Ctrl-C in a terminal reaches the whole group; the service decides when we end, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)  # before any other thread, since each inherits it
    connection = Connection(options.fd)
    try:
        models = [load_model(path, options.provider, options.slots, options.chunk) for path in options.models]
    except ModelMismatch as error:
        connection.send_bytes(pack({"kind": "failed", "error": str(error)}))
        return
    connection.send_bytes(pack({"kind": "ready", "models": [asdict(model.info) for model in models]}))
    try:
        by_name = {model.info.name: model for model in models}
        Worker(connection, by_name, options.cores, options.slots, options.chunk, options.max_waiting).serve()
    except (EOFError, OSError):
        log.info("the service has gone; ending")
        os._exit(0)  # whatever the schedulers are doing


if __name__ == "__main__":
    main()
