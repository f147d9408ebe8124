"""Loads what will run, makes its inputs, measures it and checks its outputs, as trtexec's options say."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtsparse.bench.options import BenchOptions
from trtsparse.builder.adapter import find_tensorrt
from trtsparse.builder.logs import collecting
from trtsparse.builder.options import load_plugins
from trtsparse.builder.plan import read_header
from trtsparse.cuda.base import Cuda, current, open_cuda
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import ConfigError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import TensorSpec
from trtsparse.precision.vocabulary import input_range
from trtsparse.trtexec.exports import dims
from trtsparse.trtexec.inputs import check_names, read_input
from trtsparse.trtexec.log import Printer
from trtsparse.trtexec.options import InferenceOptions, TrtexecOptions
from trtsparse.trtexec.pinned import PinnedEngine
from trtsparse.trtexec.report import number
from trtsparse.trtexec.values import find

if TYPE_CHECKING:
    from trtsparse.engines.cusparselt.engine import CusparseltEngine

__all__ = [
    "ONCE",
    "Loaded",
    "bench_options",
    "load_onnx",
    "load_plan",
    "make_feeds",
    "time_deserialize",
    "time_loading",
]

ONCE = BenchOptions(iterations=1, duration_s=0.0, warm_up_ms=0.0, graphs=False, energy=False)
"""To execute, not to measure."""
_MIB = 1 << 20
_DESERIALIZATIONS = 20


@dataclass(frozen=True)
class Loaded:
    """What will run.

    Attributes:
        engine: On a GPU or on the CPU.
        runnable: The same, with the optimization profile that was asked for.
        cuda: The GPU; None on the CPU.
        model: The ONNX model, where there is one: it tells which integers its inputs may hold.
    """

    engine: TensorRTEngine | OnnxRuntimeEngine | CusparseltEngine
    runnable: PinnedEngine | OnnxRuntimeEngine | CusparseltEngine
    cuda: Cuda | None = None
    model: OnnxModel | None = None

    def current(self) -> contextlib.AbstractContextManager[None]:
        """The GPU is current in this thread during the block."""
        return contextlib.nullcontext() if self.cuda is None else current(self.cuda)

    @property
    def plan(self) -> TensorRTEngine:
        """The engine, which is known to be TensorRT's."""
        if not isinstance(self.engine, TensorRTEngine):
            raise UnsupportedOptionError(
                "only TensorRT's engines can do this", got=self.engine.description, fix="leave --engine out"
            )
        return self.engine

    @property
    def on_gpu(self) -> TensorRTEngine | CusparseltEngine:
        """The engine, which is known to execute on a GPU."""
        return self.plan if isinstance(self.engine, OnnxRuntimeEngine) else self.engine

    @property
    def module(self) -> Any:
        """TensorRT's module that loaded the engine."""
        return find_tensorrt(self.plan.name)

    def close(self) -> None:
        """Free the engine."""
        with self.current():
            self.runnable.close()
            self.engine.close()


def load_onnx(path: str, out: Printer) -> Loaded:
    """Load an ONNX model into ONNX Runtime.

    Raises:
        TrtSparseError: As `OnnxRuntimeEngine`.
    """
    started = time.perf_counter()
    model = OnnxModel.open(path)
    engine = OnnxRuntimeEngine(model)
    out.info(f"Engine loaded in {number(time.perf_counter() - started)} sec.")
    out.info(f"Loaded {engine.description}")
    return Loaded(engine, engine, model=model)


def load_plan(
    plan: bytes | str,
    options: TrtexecOptions,
    out: Printer,
    *,
    cuda: str | Cuda = "auto",
    model: OnnxModel | None = None,
) -> Loaded:
    """Load a plan on the GPU.

    Args:
        plan: Its bytes, or its file.
        options: The command line.
        out: Where to print.
        cuda: The CUDA binding.
        model: That it was built from.

    Raises:
        TrtSparseError: As `open_cuda` and `TensorRTEngine`; an option that this version lacks.
    """
    provider = open_cuda(cuda, device=options.system.device)
    with current(provider):
        _register_plugins(plan, options)
        started = time.perf_counter()
        engine = _deserialize(plan, options, provider.device)
        out.info(f"Engine deserialized in {number(time.perf_counter() - started)} sec.")
        try:
            _stream_weights(engine, options.inference, out)
            pinned = _pin(engine, options.inference, provider, out)
        except BaseException:
            engine.close()
            raise
    return Loaded(engine, pinned, provider, model)


def _pin(engine: TensorRTEngine, asked: InferenceOptions, cuda: Cuda, out: Printer) -> PinnedEngine:
    count = len(engine.profiles)
    if count > 1 and not asked.profile_given:
        out.warning(
            f"{count} profiles detected but not set. Running with profile 0. Please use --dumpOptimizationProfile to "
            "see all available profiles."
        )
    pinned = PinnedEngine(engine, asked.profile, scratch=cuda if asked.allocation == "profile" else None)
    size = number(engine.scratch_nbytes(asked.profile) / _MIB)
    if asked.allocation == "profile":
        out.info(f"Only allocated device memory enough for current profile: {size} MiB")
    else:
        out.info(f"Created execution context with device memory size: {size} MiB")
    return pinned


def _register_plugins(plan: bytes | str, options: TrtexecOptions) -> None:
    """TensorRT's own plugins, and those of the libraries that were named: a plan may need them."""
    trt: Any = find_tensorrt(read_header(plan).flavour)
    with collecting(trt) as (logger, messages):
        load_plugins(trt, options.system.plugins, messages)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(logger, "")


def _deserialize(plan: bytes | str, options: TrtexecOptions, device: int) -> TensorRTEngine:
    return TensorRTEngine(plan, device=device, prepare=partial(_prepare, options))


def _prepare(options: TrtexecOptions, trt: Any, runtime: Any) -> Any:
    """Set up an IRuntime before it loads a plan; gives the runtime to load it with."""
    asked = options.inference
    if options.build.version_compatible:  # such plans bring code that runs on the host
        runtime.engine_host_code_allowed = True
    if asked.tempdir is not None:
        runtime.temporary_directory = asked.tempdir
    for name, allowed in asked.tempfile_controls.items():
        bit = 1 << int(trt.TempfileControlFlag.__members__[name])
        flags = runtime.tempfile_control_flags
        runtime.tempfile_control_flags = flags | bit if allowed else flags & ~bit
    if asked.lean_runtime is None:
        return runtime
    loaded = runtime.load_runtime(asked.lean_runtime)
    if loaded is None:
        raise ConfigError("the lean runtime does not load", where="--leanDLLPath", got=asked.lean_runtime)
    return loaded


def _stream_weights(engine: TensorRTEngine, asked: InferenceOptions, out: Printer) -> None:
    """Set the budget of weights; without the option all of them go to the GPU, as in trtexec."""
    size = int(getattr(engine.raw, "streamable_weights_size", 0))
    budget = asked.weight_budget
    if budget is None:
        if size:
            engine.set_weights_budget(size)
            out.info("Weight streaming has been disabled at runtime.")
        return
    if budget.nbytes is not None:
        nbytes = budget.nbytes
    elif budget.percent is not None:
        nbytes = int(size * budget.percent / 100)
    else:
        nbytes = int(engine.raw.get_weight_streaming_automatic_budget()) if size else 0
        out.info("The weight streaming budget will automatically be chosen by TensorRT.")
    engine.set_weights_budget(nbytes)
    out.info(f"Weight streaming is enabled with a device memory limit of {nbytes} bytes.")


def time_deserialize(plan: bytes | str, options: TrtexecOptions, out: Printer, *, cuda: str | Cuda = "auto") -> None:
    """Measure how long loading a plan takes.

    Raises:
        TrtSparseError: As `load_plan`.
    """
    provider = open_cuda(cuda, device=options.system.device)
    data = plan if isinstance(plan, bytes) else Path(plan).read_bytes()
    with current(provider):
        _register_plugins(data, options)
        time_loading(lambda: _deserialize(data, options, provider.device), out, nbytes=len(data))


class _Closable(Protocol):
    def close(self) -> None: ...


def time_loading(load: Callable[[], _Closable], out: Printer, *, nbytes: int) -> None:
    """Print how long loading an engine takes, as ``--timeDeserialize`` does.

    Args:
        load: Loads it.
        out: Where to print.
        nbytes: Its size.
    """
    out.info("Begin deserialization engine timing...")
    times = []
    for _ in range(_DESERIALIZATIONS + 1):
        started = time.perf_counter()
        engine = load()
        times.append((time.perf_counter() - started) * 1e3)
        engine.close()
    first, rest = times[0], times[1:]
    total = sum(rest)
    out.info(f"First deserialization time = {number(first)} milliseconds")
    out.info(
        f"Total deserialization time = {number(total)} milliseconds in {len(rest)} iterations, average time = "
        f"{number(total / len(rest))} milliseconds, first time = {number(first)} milliseconds."
    )
    out.info(f"Deserialization Bandwidth = {number(nbytes * len(rest) / total * 1e-6)} GB/s")


def bench_options(options: TrtexecOptions, *, on_gpu: bool) -> BenchOptions:
    """How `trtsparse.bench.measure.measure` is to run, from trtexec's flags and policy."""
    asked, policy, reporting = options.inference, options.policy, options.reporting
    chosen = BenchOptions(
        iterations=asked.iterations,
        duration_s=asked.duration_s,
        warm_up_ms=asked.warm_up_ms,
        streams=asked.streams,
        idle_ms=asked.idle_ms,
        sleep_ms=asked.sleep_ms,
        profile_layers=reporting.wants_profile,
        percentiles=reporting.percentiles,
    )
    if not on_gpu:
        return replace(chosen, energy=False)
    return replace(
        chosen,
        threads=asked.threads,
        graphs=None if policy.graphs else False,  # where they can be had: trtexec falls back too
        transfers=policy.transfers,
        expose_dma=not asked.overlap,
        spin_wait=policy.spin_wait,
    )


def make_feeds(loaded: Loaded, options: TrtexecOptions, out: Printer, *, seed: int = 0) -> dict[str, np.ndarray]:
    """The inputs: from the files of ``--loadInputs``, else random.

    Args:
        loaded: Whose inputs.
        options: The command line.
        out: Where to say which shape and values each input has.
        seed: Equal seeds give equal arrays.

    Raises:
        ConfigError: A shape or file is for an unknown input.
        FeedError: A file cannot be read, or its size does not fit.
    """
    specs = loaded.engine.inputs
    names = [spec.name for spec in specs]
    files = options.inference.pairs[0].inputs
    check_names(names, options.inference.shapes, "--shapes")
    check_names(names, files, "--loadInputs")
    random = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        path = find(files, spec.name)
        holds_shape = isinstance(loaded.engine, TensorRTEngine) and spec.name in loaded.engine.shape_inputs
        shape = None if holds_shape else find(options.inference.shapes, spec.name)
        array = None if path is None else read_input(path, spec, shape)
        if array is None:
            array = _make(random, spec, loaded, options, out)
            out.info(f"Using random values for input {spec.name}")
        else:
            out.info(f"Using values loaded from {path} for input {spec.name}")
        out.info(f"Input binding for {spec.name} with dimensions {dims(array.shape)} is created.")
        feeds[spec.name] = array
    return feeds


def _make(
    random: np.random.Generator, spec: TensorSpec, loaded: Loaded, options: TrtexecOptions, out: Printer
) -> np.ndarray:
    given = find(options.inference.shapes, spec.name)
    if isinstance(loaded.engine, TensorRTEngine) and spec.name in loaded.engine.shape_inputs:
        return _shape_values(spec, given, out)
    shape = _shape(spec, given, loaded, options.inference.profile, out)
    if spec.dtype.kind == "O":
        return np.full(shape, "", object)
    if spec.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if spec.dtype.kind in "iu":
        values = input_range(loaded.model, spec.name) if loaded.model is not None else 2
        return np.asarray(random.integers(0, min(values, int(np.iinfo(spec.dtype).max)), shape)).astype(spec.dtype)
    return np.asarray(random.uniform(-1, 1, shape)).astype(spec.dtype)


def _shape_values(spec: TensorSpec, given: Sequence[int] | None, out: Printer) -> np.ndarray:
    """An input whose values are a shape: ``--shapes`` gives the values."""
    sizes = [size for size in spec.shape or () if isinstance(size, int)]
    if given is None:
        given = [1] * int(np.prod(sizes, dtype=np.int64))
        out.warning(
            f"Values missing for input shape tensor: {spec.name}. Automatically setting values to: {dims(given)}"
        )
    return np.asarray(given, spec.dtype).reshape(sizes)


def _shape(
    spec: TensorSpec, given: Sequence[int] | None, loaded: Loaded, profile: int, out: Printer
) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    if spec.shape is None:
        raise ConfigError(
            "the model does not say how many dims an input has",
            where=f"input {spec.name!r}",
            fix=f"give its shape: --shapes={spec.name}:1x3x224x224",
        )
    if not any(isinstance(size, str) for size in spec.shape):
        return tuple(int(size) for size in spec.shape)
    low: Sequence[int] = [1] * len(spec.shape)
    if isinstance(loaded.engine, TensorRTEngine) and profile < len(loaded.engine.profiles):
        low = loaded.engine.profiles[profile][spec.name][0]
    shape = tuple(
        max(1, least) if isinstance(size, str) else size for size, least in zip(spec.shape, low, strict=True)
    )
    out.warning(
        f"Shape missing for input with dynamic shape: {spec.name}. Automatically setting shape to: {dims(shape)}"
    )
    return shape
