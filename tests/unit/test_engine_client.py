"""The client of the engine's process, with a process that behaves as a test wants."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from service.engine import process
from service.engine.process import Engine, EngineConfig
from service.engine.sampling import Sequence
from service.engine.wire import pack, unpack
from service.music.representation import FIELDS

CLIENT_TIMEOUT_S = 60  # of a test that would otherwise hang; no test asserts a time


class FakeProcess:
    """The other end of the socket: ready at once, reads only when it is told to."""

    pid = 1

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.client_end, self.connection = Connection(ours.detach()), Connection(theirs.detach())
        model = {"name": "fake", "metadata": {}, "provider": "cpu", "sha256": ""}
        self.connection.send_bytes(pack({"kind": "ready", "models": [model]}))

    def answer(self, count: int, length: int) -> None:
        """Answer `count` sequences with pieces of `length` tokens, each without waiting for the client to read."""
        for _ in range(count):
            message = unpack(self.connection.recv_bytes())
            tokens = np.ones((length, len(FIELDS)), np.int32)
            composition = {"kind": "composition", "id": message["id"], "tokens": tokens, "ended": False}
            composition |= {"queue_s": 0.0, "compose_s": 0.0, "first_s": 0.0}
            self.connection.send_bytes(pack(composition))

    def terminate(self) -> None:
        self.connection.close()

    def wait(self) -> int:
        return 0


@pytest.fixture
def fake(monkeypatch):
    fake = FakeProcess()
    monkeypatch.setattr(process, "_spawn", lambda config: (fake, fake.client_end))
    return fake


def test_submitting_never_waits_for_the_process_to_read(fake) -> None:
    engine = Engine(EngineConfig((Path("fake.onnx"),)))
    melody = np.ones((2000, len(FIELDS)), np.int32)  # 48 kB: a few of them fill a socket
    with ThreadPoolExecutor(1) as pool:
        futures = pool.submit(lambda: [engine.submit(Sequence(i, 10, melody)) for i in range(100)]).result(CLIENT_TIMEOUT_S)
        pool.submit(engine.cancel, futures.pop()).result(CLIENT_TIMEOUT_S)
    # Long answers while the requests are still on their way: both directions are full at once.
    worker = threading.Thread(target=fake.answer, args=(99, 4000), daemon=True)
    worker.start()
    for future in futures:
        assert len(future.result(CLIENT_TIMEOUT_S).tokens) == 4000
    worker.join(CLIENT_TIMEOUT_S)
    engine.close()
