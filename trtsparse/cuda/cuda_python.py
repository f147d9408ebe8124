"""The CUDA runtime through ``cuda.bindings`` (the package cuda-python)."""

from __future__ import annotations

import importlib
from typing import Any

from trtsparse.cuda.base import stream_handle
from trtsparse.errors import CudaError, DeviceError, MissingDependencyError

__all__ = ["CudaPython"]

_NON_BLOCKING = 1  # cudaStreamNonBlocking
_BLOCKING, _NO_TIMING = 1, 2  # cudaEventBlockingSync, cudaEventDisableTiming
_PORTABLE = 1  # cudaHostAllocPortable: pinned for every device
_BUS_ID_LENGTH = 32
_FIXES = {
    "cudaErrorMemoryAllocation": "use fewer contexts, a smaller profile, or scratch='shared'",
    "cudaErrorIllegalAddress": "restart the process: the CUDA context cannot be used any more",
}


class CudaPython:
    """One GPU through cuda-python; see `trtsparse.cuda.base.Cuda`, whose methods these are.

    Args:
        device: The GPU's number.

    Raises:
        MissingDependencyError: cuda-python is not installed.
        DeviceError: There is no such GPU.
        CudaError: CUDA does not start.
    """

    name = "cuda-python"
    graphs = True

    def __init__(self, device: int = 0) -> None:
        self._rt: Any = _runtime()
        self.device = device
        self._success = self._rt.cudaError_t.cudaSuccess
        self._not_ready = self._rt.cudaError_t.cudaErrorNotReady
        kinds = self._rt.cudaMemcpyKind
        self._h2d, self._d2h = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._any_way = kinds.cudaMemcpyDefault  # also between devices
        # another thread's allocations must neither fail nor spoil a capture
        self._relaxed = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._require_device()

    def _require_device(self) -> None:
        code, count = self._rt.cudaGetDeviceCount()
        if code != self._success or self.device not in range(count):
            raise DeviceError(
                "there is no such GPU" if code == self._success else "this machine has no GPU that CUDA can use",
                where=f"device {self.device}",
                got=f"{count} GPUs" if code == self._success else self._error_name(code),
                expected="an NVIDIA GPU and its driver",
            )
        self.leave(self.enter())

    def _error_name(self, code: Any) -> str:
        return str(getattr(code, "name", code))

    def _check(self, call: str, code: Any) -> None:
        if code != self._success:
            self._rt.cudaGetLastError()  # else the next library to ask hears of this failure
            name = self._error_name(code)
            raise CudaError(call, code=int(code), name=name, fix=_FIXES.get(name))

    def enter(self) -> int | None:  # noqa: D102 - the protocol's text holds
        code, before = self._rt.cudaGetDevice()
        if before == self.device and code == self._success:
            return None
        self._check("cudaGetDevice", code)
        self._check("cudaSetDevice", self._rt.cudaSetDevice(self.device)[0])
        return int(before)

    def leave(self, token: int | None) -> None:  # noqa: D102
        if token is not None:
            self._check("cudaSetDevice", self._rt.cudaSetDevice(token)[0])

    def allocate(self, nbytes: int) -> int:  # noqa: D102
        code, address = self._rt.cudaMalloc(nbytes)
        self._check("cudaMalloc", code)
        return int(address)

    def free(self, address: int) -> None:  # noqa: D102
        self._check("cudaFree", self._rt.cudaFree(address)[0])

    def allocate_pinned(self, nbytes: int) -> int:  # noqa: D102
        code, address = self._rt.cudaHostAlloc(nbytes, _PORTABLE)
        self._check("cudaHostAlloc", code)
        return int(address)

    def free_pinned(self, address: int) -> None:  # noqa: D102
        self._check("cudaFreeHost", self._rt.cudaFreeHost(address)[0])

    def memory_info(self) -> tuple[int, int]:  # noqa: D102
        code, free, total = self._rt.cudaMemGetInfo()
        self._check("cudaMemGetInfo", code)
        return int(free), int(total)

    def pci_bus_id(self) -> str:  # noqa: D102
        code, found = self._rt.cudaDeviceGetPCIBusId(_BUS_ID_LENGTH, self.device)
        self._check("cudaDeviceGetPCIBusId", code)
        return bytes(found).rstrip(b"\0").decode()

    def device_of(self, address: int) -> int | None:  # noqa: D102
        code, attributes = self._rt.cudaPointerGetAttributes(address)
        self._check("cudaPointerGetAttributes", code)
        kinds = self._rt.cudaMemoryType
        on_device = attributes.type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return int(attributes.device) if on_device else None

    def stream_of(self, stream: Any) -> int:  # noqa: D102
        return stream_handle(stream)

    def create_stream(self) -> int:  # noqa: D102
        code, stream = self._rt.cudaStreamCreateWithFlags(_NON_BLOCKING)
        self._check("cudaStreamCreateWithFlags", code)
        return int(stream)

    def destroy_stream(self, stream: int) -> None:  # noqa: D102
        self._check("cudaStreamDestroy", self._rt.cudaStreamDestroy(stream)[0])

    def synchronize(self, stream: int) -> None:  # noqa: D102
        code = self._rt.cudaStreamSynchronize(stream)[0]
        if code != self._success:
            self._check("cudaStreamSynchronize", code)

    def synchronize_device(self) -> None:  # noqa: D102
        self._check("cudaDeviceSynchronize", self._rt.cudaDeviceSynchronize()[0])

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> int:  # noqa: D102
        flags = (0 if timing else _NO_TIMING) | (_BLOCKING if blocking else 0)
        code, event = self._rt.cudaEventCreateWithFlags(flags)
        self._check("cudaEventCreateWithFlags", code)
        return int(event)

    def destroy_event(self, event: int) -> None:  # noqa: D102
        self._check("cudaEventDestroy", self._rt.cudaEventDestroy(event)[0])

    def record(self, event: int, stream: int) -> None:  # noqa: D102
        code = self._rt.cudaEventRecord(event, stream)[0]
        if code != self._success:
            self._check("cudaEventRecord", code)

    def wait(self, stream: int, event: int) -> None:  # noqa: D102
        self._check("cudaStreamWaitEvent", self._rt.cudaStreamWaitEvent(stream, event, 0)[0])

    def synchronize_event(self, event: int) -> None:  # noqa: D102
        self._check("cudaEventSynchronize", self._rt.cudaEventSynchronize(event)[0])

    def event_done(self, event: int) -> bool:  # noqa: D102
        code = self._rt.cudaEventQuery(event)[0]
        if code == self._not_ready:
            return False
        self._check("cudaEventQuery", code)
        return True

    def elapsed_ms(self, start: int, end: int) -> float:  # noqa: D102
        code, elapsed = self._rt.cudaEventElapsedTime(start, end)
        if code != self._success:
            self._check("cudaEventElapsedTime", code)
        return float(elapsed)

    def copy_in(self, device: int, host: int, nbytes: int, stream: int) -> None:  # noqa: D102
        code = self._rt.cudaMemcpyAsync(device, host, nbytes, self._h2d, stream)[0]
        if code != self._success:
            self._check("cudaMemcpyAsync", code)

    def copy_out(self, host: int, device: int, nbytes: int, stream: int) -> None:  # noqa: D102
        code = self._rt.cudaMemcpyAsync(host, device, nbytes, self._d2h, stream)[0]
        if code != self._success:
            self._check("cudaMemcpyAsync", code)

    def copy_across(self, target: int, source: int, nbytes: int, stream: int) -> None:  # noqa: D102
        self._check("cudaMemcpyAsync", self._rt.cudaMemcpyAsync(target, source, nbytes, self._any_way, stream)[0])

    def begin_capture(self, stream: int) -> None:  # noqa: D102
        self._check("cudaStreamBeginCapture", self._rt.cudaStreamBeginCapture(stream, self._relaxed)[0])

    def end_capture(self, stream: int) -> int:  # noqa: D102
        code, graph = self._rt.cudaStreamEndCapture(stream)
        self._check("cudaStreamEndCapture", code)
        try:
            code, executable = self._rt.cudaGraphInstantiate(graph, 0)
            self._check("cudaGraphInstantiate", code)
        finally:
            self._check("cudaGraphDestroy", self._rt.cudaGraphDestroy(graph)[0])
        return int(executable)

    def launch(self, graph: int, stream: int) -> None:  # noqa: D102
        code = self._rt.cudaGraphLaunch(graph, stream)[0]
        if code != self._success:
            self._check("cudaGraphLaunch", code)

    def destroy_graph(self, graph: int) -> None:  # noqa: D102
        self._check("cudaGraphExecDestroy", self._rt.cudaGraphExecDestroy(graph)[0])


def _runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependencyError("cuda-python is not installed", extra="cuda", where=str(error)) from error
