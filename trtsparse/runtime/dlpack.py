"""DLPack capsules through ctypes: https://dmlc.github.io/dlpack/latest (read of any version, made without one)."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.errors import DtypeError, FeedError

__all__ = ["CUDA", "CUDA_MANAGED", "Tensor", "device_of", "export", "make_capsule", "on_host", "read_capsule"]

CPU, CUDA, CUDA_HOST, ROCM_HOST, CUDA_MANAGED = 1, 2, 3, 11, 13
_ON_HOST = (CPU, CUDA_HOST, ROCM_HOST, CUDA_MANAGED)
_NAME, _USED = b"dltensor", b"used_dltensor"
_VERSIONED_NAME, _VERSIONED_USED = b"dltensor_versioned", b"used_dltensor_versioned"
_NEWEST = (1, 0)
_READ_ONLY, _COPIED = 1, 2  # flags of a versioned tensor
_REFUSALS = (BufferError, RuntimeError, TypeError, ValueError)
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


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


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


class _Memory:
    """Memory as numpy sees it, by ``__array_interface__``; an array over it keeps its owner alive."""

    def __init__(
        self, owner: object, address: int, shape: tuple[int, ...], *, typestr: str, read_only: bool,
        strides: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self._owner = owner
        self.__array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, read_only), "strides": strides, "version": 3
        }  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """What a capsule describes. Alive as long as ``owner``.

    Attributes:
        address: Of the first element.
        shape: The array's.
        strides: In elements; None where contiguous.
        dtype: The array's, in numpy's words.
        device: DLPack's (device type, number).
        owner: Keeps the memory alive.
        writable: What is written to the memory is in the producer's array.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: object
    writable: bool = True


class _Taken:
    """A tensor taken from a capsule; calls the producer's deleter in the end."""

    def __init__(self, managed: _Managed | _Versioned) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.addressof(self._managed))


def read_capsule(capsule: Any) -> Tensor:
    """Take the tensor out of a "dltensor" or "dltensor_versioned" capsule, which can be done once.

    Raises:
        DtypeError: Not such a capsule, or of a type that numpy does not have.
    """
    managed: _Managed | _Versioned
    if _is_valid(capsule, _NAME):
        managed = _Managed.from_address(_pointer(capsule, _NAME))
        _set_name(capsule, _USED)
    elif _is_valid(capsule, _VERSIONED_NAME):
        managed = _Versioned.from_address(_pointer(capsule, _VERSIONED_NAME))
        _set_name(capsule, _VERSIONED_USED)
    else:
        raise DtypeError("not a DLPack capsule that can be read", got=repr(capsule), expected="a fresh 'dltensor'")
    owner = _Taken(managed)
    flags = 0
    if isinstance(managed, _Versioned):
        if managed.major > _NEWEST[0]:
            raise DtypeError(
                "a DLPack capsule is too new", got=f"version {managed.major}.{managed.minor}", expected="1"
            )
        flags = managed.flags
    tensor = managed.tensor
    rank = tensor.ndim
    return Tensor(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[:rank]),
        strides=tuple(tensor.strides[:rank]) if tensor.strides else None,
        dtype=_numpy_type(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes),
        device=(tensor.device.type, tensor.device.id),
        owner=owner,
        writable=not flags & (_READ_ONLY | _COPIED),
    )


def device_of(value: Any) -> tuple[int, int]:
    """Where an array of another library is: DLPack's (device type, number).

    Raises:
        FeedError: The library does not say; the message is its own.
    """
    try:
        kind, number = value.__dlpack_device__()
    except _REFUSALS as error:
        raise _not_exported(value, error) from error
    return int(kind), int(number)


def export(value: Any, **options: Any) -> Tensor:
    """Have another library export its array.

    Args:
        value: With ``__dlpack__``.
        **options: Of ``__dlpack__``, such as the stream that will read.

    Raises:
        FeedError: The library does not export it; the message is its own.
        DtypeError: It is of a type that numpy does not have.
    """
    try:
        try:
            capsule = value.__dlpack__(max_version=_NEWEST, **options)
        except TypeError:  # the library is older than versions
            capsule = value.__dlpack__(**options)
    except _REFUSALS as error:
        raise _not_exported(value, error) from error
    return read_capsule(capsule)


def on_host(value: Any) -> np.ndarray:
    """See an array that another library has in host memory, also of a type that `numpy.from_dlpack` does not read.

    Raises:
        FeedError: It is elsewhere, or not exported.
        DtypeError: It is of a type that numpy does not have.
    """
    kind, number = device_of(value)
    if kind not in _ON_HOST:
        raise FeedError(
            "an array is not in host memory",
            got=f"{type(value).__name__} on DLPack's device ({kind}, {number})",
            fix="copy it there before",
        )
    tensor = export(value)
    nbytes = tensor.dtype.itemsize
    strides = None if tensor.strides is None else tuple(stride * nbytes for stride in tensor.strides)
    memory = _Memory(
        tensor.owner, tensor.address or 1, tensor.shape, typestr=f"|V{nbytes}", read_only=True, strides=strides
    )
    return np.asarray(memory).view(tensor.dtype)


def _not_exported(value: Any, error: Exception) -> FeedError:
    return FeedError("an array is not exported by its library", got=f"{type(value).__name__}: {error}")


def _dlpack_type(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.name in _NAMED:
        return _NAMED[dtype.name]
    if dtype.kind not in _KINDS:
        raise DtypeError("DLPack has no such data type", got=str(dtype))
    return _KINDS[dtype.kind], dtype.itemsize * 8


@functools.cache
def _numpy_type(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    import ml_dtypes

    for name, known in _NAMED.items():
        if (code, bits) == known:
            named: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
            return named
    letters = {code: letter for letter, code in _KINDS.items()}
    if code not in letters or lanes != 1:
        raise DtypeError("numpy has no such data type", got=f"DLPack type {code}, {bits} bits")
    return np.dtype("?") if code == _KINDS["b"] else np.dtype(f"{letters[code]}{bits // 8}")
