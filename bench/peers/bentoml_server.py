"""Our model behind BentoML with its adaptive batching: POST /generate. Run by `python -m bench.peers`, in its own environment.

    PEER_MODEL=MODEL.onnx PEER_WORKERS=2 PEER_ROWS_LEAVE=0 bentoml serve bench.peers.bentoml_server:Nocturne --port 8002

A batch is a list of requests, a client sends a list of one, and the answer is a list of one file in base64: what it batches must
be JSON. How long it waits for a batch to fill it learns by itself; only a latency that it must not exceed can be given.
"""

import base64
import os
from pathlib import Path
from typing import Any

import bentoml

from bench.peers.batch import MAX_BATCH, Composer

TIMEOUT_S = 120


@bentoml.service(workers=int(os.environ["PEER_WORKERS"]), traffic={"timeout": TIMEOUT_S})
class Nocturne:
    """A worker: takes a batch, composes all of it, answers."""

    def __init__(self) -> None:
        self._composer = Composer(Path(os.environ["PEER_MODEL"]), bool(int(os.environ["PEER_ROWS_LEAVE"])))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=TIMEOUT_S * 1000)  # type: ignore[untyped-decorator]
    def generate(self, requests: list[dict[str, Any]]) -> list[str]:
        """Compose a batch."""
        asked = [self._composer.read(fields) for fields in requests]
        pieces = zip(asked, self._composer.compose(asked), strict=True)
        return [base64.b64encode(self._composer.write(*piece)).decode() for piece in pieces]
