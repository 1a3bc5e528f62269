"""The program of the engine's process: a scheduler, a model, and a socket to the service.

Started by `service.engine.process`, never by hand. Ends when the service closes the socket, so that no engine outlives it.
"""

import argparse
import logging
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from service.engine.model import OnnxModel
from service.engine.process import read_sequence
from service.engine.sampling import Composition
from service.engine.scheduler import Outcome, Scheduler
from service.engine.wire import Message, pack, unpack
from service.errors import EngineOverloaded, GenerationTimeout, ModelMismatch

log = logging.getLogger(__name__)


def serve(connection: Connection, model: OnnxModel, slots: int, chunk: int, max_waiting: int) -> None:
    """Take sequences and give compositions until the other side closes the connection."""
    # The client counts what is out; the queue here holds all of it, so that nothing sent again after a restart is refused.
    scheduler = Scheduler(model, slots, chunk, slots + max_waiting)
    while True:
        idle = not scheduler.running and not scheduler.waiting
        while connection.poll(None if idle else 0):
            _take(scheduler, unpack(connection.recv_bytes()), connection)
            idle = False
        for outcome in scheduler.step(time.monotonic()):
            connection.send_bytes(pack(_outcome_message(outcome)))


def _take(scheduler: Scheduler, message: Message, connection: Connection) -> None:
    if message["kind"] == "cancel":
        scheduler.cancel(message["id"])
        return
    left = message["left_s"]
    deadline = float("inf") if left is None else time.monotonic() + left
    try:
        scheduler.add(message["id"], read_sequence(message), deadline)
    except EngineOverloaded as error:
        connection.send_bytes(pack(_outcome_message(Outcome(message["id"], error))))


def _outcome_message(outcome: Outcome) -> Message:
    result = outcome.result
    if isinstance(result, Composition):
        return {"kind": "composition", "id": outcome.id, "tokens": result.tokens, "ended": result.ended}
    names = {GenerationTimeout: "timeout", EngineOverloaded: "overloaded"}
    return {"kind": "error", "id": outcome.id, "error": names.get(type(result), "failed"), "detail": str(result)}


def main() -> None:
    """Load the model, say that it is ready or why not, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    parser.add_argument("--max-waiting", type=int, required=True)
    parser.add_argument("--provider", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    # Ctrl-C in a terminal reaches the whole group; the service decides when we end, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(options.fd)
    try:
        model = OnnxModel(options.model_path, options.provider)
    except ModelMismatch as error:
        connection.send_bytes(pack({"kind": "failed", "error": str(error)}))
        return
    info = model.info
    connection.send_bytes(pack({"kind": "ready", "name": info.name, "metadata": dict(info.metadata), "provider": info.provider}))
    try:
        serve(connection, model, options.slots, options.chunk, options.max_waiting)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.info("the service has gone; ending")


if __name__ == "__main__":
    main()
