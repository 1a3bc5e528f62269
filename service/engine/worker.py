"""The program of the engine's process: schedulers, one thread each, a model that they share, and a socket to the service.

Started by `service.engine.process`, never by hand. Ends when the service closes the socket, so that no engine outlives it.
"""

import argparse
import logging
import os
import signal
import threading
import time
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

log = logging.getLogger(__name__)


class Worker:
    """Takes sequences and gives compositions until the other side closes the connection.

    Parameters
    ----------
    connection : Connection
    model : ChunkModel
        Used by all threads at once.
    cores : int
        Schedulers, one thread each.
    slots : int
        Sequences side by side in each of them.
    chunk : int
        Tokens of each between two looks at the queue.
    max_waiting : int
        Sequences that wait at most.
    """

    def __init__(self, connection: Connection, model: ChunkModel, cores: int, slots: int, chunk: int, max_waiting: int) -> None:
        self._connection = connection
        # The client counts what is out; the queue here holds all of it, so that nothing sent again after a restart is refused.
        self._schedulers = Scheduler.group(model, slots, chunk, cores * slots + max_waiting, cores)
        self._changed = threading.Condition()  # guards the schedulers, but for what each composes
        self._sending = threading.Lock()
        self._load = Load()
        self._taken: dict[int, float] = {}  # when each sequence came

    def serve(self) -> None:
        """Read messages; compose in threads of its own.

        Raises
        ------
        EOFError, OSError
            When the other side has closed the connection.
        """
        for i, scheduler in enumerate(self._schedulers):
            threading.Thread(target=self._compose, args=(scheduler,), name=f"scheduler-{i}", daemon=True).start()
        while True:
            self._take(unpack(self._connection.recv_bytes()))

    def _take(self, message: Message) -> None:
        with self._changed:
            if message["kind"] == "cancel":
                self._schedulers[0].cancel(message["id"])
                self._taken.pop(message["id"], None)
            else:
                self._taken[message["id"]] = time.monotonic()
                left = message["left_s"]
                deadline = float("inf") if left is None else time.monotonic() + left
                try:
                    self._schedulers[0].add(message["id"], read_sequence(message), deadline)
                except EngineOverloaded as error:
                    self._send(self._outcome_message(Outcome(message["id"], error)))
            self._changed.notify_all()

    def _compose(self, scheduler: Scheduler) -> None:
        """Run one scheduler, for ever."""
        try:
            while True:
                with self._changed:
                    while not scheduler.running and not scheduler.waiting:
                        self._changed.wait()
                    outcomes = scheduler.begin(time.monotonic())
                self._report(outcomes + scheduler.compose(), scheduler)
        except OSError:  # the service has gone; the thread that reads sees it too
            return
        except BaseException:
            # Half an engine would leave sequences without an answer; a new one composes them again.
            log.exception("a scheduler failed; ending the engine")
            os._exit(1)

    def _report(self, outcomes: list[Outcome], scheduler: Scheduler) -> None:
        for outcome in outcomes:
            self._send(self._outcome_message(outcome))
        with self._sending:  # whoever comes last has seen what all others did
            load = Load(
                running=sum(one.running for one in self._schedulers),
                waiting=scheduler.waiting,
                chunks=sum(one.chunks for one in self._schedulers),
                notes=sum(one.notes for one in self._schedulers),
            )
            if load != self._load:
                self._load = load
                self._connection.send_bytes(pack({"kind": "load", **asdict(load)}))

    def _outcome_message(self, outcome: Outcome) -> Message:
        result, now = outcome.result, time.monotonic()
        taken = self._taken.pop(outcome.id, now)
        if isinstance(result, Composition):
            started = now if outcome.started is None else outcome.started
            times = {"queue_s": started - taken, "compose_s": now - started}
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
    parser.add_argument("--model-path", type=Path, required=True)
    for name in ("cores", "slots", "chunk", "max-waiting"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--provider", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    # Ctrl-C in a terminal reaches the whole group; the service decides when we end, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(options.fd)
    try:
        model = load_model(options.model_path, options.provider, options.slots, options.chunk)
    except ModelMismatch as error:
        connection.send_bytes(pack({"kind": "failed", "error": str(error)}))
        return
    info = model.info
    connection.send_bytes(pack({"kind": "ready", "name": info.name, "metadata": dict(info.metadata), "provider": info.provider}))
    try:
        Worker(connection, model, options.cores, options.slots, options.chunk, options.max_waiting).serve()
    except (EOFError, OSError):
        log.info("the service has gone; ending")
        os._exit(0)  # whatever the schedulers are doing


if __name__ == "__main__":
    main()
