"""DLPack capsules through ctypes: https://dmlc.github.io/dlpack/latest (the layout without a version field)."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.errors import DtypeError

__all__ = ["CUDA", "Tensor", "make_capsule", "read_capsule"]

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_NAME, _USED = b"dltensor", b"used_dltensor"
_KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_NAMED = {"bfloat16": (4, 16), "float8_e4m3fn": (10, 8), "float8_e5m2": (12, 8)}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


_api = ctypes.pythonapi
_CapsuleDestructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _CapsuleDestructor)(
    ("PyCapsule_New", _api)
)
# the destructor sees a capsule without references: as a py_object it would be revived and destroyed again
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))

_exported: dict[int, tuple[Any, ...]] = {}
"""Address of a managed tensor to what it needs, until its consumer calls the deleter."""


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _forget_unused(capsule: int) -> None:
    if _dying_is_valid(capsule, _NAME):
        _exported.pop(_dying_pointer(capsule, _NAME), None)


_delete = _Deleter(_forget)
_destroy_unused = _CapsuleDestructor(_forget_unused)


def make_capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, device: tuple[int, int], owner: object
) -> Any:
    """A "dltensor" capsule.

    Args:
        address: Of the first element; the array is contiguous.
        shape: The array's.
        dtype: The array's.
        device: DLPack's (device type, number).
        owner: Kept alive until the consumer is done.

    Raises:
        DtypeError: DLPack has no such type.
    """
    code, bits = _dlpack_type(dtype)
    rank = len(shape)
    sizes = (ctypes.c_int64 * max(rank, 1))(*shape)
    strides = (ctypes.c_int64 * max(rank, 1))(*(math.prod(shape[i + 1 :]) for i in range(rank)))
    managed = _Managed()
    managed.tensor.data = address or None
    managed.tensor.device = _Device(*device)
    managed.tensor.ndim = rank
    managed.tensor.dtype = _DType(code, bits, 1)
    managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _delete
    at = ctypes.addressof(managed)
    _exported[at] = (managed, sizes, strides, owner)
    return _capsule_new(at, _NAME, _destroy_unused)


@dataclass(frozen=True)
class Tensor:
    """What a capsule describes; ``strides`` are in elements, None where contiguous. Alive as long as ``owner``."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: object


class _Taken:
    """A tensor taken from a capsule; calls the producer's deleter in the end."""

    def __init__(self, managed: _Managed) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.addressof(self._managed))


def read_capsule(capsule: Any) -> Tensor:
    """Take the tensor out of a "dltensor" capsule, which can be done once.

    Raises:
        DtypeError: Not such a capsule, or of a type that numpy does not have.
    """
    if not _is_valid(capsule, _NAME):
        raise DtypeError("not a DLPack capsule that can be read", got=repr(capsule), expected="a fresh 'dltensor'")
    managed = _Managed.from_address(_pointer(capsule, _NAME))
    _set_name(capsule, _USED)
    owner = _Taken(managed)
    tensor = managed.tensor
    rank = tensor.ndim
    return Tensor(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[i] for i in range(rank)),
        strides=tuple(tensor.strides[i] for i in range(rank)) if tensor.strides else None,
        dtype=_numpy_type(tensor.dtype),
        device=(tensor.device.type, tensor.device.id),
        owner=owner,
    )


def _dlpack_type(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.name in _NAMED:
        return _NAMED[dtype.name]
    if dtype.kind not in _KINDS:
        raise DtypeError("DLPack has no such data type", got=str(dtype))
    return _KINDS[dtype.kind], dtype.itemsize * 8


def _numpy_type(kind: _DType) -> np.dtype[Any]:
    import ml_dtypes

    for name, (code, bits) in _NAMED.items():
        if (kind.code, kind.bits) == (code, bits):
            named: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
            return named
    letters = {code: letter for letter, code in _KINDS.items()}
    if kind.code not in letters or kind.lanes != 1:
        raise DtypeError("numpy has no such data type", got=f"DLPack type {kind.code}, {kind.bits} bits")
    return np.dtype("?") if kind.code == _KINDS["b"] else np.dtype(f"{letters[kind.code]}{kind.bits // 8}")
