"""Dims, Weights and host memory."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

from tests.doubles.classes import Field, Native

NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "BOOL": np.bool_, "UINT8": np.uint8,
}  # fmt: skip
"""Data types that `nptype` knows."""
STORED = NUMPY | {"BF16": ml_dtypes.bfloat16, "FP8": ml_dtypes.float8_e4m3fn}
"""Data types whose elements this double can read from memory."""


class Dims:
    """At most eight sizes, comparable with tuples and lists, not with other Dims."""

    MAX_DIMS = 8

    def _init(self: Any, shape: Any = ()) -> None:
        if len(shape) > Dims.MAX_DIMS:
            raise ValueError(f"Input length {len(shape)}. Max expected length is {Dims.MAX_DIMS}")
        self._.sizes = list(shape)

    def __len__(self: Any) -> int:
        return len(self._.sizes)

    def __getitem__(self: Any, key: int | slice) -> Any:
        if isinstance(key, slice):
            return tuple(self._.sizes[key])
        if not -len(self._.sizes) <= key < len(self._.sizes):
            raise IndexError("Out of bounds")
        return self._.sizes[key]

    def __setitem__(self: Any, key: int, value: int) -> None:
        self._.sizes[key] = value

    def __eq__(self: Any, other: object) -> bool:
        if not isinstance(other, (tuple, list)):
            raise TypeError("__eq__(): incompatible function arguments: a tuple or a list is compared")
        return tuple(self._.sizes) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self: Any) -> str:
        return str(tuple(self._.sizes))

    __str__ = __repr__


class Weights:
    """A typed view of host memory."""

    def _init(self: Any, first: Any = None, ptr: int = 0, count: int = 0) -> None:
        if isinstance(first, np.ndarray):
            name = next((key for key, kind in STORED.items() if first.dtype == kind), None)
            if name is None:
                raise TypeError(f"Could not implicitly convert NumPy data type: {first.dtype} to TensorRT.")
            self._.array, self._.kind = first, self._lib.enum("DataType", name)
        else:
            kind = np.dtype(STORED[first.name])
            buffer = (ctypes.c_char * (count * kind.itemsize)).from_address(ptr) if ptr else b""
            self._.array, self._.kind = np.frombuffer(buffer, kind), first

    dtype = property(lambda self: self._.kind)
    size = property(lambda self: int(self._.array.size))
    nbytes = property(lambda self: int(self._.array.nbytes))

    def numpy(self: Any) -> np.ndarray:
        return self._.array

    def __len__(self: Any) -> int:
        return int(self._.array.size)


class HostMemory(Native, bytearray):
    """Base of IHostMemory: a buffer and nothing else, on every Python."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("dtype", "nbytes"):
            raise AttributeError(
                f"'{type(self).__module__}.{type(self).__qualname__}' object has no attribute '{name}'"
            )
        return object.__getattribute__(self, name)

    def __bool__(self) -> bool:
        return True

    __len__ = None  # type: ignore[assignment]
    __getitem__ = None  # type: ignore[assignment]
    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __repr__ = object.__repr__


class IHostMemory:
    """Bytes that the library owns."""

    dtype = Field("DataType", "INT8", readonly=True)
    nbytes = property(lambda self: memoryview(self).nbytes)
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731


def host_memory(lib: Any, data: bytes) -> Any:
    """An IHostMemory with these bytes."""
    memory = lib.new("IHostMemory")
    bytearray.extend(memory, data)
    return memory
