"""One execution context with what belongs to it: a stream, buffers, graphs. One request at a time."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trtsparse.cuda.base import Cuda
from trtsparse.engines.device import DeviceContext, DeviceEngine, Shape
from trtsparse.errors import ConfigError, CudaError, EngineError
from trtsparse.runtime.arrays import ALIGNMENT, Foreign, unfit_reason
from trtsparse.runtime.feeds import Key
from trtsparse.runtime.graphs import GraphCache
from trtsparse.runtime.memory import Block, Pool, host_view, pinned_address
from trtsparse.runtime.options import SessionOptions

__all__ = ["NO_COPIES", "Copy", "Lane", "Resources", "SharedScratch", "attempt"]

_HELD_FEW, _HELD_LIMIT = 8, 32
Copy = tuple[int, int, int]
"""Target, source, bytes."""
NO_COPIES: tuple[tuple[Copy, ...], tuple[Copy, ...]] = ((), ())


class SharedScratch:
    """Memory for intermediate results that all contexts use, one execution after another.

    Args:
        cuda: The device.
        block: The memory.
    """

    def __init__(self, cuda: Cuda, block: Block) -> None:
        self.block = block
        self.lock = threading.Lock()
        self.event = cuda.create_event()


@dataclass
class Resources:
    """What the lanes of one session share."""

    engine: DeviceEngine
    cuda: Cuda
    options: SessionOptions
    device_pool: Pool
    pinned_pool: Pool
    graphs: bool
    on_capture_failure: Callable[[Exception], None]
    scratch: SharedScratch | None = None


class _Buffer:
    """Device memory of one input or output, and pinned memory beside it; both grow when a shape needs more.

    Graphs need not hear of it: every address that is in a graph is in its key.
    """

    def __init__(self, name: str, dtype: np.dtype[Any], *, exact: bool) -> None:
        self.name, self.dtype, self._exact = name, dtype, exact
        self.device: Block | None = None
        self.pinned: Block | None = None
        self.pinned_address = 0
        self._view: np.ndarray | None = None

    def device_address(self, lane: Lane, nbytes: int) -> int:
        block = self.device
        if block is None or block.nbytes < nbytes:
            lane.settle()
            if block is not None:
                self.device = None  # should there be no memory for the next one
                block.release()
            block = self.device = lane.resources.device_pool.take(nbytes, exact=self._exact)
        return block.address

    def pinned_view(self, lane: Lane, shape: Shape) -> np.ndarray:
        view = self._view
        if view is not None and view.shape == shape:
            return view
        nbytes = math.prod(shape) * self.dtype.itemsize
        block = self.pinned
        if block is None or block.nbytes < nbytes:
            lane.settle()
            if block is not None:
                self.pinned = self._view = None
                block.release()
            block = self.pinned = lane.resources.pinned_pool.take(nbytes, exact=self._exact)
        self.pinned_address = block.address
        self._view = host_view(block.address, shape, self.dtype)
        return self._view

    def release(self) -> None:
        self._view = None
        for block in (self.device, self.pinned):
            if block is not None:
                block.release()


class Lane:
    """See the module. The device must be current in the calling thread.

    Args:
        resources: Of the session.
        profile: For the context.

    Raises:
        EngineError: The library makes no context.
        CudaError: CUDA has no memory, or another failure.
    """

    def __init__(self, resources: Resources, profile: int) -> None:
        self.resources = resources
        self.profile = profile
        self.stream = self.done = self._fence = self._mark = 0
        self.context: DeviceContext | None = None
        self._scratch: Block | None = None
        self._busy_on: int | None = None
        self.held: dict[int, Any] = {}
        """By `id`, what must stay alive until the work that uses it has finished."""
        self._held_before: dict[int, Any] = {}
        self._key: Key | None = None
        self._layouts: dict[Key, tuple[Shape, ...]] = {}
        self._bound: dict[str, int] = {}
        engine, cuda = resources.engine, resources.cuda
        self.graphs = GraphCache(cuda, resources.options.graph_limit)
        self.inputs = [_buffer(spec) for spec in engine.inputs]
        self.outputs = [_buffer(spec) for spec in engine.outputs]
        self._names = [None if spec.name in engine.shape_inputs else spec.name for spec in engine.inputs]
        self._names += [spec.name for spec in engine.outputs]
        try:
            self.stream = cuda.create_stream()
            self.done, self._fence, self._mark = cuda.create_event(), cuda.create_event(), cuda.create_event()
            self._make_context()
        except BaseException:
            self.close()
            raise

    def _make_context(self) -> None:
        resources, kind = self.resources, self.resources.options.scratch
        self.context = resources.engine.create_context(
            profile=self.profile, stream=self.stream, own_scratch=kind == "context"
        )
        if kind == "pool":
            self._scratch = resources.device_pool.take(resources.engine.scratch_nbytes(self.profile), exact=True)
        scratch = self._scratch or (resources.scratch and resources.scratch.block)
        if scratch:
            self.context.set_scratch(scratch.address, scratch.nbytes)
        resources.cuda.synchronize(self.stream)  # the first request may come on a stream of the application

    # -- shapes -----------------------------------------------------------------------------------------------------

    def layout(self, key: Key, arrays: list[Any]) -> tuple[Shape, ...]:
        """Shapes of the outputs, in order; -1 where only the data decides."""
        found = self._layouts.get(key)
        if found is None:
            self._set_key(key, arrays)
            found = self._layouts[key]
        return found

    def _set_key(self, key: Key, arrays: list[Any]) -> None:
        engine, context = self.resources.engine, self._alive()
        shapes, values = {}, {}
        for spec, array in zip(engine.inputs, arrays, strict=True):
            if spec.name in engine.shape_inputs:
                values[spec.name] = np.array(array, order="C")  # the library reads it when it enqueues
            shapes[spec.name] = array.shape
        self._key = None
        outputs = context.set_inputs(shapes, values)
        if len(self._layouts) > 1024:
            self._layouts.clear()
        self._layouts[key] = tuple(outputs[spec.name] for spec in engine.outputs)
        self._key = key

    def _alive(self) -> DeviceContext:
        if self.context is None:
            raise EngineError("the execution context is closed")
        return self.context

    # -- memory -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for what was enqueued on an application's stream: buffers are about to be written, or freed."""
        if self._busy_on is not None:
            self.resources.cuda.synchronize_event(self.done)
            self.finished()

    def begin(self, stream: int) -> None:
        """A request is about to be enqueued on a stream."""
        busy_on = self._busy_on
        if busy_on is None or (stream == busy_on and len(self.held) < _HELD_FEW):
            return
        cuda = self.resources.cuda
        if cuda.event_done(self.done):
            self.finished()
            return
        if len(self.held) > _HELD_LIMIT:
            self._let_go()
        if stream != busy_on:
            cuda.wait(stream, self.done)

    def _let_go(self) -> None:
        """In a stream that never runs dry: drop what was held before the last mark, once the stream has passed it."""
        cuda = self.resources.cuda
        if self._held_before:
            cuda.synchronize_event(self._mark)
        self._held_before, self.held = self.held, {}
        cuda.record(self._mark, self._busy_on or 0)

    def place(self, index: int, array: Any, stream: int) -> tuple[int, Copy | None]:
        """Where a host array, or one on the GPU that does not fit, will lie.

        Returns:
            The input's device address, and the copy from pinned memory to make; None: none, or enqueued already.
        """
        if type(array) is Foreign:
            return self._place_foreign(index, array, stream), None
        buffer = self.inputs[index]
        nbytes = array.nbytes
        target = buffer.device_address(self, nbytes)
        if not nbytes:
            return target, None
        source = pinned_address(array) if array.base is not None else None
        if source is None:
            self.settle()
            view = buffer.pinned_view(self, array.shape)
            np.copyto(view, array)
            source = buffer.pinned_address
        else:
            self.held[id(array)] = array
        return target, (target, source, nbytes)

    def _place_foreign(self, index: int, array: Foreign, stream: int) -> int:
        """Copy on the GPU."""
        if array.address:
            array = self._fitting(array, self.inputs[index].name)
        self.after(array.stream, stream)
        self.held[id(array.owner)] = array.owner
        nbytes = math.prod(array.shape) * array.dtype.itemsize
        target = self.inputs[index].device_address(self, nbytes)
        if nbytes:
            self.resources.cuda.copy_across(target, array.address, nbytes, stream)
        return target

    def _fitting(self, array: Foreign, name: str) -> Foreign:
        """An array that can be copied to where it fits."""
        if self.resources.options.unfit == "refuse":
            raise ConfigError(
                "an array cannot be used in place",
                where=f"{name!r}, unfit='refuse'",
                got=unfit_reason(array, self.resources.cuda.device),
                expected=f"contiguous, on GPU {self.resources.cuda.device}, at a multiple of {ALIGNMENT} bytes",
                fix="allow copies with unfit='copy'",
            )
        if array.contiguous:
            return array
        if not hasattr(array.owner, "contiguous"):
            raise ConfigError(
                "an array on the GPU is not contiguous",
                where=repr(name),
                got=type(array.owner).__name__,
                fix="make it contiguous before",
            )
        flat = array.owner.contiguous()  # on the producer's stream, as PyTorch does everything
        return array._replace(address=flat.data_ptr(), contiguous=True, owner=(flat, array.owner))

    def after(self, producer: int | None, stream: int) -> None:
        """A stream goes on after what its producer has enqueued so far."""
        if producer is not None and producer != stream:
            self.resources.cuda.record(self._fence, producer)
            self.resources.cuda.wait(stream, self._fence)

    # -- execution --------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        key: Key,
        arrays: list[Any],
        addresses: tuple[int, ...],
        copies: tuple[tuple[Copy, ...], tuple[Copy, ...]],
        stream: int,
        capture: bool,  # noqa: FBT001 - one of six, all of them by position: this is called for every request
    ) -> None:
        """Copies in, execution, copies out, on a stream; by a graph where there is one.

        Args:
            key: Of the inputs.
            arrays: The inputs.
            addresses: Of inputs and outputs, in order; 0 for outputs that are allocated when their size is known.
            copies: From pinned memory to the device before, and back after.
            stream: Where.
            capture: A graph may be used and made.
        """
        scratch = self.resources.scratch
        if not capture:
            self._execute(key, arrays, addresses, copies, stream)
            return
        graph_key = (key, addresses, None if scratch else copies)
        graph = self.graphs.find(graph_key)
        if graph is None:
            self._execute(key, arrays, addresses, copies, stream)
            if self.graphs.is_due(graph_key):
                self._capture(graph_key, copies)
        elif scratch is None:
            self.resources.cuda.launch(graph, stream)
        else:
            self._copy(copies[0], stream, self.resources.cuda.copy_in)
            with scratch.lock:
                self.resources.cuda.wait(stream, scratch.event)
                self.resources.cuda.launch(graph, stream)
                self.resources.cuda.record(scratch.event, stream)
            self._copy(copies[1], stream, self.resources.cuda.copy_out)

    def _execute(self, key: Key, arrays: list[Any], addresses: tuple[int, ...], copies: Any, stream: int) -> None:
        cuda, scratch, context = self.resources.cuda, self.resources.scratch, self._alive()
        if self._key != key:
            self._set_key(key, arrays)
        bound = self._bound
        for name, address in zip(self._names, addresses, strict=True):
            if name is not None and address and bound.get(name) != address:
                context.set_address(name, address)
                bound[name] = address
        if copies[0]:
            self._copy(copies[0], stream, cuda.copy_in)
        if scratch is None:
            context.execute(stream)
        else:
            with scratch.lock:
                cuda.wait(stream, scratch.event)
                context.execute(stream)
                cuda.record(scratch.event, stream)
        if copies[1]:
            self._copy(copies[1], stream, cuda.copy_out)

    def _copy(self, copies: tuple[Copy, ...], stream: int, copy: Callable[[int, int, int, int], None]) -> None:
        for target, source, nbytes in copies:
            copy(target, source, nbytes, stream)

    def _capture(self, graph_key: Any, copies: Any) -> None:
        """Capture what was just enqueued, for the next time. On our own stream: nothing is executed."""
        cuda, stream, context = self.resources.cuda, self.stream, self._alive()

        def enqueue() -> None:
            if self.resources.scratch is None:
                self._copy(copies[0], stream, cuda.copy_in)
            context.execute(stream)
            if self.resources.scratch is None:
                self._copy(copies[1], stream, cuda.copy_out)

        try:
            self.graphs.capture(graph_key, stream, enqueue)
        except (CudaError, EngineError) as error:
            self.resources.on_capture_failure(error)

    def finish_later(self, stream: int) -> None:
        """Mark the end of what was enqueued on an application's stream."""
        self.resources.cuda.record(self.done, stream)
        self._busy_on = stream

    def finished(self) -> None:
        """What was enqueued on our own stream has finished, and whatever it waited for."""
        self._busy_on = None
        if self.held:
            self.held = {}
        if self._held_before:
            self._held_before = {}

    def close(self) -> None:
        """Wait for the work, then free everything. Failures of a context that is broken are ignored."""
        attempt(self.settle)
        for free in self._frees():
            attempt(free)
        self.finished()

    def _frees(self) -> list[Callable[[], object]]:
        cuda, stream, context = self.resources.cuda, self.stream, self.context
        frees: list[Callable[[], object]] = [partial(cuda.synchronize, stream)] if stream else []
        frees.append(self.graphs.clear)
        if context is not None:
            frees.append(context.close)
        frees += [buffer.release for buffer in [*self.inputs, *self.outputs]]
        if self._scratch is not None:
            frees.append(self._scratch.release)
        frees += [partial(cuda.destroy_event, event) for event in (self.done, self._fence, self._mark) if event]
        frees += [partial(cuda.destroy_stream, stream)] if stream else []
        self.stream = self.done = self._fence = self._mark = 0
        self.context = self._scratch = None
        return frees


def attempt(free: Callable[[], object]) -> None:
    """Free one thing of a context that may be broken: whoever waited for its result was told."""
    with contextlib.suppress(CudaError):
        free()


def _buffer(spec: Any) -> _Buffer:
    fixed = spec.shape is not None and all(isinstance(dim, int) for dim in spec.shape)
    return _Buffer(spec.name, spec.dtype, exact=fixed)
