"""An engine that executes ONNX models on the in-memory CUDA: stands where the cusparselt engine stands. Tests only.

Values are ONNX Runtime's; they are computed when the stream gets there, from what is at the addresses then. Like the
engine itself it asks for a kernel for each product when it first sees a number of rows, and saves what it was told.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.doubles.cuda import WORK_MS, MemoryCuda
from trtsparse.engines.cusparselt.product import Used
from trtsparse.engines.cusparselt.saved import Saved, is_saved, read_saved, write_saved
from trtsparse.engines.device import Allocate, ProfileShapes, Shape
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.errors import EngineError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.validate import validate
from trtsparse.tune.choose import Choose, Remembered, question
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

__all__ = ["MADE_ON", "ModelEngine", "engine_on_memory", "kernel"]

MADE_ON = {"gpu": "memory", "cusparselt": "0.8.0"}


def kernel(kind: str) -> Kernel:
    """A kernel of a kind."""
    return Kernel(kind, f"{kind} 1", {}, 0.25, 0.25, 0.25, 0.0, 1.0)


def engine_on_memory(cuda: MemoryCuda) -> type[ModelEngine]:
    """A class whose engines are on this CUDA; ``made`` lists them."""

    return type("OnMemory", (ModelEngine,), {"memory": cuda, "made": []})


class ModelEngine:
    """See the module; an implementation of `trtsparse.engines.device.DeviceEngine`."""

    memory: MemoryCuda
    made: list[ModelEngine]
    name = "cusparselt"
    shape_inputs: frozenset[str] = frozenset()
    exclusive_profiles = False
    can_capture = False

    def __init__(
        self,
        source: Any,
        *,
        device: int = 0,
        precision: str | None = None,
        compiled: bool | None = None,
        use_sparse: bool | None = None,
        choose: Choose | None = None,
    ) -> None:
        saved = read_saved(source) if isinstance(source, (str, os.PathLike)) and is_saved(source) else None
        self.model = OnnxModel.open(source) if saved is None else saved.model
        self.asked_precision = precision
        self.compiled = compiled if compiled is not None else saved is not None and saved.compiled
        self.use_sparse = use_sparse if use_sparse is not None else saved is None or saved.use_sparse
        self.precision = precision or ("bf16" if saved is None else saved.precision)
        self.device, self.is_saved = device, saved is not None
        self.host = OnnxRuntimeEngine(self.model, threads=1)
        self.inputs, self.outputs = self.host.inputs, self.host.outputs
        self.profiles: tuple[ProfileShapes, ...] = ({spec.name: _range(spec.shape) for spec in self.inputs},)
        self._choose = choose or (Remembered(saved.kernels, _nobody) if saved is not None else _nobody)
        self._kernels: dict[str, Kernel | None] = {}
        self.used: tuple[Used, ...] = ()
        self.contexts = self.closed = 0
        self.made.append(self)

    @property
    def description(self) -> str:
        """How the engine describes itself."""
        count = sum(one.kernel is not None and one.kernel.kind == "sparse" for one in self.used)
        return f"{self.model.name} in {self.precision} on memory, {count} of {len(self.used)} products sparse"

    def prepare(self, rows: int) -> None:
        """Ask for the kernel of each product with so many rows, once."""
        if any(one.gemm.m == rows for one in self.used):
            return
        for site in validate(self.model).sites if self.precision != "typed" else ():
            n, k = site.shape[1 - site.axis], site.shape[site.axis]
            gemm, compliant = (
                Gemm(rows, n, k, "fp16" if self.precision == "fp16" else "bf16"),
                bool(site.compliant) and self.use_sparse,
            )
            chosen = self._kernels[question(gemm, compliant=compliant)] = self._choose(gemm, compliant)
            self.used += (Used(site.node, site.tensor, gemm, chosen),)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model and the kernels."""
        kept = {"compiled": self.compiled, "use_sparse": self.use_sparse}
        write_saved(path, Saved(self.model, self.precision, self._kernels, {}, MADE_ON, **kept))

    def scratch_nbytes(self, profile: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> ModelContext:
        assert (profile, own_scratch) == (0, True)
        assert stream
        self.contexts += 1
        return ModelContext(self)

    def set_weights_budget(self, nbytes: int) -> None:
        raise AssertionError(f"this engine does not stream weights: {nbytes}")

    def close(self) -> None:
        assert not self.contexts, "the engine was closed before its contexts"
        self.closed += 1


class ModelContext:
    """See `trtsparse.engines.device.DeviceContext`."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}

    def set_inputs(self, shapes: Mapping[str, Shape], values: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        assert not values
        engine = self._engine
        zeros = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in engine.inputs}
        found = engine.host.run(zeros)
        engine.prepare(math.prod(next(iter(zeros.values())).shape[:-1]))
        self._shapes = {**dict(shapes), **{name: array.shape for name, array in found.items()}}
        return {name: array.shape for name, array in found.items()}

    def set_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def set_allocator(self, name: str, allocate: Allocate) -> None:  # noqa: ARG002 - the protocol's
        raise EngineError("all sizes are known", where=name)

    def allocated_shape(self, name: str) -> Shape:
        raise EngineError("all sizes are known", where=name)

    def set_scratch(self, address: int, nbytes: int) -> None:
        raise AssertionError(f"contexts are asked for with scratch memory of their own: {nbytes} at {address}")

    def execute(self, stream: int) -> None:
        self._engine.memory.submit(stream, self._work(), WORK_MS)

    def execute_profiled(self, stream: int) -> tuple[tuple[str, float], ...]:
        self._engine.memory.submit(stream, self._work(), WORK_MS)
        self._engine.memory.synchronize(stream)
        return tuple((node.name, WORK_MS) for node in self._engine.model.proto.graph.node)

    def _work(self) -> Callable[[], None]:
        """What the stream does, with the addresses of now."""
        engine, addresses = self._engine, dict(self._addresses)

        def work() -> None:
            feeds = {spec.name: self._view(spec, addresses).copy() for spec in engine.inputs}
            for name, array in engine.host.run(feeds).items():
                spec = next(spec for spec in engine.outputs if spec.name == name)
                self._view(spec, addresses)[...] = array

        return work

    def _view(self, spec: Any, addresses: Mapping[str, int]) -> np.ndarray:
        shape = self._shapes[spec.name]
        nbytes = math.prod(shape) * spec.dtype.itemsize
        memory = (ctypes.c_char * nbytes).from_address(addresses[spec.name])
        return np.frombuffer(memory, spec.dtype).reshape(shape)

    def close(self) -> None:
        self._engine.contexts -= 1


def _nobody(gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - as an engine calls it
    raise AssertionError(f"nobody chooses a kernel for {gemm.key}, compliant: {compliant}")


def _range(dims: Any) -> tuple[Shape, Shape, Shape]:
    low, usual, high = (tuple(dim if isinstance(dim, int) else size for dim in dims) for size in (1, 4, 1024))
    return low, usual, high
