"""CUDA on host memory, with streams that execute late and out of order. Tests only.

`MemoryCuda` implements `trtsparse.cuda.base.Cuda`. It is stricter than a GPU: memory that was freed is poisoned at
once and watched, whatever the streams still hold; an address that is not inside a live allocation is refused; a call
from a thread where the device was not made current is refused; a stream with work left may not be destroyed.

Time is a model, the same in every run and order: each call takes the host `CALL_MS`, an operation begins when its
stream is free, it was enqueued and what it waits for has happened, copies take what their bytes take, other work as
long as it says. Events with timing tell that time, and `clock_ns` is the host's clock beside it.

>>> cuda = MemoryCuda(order="late")
>>> token = cuda.enter()
>>> address, stream, done = cuda.allocate(4), cuda.create_stream(), []
>>> cuda.submit(stream, lambda: done.append(1)); done
[]
>>> cuda.synchronize(stream); done
[1]
>>> cuda.free(address); cuda.destroy_stream(stream); cuda.leave(token); cuda.check()
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import gc
import itertools
import random
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from trtsparse.cuda.base import stream_handle
from trtsparse.errors import CudaError

__all__ = ["MemoryCuda", "current"]

POISON, GUARD, FRESH = 0xDD, 0xAB, 0xCD
_ALIGNMENT = 256
_LEGACY = 1
CALL_MS, COPY_MS, WORK_MS = 0.001, 0.002, 0.01
"""A call by the host, the least that a copy takes, and other work that says nothing else."""
BYTES_PER_MS = 25e6


class _Region:
    """One allocation, with guard bytes behind it."""

    def __init__(self, nbytes: int, kind: str, device: int) -> None:
        self.nbytes, self.kind, self.device = nbytes, kind, device
        self.data = np.full(nbytes + 2 * _ALIGNMENT, GUARD, np.uint8)
        self.address = -(-self.data.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        start = self.address - self.data.ctypes.data
        self.inside = self.data[start : start + nbytes]
        self.behind = self.data[start + nbytes :]
        self.inside[:] = FRESH


class _Moment:
    """One recording of an event."""

    def __init__(self, *, timed: bool) -> None:
        self.happened = self.recorded = False
        self.timed = timed
        self.ms = 0.0


class _Operation(NamedTuple):
    """What a stream does; ``since`` is when it was enqueued."""

    kind: str
    what: Any
    ms: float = 0.0
    since: float = 0.0


class MemoryCuda:
    """See the module.

    Args:
        device: The number it answers to.
        order: "eager" executes at once, "late" when somebody waits and no more than needed, "shuffled" when somebody
            waits, streams in random order.
        graphs: Whether it can capture.
        seed: Of "shuffled".
        log: Keep every call in `calls`.

    Attributes:
        calls: (method, arguments) of every call.
        copies: How many copies of each kind: "in", "out", "across".
        counts: How often each method was called.
    """

    name = "memory"

    def __init__(
        self, device: int = 0, *, order: str = "eager", graphs: bool = True, seed: int = 0, log: bool = True
    ) -> None:
        self.device, self.order, self.graphs = device, order, graphs
        self.calls: list[tuple[Any, ...]] = []
        self.copies: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.free_limit: int | None = None
        self._log = log
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._handles = itertools.count(0x1000, 0x10)
        self._regions: dict[int, _Region] = {}
        self._starts: list[int] = []
        self._freed: deque[_Region] = deque(maxlen=512)
        self._streams: dict[int, deque[Any]] = {_LEGACY: deque()}
        self._events: dict[int, _Moment] = {}
        self._graphs: dict[int, list[Any]] = {}
        self._capturing: dict[int, list[Any]] = {}
        self._failures: dict[str, list[tuple[int, str]]] = {}
        self._now_ms = 0.0
        self._reached: defaultdict[int, float] = defaultdict(float)

    def clock_ns(self) -> int:
        """The host's clock in this model of time."""
        with self._lock:
            return round(self._now_ms * 1e6)

    def pass_time(self, ms: float) -> None:
        """The host does something else for a while."""
        with self._lock:
            self._now_ms += ms

    def fail(self, method: str, *, code: int = 700, name: str = "cudaErrorIllegalAddress", times: int = 1) -> None:
        """Have the next calls of a method fail."""
        self._failures.setdefault(method, []).extend([(code, name)] * times)

    @property
    def held_nbytes(self) -> int:
        """Bytes of device memory that are allocated."""
        with self._lock:
            return sum(region.nbytes for region in self._regions.values() if region.kind == "device")

    @property
    def alive(self) -> dict[str, int]:
        """How many allocations, streams, events and graphs there are."""
        with self._lock:
            return {
                "allocations": len(self._regions), "streams": len(self._streams) - 1,
                "events": len(self._events), "graphs": len(self._graphs),
            }  # fmt: skip

    def check(self) -> None:
        """Fail if anything was written behind an allocation or after it was freed, or is enqueued still."""
        with self._lock:
            for region in [*self._regions.values(), *self._freed]:
                assert (region.behind == GUARD).all(), f"written behind the {region.kind} allocation"
            for region in self._freed:
                assert (region.inside == POISON).all(), f"{region.kind} memory was written after it was freed"
            assert not any(self._streams.values()), "a stream has work left"

    def submit(self, stream: int, work: Callable[[], None], ms: float = WORK_MS) -> None:
        """Enqueue anything that takes so long; the hook of the TensorRT double."""
        with self._lock:
            self._enqueue(stream, _Operation("work", work, ms))

    # -- what `Cuda` asks for ---------------------------------------------------------------------------------------

    def enter(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1

    def leave(self, _token: None) -> None:
        self._thread.depth -= 1

    def allocate(self, nbytes: int) -> int:
        return self._allocate(nbytes, "device")

    def allocate_pinned(self, nbytes: int) -> int:
        return self._allocate(nbytes, "pinned")

    def _allocate(self, nbytes: int, kind: str) -> int:
        with self._call("allocate" if kind == "device" else "allocate_pinned", nbytes):
            if kind == "device" and self.free_limit is not None and self.held_nbytes + nbytes > self.free_limit:
                raise CudaError("cudaMalloc", code=2, name="cudaErrorMemoryAllocation")
            region = _Region(nbytes, kind, self.device)
            self._regions[region.address] = region
            bisect.insort(self._starts, region.address)
            return region.address

    def free(self, address: int) -> None:
        self._release(address, "device")

    def free_pinned(self, address: int) -> None:
        self._release(address, "pinned")

    def _release(self, address: int, kind: str) -> None:
        with self._call("free" if kind == "device" else "free_pinned", address):
            region = self._regions.pop(address, None)
            if region is None or region.kind != kind:
                raise CudaError("cudaFree", code=1, name="cudaErrorInvalidValue")
            self._starts.remove(address)
            region.inside[:] = POISON
            self._freed.append(region)

    def memory_info(self) -> tuple[int, int]:
        total = 1 << 30
        return total - self.held_nbytes, total

    def pci_bus_id(self) -> str:
        with self._call("pci_bus_id"):
            return f"0000:{self.device:02x}:00.0"

    def device_of(self, address: int) -> int | None:
        with self._call("device_of", address):
            region = self._region(address, 1)
            return region.device if region and region.kind == "device" else None

    def stream_of(self, stream: Any) -> int:
        return stream_handle(stream)

    def create_stream(self) -> int:
        with self._call("create_stream"):
            handle = next(self._handles)
            self._streams[handle] = deque()
            return handle

    def destroy_stream(self, stream: int) -> None:
        with self._call("destroy_stream", stream):
            if self._streams.pop(stream):
                raise AssertionError("a stream with work left was destroyed")

    def synchronize(self, stream: int) -> None:
        with self._call("synchronize", stream):
            self._forbid_capture("cudaStreamSynchronize", stream)
            queue = self._queue(stream)
            self._run_until(lambda: not queue, stream)
            self._now_ms = max(self._now_ms, self._reached[stream or _LEGACY])

    def synchronize_device(self) -> None:
        with self._call("synchronize_device"):
            self._run_until(lambda: not any(self._streams.values()), None)
            self._now_ms = max(self._now_ms, *self._reached.values(), 0.0)

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> int:
        with self._call("create_event", timing, blocking):
            handle = next(self._handles)
            moment = _Moment(timed=timing)
            moment.happened = True  # as one that was never recorded
            self._events[handle] = moment
            return handle

    def destroy_event(self, event: int) -> None:
        with self._call("destroy_event", event):
            self._event(event)
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._call("record", event, stream):
            moment = self._events[event] = _Moment(timed=self._event(event).timed)
            moment.recorded = True
            self._enqueue(stream, _Operation("record", moment))

    def wait(self, stream: int, event: int) -> None:
        with self._call("wait", stream, event):
            self._enqueue(stream, _Operation("wait", self._event(event)))

    def synchronize_event(self, event: int) -> None:
        with self._call("synchronize_event", event):
            moment = self._event(event)
            self._run_until(lambda: moment.happened, None if moment.happened else self._stream_of(moment))
            self._now_ms = max(self._now_ms, moment.ms)

    def event_done(self, event: int) -> bool:
        with self._call("event_done", event):
            return self._event(event).happened

    def elapsed_ms(self, start: int, end: int) -> float:
        with self._call("elapsed_ms", start, end):
            moments = self._event(start), self._event(end)
            if not all(moment.timed and moment.recorded for moment in moments):
                raise CudaError("cudaEventElapsedTime", code=400, name="cudaErrorInvalidResourceHandle")
            if not all(moment.happened for moment in moments):
                raise CudaError("cudaEventElapsedTime", code=600, name="cudaErrorNotReady")
            return moments[1].ms - moments[0].ms

    def copy_in(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._copy("in", device, host, nbytes, stream)

    def copy_out(self, host: int, device: int, nbytes: int, stream: int) -> None:
        self._copy("out", host, device, nbytes, stream)

    def copy_across(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._copy("across", target, source, nbytes, stream)

    def _copy(self, way: str, target: int, source: int, nbytes: int, stream: int) -> None:
        with self._call(f"copy_{way}", target, source, nbytes, stream):
            self._place(target, nbytes, on_device=way != "out")
            self._place(source, nbytes, on_device=way != "in")

            def move() -> None:
                self.copies[way] += 1
                self._place(target, nbytes, on_device=way != "out")
                self._place(source, nbytes, on_device=way != "in")
                ctypes.memmove(target, source, nbytes)

            self._enqueue(stream, _Operation("work", move, COPY_MS + nbytes / BYTES_PER_MS))

    def begin_capture(self, stream: int) -> None:
        with self._call("begin_capture", stream):
            self._queue(stream)
            self._capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        with self._call("end_capture", stream):
            handle = next(self._handles)
            self._graphs[handle] = self._capturing.pop(stream)
            return handle

    def launch(self, graph: int, stream: int) -> None:
        with self._call("launch", graph, stream):
            if graph not in self._graphs:
                raise CudaError("cudaGraphLaunch", code=1, name="cudaErrorInvalidValue")
            for operation in self._graphs[graph]:
                self._enqueue(stream, operation)

    def destroy_graph(self, graph: int) -> None:
        with self._call("destroy_graph", graph):
            del self._graphs[graph]

    # -- how it works -----------------------------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        if not getattr(self._thread, "depth", 0):
            raise AssertionError(f"{method} was called in a thread where the device is not current")
        with self._lock:
            self._now_ms += CALL_MS
            self.counts[method] += 1
            if self._log:
                self.calls.append((method, *args))
            if self._failures.get(method):
                code, name = self._failures[method].pop(0)
                self._capturing.clear()
                raise CudaError(method, code=code, name=name)
        return self._lock

    def _region(self, address: int, nbytes: int) -> _Region | None:
        at = bisect.bisect_right(self._starts, address) - 1
        region = self._regions[self._starts[at]] if at >= 0 else None
        return region if region and address + nbytes <= region.address + region.nbytes else None

    def _place(self, address: int, nbytes: int, *, on_device: bool) -> None:
        region = self._region(address, nbytes)
        right = region.kind == ("device" if on_device else "pinned") if region else not on_device
        if not right or (region is None and self._was_freed(address)):
            kind = "device" if on_device else "host"
            raise AssertionError(f"{address:#x} + {nbytes} is not {kind} memory that is alive")

    def _was_freed(self, address: int) -> bool:
        return any(region.address <= address < region.address + region.nbytes for region in self._freed)

    def _event(self, event: int) -> _Moment:
        if event not in self._events:
            raise CudaError("cudaEvent", code=400, name="cudaErrorInvalidResourceHandle")
        return self._events[event]

    def _queue(self, stream: int) -> deque[Any]:
        stream = stream or _LEGACY
        if stream not in self._streams:
            raise CudaError("cudaStream", code=400, name="cudaErrorInvalidResourceHandle")
        return self._streams[stream]

    def _stream_of(self, moment: _Moment) -> int | None:
        return next((s for s, queue in self._streams.items() if any(o.what is moment for o in queue)), None)

    def _forbid_capture(self, call: str, stream: int) -> None:
        if stream in self._capturing:
            self._capturing.clear()
            raise CudaError(call, code=900, name="cudaErrorStreamCaptureUnsupported")

    def _enqueue(self, stream: int, operation: _Operation) -> None:
        if stream in self._capturing:
            self._capturing[stream].append(operation)
            return
        queue = self._queue(stream)
        queue.append(operation._replace(since=self._now_ms))
        if self.order == "eager":
            self._run_until(lambda: not queue, stream or _LEGACY)

    def _run_until(self, done: Callable[[], bool], wanted: int | None) -> None:
        """Execute what is enqueued, in an order that CUDA might choose, until something holds."""
        while not done():
            ready = [s for s, queue in self._streams.items() if queue and self._runnable(queue[0])]
            assert ready, "streams wait for each other"
            if self.order == "shuffled":
                stream = self._random.choice(ready)
            else:
                stream = wanted if wanted in ready else ready[0]
            self._execute(stream, self._streams[stream].popleft())

    def _execute(self, stream: int, operation: _Operation) -> None:
        what = operation.what
        at = max(self._reached[stream], operation.since)
        if operation.kind == "work":
            what()
            at += operation.ms
        elif operation.kind == "record":
            what.happened, what.ms = True, at
        else:
            at = max(at, what.ms)
        self._reached[stream] = at

    def _runnable(self, operation: _Operation) -> bool:
        return operation.kind != "wait" or bool(operation.what.happened)


@contextlib.contextmanager
def current(order: str, *, strict: bool = True) -> Iterator[MemoryCuda]:
    """A device that is current in this thread.

    Args:
        order: As of `MemoryCuda`.
        strict: Afterwards nothing of it is alive, and nothing went wrong on it.
    """
    made = MemoryCuda(order=order)
    token = made.enter()
    yield made
    made.leave(token)
    if strict:
        gc.collect()
        made.check()
        assert set(made.alive.values()) == {0}, dict(made.alive)
