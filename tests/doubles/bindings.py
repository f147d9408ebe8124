# ruff: noqa: N801, N815, C901 - the APIs' names, and modules made in one function each
"""``cuda.bindings.runtime`` and ``pycuda.driver`` over the in-memory CUDA. Tests only.

They have what the providers call and no more, answer as the real ones do (a tuple that begins with a status; objects
that free what they hold), and check that arguments are of the right kind.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.doubles.cuda import MemoryCuda
from trtsparse.errors import CudaError

__all__ = ["installed_bindings", "make_pycuda", "make_runtime"]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeRelaxed = 2


class cudaMemoryType(enum.IntEnum):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeDevice = 2
    cudaMemoryTypeManaged = 3


def make_runtime(cuda: MemoryCuda, *, gpus: int = 1) -> types.ModuleType:
    """A module like ``cuda.bindings.runtime``. `MemoryCuda.fail` makes its calls fail."""
    module = types.ModuleType("cuda.bindings.runtime")
    state = {"device": 0, "last": cudaError_t.cudaSuccess, "captured": {}}

    def status(error: CudaError) -> cudaError_t:
        state["last"] = cudaError_t(error.code)
        return cudaError_t(error.code)

    def answering(work: Callable[..., Any], *, value: bool = True) -> Callable[..., tuple[Any, ...]]:
        def call(*args: Any) -> tuple[Any, ...]:
            assert all(isinstance(arg, int) for arg in args), args
            token = cuda.enter()
            try:
                found = work(*args)
            except CudaError as error:
                return (status(error), None) if value else (status(error),)
            finally:
                cuda.leave(token)
            return (cudaError_t.cudaSuccess, found) if value else (cudaError_t.cudaSuccess,)

        return call

    def copy(target: int, source: int, nbytes: int, kind: cudaMemcpyKind, stream: int) -> None:
        way = {1: cuda.copy_in, 2: cuda.copy_out, 4: cuda.copy_across}[int(kind)]
        way(target, source, nbytes, stream)

    def create_event(flags: int) -> int:
        assert flags in range(4)
        return cuda.create_event(timing=not flags & 2, blocking=bool(flags & 1))

    def query(event: int) -> tuple[Any, ...]:
        code, done = answering(cuda.event_done)(event)
        return (code if code or done else cudaError_t.cudaErrorNotReady,)

    def set_device(device: int) -> tuple[Any, ...]:
        state["device"] = device
        return (cudaError_t.cudaSuccess,)

    def attributes(address: int) -> Any:
        device = cuda.device_of(address)
        kind = cudaMemoryType.cudaMemoryTypeUnregistered if device is None else cudaMemoryType.cudaMemoryTypeDevice
        return types.SimpleNamespace(type=kind, device=device or 0)

    def count() -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, gpus) if gpus else (cudaError_t.cudaErrorInsufficientDriver, None)

    def instantiate(graph: int, _flags: int) -> tuple[Any, ...]:
        return answering(lambda: graph)()

    module.__dict__.update(
        cudaError_t=cudaError_t, cudaMemcpyKind=cudaMemcpyKind, cudaStreamCaptureMode=cudaStreamCaptureMode,
        cudaMemoryType=cudaMemoryType, state=state,
        cudaGetDeviceCount=count, cudaSetDevice=set_device,
        cudaGetDevice=lambda: (cudaError_t.cudaSuccess, state["device"]),
        cudaGetLastError=lambda: (state["last"],),
        cudaMalloc=answering(cuda.allocate), cudaFree=answering(cuda.free, value=False),
        cudaHostAlloc=answering(lambda nbytes, _flags: cuda.allocate_pinned(nbytes)),
        cudaFreeHost=answering(cuda.free_pinned, value=False),
        cudaMemGetInfo=lambda: (cudaError_t.cudaSuccess, *cuda.memory_info()),
        cudaPointerGetAttributes=answering(attributes),
        cudaStreamCreateWithFlags=answering(lambda _flags: cuda.create_stream()),
        cudaStreamDestroy=answering(cuda.destroy_stream, value=False),
        cudaStreamSynchronize=answering(cuda.synchronize, value=False),
        cudaDeviceSynchronize=answering(cuda.synchronize_device, value=False),
        cudaEventCreateWithFlags=answering(create_event), cudaEventElapsedTime=answering(cuda.elapsed_ms),
        cudaDeviceGetPCIBusId=answering(lambda _length, _device: cuda.pci_bus_id().encode() + bytes(19)),
        cudaEventDestroy=answering(cuda.destroy_event, value=False),
        cudaEventRecord=answering(cuda.record, value=False),
        cudaStreamWaitEvent=answering(lambda stream, event, _flags: cuda.wait(stream, event), value=False),
        cudaEventSynchronize=answering(cuda.synchronize_event, value=False),
        cudaEventQuery=query, cudaMemcpyAsync=answering(copy, value=False),
        cudaStreamBeginCapture=answering(lambda stream, _mode: cuda.begin_capture(stream), value=False),
        cudaStreamEndCapture=answering(cuda.end_capture),
        cudaGraphInstantiate=instantiate, cudaGraphDestroy=lambda _graph: (cudaError_t.cudaSuccess,),
        cudaGraphLaunch=answering(cuda.launch, value=False),
        cudaGraphExecDestroy=answering(cuda.destroy_graph, value=False),
    )  # fmt: skip
    return module


def make_pycuda(cuda: MemoryCuda, *, gpus: int = 1) -> types.ModuleType:
    """A module like ``pycuda.driver``: objects free what they hold, and want the context to be current."""
    module = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    def guarded(call: str, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return work(*args)
        except CudaError as error:
            raise Error(f"{call} failed: {error.name}") from error

    class Handle:
        _destroy: Callable[[int], None]
        handle = 0

        def __del__(self) -> None:
            if not self.handle:
                return
            token = cuda.enter()
            try:
                type(self)._destroy(self.handle)
            finally:
                cuda.leave(token)

    class Stream(Handle):
        _destroy = cuda.destroy_stream

        def __init__(self, flags: int = 0) -> None:
            assert flags in (0, 1)
            self.handle = guarded("cuStreamCreate", cuda.create_stream)

        def synchronize(self) -> None:
            guarded("cuStreamSynchronize", cuda.synchronize, self.handle)

        def wait_for_event(self, event: Event) -> None:
            guarded("cuStreamWaitEvent", cuda.wait, self.handle, event.handle)

    class Event(Handle):
        _destroy = cuda.destroy_event

        def __init__(self, flags: int = 0) -> None:
            assert flags in range(4)
            self.handle = guarded("cuEventCreate", create_event, flags)

        def record(self, stream: Stream | None = None) -> Event:
            guarded("cuEventRecord", cuda.record, self.handle, handle_of(stream))
            return self

        def synchronize(self) -> Event:
            guarded("cuEventSynchronize", cuda.synchronize_event, self.handle)
            return self

        def query(self) -> bool:
            return bool(guarded("cuEventQuery", cuda.event_done, self.handle))

        def time_since(self, earlier: Event) -> float:
            return float(guarded("cuEventElapsedTime", cuda.elapsed_ms, earlier.handle, self.handle))

    def create_event(flags: int) -> int:
        return cuda.create_event(timing=not flags & 2, blocking=bool(flags & 1))

    def handle_of(stream: Stream | None) -> int:
        assert stream is None or isinstance(stream, Stream)
        return 0 if stream is None else stream.handle

    class Allocation:
        def __init__(self, nbytes: int) -> None:
            self.address = guarded("cuMemAlloc", cuda.allocate, nbytes)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            guarded("cuMemFree", cuda.free, self.address)

    class HostAllocation:
        def __init__(self, nbytes: int) -> None:
            self.address = guarded("cuMemHostAlloc", cuda.allocate_pinned, nbytes)
            self.__array_interface__ = {
                "shape": (nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3
            }  # fmt: skip

        def free(self) -> None:
            guarded("cuMemFreeHost", cuda.free_pinned, self.address)

    class Context:
        push = staticmethod(cuda.enter)
        pop = staticmethod(lambda: cuda.leave(None))
        synchronize = staticmethod(lambda: guarded("cuCtxSynchronize", cuda.synchronize_device))

    class Device:
        def __init__(self, number: int) -> None:
            assert number < gpus

        def pci_bus_id(self) -> str:
            return str(guarded("cuDeviceGetPCIBusId", in_context, cuda.pci_bus_id))

        @staticmethod
        def count() -> int:
            return gpus

        def retain_primary_context(self) -> Context:
            return Context()

    def in_context(work: Callable[[], Any]) -> Any:
        """What needs no current context of its own."""
        token = cuda.enter()
        try:
            return work()
        finally:
            cuda.leave(token)

    def address_of(buffer: Any) -> tuple[int, int]:
        view = np.frombuffer(memoryview(buffer).cast("B"), np.uint8)
        return view.ctypes.data, view.nbytes

    def init() -> None:
        if not gpus:
            raise Error("cuInit failed: no CUDA-capable device is detected")

    def copy_in(device: int, source: Any, stream: Stream | None) -> None:
        address, nbytes = address_of(source)
        guarded("cuMemcpyHtoDAsync", cuda.copy_in, device, address, nbytes, handle_of(stream))

    def copy_out(target: Any, device: int, stream: Stream | None) -> None:
        address, nbytes = address_of(target)
        guarded("cuMemcpyDtoHAsync", cuda.copy_out, address, device, nbytes, handle_of(stream))

    def copy_across(target: int, source: int, nbytes: int, stream: Stream | None) -> None:
        guarded("cuMemcpyDtoDAsync", cuda.copy_across, target, source, nbytes, handle_of(stream))

    module.__dict__.update(
        Error=Error, Stream=Stream, Event=Event, Context=Context, Device=Device, init=init,
        event_flags=types.SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2), mem_alloc=Allocation,
        pagelocked_empty=lambda shape, dtype, _order, _flags: np.asarray(HostAllocation(shape)).view(dtype),
        mem_get_info=cuda.memory_info, memcpy_htod_async=copy_in, memcpy_dtoh_async=copy_out,
        memcpy_dtod_async=copy_across,
    )  # fmt: skip
    return module


@contextlib.contextmanager
def installed_bindings(**modules: types.ModuleType | None) -> Iterator[None]:
    """Bindings under their real names: ``runtime`` and ``pycuda``; None: not installed."""
    names = {"runtime": "cuda.bindings.runtime", "pycuda": "pycuda.driver"}
    parents = {"cuda.bindings.runtime": ("cuda", "cuda.bindings"), "pycuda.driver": ("pycuda",)}
    saved = dict(sys.modules)
    try:
        for key, module in modules.items():
            name = names[key]
            for parent in parents[name]:
                package = types.ModuleType(parent)
                package.__path__ = []  # type: ignore[attr-defined]
                sys.modules[parent] = package
            sys.modules[name] = module  # type: ignore[assignment]
        yield
    finally:
        for name in set(sys.modules) - set(saved):
            del sys.modules[name]
        sys.modules.update(saved)
