"""What an engine offers that executes on a GPU, asynchronously, on memory that someone else provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from trtsparse.engines.base import LayerTimes
from trtsparse.precision.specs import TensorSpec

__all__ = ["Allocate", "DeviceContext", "DeviceEngine", "ProfileShapes", "ShapeRange"]

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""Smallest, usual and largest shape."""
ProfileShapes = Mapping[str, ShapeRange]
"""Input name to range, for one profile."""
Allocate = Callable[[str, int], int]
"""Output name and bytes to an address; called while an execution is enqueued or runs."""


class DeviceContext(Protocol):
    """One execution at a time, on whatever stream it is given. Not thread-safe. Its device must be current."""

    def set_inputs(self, shapes: Mapping[str, Shape], values: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        """Set the shapes of all inputs, and the values of those inputs that are shapes.

        Args:
            shapes: Input name to shape.
            values: Shape inputs to their values. The arrays must stay unchanged until `execute` returns.

        Returns:
            Output name to shape, with -1 where only the data decides.

        Raises:
            EngineError: The library refuses them.
        """
        ...

    def set_address(self, name: str, address: int) -> None:
        """Bind an input or output to device memory."""

    def set_allocator(self, name: str, allocate: Allocate) -> None:
        """Have an output's memory allocated when its size is known; `allocated_shape` tells the shape then."""

    def allocated_shape(self, name: str) -> Shape:
        """The shape of an output with an allocator, after the execution has finished."""
        ...

    def set_scratch(self, address: int, nbytes: int) -> None:
        """Give the memory for intermediate results to a context that was made without."""

    def execute(self, stream: int) -> None:
        """Enqueue one execution.

        Raises:
            EngineError: The library refuses; the context must not be used any more.
        """

    def execute_profiled(self, stream: int) -> LayerTimes:
        """Execute once, wait for it, and tell how long each layer took.

        Timing every layer makes an execution slower than `execute`; a context that did it once is for nothing else.

        Raises:
            EngineError: The library refuses, or tells no times.
            UnsupportedOptionError: This version cannot time layers.
        """
        ...

    def close(self) -> None:
        """Free the context, whose work has finished."""


@runtime_checkable
class DeviceEngine(Protocol):
    """A plan loaded on one GPU. Contexts may be made from several threads, one after another.

    Attributes:
        name: Of the library, such as "tensorrt".
        description: One line for people.
        device: The GPU that holds it.
        inputs: What an execution takes.
        outputs: What it gives.
        profiles: Ranges of the inputs, one mapping for each profile; at least one.
        shape_inputs: Inputs that are read in host memory when an execution is enqueued.
        exclusive_profiles: Two contexts cannot use one profile at a time.
        can_capture: Executions may be captured in a CUDA graph.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def description(self) -> str: ...  # noqa: D102

    @property
    def device(self) -> int: ...  # noqa: D102

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def profiles(self) -> tuple[ProfileShapes, ...]: ...  # noqa: D102

    @property
    def shape_inputs(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def exclusive_profiles(self) -> bool: ...  # noqa: D102

    @property
    def can_capture(self) -> bool: ...  # noqa: D102

    def scratch_nbytes(self, profile: int) -> int:
        """Bytes of intermediate results of one execution."""
        ...

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> DeviceContext:
        """A context for one profile.

        Args:
            profile: Its index.
            stream: Where the library prepares it.
            own_scratch: The library allocates the memory for intermediate results; else `set_scratch` gives it.

        Raises:
            EngineError: The library returns none.
            UnsupportedOptionError: This version cannot do without its own scratch memory.
        """
        ...

    def set_weights_budget(self, nbytes: int) -> None:
        """Keep only so much of the weights on the GPU; before any context is made.

        Raises:
            UnsupportedOptionError: This version, or this plan, cannot stream its weights.
        """

    def close(self) -> None:
        """Free the engine, whose contexts are closed. Closing twice is harmless."""
