"""The CUDA driver through PyCUDA, for applications that hold PyCUDA arrays and streams.

The device's primary context is retained, the one that TensorRT and PyTorch use as well, and pushed and popped around
use in each thread; ``pycuda.autoinit`` would make another one, in which TensorRT's handles are invalid. PyCUDA has
no CUDA graphs, and waits for streams that are not its own only by waiting for the whole device.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections import OrderedDict
from typing import Any, NoReturn

from trtsparse.errors import ConfigError, CudaError, DeviceError, MissingDependencyError, UnsupportedOptionError

__all__ = ["PyCuda"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_ADOPTED_LIMIT = 64
_DEFAULT_STREAMS = (0, 1)  # 0 is how PyCUDA and TensorRT, 1 how DLPack writes the legacy default stream


class PyCuda:
    """One GPU through PyCUDA; see `trtsparse.cuda.base.Cuda`, whose methods these are.

    Args:
        device: The GPU's number.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        DeviceError: There is no such GPU.
    """

    name = "pycuda"
    graphs = False

    def __init__(self, device: int = 0) -> None:
        self._cu: Any = _driver()
        self.device = device
        self._lock = threading.Lock()
        self._objects: dict[int, Any] = {}  # PyCUDA frees what nobody holds: handle or address to its object
        self._adopted: OrderedDict[int, Any] = OrderedDict()  # the application's streams, the last used last
        try:
            self._cu.init()
            count = int(self._cu.Device.count())
        except self._cu.Error as error:
            raise DeviceError(
                "this machine has no GPU that CUDA can use",
                where=f"device {device}",
                got=str(error),
                expected="an NVIDIA GPU and its driver",
            ) from error
        if device not in range(count):
            raise DeviceError(
                "there is no such GPU",
                where=f"device {device}",
                got=f"{count} GPUs",
                expected="an NVIDIA GPU and its driver",
            )
        self._context = self._cu.Device(device).retain_primary_context()

    def _call(self, call: str, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except self._cu.Error as error:
            raise _mapped(call, error) from error

    def _keep(self, handle: int, thing: Any) -> int:
        with self._lock:
            self._objects[handle] = thing
        return handle

    def _drop(self, handle: int) -> Any:
        with self._lock:
            return self._objects.pop(handle)

    def _adopt(self, handle: int, stream: Any) -> int:
        with self._lock:
            self._adopted[handle] = stream
            self._adopted.move_to_end(handle)
            if len(self._adopted) > _ADOPTED_LIMIT:
                self._adopted.popitem(last=False)
        return handle

    def _knows(self, handle: int) -> bool:
        return handle in _DEFAULT_STREAMS or handle in self._objects or handle in self._adopted

    def _stream(self, handle: int) -> Any:
        """The object of a stream; None is the legacy default stream."""
        if handle in _DEFAULT_STREAMS:
            return None
        found = self._objects.get(handle) or self._adopted.get(handle)
        if found is None:
            raise _foreign_stream(f"the handle {handle:#x}")
        return found

    def enter(self) -> None:  # noqa: D102 - the protocol's text holds
        self._call("cuCtxPushCurrent", self._context.push)

    def leave(self, token: None) -> None:  # noqa: ARG002, D102
        self._call("cuCtxPopCurrent", self._cu.Context.pop)

    def allocate(self, nbytes: int) -> int:  # noqa: D102
        block = self._call("cuMemAlloc", self._cu.mem_alloc, nbytes)
        return self._keep(int(block), block)

    def free(self, address: int) -> None:  # noqa: D102
        self._call("cuMemFree", self._drop(address).free)

    def allocate_pinned(self, nbytes: int) -> int:  # noqa: D102
        array = self._call("cuMemHostAlloc", self._cu.pagelocked_empty, nbytes, "u1", "C", 1)  # 1: portable
        return self._keep(int(array.ctypes.data), array)

    def free_pinned(self, address: int) -> None:  # noqa: D102
        owner = self._drop(address)
        while hasattr(owner, "base"):  # the array, then PyCUDA's allocation
            owner = owner.base
        self._call("cuMemFreeHost", owner.free)

    def memory_info(self) -> tuple[int, int]:  # noqa: D102
        free, total = self._call("cuMemGetInfo", self._cu.mem_get_info)
        return int(free), int(total)

    def pci_bus_id(self) -> str:  # noqa: D102
        return str(self._call("cuDeviceGetPCIBusId", self._cu.Device(self.device).pci_bus_id))

    def device_of(self, address: int) -> int | None:  # noqa: ARG002, D102 - PyCUDA has no such call
        return None

    def stream_of(self, stream: Any) -> int:  # noqa: D102
        if isinstance(stream, self._cu.Stream):
            return self._adopt(int(stream.handle), stream)
        if isinstance(stream, int) and self._knows(stream):
            return stream
        raise _foreign_stream(type(stream).__name__)

    def create_stream(self) -> int:  # noqa: D102
        stream = self._call("cuStreamCreate", self._cu.Stream, _NON_BLOCKING)
        return self._keep(int(stream.handle), stream)

    def destroy_stream(self, stream: int) -> None:  # noqa: D102
        self._drop(stream)

    def synchronize(self, stream: int) -> None:  # noqa: D102
        found = self._stream(stream)
        if found is None:
            self.synchronize_device()
        else:
            self._call("cuStreamSynchronize", found.synchronize)

    def synchronize_device(self) -> None:  # noqa: D102
        self._call("cuCtxSynchronize", self._cu.Context.synchronize)

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> int:  # noqa: D102
        kinds = self._cu.event_flags
        flags = (kinds.DEFAULT if timing else kinds.DISABLE_TIMING) | (kinds.BLOCKING_SYNC if blocking else 0)
        event = self._call("cuEventCreate", self._cu.Event, flags)
        return self._keep(id(event), event)

    def destroy_event(self, event: int) -> None:  # noqa: D102
        self._drop(event)

    def record(self, event: int, stream: int) -> None:  # noqa: D102
        if self._knows(stream):
            self._call("cuEventRecord", self._objects[event].record, self._stream(stream))
        else:
            self.synchronize_device()  # another library's stream: an event that never was recorded has happened

    def wait(self, stream: int, event: int) -> None:  # noqa: D102
        found = self._stream(stream)
        if found is None:
            self.synchronize_event(event)
        else:
            self._call("cuStreamWaitEvent", found.wait_for_event, self._objects[event])

    def synchronize_event(self, event: int) -> None:  # noqa: D102
        self._call("cuEventSynchronize", self._objects[event].synchronize)

    def event_done(self, event: int) -> bool:  # noqa: D102
        return bool(self._call("cuEventQuery", self._objects[event].query))

    def elapsed_ms(self, start: int, end: int) -> float:  # noqa: D102
        return float(self._call("cuEventElapsedTime", self._objects[end].time_since, self._objects[start]))

    def copy_in(self, device: int, host: int, nbytes: int, stream: int) -> None:  # noqa: D102
        self._call(
            "cuMemcpyHtoDAsync", self._cu.memcpy_htod_async, device, _buffer(host, nbytes), self._stream(stream)
        )

    def copy_out(self, host: int, device: int, nbytes: int, stream: int) -> None:  # noqa: D102
        self._call(
            "cuMemcpyDtoHAsync", self._cu.memcpy_dtoh_async, _buffer(host, nbytes), device, self._stream(stream)
        )

    def copy_across(self, target: int, source: int, nbytes: int, stream: int) -> None:  # noqa: D102
        self._call("cuMemcpyDtoDAsync", self._cu.memcpy_dtod_async, target, source, nbytes, self._stream(stream))

    def begin_capture(self, stream: int) -> None:  # noqa: ARG002, D102
        _refuse_graphs()

    def end_capture(self, stream: int) -> int:  # noqa: ARG002, D102
        _refuse_graphs()

    def launch(self, graph: int, stream: int) -> None:  # noqa: ARG002, D102
        _refuse_graphs()

    def destroy_graph(self, graph: int) -> None:  # noqa: ARG002, D102
        _refuse_graphs()


def _driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise MissingDependencyError("PyCUDA is not installed", extra="pycuda", where=str(error)) from error


def _buffer(address: int, nbytes: int) -> Any:
    """Host memory as an object with the buffer protocol, which PyCUDA's copies take."""
    return (ctypes.c_char * nbytes).from_address(address)


def _mapped(call: str, error: Exception) -> CudaError:
    """PyCUDA's message is "cuMemAlloc failed: out of memory"; its errors carry the code only in some versions."""
    code = getattr(error, "code", None)
    routine, _, text = str(error).partition(" failed: ")
    return CudaError(
        routine if text else call, code=int(code) if code is not None else -1, name=text or str(error) or "unknown"
    )


def _foreign_stream(got: str) -> ConfigError:
    return ConfigError(
        "PyCUDA works with its own streams only",
        where="stream",
        got=got,
        expected="a pycuda.driver.Stream",
        fix="use cuda='cuda-python' with streams of other libraries",
    )


def _refuse_graphs() -> NoReturn:
    raise UnsupportedOptionError(
        "PyCUDA has no CUDA graphs", where="graphs", fix="use cuda='cuda-python', or leave graphs off"
    )
