"""Which devices there are to compute on, without onnxruntime."""

import ctypes


def runs_on_gpu(provider: str) -> bool:
    """Return whether a model runs on a GPU: asked for by "cuda", or there for "auto"."""
    return provider == "cuda" or (provider == "auto" and cuda_devices() > 0)


def cuda_devices() -> int:
    """Return how many CUDA devices the driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
