"""An exported model: load it, check that it is one this program can run, and compose chunks of tokens with it.

This module and `service.engine.cuda` are the only ones that know onnxruntime. They know nothing of requests, queues or HTTP.
Shape letters: B rows, K steps, F fields in `NoteToken` order, V vocabulary of a field, C conditions.
"""

import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.files import checked_hash
from service.engine.interface import Chunk, ModelInfo, State
from service.engine.rows import HostRows
from service.errors import ModelMismatch
from service.music.piece import RESOLUTION
from service.music.representation import FIELDS, REPRESENTATION_VERSION, VOCABULARY, TokenArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: 1.29 and later report home by default
import onnxruntime

METADATA_KEY = "nocturne"  # the one entry of the file's metadata: JSON
STEPPED = ("forced", "uniforms", "metre")  # inputs with a part for each step
TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}


class OnnxModel:
    """An exported model in an onnxruntime session on the CPU.

    Parameters
    ----------
    path : Path
        The .onnx file.
    threads : int
        Threads within one operator. One is best for a model this small; more only add waiting.

    Raises
    ------
    ModelMismatch
        If the file is missing, broken or not the one that was exported, was not made by `training export`, or is of another
        representation.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        sha256 = checked_hash(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its one lock is taken for every tensor of every node: two threads at a time were slower than one.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise ModelMismatch(f"{path} cannot be loaded as a model: {error}") from error
        metadata = read_metadata(self._session.get_modelmeta().custom_metadata_map, path)
        self.info = ModelInfo(path.stem, metadata, "cpu", sha256)
        self.conditions: list[str] = [name for name in self.info.metadata["conditions"] if name != "metre"]
        self._state_inputs = {i.name: i for i in self._session.get_inputs() if i.name.startswith("state_")}
        self._outputs = [output.name for output in self._session.get_outputs()]

    def rows(self, slots: int) -> HostRows:
        """Return a batch with room for so many sequences."""
        return HostRows(self, slots)

    def initial_state(self, positions: NDArray[np.int32]) -> State:
        """Return the state before the first token.

        Parameters
        ----------
        positions : int array, shape (B,)
            Where in its bar tick 0 of each row lies.
        """
        rows = len(positions)
        state: State = {name: np.zeros((rows, *i.shape[1:]), TYPES[i.type]) for name, i in self._state_inputs.items()}
        state["state_position"][:, 0] = positions
        return state

    def run(self, chunk: Chunk, state: State) -> tuple[TokenArray, NDArray[np.float32]]:
        """Compose K tokens for every row.

        Parameters
        ----------
        chunk : Chunk
        state : State
            From `initial_state`, or rows 0 to B - 1 of it. Afterwards it is the state after the last token.

        Returns
        -------
        tokens : int32 array, shape (B, K, F)
        probabilities : float32 array, shape (B, K, F)
            Of each value taken, after temperature and bias, before min-p.
        """
        if len(chunk.forced) == 1:
            # One row takes other kernels (a product with a vector), which round differently from those of two and more.
            both = {name: np.repeat(array, 2, axis=0) for name, array in state.items()}
            tokens, probabilities = self.run(chunk.twice(), both)
            for name, array in state.items():
                array[:] = both[name][:1]
            return tokens[:1], probabilities[:1]
        feeds = chunk_feeds(chunk) | state
        results = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        for name, array in state.items():
            new = results.get(name.replace("state_", "new_", 1))
            if new is None:
                array[:] = results[name.replace("state_", "next_", 1)]
            else:
                _put_before(array, new)
        return results["tokens"].transpose(1, 0, 2), results["probabilities"].transpose(1, 0, 2)


def chunk_feeds(chunk: Chunk) -> dict[str, NDArray[Any]]:
    """Return the inputs of the graph, but for the state, by its names; what differs from step to step has the steps first."""
    by_step = {name: np.ascontiguousarray(getattr(chunk, name).transpose(1, 0, 2)) for name in STEPPED}
    by_row = {name: value for name, value in vars(chunk).items() if name not in (*STEPPED, "biases")}
    return by_step | by_row | {f"bias_{name}": bias for name, bias in chunk.biases.items()}


def _put_before(memory: NDArray[Any], new: NDArray[Any]) -> None:
    """Move a memory (..., M), contiguous, by what is new (..., K), and write that at its beginning, all in place."""
    slots, steps = memory.shape[-1], new.shape[-1]
    if steps < slots:
        # As if the rows were one: what runs over from each row into the next one is overwritten by what is new there.
        # numpy would make a copy first, since the two overlap; that would be most of the time.
        size = memory.itemsize
        ctypes.memmove(memory.ctypes.data + steps * size, memory.ctypes.data, (memory.size - steps) * size)
    memory[..., :steps] = new[..., :slots]


def read_metadata(entries: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what `training export` wrote into a file.

    Raises
    ------
    ModelMismatch
        If it did not write this file, or for another representation.
    """
    text = entries.get(METADATA_KEY)
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
