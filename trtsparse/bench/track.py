"""One of the streams of a measurement on a GPU: a context, CUDA streams, and buffers for each query in flight."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from trtsparse.bench.options import BenchOptions
from trtsparse.cuda.base import Cuda
from trtsparse.engines.base import LayerTimes
from trtsparse.engines.device import DeviceEngine, Shape
from trtsparse.errors import CudaError, EngineError
from trtsparse.runtime.graphs import GraphCache
from trtsparse.runtime.memory import host_view

__all__ = ["Origin", "Times", "Track", "free_all"]

Clock = Callable[[], int]
"""Nanoseconds."""


class Origin(NamedTuple):
    """Where both clocks begin: an event, and the host's clock when it was recorded."""

    event: int
    ns: int


class Times(NamedTuple):
    """One query, in milliseconds since the origin; ``began`` is when the host turned to it."""

    began: float
    start_enqueue: float
    end_enqueue: float
    start_h2d: float
    end_h2d: float
    start_compute: float
    end_compute: float
    start_d2h: float
    end_d2h: float
    stream: int


@dataclass
class _Buffer:
    """Device memory of an input or output, and pinned memory beside it."""

    device: int = 0
    pinned: int = 0
    nbytes: int = 0
    shape: Shape = ()


@dataclass
class _Slot:
    """What one query in flight uses; the next one may follow when it has finished."""

    inputs: dict[str, _Buffer]
    outputs: dict[str, _Buffer]
    events: tuple[int, ...]
    graph: int | None = None
    began: int = 0
    start: int = 0
    end: int = 0


class Track:
    """See the module. The device must be current. Used by one thread at a time.

    As in trtexec, copies in, executions and copies out have a CUDA stream each, so that they overlap with those of
    other queries. Other than there, each query in flight has buffers of its own, so that none is written while it is
    read.

    Args:
        engine: What to execute.
        cuda: The device.
        feeds: An array in host memory for each input.
        profile: For the context.
        number: Of this track, from 0.
        options: How to measure.
        graphs: Launch executions as CUDA graphs, where that works; see ``graph_failure``.
        clock: The host's.

    Raises:
        EngineError: The library makes no context, or refuses the shapes.
        CudaError: CUDA has no memory, or another failure.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        cuda: Cuda,
        feeds: Mapping[str, np.ndarray],
        *,
        profile: int,
        number: int,
        options: BenchOptions,
        graphs: bool,
        clock: Clock,
    ) -> None:
        self.graph_failure: str | None = None
        self._engine, self._cuda, self._options, self._clock = engine, cuda, options, clock
        self._number = number
        self._frees: list[Callable[[], object]] = []
        self._streams: list[int] = []
        self._flying: deque[_Slot] = deque()
        self._bound: _Slot | None = None
        self._last: _Slot | None = None
        try:
            self._set_up(feeds, profile)
            if graphs and not self._late:
                self._capture()
        except BaseException:
            self.close()
            raise

    def _set_up(self, feeds: Mapping[str, np.ndarray], profile: int) -> None:
        engine, cuda, frees = self._engine, self._cuda, self._frees
        self._in, self._compute, self._out = (self._make_stream() for _ in range(3))
        self._context = engine.create_context(profile=profile, stream=self._compute, own_scratch=True)
        frees.append(self._context.close)
        self._graphs = GraphCache(cuda, self._options.depth)
        frees.append(self._graphs.clear)
        self._values = {name: np.array(feeds[name], order="C") for name in engine.shape_inputs}
        shapes = self._context.set_inputs({name: array.shape for name, array in feeds.items()}, self._values)
        self._shapes = {spec.name: shapes[spec.name] for spec in engine.outputs}
        self._dtypes = {spec.name: spec.dtype for spec in engine.outputs}
        self._late = tuple(name for name, shape in self._shapes.items() if -1 in shape)
        arrays = {name: array for name, array in feeds.items() if name not in engine.shape_inputs}
        self._slots = [self._make_slot(arrays) for _ in range(self._options.depth)]
        self._free = deque(self._slots)
        for slot in self._slots:
            self._copy_in(slot)
        cuda.synchronize(self._in)
        cuda.synchronize(self._compute)

    def _make_stream(self) -> int:
        stream = self._cuda.create_stream()
        self._frees.append(partial(self._cuda.destroy_stream, stream))
        self._streams.append(stream)
        return stream

    def _make_event(self) -> int:
        event = self._cuda.create_event(timing=True, blocking=not self._options.spin_wait)
        self._frees.append(partial(self._cuda.destroy_event, event))
        return event

    def _make_slot(self, arrays: Mapping[str, np.ndarray]) -> _Slot:
        inputs = {}
        for name, array in arrays.items():
            buffer = inputs[name] = self._make_buffer(array.shape, array.nbytes)
            np.copyto(host_view(buffer.pinned, array.shape, array.dtype), array)
        outputs = {name: self._make_buffer(shape, self._nbytes(name, shape)) for name, shape in self._shapes.items()}
        return _Slot(inputs, outputs, tuple(self._make_event() for _ in range(6)))

    def _make_buffer(self, shape: Shape, nbytes: int) -> _Buffer:
        """Of a size that the data decides nothing is made yet."""
        buffer = _Buffer(nbytes=nbytes, shape=shape)
        self._frees.append(partial(self._release, buffer))
        if -1 not in shape:
            buffer.device = self._cuda.allocate(max(nbytes, 1))
            buffer.pinned = self._cuda.allocate_pinned(max(nbytes, 1))
        return buffer

    def _release(self, buffer: _Buffer) -> None:
        device, pinned = buffer.device, buffer.pinned
        buffer.device = buffer.pinned = 0
        if device:
            self._cuda.free(device)
        if pinned:
            self._cuda.free_pinned(pinned)

    def _nbytes(self, name: str, shape: Shape) -> int:
        return math.prod(shape) * self._dtypes[name].itemsize

    def _capture(self) -> None:
        """A graph for each slot, which is executed before: libraries do work then that must not be captured."""
        cuda, context = self._cuda, self._context
        for number, slot in enumerate(self._slots):
            self._bind(slot)
            context.execute(self._compute)
            cuda.synchronize(self._compute)
            try:
                self._graphs.capture(number, self._compute, partial(context.execute, self._compute))
            except (CudaError, EngineError) as error:
                self.graph_failure = str(error).replace("\n ", ";")
                for other in self._slots:
                    other.graph = None
                self._bound = None
                return
            slot.graph = self._graphs.find(number)

    @property
    def has_graphs(self) -> bool:
        """Executions are launched as graphs."""
        return self._slots[0].graph is not None

    @property
    def late(self) -> tuple[str, ...]:
        """Outputs whose size only the data decides."""
        return self._late

    @property
    def is_full(self) -> bool:
        """As many queries are in flight as may be."""
        return not self._free

    @property
    def is_idle(self) -> bool:
        """No query is in flight."""
        return not self._flying

    def enqueue(self) -> None:
        """Enqueue one query; `is_full` must not hold.

        Raises:
            EngineError: The library refuses.
            CudaError: A CUDA call failed.
        """
        cuda, clock, compute, slot = self._cuda, self._clock, self._compute, self._free.popleft()
        transfers = self._options.transfers
        h2d_start, h2d_end, compute_start, compute_end, d2h_start, d2h_end = slot.events
        slot.began = clock()
        if slot.graph is None and (self._bound is not slot or self._late):
            self._bind(slot)
        if transfers:
            cuda.record(h2d_start, self._in)
            self._copy_in(slot)
            cuda.record(h2d_end, self._in)
            cuda.wait(compute, h2d_end)
        cuda.record(compute_start, compute)
        slot.start = clock()
        if slot.graph is None:
            self._context.execute(compute)
        else:
            cuda.launch(slot.graph, compute)
        slot.end = clock()
        cuda.record(compute_end, compute)
        if self._late:
            cuda.synchronize_event(compute_end)
            self._learn_shapes(slot)
        if transfers:
            cuda.wait(self._out, compute_end)
            cuda.record(d2h_start, self._out)
            self._copy_out(slot)
            cuda.record(d2h_end, self._out)
        self._flying.append(slot)

    def finish(self, origin: Origin) -> Times:
        """Wait for the query that was enqueued first, and tell its times.

        Raises:
            CudaError: The execution failed.
        """
        cuda, slot = self._cuda, self._flying.popleft()
        h2d_start, h2d_end, compute_start, compute_end, d2h_start, d2h_end = slot.events
        elapsed, began_at = cuda.elapsed_ms, origin.event
        transfers = self._options.transfers
        cuda.synchronize_event(d2h_end if transfers else compute_end)
        # positions are long after the origin, where single precision is coarse: durations are asked for by themselves
        execution = elapsed(began_at, compute_start)
        executed = execution + elapsed(compute_start, compute_end)
        copied_in = copied_in_end = execution
        copied_out = copied_out_end = executed
        if transfers:
            copied_in = elapsed(began_at, h2d_start)
            copied_in_end = copied_in + elapsed(h2d_start, h2d_end)
            copied_out = elapsed(began_at, d2h_start)
            copied_out_end = copied_out + elapsed(d2h_start, d2h_end)
        self._free.append(slot)
        self._last = slot
        began, start, end = ((ns - origin.ns) / 1e6 for ns in (slot.began, slot.start, slot.end))
        return Times(
            began, start, end, copied_in, copied_in_end, execution, executed, copied_out, copied_out_end, self._number
        )  # fmt: skip

    def _bind(self, slot: _Slot) -> None:
        for name, buffer in (*slot.inputs.items(), *slot.outputs.items()):
            if name in self._late:
                self._context.set_allocator(name, partial(self._grow, buffer))
            else:
                self._context.set_address(name, buffer.device)
        self._bound = slot

    def _grow(self, buffer: _Buffer, _name: str, nbytes: int) -> int:
        """Memory for an output whose size is known now; what the same slot had before has been read."""
        if buffer.nbytes < nbytes or not buffer.device:
            self._release(buffer)
            buffer.device = self._cuda.allocate(nbytes)
            buffer.pinned = self._cuda.allocate_pinned(nbytes)
            buffer.nbytes = nbytes
        return buffer.device

    def _learn_shapes(self, slot: _Slot) -> None:
        for name in self._late:
            slot.outputs[name].shape = self._context.allocated_shape(name)

    def _copy_in(self, slot: _Slot) -> None:
        for buffer in slot.inputs.values():
            if buffer.nbytes:
                self._cuda.copy_in(buffer.device, buffer.pinned, buffer.nbytes, self._in)

    def _copy_out(self, slot: _Slot) -> None:
        for name, buffer in slot.outputs.items():
            nbytes = self._nbytes(name, buffer.shape)
            if nbytes:
                self._cuda.copy_out(buffer.pinned, buffer.device, nbytes, self._out)

    def outputs(self) -> dict[str, np.ndarray]:
        """Copies of the outputs of the query that finished last."""
        slot = self._last
        if slot is None:
            return {}
        if not self._options.transfers:
            self._copy_out(slot)
            self._cuda.synchronize(self._out)
        return {
            name: host_view(buffer.pinned, buffer.shape, self._dtypes[name]).copy()
            for name, buffer in slot.outputs.items()
        }

    def profile(self) -> LayerTimes:
        """Execute once more and time the layers; nothing may be in flight.

        Raises:
            EngineError: The library refuses.
            UnsupportedOptionError: It cannot time layers.
        """
        self._bind(self._slots[0])
        times = self._context.execute_profiled(self._compute)
        self._cuda.synchronize(self._compute)
        return times

    def close(self) -> None:
        """Wait for what is in flight and free everything."""
        self._flying.clear()
        frees, self._frees = self._frees, []
        waits: list[Callable[[], object]] = [partial(self._cuda.synchronize, stream) for stream in self._streams]
        free_all([*waits, *reversed(frees)])


def free_all(frees: Iterable[Callable[[], object]]) -> None:
    """Free one thing after another; failures are those of a device that is broken, and who measures was told."""
    for free in frees:
        with contextlib.suppress(CudaError):
            free()
