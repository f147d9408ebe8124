"""What every engine can do, whatever library executes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from trtsparse.precision.specs import TensorSpec

__all__ = ["Engine", "LayerTimes", "ProfilingEngine", "TensorSpec"]

LayerTimes = tuple[tuple[str, float], ...]
"""Name and milliseconds of each layer of one execution, in order; a name may occur more than once."""


@runtime_checkable
class Engine(Protocol):
    """A plan or model loaded by an execution library, ready to run.

    An engine does not check its inputs: `trtsparse.runtime.session.Session` does, before it calls one. Arrays passed
    in belong to the caller and are only read during `run`; arrays returned belong to the caller.

    Attributes:
        name: Of the library, such as "onnxruntime".
        description: One line for people: what is loaded, where it executes.
        inputs: What `run` takes.
        outputs: What `run` returns.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def description(self) -> str: ...  # noqa: D102

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    def run(self, feeds: Mapping[str, np.ndarray], *, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Execute once.

        Args:
            feeds: An array for each of ``inputs``, in host memory.
            outputs: The outputs to return, by default all.

        Raises:
            EngineError: The library reports a failure.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds. Closing twice is harmless."""
        ...


@runtime_checkable
class ProfilingEngine(Protocol):
    """An engine that can also tell how long each layer takes."""

    def profile(self, feeds: Mapping[str, np.ndarray], *, runs: int) -> list[LayerTimes]:
        """Execute several times and time the layers, which makes the executions slower.

        Args:
            feeds: As in `Engine.run`.
            runs: How many executions; fewer where the library's record of them would become too large.

        Returns:
            One for each execution.

        Raises:
            EngineError: The library reports a failure.
        """
        ...
