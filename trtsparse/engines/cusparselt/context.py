"""An engine's contexts: where inputs and outputs are, and each shape captured in CUDA graphs."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.program import Shapes
from trtsparse.engines.device import Allocate, Shape
from trtsparse.errors import EngineError, UnsupportedOptionError
from trtsparse.precision.specs import TensorSpec

if TYPE_CHECKING:  # it makes these contexts
    from trtsparse.engines.cusparselt.engine import CusparseltEngine

__all__ = ["CusparseltContext", "torch_type"]

_SHAPES = 8  # whose graphs a context keeps
_DIRECT = 4  # graphs of one shape that read and write where the caller's data is
_REMEMBERED = 8
Addresses = tuple[int, ...]


@dataclass
class _Graphs:
    """Those of one shape.

    Attributes:
        own: With inputs and outputs of its own, which are copied to and from; None until it is needed.
        inputs: The memory of that one.
        outputs: Likewise.
        direct: For addresses that came more than once: nothing is copied.
        seen: Addresses that came lately.
    """

    own: Any = None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    direct: dict[Addresses, Any] = field(default_factory=dict)
    seen: deque[Addresses] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class _Memory:
    """What PyTorch needs to see memory that someone else holds; the address comes from the session."""

    def __init__(self, address: int, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (int(np.prod(shape)) * dtype.itemsize,), "typestr": "|u1", "version": 3
        }  # fmt: skip


class CusparseltContext:
    """A `trtsparse.engines.device.DeviceContext`.

    Addresses that come again are captured, the first few of each shape; others are copied, on the GPU, to and from a
    graph that has its own. So are all where an output lies on an input, which a graph would overwrite too early.
    """

    def __init__(self, engine: CusparseltEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: Shapes = ()
        self._graphs: OrderedDict[Shapes, _Graphs] = OrderedDict()
        self._side: Any = None  # the stream of all captures: only on one is freed memory taken again
        self._pool: Any = None  # of memory for all graphs, of which one runs at a time

    def set_inputs(
        self,
        shapes: Mapping[str, Shape],
        values: Mapping[str, np.ndarray],  # noqa: ARG002 - no input is a shape
    ) -> dict[str, Shape]:
        """Take the shapes; returns those of the outputs."""
        self._shapes = tuple(tuple(shapes[spec.name]) for spec in self._engine.inputs)
        return self._engine.layout(self._shapes)

    def set_address(self, name: str, address: int) -> None:
        """Note where an input or output is."""
        self._addresses[name] = address

    def set_allocator(self, name: str, allocate: Allocate) -> None:  # noqa: ARG002
        """All sizes are known.

        Raises:
            EngineError: Always.
        """
        raise EngineError("no output of this engine has a size that depends on the data", where=name)

    def allocated_shape(self, name: str) -> Shape:
        """See `set_allocator`."""
        raise EngineError("no output of this engine has a size that depends on the data", where=name)

    def set_scratch(self, address: int, nbytes: int) -> None:
        """See `CusparseltEngine.create_context`."""
        raise UnsupportedOptionError(
            "PyTorch allocates this engine's memory", where=f"{nbytes} bytes at {address:#x}"
        )

    def execute(self, stream: int) -> None:
        """Enqueue a graph, with copies before and after it where the addresses are new.

        Raises:
            EngineError: A step failed, or cannot be captured.
        """
        torch, engine = _torch(), self._engine
        found = self._of_shape(torch)
        addresses = tuple(self._addresses.get(spec.name, 0) for spec in (*engine.inputs, *engine.outputs))
        with torch.inference_mode(), torch.cuda.stream(_stream(torch, stream, engine.device)):
            if addresses not in found.direct and addresses in found.seen and self._can_capture(found):
                self._capture_direct(torch, found, addresses)
            if addresses in found.direct:
                found.direct[addresses].replay()
            else:
                found.seen.append(addresses)
                self._copied(torch, found)

    def _of_shape(self, torch: Any) -> _Graphs:
        """The graphs of the current shape, now the most recently used."""
        found = self._graphs.get(self._shapes)
        if found is None:
            if len(self._graphs) >= _SHAPES:
                torch.cuda.synchronize(self._engine.device)
                self._graphs.popitem(last=False)
            found = self._graphs[self._shapes] = _Graphs()
        self._graphs.move_to_end(self._shapes)
        return found

    def _can_capture(self, found: _Graphs) -> bool:
        """Whether there may be one more direct graph, and no output lies on an input or another output."""
        engine, outputs = self._engine, self._engine.layout(self._shapes)
        fed = [self._extent(spec, shape) for spec, shape in zip(engine.inputs, self._shapes, strict=True)]
        filled = [self._extent(spec, outputs[spec.name]) for spec in engine.outputs]
        others = ((one, other) for at, one in enumerate(filled) for other in (*fed, *filled[:at]))
        return len(found.direct) < _DIRECT and not any(_overlap(*pair) for pair in others)

    def _extent(self, spec: TensorSpec, shape: Shape) -> range:
        """The addresses of its bytes."""
        begin = self._addresses.get(spec.name, 0)
        return range(begin, begin + math.prod(shape) * spec.dtype.itemsize)

    def _capture_direct(self, torch: Any, found: _Graphs, addresses: Addresses) -> None:
        """In place of the graph that has memory of its own."""
        buffers = (found.inputs, found.outputs) if found.own else self._engine.buffers(self._shapes)
        found.direct[addresses] = self._captured(torch, *self._views(torch), warm_up=buffers)
        torch.cuda.synchronize(self._engine.device)  # it may still run
        found.own, found.inputs, found.outputs = None, [], []

    def _copied(self, torch: Any, found: _Graphs) -> None:
        """Enqueue copies, the graph that has memory of its own, copies."""
        if found.own is None:
            buffers = self._engine.buffers(self._shapes)
            found.own = self._captured(torch, *buffers, warm_up=buffers)
            found.inputs, found.outputs = buffers
        inputs, outputs = self._views(torch)
        for kept, given in zip(found.inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        found.own.replay()
        for given, kept in zip(outputs, found.outputs, strict=True):
            given.copy_(kept, non_blocking=True)

    def _views(self, torch: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The caller's inputs and outputs."""
        engine = self._engine
        outputs = engine.layout(self._shapes)
        return (
            [self._view(torch, spec, shape) for spec, shape in zip(engine.inputs, self._shapes, strict=True)],
            [self._view(torch, spec, outputs[spec.name]) for spec in engine.outputs],
        )

    def _view(self, torch: Any, spec: TensorSpec, shape: Shape) -> Tensor:
        kind, device = torch_type(torch, spec.dtype), self._engine.program.device
        if 0 in shape:  # it may have no address
            return torch.empty(shape, dtype=kind, device=device)
        flat = torch.as_tensor(_Memory(self._addresses[spec.name], shape, spec.dtype), device=device)
        return flat.view(kind).view(shape)

    def _captured(
        self,
        torch: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
        *,
        warm_up: tuple[list[Tensor], list[Tensor]],
    ) -> Any:
        """A graph that reads the inputs and writes the outputs; libraries allocate in an execution before it.

        Args:
            torch: PyTorch, in inference mode.
            inputs: In the model's types.
            outputs: Likewise.
            warm_up: Inputs and outputs of that execution.
        """
        engine = self._engine
        with engine.lock, torch.cuda.device(engine.device):
            run = engine.runner(self._shapes)
            graph = torch.cuda.CUDAGraph()
            if self._side is None:
                self._side = torch.cuda.Stream(device=engine.program.device)
                self._pool = torch.cuda.graph_pool_handle()
            side = self._side
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    run(*warm_up)
                side.synchronize()
                with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                    run(inputs, outputs)
            except EngineError:  # it says what it is about
                raise
            except RuntimeError as error:
                raise EngineError(
                    "the model cannot be captured in a CUDA graph", where=engine.description, got=str(error)
                ) from error
        return graph

    def execute_profiled(self, stream: int) -> tuple[tuple[str, float], ...]:
        """Execute step by step, without a graph and not compiled, with events around each step.

        Returns:
            (step, milliseconds), in order.
        """
        torch = _torch()
        engine = self._engine
        times: list[tuple[str, Any, Any]] = []

        def watch(name: str, work: Any) -> Any:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            result = work()
            end.record()
            times.append((name, start, end))
            return result

        with torch.inference_mode(), torch.cuda.stream(_stream(torch, stream, engine.device)):
            inputs, outputs = self._views(torch)
            with engine.lock:
                for given, found in zip(outputs, engine.program(inputs, watch=watch), strict=True):
                    given.copy_(found)
            torch.cuda.current_stream().synchronize()
        return tuple((name, float(start.elapsed_time(end))) for name, start, end in times)

    def close(self) -> None:
        """Free the graphs, whose work has finished."""
        self._graphs.clear()


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _stream(torch: Any, handle: int, device: int) -> Any:
    """PyTorch's name for a stream; it takes 0, CUDA's default stream, for no handle at all and makes a new one."""
    return torch.cuda.ExternalStream(handle, device=device) if handle else torch.cuda.default_stream(device)


def torch_type(torch: Any, dtype: np.dtype[Any]) -> Any:
    """PyTorch's type of a numpy one."""
    names = {"bool": "bool", "bfloat16": "bfloat16"}
    return getattr(torch, names.get(dtype.name, dtype.name))


def _torch() -> Any:
    import torch

    return torch
