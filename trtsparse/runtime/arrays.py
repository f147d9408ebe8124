"""Arrays on the device: those that a session returns, and those of other libraries that it is given."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trtsparse.cuda.base import Cuda, current
from trtsparse.errors import ConfigError, DtypeError, FeedError
from trtsparse.runtime import dlpack
from trtsparse.runtime.memory import Block

__all__ = ["ALIGNMENT", "DeviceArray", "Foreign", "array_on_host", "foreign_array", "is_fitting", "unfit_reason"]

ALIGNMENT = 256
_LEGACY_STREAM = 1  # how DLPack and __cuda_array_interface__ write CUDA's legacy default stream


class DeviceArray:
    """A contiguous array in device memory, which it owns. Made by a session; outlives it.

    Other libraries read it in place: ``torch.from_dlpack(array)``, ``cupy.asarray(array)``. Dropping it gives its
    memory back to the session.

    Args:
        block: The memory.
        shape: The array's.
        dtype: The array's.
        cuda: The device.
        stream: The stream in which the array is still being written; None: it is complete.
    """

    __slots__ = ("__weakref__", "_block", "_cuda", "dtype", "shape", "stream")

    def __init__(
        self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any], *, cuda: Cuda, stream: int | None = None
    ) -> None:
        self._block = block
        self._cuda = cuda
        self.shape = shape
        self.dtype = dtype
        self.stream = stream
        block.shared |= stream is not None

    @property
    def address(self) -> int:
        """Of the first element, in device memory."""
        return self._block.address

    @property
    def device(self) -> int:
        """The GPU's number."""
        return self._cuda.device

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """A copy in host memory; waits for the array to be complete."""
        host = np.empty(self.shape, self.dtype)
        if host.nbytes:
            with current(self._cuda):
                stream = self.stream
                own = self._cuda.create_stream() if stream is None else None
                try:
                    at = own if stream is None else stream
                    self._cuda.copy_out(host.ctypes.data, self.address, host.nbytes, at or 0)
                    self._cuda.synchronize(at or 0)
                finally:
                    if own is not None:
                        self._cuda.destroy_stream(own)
        return host

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001 - numpy's protocol
        if copy is False:
            raise ValueError("a device array is copied to become a numpy array")
        host = self.numpy()
        return host if dtype is None else host.astype(dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.kind == "V" or type(self.dtype).__module__ != "numpy.dtypes":
            raise AttributeError(f"__cuda_array_interface__ has no type {self.dtype}; use DLPack")
        self._block.shared = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": _LEGACY_STREAM if self.stream == 0 else self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a device array is exported where it is, without a copy")
        if self.stream is not None and stream != -1:
            self._order(stream)
        self._block.shared = True
        return dlpack.make_capsule(
            self.address, self.shape, self.dtype, device=self.__dlpack_device__(), owner=self._block
        )

    def _order(self, consumer: int | None) -> None:
        """The consumer's stream goes on after what was enqueued in ours."""
        consumer = _LEGACY_STREAM if consumer in (None, 0) else consumer
        if consumer == (self.stream or _LEGACY_STREAM):
            return
        with current(self._cuda):
            event = self._cuda.create_event()
            try:
                self._cuda.record(event, self.stream or 0)
                self._cuda.wait(consumer or 0, event)
            finally:
                self._cuda.destroy_event(event)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {self.shape} on GPU {self.device}>"


class Foreign(NamedTuple):
    """An array of whatever library, as a session sees it.

    Attributes:
        address: Of the first element.
        shape: The array's.
        dtype: The array's, in numpy's words.
        device: The GPU's number; None for host memory.
        contiguous: Elements lie as in C.
        stream: The producer's stream, to be waited for; None: the array is complete.
        owner: Keeps the memory alive.
        writable: What is written to the memory is in the producer's array.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None
    contiguous: bool
    stream: int | None
    owner: Any
    writable: bool = True


def is_fitting(array: Foreign, device: int) -> bool:
    """Whether a device array can be used where it is."""
    address = array.address
    return array.contiguous and array.device == device and address != 0 and not address % ALIGNMENT


def unfit_reason(array: Foreign, device: int) -> str:
    """Why it cannot."""
    if array.device != device:
        return f"an array on GPU {array.device}"
    return f"an array at {array.address:#x}" if array.contiguous else "an array that is not contiguous"


def foreign_array(value: Any, *, cuda: Cuda, stream: int) -> Foreign | np.ndarray | None:
    """See an array of another library, without copying it.

    Args:
        value: An array of PyTorch, CuPy, PyCUDA, JAX, ... or a `DeviceArray`.
        cuda: The device that will read it.
        stream: The stream that will read it; producers that can are told to make it wait for them.

    Returns:
        A numpy array for host memory, None for something that is no array.

    Raises:
        FeedError: The array's library does not export it.
        DtypeError: numpy has no such data type.
        ConfigError: It is on a device that is no GPU.
    """
    kind = type(value)
    view = _views.get(kind)
    if view is None:
        view = _view_of(kind)
        if view is not _any_array and len(_views) < _VIEWS_LIMIT:
            _views[kind] = view
    return view(value, cuda, stream)


View = Callable[[Any, Cuda, int], "Foreign | np.ndarray | None"]
_VIEWS_LIMIT = 256
_views: dict[type, View] = {}
"""How to see arrays of a type; worked out when the first one comes."""


def _view_of(kind: type) -> View:
    if kind is DeviceArray:
        return _device_array
    torch = sys.modules.get("torch")
    if torch is not None and issubclass(kind, torch.Tensor):
        return _torch_view(torch)
    if hasattr(kind, "__cuda_array_interface__"):
        return _cuda_array
    return _any_array


def _device_array(value: DeviceArray, _cuda: Cuda, _stream: int) -> Foreign:
    return Foreign(value.address, value.shape, value.dtype, value.device, True, value.stream, value)  # noqa: FBT003


def _any_array(value: Any, cuda: Cuda, stream: int) -> Foreign | np.ndarray | None:
    """Instances of one type may or may not have the attributes."""
    if hasattr(value, "__cuda_array_interface__"):
        return _cuda_array(value, cuda, stream)
    if hasattr(value, "__dlpack__"):
        return _dlpack_array(value, stream)
    return None


def array_on_host(value: Any) -> np.ndarray:
    """See an array that another library has in host memory; without copying it, but for PyTorch's lazy operations.

    Raises:
        FeedError: It is elsewhere, or its library does not export it.
        DtypeError: numpy has no such data type.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg()  # memory does not show what is yet to be done
    return dlpack.on_host(value)


def _torch_view(torch: Any) -> View:
    """By PyTorch's own attributes, which take a fifth of the time of its protocols."""
    types = _torch_types(torch)
    # what torch.cuda.current_stream reads, without an object made for every call
    current = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # noqa: SLF001
    if current is None:
        current = lambda index: torch.cuda.current_stream(index).cuda_stream  # noqa: E731

    def view(tensor: Any, _cuda: Cuda, _stream: int) -> Foreign | np.ndarray:
        dtype = types.get(tensor.dtype)
        if dtype is None:
            raise DtypeError("numpy has no such data type", got=str(tensor.dtype))
        if not tensor.is_cuda:
            if tensor.device.type != "cpu":
                raise ConfigError(
                    "a tensor is on a device that is no GPU", got=str(tensor.device), expected="cuda or cpu"
                )
            return array_on_host(tensor)
        index, lazy = tensor.get_device(), tensor.is_neg()
        try:
            if lazy:
                tensor = tensor.resolve_neg()
            return Foreign(
                tensor.data_ptr(), tuple(tensor.shape), dtype, index, tensor.is_contiguous(), current(index), tensor,
                not lazy,
            )  # fmt: skip
        except RuntimeError as error:
            raise FeedError("a tensor has no memory that can be read", got=f"{tensor.layout}: {error}") from error

    return view


def _torch_types(torch: Any) -> dict[Any, np.dtype[Any]]:
    """PyTorch's data types in numpy's words."""
    import ml_dtypes

    plain = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    found = {getattr(torch, name): np.dtype(name) for name in plain}
    narrow = {name: getattr(torch, name, None) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    return found | {kind: np.dtype(getattr(ml_dtypes, name)) for name, kind in narrow.items() if kind}


def _cuda_array(value: Any, cuda: Cuda, _stream: int) -> Foreign:
    facts = value.__cuda_array_interface__
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    address, read_only = facts["data"]
    address = int(address)
    strides = facts.get("strides")
    # before version 3 the interface had no stream: whatever the default stream holds is waited for
    stream = facts.get("stream") if facts.get("version", 0) >= 3 else _LEGACY_STREAM
    device = cuda.device_of(address) if address else cuda.device
    contiguous = strides is None or _is_contiguous(shape, tuple(s // dtype.itemsize for s in strides))
    device = cuda.device if device is None else device
    return Foreign(address, shape, dtype, device, contiguous, stream, value, not read_only)


def _dlpack_array(value: Any, stream: int) -> Foreign | np.ndarray:
    if dlpack.device_of(value)[0] not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        return array_on_host(value)
    tensor = dlpack.export(value, stream=stream or _LEGACY_STREAM)
    contiguous = tensor.strides is None or _is_contiguous(tensor.shape, tensor.strides)
    owner = (tensor.owner, value)
    return Foreign(
        tensor.address, tensor.shape, tensor.dtype, tensor.device[1], contiguous, None, owner, tensor.writable
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True
