"""A model on the device that was asked for."""

from pathlib import Path

from service.engine.cuda import CudaModel
from service.engine.devices import cuda_devices, runs_on_gpu
from service.engine.model import OnnxModel
from service.errors import ModelMismatch


def load_model(path: Path, provider: str, slots: int, chunk: int) -> OnnxModel | CudaModel:
    """Return a model that can run.

    Parameters
    ----------
    path : Path
        The .onnx file.
    provider : str
        "cpu", "cuda", or "auto": CUDA where a device is found, else the CPU.
    slots, chunk : int
        Rows of its batch and steps of a run; on a device they are fixed.

    Raises
    ------
    ModelMismatch
        If the model cannot run, or if CUDA was asked for and is not there.
    """
    if not runs_on_gpu(provider):
        return OnnxModel(path)
    # Asked of the driver itself: onnxruntime, asked for CUDA where there is none, quietly runs on the CPU.
    if cuda_devices() == 0:
        raise ModelMismatch("CUDA was asked for, but this machine has no CUDA device or driver")
    return CudaModel(path, slots, chunk)
