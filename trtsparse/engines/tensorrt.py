"""TensorRT and TensorRT-RTX: plans on a GPU, through one adapter for all versions.

What differs between versions is asked of the objects themselves: has this engine that attribute.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtsparse.builder.adapter import find_tensorrt
from trtsparse.builder.capabilities import Capabilities
from trtsparse.builder.logs import Log, collecting
from trtsparse.builder.plan import FLAVOUR_NAMES, PlanHeader, check_matches, read_header
from trtsparse.cuda.driver import count_gpus
from trtsparse.engines.base import LayerTimes
from trtsparse.engines.callbacks import make_allocator, make_profiler, make_recorder
from trtsparse.engines.device import Allocate, ProfileShapes, Shape
from trtsparse.errors import DeviceError, EngineError, PlanError, UnsupportedOptionError
from trtsparse.precision.specs import TensorSpec

__all__ = ["TensorRTContext", "TensorRTEngine"]

Prepare = Callable[[Any, Any], Any]
_EXTENDED_TYPES = {"BF16": "bfloat16", "FP8": "float8_e4m3fn"}


class TensorRTEngine:
    """A plan loaded by the TensorRT that is installed; see `trtsparse.engines.device.DeviceEngine`.

    The GPU must be current in the calling thread. Contexts share the engine's weights.

    Args:
        source: A path, or the plan's bytes.
        device: The number of the GPU that is current.
        prepare: Called with TensorRT's module and the IRuntime before the plan is loaded; returns the runtime to use.

    Raises:
        PlanError: Not a plan, truncated, damaged, or of another version or flavour; both versions are named.
        MissingDependencyError: The TensorRT of the plan's flavour is not installed.
        DeviceError: There is no GPU, or not one that the plan was built for.
        EngineError: TensorRT does not load it; the message is its own.
    """

    def __init__(
        self, source: str | os.PathLike[str] | bytes, *, device: int = 0, prepare: Prepare | None = None
    ) -> None:
        header = read_header(source)
        self._trt: Any = find_tensorrt(header.flavour)
        self._parent: Any = None
        self.name = header.flavour
        self.device = device
        self._where = "bytes" if isinstance(source, (bytes, bytearray, memoryview)) else os.fspath(source)
        capabilities = Capabilities.of(self._trt)
        self._installed = installed = tuple(int(part) for part in capabilities.version.split("."))
        # a plan does not say whether it was built version-compatible: TensorRT finds that out below
        check_matches(header, header.flavour, installed, where=self._where, compatible=True)
        self.description = f"{self._where} in {capabilities.name} on GPU {device}"
        self._engine: Any = self._load(source, header, prepare)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        for name in names:
            self._check_layout(name, is_input=name in inputs)
        self.inputs = tuple(self._spec(name) for name in inputs)
        self.outputs = tuple(self._spec(name) for name in names if name not in inputs)
        on_host = self._trt.TensorLocation.HOST
        self.shape_inputs = frozenset(
            name
            for name in inputs
            if self._engine.is_shape_inference_io(name) and self._engine.get_tensor_location(name) == on_host
        )
        self.profiles = tuple(self._profile(i, inputs) for i in range(self._engine.num_optimization_profiles))
        dynamic = any(isinstance(dim, str) for spec in self.inputs for dim in spec.shape or ())
        # from TensorRT 10 on contexts share a profile; the flag that asked for it in 8.6 is gone from 11
        self.exclusive_profiles = dynamic and installed[0] < 10 and header.flavour == "tensorrt"
        self.can_capture = True
        self._lock = threading.Lock()

    def _load(self, source: str | os.PathLike[str] | bytes, header: PlanHeader, prepare: Prepare | None) -> Any:
        data = source if isinstance(source, (bytes, bytearray, memoryview)) else Path(source).read_bytes()
        with collecting(self._trt) as (logger, log):
            self._runtime: Any = self._trt.Runtime(logger)  # the engine needs it as long as it lives
            if prepare is not None and self._runtime:
                self._parent = self._runtime  # a runtime that it loads must not outlive it
                self._runtime = prepare(self._trt, self._runtime)
            engine = self._runtime and self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            if any("version" in text for text in log.errors):
                check_matches(header, header.flavour, self._installed, where=self._where)
            raise _load_error(self._where, header, log)
        return engine

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name)
        extended = _EXTENDED_TYPES.get(kind.name)
        if extended:
            import ml_dtypes

            dtype = np.dtype(getattr(ml_dtypes, extended))
        else:
            try:
                dtype = np.dtype(self._trt.nptype(kind))
            except TypeError as error:
                raise EngineError(
                    "an input or output has a type that numpy lacks", where=f"{name!r}", got=kind.name
                ) from error
        shape = tuple(self._engine.get_tensor_shape(name))
        return TensorSpec(name, dtype, tuple("?" if size < 0 else int(size) for size in shape))

    def _profile(self, index: int, inputs: list[str]) -> ProfileShapes:
        ranges = {}
        for name in inputs:
            shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
            if name in self.shape_inputs or -1 not in shape:
                ranges[name] = (shape, shape, shape)
                continue
            found = self._engine.get_tensor_profile_shape(name, index)
            low, usual, high = (tuple(int(size) for size in shape) for shape in found)
            ranges[name] = (low, usual, high)
        return ranges

    def _check_layout(self, name: str, *, is_input: bool) -> None:
        """Refuse what memory of plain arrays on the GPU cannot hold."""
        if not is_input and self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            raise EngineError(
                "an output is a shape in host memory",
                where=f"output {name!r}, {self.description}",
                fix="leave it out of the model's outputs, or cast it to a float before",
            )
        if self._engine.get_tensor_format(name) != self._trt.TensorFormat.LINEAR:
            raise EngineError(
                "an input or output is not laid out as an array",
                where=f"{name!r}, {self.description}",
                got=str(self._engine.get_tensor_format_desc(name)),
                expected="row major, linear",
                fix="build the plan without other formats for its inputs and outputs",
            )

    def scratch_nbytes(self, profile: int) -> int:
        """Bytes of intermediate results of one execution."""
        for name in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
            method = getattr(self._engine, name, None)
            if method is not None:
                return int(method(profile))
        return int(self._engine.device_memory_size)  # TensorRT 8.6

    def create_context(self, *, profile: int, stream: int, own_scratch: bool) -> TensorRTContext:
        """A context for one profile; see `trtsparse.engines.device.DeviceEngine`."""
        if self._engine is None:
            raise EngineError("the engine is closed", where=self._where)
        with self._lock:
            context = self._engine.create_execution_context() if own_scratch else self._create_without_memory()
        if context is None:
            raise EngineError(
                "TensorRT made no execution context",
                where=self._where,
                got=f"{self.scratch_nbytes(profile):,} bytes of intermediate results are needed",
                fix="free memory of the GPU, use fewer contexts, or scratch='shared'",
            )
        return TensorRTContext(self._trt, self, context, profile=profile, stream=stream)

    def _create_without_memory(self) -> Any:
        if hasattr(self._engine, "create_execution_context_without_device_memory"):
            return self._engine.create_execution_context_without_device_memory()
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def set_weights_budget(self, nbytes: int) -> None:
        """Keep only so much of the weights on the GPU; before any context is made.

        Args:
            nbytes: The rest is copied from host memory whenever it is needed.

        Raises:
            UnsupportedOptionError: This version, or this plan, cannot stream its weights.
            EngineError: TensorRT does not take the budget.
        """
        name = next(
            (n for n in ("weight_streaming_budget_v2", "weight_streaming_budget") if hasattr(self._engine, n)), ""
        )
        if not name:
            raise UnsupportedOptionError(
                "weights cannot be streamed in this version",
                where="weights_nbytes",
                got=self.description,
                expected="TensorRT 10.0 or later, TensorRT-RTX",
            )
        if not self._engine.streamable_weights_size:
            raise UnsupportedOptionError(
                "the plan was built without weight streaming",
                where="weights_nbytes",
                got=self._where,
                fix="build it with the flag WEIGHT_STREAMING",
            )
        setattr(self._engine, name, nbytes)
        if getattr(self._engine, name) != nbytes:
            raise EngineError(
                "TensorRT did not take the budget of weights", where="weights_nbytes", got=f"{nbytes:,}"
            )

    @property
    def raw(self) -> Any:
        """TensorRT's own ICudaEngine."""
        return self._engine

    def close(self) -> None:
        """Free the engine, whose contexts are closed. Closing twice is harmless."""
        self._engine = None
        self._runtime = None
        self._parent = None


class TensorRTContext:
    """See `trtsparse.engines.device.DeviceContext`. Every result of TensorRT is checked.

    Args:
        trt: The module.
        engine: Kept alive.
        context: TensorRT's own.
        profile: To be used.
        stream: Where the profile is set.

    Raises:
        EngineError: The profile is not available.
    """

    def __init__(self, trt: Any, engine: TensorRTEngine, context: Any, *, profile: int, stream: int) -> None:
        self._engine = engine
        self._context = context
        self._trt = trt
        self._recorder = make_recorder(trt)
        self._context.error_recorder = self._recorder  # texts of this context alone, whatever other threads do
        self._profiler: Any = None
        self._allocators: dict[str, Any] = {}
        self._values: Mapping[str, np.ndarray] = {}
        self._outputs = [spec.name for spec in engine.outputs]
        if profile or len(engine.profiles) > 1:
            self._require(
                self._context.set_optimization_profile_async(profile, stream), "set the profile", str(profile)
            )

    def _require(self, done: Any, what: str, where: str) -> None:
        if done:
            return
        reasons = self._recorder.take()
        raise EngineError(
            f"TensorRT did not {what}",
            where=f"{where}, {self._engine.description}",
            got="; ".join(reasons) or "no reason given",
        )

    def set_inputs(self, shapes: Mapping[str, Shape], values: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        """Set shapes and shape values; see `trtsparse.engines.device.DeviceContext`."""
        self._values = values  # read when the execution is enqueued
        for name, value in values.items():
            self._require(self._context.set_tensor_address(name, value.ctypes.data), "take the values of", repr(name))
        for name, shape in shapes.items():
            if name not in values:
                self._require(self._context.set_input_shape(name, shape), f"take the shape {shape} of", repr(name))
        missing = self._context.infer_shapes()
        self._require(not missing, "infer the output shapes", ", ".join(map(repr, missing)) or "inputs")
        return {name: tuple(int(size) for size in self._context.get_tensor_shape(name)) for name in self._outputs}

    def set_address(self, name: str, address: int) -> None:
        """Bind an input or output to device memory."""
        if not self._context.set_tensor_address(name, address):
            self._require(None, "take the address of", repr(name))
        if name in self._allocators:  # asked before the address is looked at
            self._allocators[name].prepare(lambda _name, _nbytes: address)

    def set_allocator(self, name: str, allocate: Allocate) -> None:
        """Have an output's memory allocated when its size is known."""
        allocator = self._allocators.get(name)
        if allocator is None:
            allocator = self._allocators[name] = make_allocator(self._trt)
            self._require(self._context.set_output_allocator(name, allocator), "take an allocator for", repr(name))
        allocator.prepare(allocate)

    def allocated_shape(self, name: str) -> Shape:
        """The shape of an output with an allocator, after the execution has finished."""
        allocator = self._allocators[name]
        if allocator.failure is not None:
            raise EngineError("an output's memory could not be allocated", where=repr(name)) from allocator.failure
        if allocator.shape is None:
            raise EngineError("TensorRT did not tell the shape of an output", where=repr(name))
        shape: Shape = allocator.shape
        return shape

    def set_scratch(self, address: int, nbytes: int) -> None:
        """Give the memory for intermediate results."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, nbytes)
        else:
            self._context.device_memory = address

    def execute(self, stream: int) -> None:
        """Enqueue one execution; see `trtsparse.engines.device.DeviceContext`."""
        if self._context.execute_async_v3(stream):
            return
        reasons = self._recorder.take()
        failed = next((a.failure for a in self._allocators.values() if a.failure is not None), None)
        raise EngineError(
            "TensorRT refused to execute", where=self._engine.description, got="; ".join(reasons) or "no reason given"
        ) from failed

    def execute_profiled(self, stream: int) -> LayerTimes:
        """Execute once and time each layer; see `trtsparse.engines.device.DeviceContext`."""
        if self._profiler is None:
            self._attach_profiler()
        self._profiler.take()
        self.execute(stream)
        self._require(self._context.report_to_profiler(), "tell the times of the layers", "profiler")
        times: LayerTimes = tuple(self._profiler.take())
        self._require(times, "tell the times of the layers", "profiler")
        return times

    def _attach_profiler(self) -> None:
        if not hasattr(self._trt, "IProfiler") or not hasattr(self._context, "report_to_profiler"):
            raise UnsupportedOptionError(
                "this version cannot time layers", where="profile_layers", got=self._engine.description
            )
        self._profiler = make_profiler(self._trt)
        self._context.profiler = self._profiler
        self._context.enqueue_emits_profile = False  # else the enqueueing waits, and reports when nobody asked

    def close(self) -> None:
        """Free the context, whose work has finished."""
        self._context = None
        self._profiler = None
        self._allocators.clear()


def _load_error(where: str, header: PlanHeader, log: Log) -> DeviceError | EngineError | PlanError:
    said = "; ".join(log.errors) or "no reason given"
    if not count_gpus():
        return DeviceError(
            "a plan is executed by the library that built it, on an NVIDIA GPU",
            where=where,
            got="no GPU that CUDA can use",
            expected=f"{header} and a GPU that the plan was built for",
            fix="run the ONNX model that the plan was built from on the CPU",
        )
    if "erializ" in said and "ersion" not in said:
        return PlanError("the plan is damaged", where=where, got=said, fix="copy the file again, or build it again")
    return EngineError(
        f"{FLAVOUR_NAMES[header.flavour]} did not load the plan",
        where=where,
        got=said,
        fix="build the model again on this GPU",
    )
