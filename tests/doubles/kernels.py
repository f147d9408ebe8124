"""An engine whose executions are real kernels on the stream and addresses given to it. Tests and benchmarks only.

It stands where TensorRT's adapter stands, and checks what a session does with streams, buffers and graphs on a GPU
without TensorRT. Its kernels are compiled with NVRTC; on the in-memory CUDA the same steps are Python functions.

``y = 2 * x + 1`` for ``x`` of shape (n, m): the first kernel spins, then writes ``2 * x`` to the scratch memory, the
second adds 1. So whoever copies the input too late, reads the output too early, frees memory in between, or lets two
executions use one scratch memory gets wrong numbers. With ``positive=True`` there is a second output ``p``, the
elements of ``x`` above zero, whose size only the data decides.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from tests.doubles.cuda import WORK_MS, MemoryCuda
from trtsparse.cuda.base import current
from trtsparse.engines.device import Allocate, ProfileShapes, Shape
from trtsparse.errors import EngineError
from trtsparse.precision.specs import TensorSpec

__all__ = ["GpuKernels", "KernelEngine", "MemoryKernels"]

_SOURCE = r"""
extern "C" __global__ void twice(const float* x, float* out, long long n, float shift, long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < n; i += step) out[i] = 2.0f * x[i] + shift;
}
extern "C" __global__ void add(const float* x, float* out, long long n, float shift) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < n; i += step) out[i] = x[i] + shift;
}
extern "C" __global__ void positive(const float* x, float* out, long long n, int* count) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        int found = 0;
        for (long long i = 0; i < n; ++i) if (x[i] > 0.0f) { if (out) out[found] = x[i]; ++found; }
        *count = found;
    }
}
"""
_THREADS = 256
CYCLES_PER_MS = 2e6


class Kernels(Protocol):
    """What the engine launches."""

    device: int

    def twice(self, x: int, out: int, n: int, shift: float, cycles: int, stream: int) -> None: ...

    def add(self, x: int, out: int, n: int, shift: float, stream: int) -> None: ...

    def positive(self, x: int, out: int, n: int, count: int, stream: int) -> None: ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def read_int(self, address: int, stream: int) -> int: ...

    def timed(self, work: Callable[[], None], stream: int) -> float:
        """Do work that enqueues something, wait for it, and tell how many milliseconds it took."""
        ...


class GpuKernels:
    """Compiled with NVRTC for a GPU, whose primary context they live in.

    Args:
        device: The GPU's number.
        most_blocks: The most that one kernel launches; few leave room for the kernels of other streams.
    """

    def __init__(self, device: int = 0, *, most_blocks: int = 64) -> None:
        from cuda.bindings import driver, runtime

        self.device = device
        self._most_blocks = most_blocks
        self._driver, self._runtime = driver, runtime
        self._checked(runtime.cudaSetDevice(device))
        self._checked(runtime.cudaFree(0))  # makes the primary context current
        binary = self._compile()
        self._module = self._checked(driver.cuModuleLoadData(binary))
        self._functions = {
            name: self._checked(driver.cuModuleGetFunction(self._module, name.encode()))
            for name in ("twice", "add", "positive")
        }

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        assert int(answer[0]) == 0, f"CUDA failed: {answer[0]}"
        return answer[1] if len(answer) > 1 else None

    def _compile(self) -> bytes:
        from cuda.bindings import nvrtc

        attributes = self._runtime.cudaDeviceAttr
        major, minor = (
            self._checked(self._runtime.cudaDeviceGetAttribute(which, self.device))
            for which in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
        )
        program = self._checked(nvrtc.nvrtcCreateProgram(_SOURCE.encode(), b"kernels.cu", 0, [], []))
        options = [f"--gpu-architecture=sm_{major}{minor}".encode(), b"-lineinfo"]
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        if int(status) != 0:
            log = b" " * self._checked(nvrtc.nvrtcGetProgramLogSize(program))
            self._checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise AssertionError(log.decode())
        binary = b" " * self._checked(nvrtc.nvrtcGetCUBINSize(program))
        self._checked(nvrtc.nvrtcGetCUBIN(program, binary))
        return binary

    def _launch(self, name: str, n: int, stream: int, values: tuple[Any, ...], types: tuple[Any, ...]) -> None:
        blocks = 1 if name == "positive" else min(self._most_blocks, max(1, -(-n // _THREADS)))
        self._checked(
            self._driver.cuLaunchKernel(
                self._functions[name], blocks, 1, 1, _THREADS, 1, 1, 0, stream, (values, types), 0
            )
        )

    def twice(self, x: int, out: int, n: int, shift: float, cycles: int, stream: int) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_longlong
        types = (pointer, pointer, number, ctypes.c_float, number)
        self._launch("twice", n, stream, (x, out, n, shift, cycles), types)

    def add(self, x: int, out: int, n: int, shift: float, stream: int) -> None:
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_float)
        self._launch("add", n, stream, (x, out, n, shift), types)

    def positive(self, x: int, out: int, n: int, count: int, stream: int) -> None:
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
        self._launch("positive", n, stream, (x, out, n, count), types)

    def allocate(self, nbytes: int) -> int:
        return int(self._checked(self._runtime.cudaMalloc(nbytes)))

    def free(self, address: int) -> None:
        self._checked(self._runtime.cudaFree(address))

    def read_int(self, address: int, stream: int) -> int:
        value = ctypes.c_int()
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._runtime.cudaMemcpyAsync(ctypes.addressof(value), address, 4, kind, stream))
        self._checked(self._runtime.cudaStreamSynchronize(stream))
        return value.value

    def timed(self, work: Callable[[], None], stream: int) -> float:
        runtime = self._runtime
        start, end = (self._checked(runtime.cudaEventCreate()) for _ in range(2))
        self._checked(runtime.cudaEventRecord(start, stream))
        work()
        self._checked(runtime.cudaEventRecord(end, stream))
        self._checked(runtime.cudaEventSynchronize(end))
        elapsed = float(self._checked(runtime.cudaEventElapsedTime(start, end)))
        for event in (start, end):
            self._checked(runtime.cudaEventDestroy(event))
        return elapsed


class MemoryKernels:
    """The same on the in-memory CUDA, which spins two million cycles in a millisecond.

    Args:
        cuda: Whose streams.
    """

    def __init__(self, cuda: MemoryCuda) -> None:
        self.device = cuda.device
        self._cuda = cuda

    def _floats(self, address: int, n: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_char * (4 * n)).from_address(address), np.float32)

    def _submit(self, stream: int, work: Callable[[], None], cycles: int = 0) -> None:
        self._cuda.submit(stream, work, WORK_MS + cycles / CYCLES_PER_MS)

    def twice(self, x: int, out: int, n: int, shift: float, cycles: int, stream: int) -> None:
        def work() -> None:
            self._floats(out, n)[:] = 2 * self._floats(x, n) + np.float32(shift)

        self._submit(stream, work, cycles)

    def add(self, x: int, out: int, n: int, shift: float, stream: int) -> None:
        def work() -> None:
            self._floats(out, n)[:] = self._floats(x, n) + np.float32(shift)

        self._submit(stream, work)

    def positive(self, x: int, out: int, n: int, count: int, stream: int) -> None:
        def work() -> None:
            values = self._floats(x, n)
            found = values[values > 0].copy()
            if out:
                self._floats(out, found.size)[:] = found
            ctypes.c_int.from_address(count).value = found.size

        self._submit(stream, work)

    def allocate(self, nbytes: int) -> int:
        with current(self._cuda):
            return self._cuda.allocate(nbytes)

    def free(self, address: int) -> None:
        with current(self._cuda):
            self._cuda.free(address)

    def read_int(self, address: int, stream: int) -> int:
        with current(self._cuda):
            self._cuda.synchronize(stream)
        return ctypes.c_int.from_address(address).value

    def timed(self, work: Callable[[], None], stream: int) -> float:
        cuda = self._cuda
        with current(cuda):
            start, end = (cuda.create_event(timing=True) for _ in range(2))
            cuda.record(start, stream)
            work()
            cuda.record(end, stream)
            cuda.synchronize_event(end)
            elapsed = cuda.elapsed_ms(start, end)
            for event in (start, end):
                cuda.destroy_event(event)
        return elapsed


class KernelEngine:
    """See the module; an implementation of `trtsparse.engines.device.DeviceEngine`.

    Args:
        kernels: What to launch.
        columns: m.
        rows: Of each profile: (min, opt, max) n.
        cycles: How long the first kernel spins.
        scratch: Go through scratch memory; else it is one kernel.
        positive: Have the second output.
        exclusive: Two contexts cannot use one profile.
    """

    name = "kernels"
    shape_inputs: frozenset[str] = frozenset()

    def __init__(
        self,
        kernels: Kernels,
        *,
        columns: int = 64,
        rows: tuple[tuple[int, int, int], ...] = ((1, 4, 1024),),
        cycles: int = 0,
        scratch: bool = True,
        positive: bool = False,
        exclusive: bool = False,
    ) -> None:
        self.kernels = kernels
        self.device = kernels.device
        self.description = f"kernels on GPU {kernels.device}"
        fixed = len(rows) == 1 and rows[0][0] == rows[0][2]
        n: int | str = rows[0][0] if fixed else "n"
        kind = np.dtype(np.float32)
        self.inputs = (TensorSpec("x", kind, (n, columns)),)
        self.outputs = (TensorSpec("y", kind, (n, columns)),)
        if positive:
            self.outputs += (TensorSpec("p", kind, ("?",)),)
        self.profiles: tuple[ProfileShapes, ...] = tuple(
            {"x": ((low, columns), (usual, columns), (high, columns))} for low, usual, high in rows
        )
        self.exclusive_profiles = exclusive
        self.can_capture = True
        self.cycles, self.scratch, self.has_positive = cycles, scratch, positive
        self.columns = columns
        self.fail_next = 0
        self.contexts: list[KernelContext] = []
        self.executions = 0
        self.closed = 0
        self._lock = threading.Lock()

    def scratch_nbytes(self, profile: int) -> int:
        high = self.profiles[profile]["x"][2]
        return 4 * high[0] * high[1] if self.scratch else 0

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> KernelContext:
        assert stream
        context = KernelContext(self, profile, own_scratch=own_scratch)
        with self._lock:
            assert not (self.exclusive_profiles and profile in [c.profile for c in self.contexts])
            self.contexts.append(context)
        return context

    def set_weights_budget(self, nbytes: int) -> None:
        self.weights_budget = nbytes

    def should_fail(self) -> bool:
        with self._lock:
            self.executions += 1
            failing = self.fail_next > 0
            self.fail_next -= failing
            return failing

    def close(self) -> None:
        assert not self.contexts, "the engine was closed before its contexts"
        self.closed += 1


class KernelContext:
    """See `trtsparse.engines.device.DeviceContext`. Refuses to be used by two threads at a time."""

    def __init__(self, engine: KernelEngine, profile: int, *, own_scratch: bool) -> None:
        self._engine = engine
        self._kernels = engine.kernels
        self.profile = profile
        self._own = self._kernels.allocate(max(engine.scratch_nbytes(profile), 1)) if own_scratch else 0
        self._scratch = self._own
        self._count = self._kernels.allocate(4) if engine.has_positive else 0
        self._addresses: dict[str, int] = {}
        self._shape: Shape = ()
        self._allocate: Allocate | None = None
        self._found: Shape | None = None
        self._user = threading.Lock()

    def set_inputs(self, shapes: Mapping[str, Shape], values: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        assert not values
        low, _, high = self._engine.profiles[self.profile]["x"]
        shape = tuple(shapes["x"])
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            raise EngineError("the profile does not admit the shape", got=shape)
        self._shape = shape
        outputs: dict[str, Shape] = {"y": shape}
        return {**outputs, "p": (-1,)} if self._engine.has_positive else outputs

    def set_address(self, name: str, address: int) -> None:
        assert address % 256 == 0, f"{name} at {address:#x}"
        self._addresses[name] = address

    def set_allocator(self, name: str, allocate: Allocate) -> None:
        assert name == "p"
        self._allocate, self._found = allocate, None

    def allocated_shape(self, name: str) -> Shape:
        assert name == "p"
        assert self._found is not None
        return self._found

    def set_scratch(self, address: int, nbytes: int) -> None:
        assert nbytes >= self._engine.scratch_nbytes(self.profile)
        self._scratch = address

    def execute(self, stream: int) -> None:
        assert self._user.acquire(blocking=False), "two threads use one context"
        try:
            if self._engine.should_fail():
                raise EngineError("the kernels refuse", where=self._engine.description)
            self._enqueue(stream)
        finally:
            self._user.release()

    def execute_profiled(self, stream: int) -> tuple[tuple[str, float], ...]:
        assert self._user.acquire(blocking=False), "two threads use one context"
        try:
            if self._engine.should_fail():
                raise EngineError("the kernels refuse", where=self._engine.description)
            return tuple((name, self._kernels.timed(step, stream)) for name, step in self._steps(stream))
        finally:
            self._user.release()

    def _enqueue(self, stream: int) -> None:
        for _, step in self._steps(stream):
            step()

    def _steps(self, stream: int) -> list[tuple[str, Callable[[], None]]]:
        """What an execution consists of, by the name of its layer."""
        kernels, engine = self._kernels, self._engine
        x, y, n = self._addresses["x"], self._addresses["y"], int(np.prod(self._shape))
        steps: list[tuple[str, Callable[[], None]]] = [
            ("twice", lambda: kernels.twice(x, self._scratch, n, 0.0, engine.cycles, stream)),
            ("add", lambda: kernels.add(self._scratch, y, n, 1.0, stream)),
        ]
        if not engine.scratch:
            steps = [("twice and add", lambda: kernels.twice(x, y, n, 1.0, engine.cycles, stream))]
        if engine.has_positive:
            steps.append(("positive", lambda: self._enqueue_positive(x, n, stream)))
        return steps

    def _enqueue_positive(self, x: int, n: int, stream: int) -> None:
        assert self._allocate is not None
        self._kernels.positive(x, 0, n, self._count, stream)
        found = self._kernels.read_int(self._count, stream)
        out = self._allocate("p", max(4 * found, 1))
        self._kernels.positive(x, out, n, self._count, stream)
        self._found = (found,)

    def close(self) -> None:
        for address in (self._own, self._count):
            if address:
                self._kernels.free(address)
        self._engine.contexts.remove(self)
