"""An engine's contexts: where inputs and outputs are, and each shape captured in a CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
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

_GRAPHS = 8  # shapes whose graphs a context keeps


@dataclass
class _Captured:
    """One shape's graph with the memory inside it."""

    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class _Memory:
    """What PyTorch needs to see memory that someone else holds; the address comes from the session."""

    def __init__(self, address: int, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (int(np.prod(shape)) * dtype.itemsize,), "typestr": "|u1", "version": 3
        }  # fmt: skip


class CusparseltContext:
    """A `trtsparse.engines.device.DeviceContext`; inputs and outputs are copied on the GPU, to and from the graph."""

    def __init__(self, engine: CusparseltEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: Shapes = ()
        self._graphs: OrderedDict[Shapes, _Captured] = OrderedDict()

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
        """Enqueue copies, the graph, copies.

        Raises:
            EngineError: A step failed, or cannot be captured.
        """
        torch = _torch()
        engine = self._engine
        captured = self._graphs.get(self._shapes)
        if captured is None:
            captured = self._capture()
        self._graphs.move_to_end(self._shapes)
        with torch.inference_mode(), torch.cuda.stream(_stream(torch, stream, engine.device)):
            for spec, tensor in zip(engine.inputs, captured.inputs, strict=True):
                if tensor.numel():
                    tensor.copy_(self._view(torch, spec, tuple(tensor.shape)), non_blocking=True)
            captured.graph.replay()
            for spec, tensor in zip(engine.outputs, captured.outputs, strict=True):
                if tensor.numel():
                    self._view(torch, spec, tuple(tensor.shape)).copy_(tensor, non_blocking=True)

    def _view(self, torch: Any, spec: TensorSpec, shape: Shape) -> Tensor:
        flat = torch.as_tensor(
            _Memory(self._addresses[spec.name], shape, spec.dtype), device=self._engine.program.device
        )
        return flat.view(torch_type(torch, spec.dtype)).view(shape)

    def _capture(self) -> _Captured:
        torch = _torch()
        engine = self._engine
        with engine.lock, torch.inference_mode(), torch.cuda.device(engine.device):
            if len(self._graphs) >= _GRAPHS:
                torch.cuda.synchronize()
                self._graphs.popitem(last=False)
            inputs = engine.zeros(self._shapes)
            run = engine.runner(self._shapes)
            graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream(device=engine.program.device)
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    run(inputs)  # outside of the capture: libraries allocate when they first see a shape
                side.synchronize()
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    outputs = run(inputs)
            except EngineError:  # it says what it is about
                raise
            except RuntimeError as error:
                raise EngineError(
                    "the model cannot be captured in a CUDA graph", where=engine.description, got=str(error)
                ) from error
        made = self._graphs[self._shapes] = _Captured(graph, inputs, outputs)
        return made

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

        with engine.lock, torch.inference_mode(), torch.cuda.stream(_stream(torch, stream, engine.device)):
            inputs = [self._view(torch, spec, shape) for spec, shape in zip(engine.inputs, self._shapes, strict=True)]
            outputs = engine.program(inputs, watch=watch)
            for spec, tensor in zip(engine.outputs, outputs, strict=True):
                if tensor.numel():
                    self._view(torch, spec, tuple(tensor.shape)).copy_(tensor)
            torch.cuda.current_stream().synchronize()
        return tuple((name, float(start.elapsed_time(end))) for name, start, end in times)

    def close(self) -> None:
        """Free the graphs, whose work has finished."""
        self._graphs.clear()


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
