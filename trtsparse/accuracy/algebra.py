"""Where the linear algebra runs: numpy on the CPU, or PyTorch on a GPU. The few functions used have one name in both.

Everything is float64: sums of squares over many samples, and inverses of badly conditioned matrices, need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError

__all__ = ["NUMPY", "Algebra", "open_algebra"]


@dataclass(frozen=True)
class Algebra:
    """An array library and a place for its arrays.

    Attributes:
        xp: ``numpy`` or ``torch``.
        device: PyTorch's name of the place; "" for numpy.
    """

    xp: Any = np
    device: str = ""

    def put(self, values: np.ndarray) -> Any:
        """Copy an array to the place, as float64."""
        values = np.ascontiguousarray(values, np.float64)
        return self.xp.from_numpy(values).to(self.device) if self.device else values

    def zeros(self, *shape: int) -> Any:
        """An array of float64 zeros in the place."""
        return self.put(np.zeros(shape))

    def get(self, values: Any) -> np.ndarray:
        """Copy an array back."""
        return np.asarray(values.cpu()) if self.device else np.asarray(values)


NUMPY = Algebra()


def open_algebra(device: str) -> Algebra:
    """Open a place by name: "cpu", "cuda", "cuda:1", or "torch-cpu" (PyTorch without a GPU, for tests).

    Raises:
        ConfigError: There is no such name.
        MissingDependencyError: PyTorch is not installed.
        DeviceError: PyTorch sees no such GPU.

    Example:
        >>> open_algebra("cpu").zeros(2).tolist()
        [0.0, 0.0]
    """
    if device == "cpu":
        return NUMPY
    kind, _, number = device.partition(":")
    if device != "torch-cpu" and (kind != "cuda" or not (number.isdecimal() or ":" not in device)):
        raise ConfigError("no such device", where="device", got=repr(device), expected="'cpu', 'cuda', 'cuda:1', ...")
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("calibrating on a GPU needs PyTorch", extra="torch") from error
    if device == "torch-cpu":
        return Algebra(torch, "cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise DeviceError(
            "there is no such GPU", where=f"device={device!r}", got=f"PyTorch sees {count}", fix="use device='cpu'"
        )
    return Algebra(torch, device)
