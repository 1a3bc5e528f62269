"""Our model behind LitServe with its dynamic batching: POST /generate. Run by `python -m bench.peers`, in its own environment.

python -m bench.peers.litserve_server MODEL.onnx --port 8001 --workers 2 --batch-timeout-ms 20
"""

import argparse
from pathlib import Path
from typing import Any

import litserve
from starlette.responses import Response

from bench.peers.batch import MAX_BATCH, Composer
from service.engine.sampling import Composition
from service.web.requests import GenerateRequest

TIMEOUT_S = 120


class Nocturne(litserve.LitAPI):  # type: ignore[misc]
    """A worker: takes a batch, composes all of it, answers."""

    def __init__(self, model_path: Path, batch_timeout_ms: float, rows_leave: bool) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=batch_timeout_ms / 1000, api_path="/generate")
        self._model_path, self._rows_leave = model_path, rows_leave

    def setup(self, device: str) -> None:
        """Load the model, in the worker's process."""
        self._composer = Composer(self._model_path, self._rows_leave)

    def decode_request(self, request: dict[str, Any]) -> GenerateRequest:
        """Check a request."""
        return self._composer.read(request)

    def batch(self, inputs: list[GenerateRequest]) -> list[GenerateRequest]:
        """Leave the batch as it is."""
        return list(inputs)

    def predict(self, x: list[GenerateRequest]) -> list[tuple[GenerateRequest, Composition]]:
        """Compose a batch."""
        return list(zip(x, self._composer.compose(x), strict=True))

    def unbatch(self, output: list[tuple[GenerateRequest, Composition]]) -> list[tuple[GenerateRequest, Composition]]:
        """Leave the compositions as they are."""
        return output

    def encode_response(self, output: tuple[GenerateRequest, Composition]) -> Response:
        """Write a file."""
        return Response(self._composer.write(*output), media_type="audio/midi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch-timeout-ms", type=float, required=True)
    parser.add_argument("--rows-leave", action="store_true")
    options = parser.parse_args()
    api = Nocturne(options.model, options.batch_timeout_ms, options.rows_leave)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers, timeout=TIMEOUT_S)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
