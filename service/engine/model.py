"""An exported model: load it, check that it is one this program can run, and compose chunks of tokens with it.

The only module that knows onnxruntime. It knows nothing of requests, queues or HTTP.
Shape letters: B rows, K steps, F fields in `NoteToken` order, V vocabulary of a field, C conditions.
"""

import ctypes
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Chunk, ModelInfo, State
from service.errors import ModelMismatch
from service.music.piece import RESOLUTION
from service.music.representation import FIELDS, REPRESENTATION_VERSION, VOCABULARY, TokenArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: 1.29 and later report home by default
import onnxruntime

log = logging.getLogger(__name__)

METADATA_KEY = "nocturne"  # the one entry of the file's metadata: JSON
PROVIDERS = ("auto", "cpu", "cuda")
_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


class OnnxModel:
    """An exported model in an onnxruntime session.

    Parameters
    ----------
    path : Path
        The .onnx file.
    provider : str
        "cpu", "cuda", or "auto": CUDA where a device is found, else the CPU.
    threads : int
        Threads within one operator. One is best for a model this small; more only add waiting.

    Raises
    ------
    ModelMismatch
        If the file is missing or broken, was not made by `training export`, or is of another representation; or if CUDA was
        asked for and is not there.
    """

    def __init__(self, path: Path, provider: str = "auto", threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        chosen = _choose_provider(provider)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise ModelMismatch(f"{path} cannot be loaded as a model: {error}") from error
        active = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"
        if provider == "cuda" and active != "cuda":
            raise ModelMismatch("CUDA was asked for, but onnxruntime could not start it: see its messages above")
        self.info = ModelInfo(path.stem, _read_metadata(self._session, path), active)
        self.conditions: list[str] = [name for name in self.info.metadata["conditions"] if name != "metre"]
        self._state_inputs = {i.name: i for i in self._session.get_inputs() if i.name.startswith("state_")}
        self._outputs = [output.name for output in self._session.get_outputs()]

    def initial_state(self, positions: NDArray[np.int32]) -> State:
        """Return the state before the first token.

        Parameters
        ----------
        positions : int array, shape (B,)
            Where in its bar tick 0 of each row lies.
        """
        rows = len(positions)
        state: State = {name: np.zeros((rows, *i.shape[1:]), _TYPES[i.type]) for name, i in self._state_inputs.items()}
        state["state_position"][:, 0] = positions
        return state

    def run(self, chunk: Chunk, state: State) -> tuple[TokenArray, State, NDArray[np.float32]]:
        """Compose K tokens for every row.

        Parameters
        ----------
        chunk : Chunk
        state : State
            From `initial_state` or an earlier run. Not modified.

        Returns
        -------
        tokens : int32 array, shape (B, K, F)
        state : State
            After the last of them.
        probabilities : float32 array, shape (B, K, F)
            Of each value taken, after temperature and bias, before min-p.
        """
        if len(chunk.forced) == 1:
            # One row takes other kernels (a product with a vector), which round differently from those of two and more.
            tokens, after, probabilities = self.run(chunk.twice(), {name: np.repeat(a, 2, axis=0) for name, a in state.items()})
            return tokens[:1], {name: array[:1] for name, array in after.items()}, probabilities[:1]
        feeds = {
            "forced": _steps_first(chunk.forced),
            "uniforms": _steps_first(chunk.uniforms),
            "metre": _steps_first(chunk.metre),
            "inverse_temperature": chunk.inverse_temperature,
            "min_p": chunk.min_p,
            "conditions": chunk.conditions,
            "left": chunk.left,
            "copying": chunk.copying,
            "lag_bias": chunk.lag_bias,
            "rules": chunk.rules,
            **{f"bias_{name}": bias for name, bias in chunk.biases.items()},
        }
        results = dict(zip(self._outputs, self._session.run(self._outputs, feeds | state), strict=True))
        after = {name: results[name.replace("state_", "next_", 1)] for name in state}
        return results["tokens"].transpose(1, 0, 2), after, results["probabilities"].transpose(1, 0, 2)


def _steps_first(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(1, 0, 2))


def _choose_provider(provider: str) -> list[str]:
    if provider == "cpu" or (provider == "auto" and cuda_devices() == 0):
        return ["CPUExecutionProvider"]
    if cuda_devices() == 0:
        raise ModelMismatch("CUDA was asked for, but this machine has no CUDA device or driver")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA and cuDNN wheels
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def cuda_devices() -> int:
    """Return how many CUDA devices the driver sees; 0 without a driver.

    Asked of the driver itself: onnxruntime, asked for CUDA where there is none, quietly runs on the CPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _read_metadata(session: Any, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelMismatch(f"{path} is not a Nocturne model: its metadata has no entry {METADATA_KEY!r}")
    metadata: dict[str, Any] = json.loads(text)
    expected = {
        "representation_version": REPRESENTATION_VERSION,
        "resolution": RESOLUTION,
        "fields": list(FIELDS),
        "vocabulary": VOCABULARY._asdict(),
    }
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise ModelMismatch(f"{path} does not fit: its {name} is {metadata.get(name)}, this program's is {value}")
    return metadata
