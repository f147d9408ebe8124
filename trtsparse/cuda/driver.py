"""The NVIDIA driver, asked without any CUDA binding installed."""

from __future__ import annotations

import ctypes
import os

__all__ = ["count_gpus"]


def count_gpus() -> int:
    """How many GPUs CUDA can use here; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0
