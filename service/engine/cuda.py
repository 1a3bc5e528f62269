"""An exported model on a CUDA device: one constant batch, the states on the device, a chunk's work captured as one CUDA graph.

Kernels of a GPU may round by the number of rows, so there is only one number of rows: the slots, whether a sequence is in them or
not. The device's memory holds the states twice, and runs go from one copy to the other and back, since a run must not write what
it still reads. What does not fit CUDA graphs runs without them, and the log says why.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from service.engine.files import checked_hash
from service.engine.interface import Chunk, ModelInfo
from service.engine.model import STEPPED, TYPES, chunk_feeds, read_metadata
from service.errors import ModelMismatch
from service.music.representation import TokenArray

log = logging.getLogger(__name__)


class CudaModel:
    """An exported model in a session on a device.

    Parameters
    ----------
    path : Path
        The .onnx file, float32.
    slots : int
        Rows of the batch.
    chunk : int
        Steps of a run.
    device : str
        "cuda", or "cpu" to try the same way of running without one.

    Raises
    ------
    ModelMismatch
        If the file is broken, not one of ours or in int8, if the onnx package is missing, or if the device cannot be used.
    """

    def __init__(self, path: Path, slots: int, chunk: int, device: str = "cuda") -> None:
        import onnxruntime

        try:
            import onnx

            from service.engine.unroll import unroll
        except ImportError as error:
            raise ModelMismatch("CUDA needs the onnx package: pip install 'nocturne[cuda]'") from error
        sha256 = checked_hash(path)
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's and the system's exceptions share no base of their own
            raise ModelMismatch(f"{path} cannot be loaded as a model: {error}") from error
        metadata = read_metadata({entry.key: entry.value for entry in model.metadata_props}, path)
        if metadata.get("precision") == "int8":
            raise ModelMismatch(f"{path} is in int8, which runs on the CPU only; CUDA takes the float32 file")
        self._serialized = unroll(model, slots, chunk).SerializeToString()
        self._runtime, self._slots, self._device = onnxruntime, slots, device
        if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds the CUDA and cuDNN wheels
        self._session, self.captures = self._start()
        self.info = ModelInfo(path.stem, metadata, device, sha256)
        self.conditions: list[str] = [name for name in metadata["conditions"] if name != "metre"]

    def rows(self, slots: int) -> "CudaRows":
        """Return the batch; a session has one only, of as many slots as it was made for."""
        if slots != self._slots:
            raise ValueError(f"this session has {self._slots} slots, not {slots}")
        return CudaRows(self._runtime, self._session, self._slots, self._device, self.captures)

    def _start(self) -> tuple[Any, bool]:
        """Return a session, and whether it captures CUDA graphs."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        if self._device == "cpu":
            options.intra_op_num_threads = 1
            return self._runtime.InferenceSession(self._serialized, options, providers=["CPUExecutionProvider"]), False
        try:
            session, captures = self._open(options, captures=True), True
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            log.warning("no CUDA graph: %s", error)
            try:
                session, captures = self._open(options, captures=False), False
            except Exception as error:
                raise ModelMismatch(f"CUDA was asked for, but onnxruntime could not start it: {error}") from error
        if not session.get_providers()[0].startswith("CUDA"):
            raise ModelMismatch("CUDA was asked for, but onnxruntime could not start it: see its messages above")
        return session, captures

    def _open(self, options: Any, captures: bool) -> Any:
        # TF32 would cut the factors of products to ten bits.
        cuda = ("CUDAExecutionProvider", {"enable_cuda_graph": str(int(captures)), "use_tf32": "0"})
        return self._runtime.InferenceSession(self._serialized, options, providers=[cuda, "CPUExecutionProvider"])


class CudaRows:
    """The one batch of a `CudaModel`.

    A sequence's row and its place in the device's batch are two things: to move a row, its place moves along, and nothing else.
    """

    def __init__(self, runtime: Any, session: Any, slots: int, device: str, captures: bool) -> None:
        self._runtime, self._session, self._captures = runtime, session, captures
        self._places = list(range(slots))  # of the rows
        self._fresh = np.ones((slots, 1), np.bool_)
        self._positions = np.zeros((slots, 1), np.int32)
        self._runs = 0
        inputs = {i.name: i for i in session.get_inputs()}
        self._host = {name: np.zeros(i.shape, TYPES[i.type]) for name, i in inputs.items() if not name.startswith("state_")}
        self._host["metre"][..., 1] = 1  # an empty row, too, divides by the length of its bar
        self._inputs = {name: self._on_device(array, device) for name, array in self._host.items()}
        states = [name for name in inputs if name.startswith("state_")]
        copies = [
            {name: self._on_device(np.zeros(inputs[name].shape, TYPES[inputs[name].type]), device) for name in states}
            for _ in range(2)
        ]
        results = [output for output in session.get_outputs() if not output.name.startswith("next_")]
        self._results = {o.name: self._on_device(np.zeros(o.shape, TYPES[o.type]), device) for o in results}
        self._bindings = [self._bind(copies[i], copies[1 - i]) for i in range(2)]

    def start(self, row: int, position: int) -> None:
        """Let a row begin a piece."""
        place = self._places[row]
        self._fresh[place], self._positions[place] = True, position

    def move(self, source: int, target: int) -> None:
        """Let a row go on as another one."""
        self._places[source], self._places[target] = self._places[target], self._places[source]

    def compose(self, chunk: Chunk) -> TokenArray:
        """Compose K tokens for the rows of the chunk."""
        places = self._places[: len(chunk.forced)]
        for name, array in chunk_feeds(chunk).items():
            target = self._host[name]
            if name in STEPPED:
                target[:, places] = array
            else:
                target[places] = array
        self._host["fresh"][:], self._host["positions"][:] = self._fresh, self._positions
        for name, array in self._host.items():
            self._inputs[name].update_inplace(array)
        options = self._runtime.RunOptions()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(1 + self._runs % 2))
        self._session.run_with_iobinding(self._bindings[self._runs % 2], options)
        self._runs += 1
        self._fresh[places] = False
        tokens: TokenArray = self._results["tokens"].numpy().transpose(1, 0, 2)
        return tokens[places]

    def _on_device(self, array: np.ndarray[Any, Any], device: str) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array, device, 0)

    def _bind(self, before: dict[str, Any], after: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in (self._inputs | before).items():
            binding.bind_ortvalue_input(name, value)
        for name, value in after.items():
            binding.bind_ortvalue_output(name.replace("state_", "next_", 1), value)
        for name, value in self._results.items():
            binding.bind_ortvalue_output(name, value)
        return binding
