"""Measuring how fast an engine is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trtsparse.bench.feeds import engine_feeds, random_inputs
from trtsparse.bench.host import measure_on_cpu
from trtsparse.bench.loop import Progress
from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Measurement
from trtsparse.engines.base import Engine
from trtsparse.engines.device import DeviceEngine
from trtsparse.runtime.session import Session

if TYPE_CHECKING:
    from trtsparse.cuda.base import Cuda

__all__ = ["BenchOptions", "bench", "measure"]


def measure(
    engine: Engine | DeviceEngine,
    feeds: Mapping[str, Any],
    *,
    options: BenchOptions | None = None,
    cuda: str | Cuda = "auto",
    progress: Progress | None = None,
) -> Measurement:
    """Run an engine again and again, and time it.

    On a GPU this is what trtexec does: each stream has a context, and a CUDA stream each for copies in, executions
    and copies out; CUDA events time each part of each query; the next query is enqueued while one is executed. On the
    CPU each stream is a thread that calls the engine, timed by the host's clock.

    Args:
        engine: Stays open.
        feeds: A numpy array for each input; every query gets the same.
        options: How to measure.
        cuda: The CUDA binding, as for `trtsparse.Session`; not used on the CPU.
        progress: Called with the milliseconds done and in all.

    Returns:
        At least ``options.iterations`` queries for each stream.

    Raises:
        FeedError: The inputs do not fit, in name, type or shape, or are not numpy arrays.
        UnsupportedOptionError: Graphs, or so many streams, are asked for where they cannot be.
        DeviceError: There is no GPU, or the engine is on another one.
        EngineError: The library reports a failure.
        CudaError: A CUDA call failed.
        ConfigError: The run was too short to measure anything.
        MissingDependencyError: There is no CUDA binding.

    Example:
        >>> import numpy as np
        >>> from onnx import parser
        >>> from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
        >>> engine = OnnxRuntimeEngine(parser.parse_model(text), threads=1)
        >>> options = BenchOptions(iterations=20, duration_s=0.0, warm_up_ms=1.0)
        >>> found = measure(engine, {"x": np.ones((3, 2), np.float32)}, options=options)
        >>> len(found.queries) >= 20, found.place, float(found.outputs["y"].sum())
        (True, 'cpu', 12.0)
    """
    chosen = options or BenchOptions()
    if not isinstance(engine, DeviceEngine):
        return measure_on_cpu(engine, feeds, options=chosen, progress=progress)
    from trtsparse.bench.device import measure_on_gpu
    from trtsparse.cuda.base import open_cuda

    provider = open_cuda(cuda, device=engine.device)
    return measure_on_gpu(engine, feeds, options=chosen, cuda=provider, progress=progress)


def bench(
    source: str | os.PathLike[str] | bytes | Engine | DeviceEngine | Any,
    *,
    feeds: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    options: BenchOptions | None = None,
    engine: str = "auto",
    device: int | None = None,
    cuda: str | Cuda = "auto",
    progress: Progress | None = None,
) -> Measurement:
    """Load a model or a plan, make what inputs are missing, and measure.

    Args:
        source: As for `trtsparse.Session`; an engine stays open.
        feeds: Inputs by name. Those left out are filled with random numbers, which `Measurement.random` tells.
        shapes: Shapes of random inputs with dynamic dims.
        options: How to measure.
        engine: "auto", "onnxruntime", "tensorrt" or "cusparselt".
        device: The GPU's number, by default 0; not for the CPU.
        cuda: The CUDA binding, as for `trtsparse.Session`; not for the CPU.
        progress: Called with the milliseconds done and in all.

    Raises:
        TrtSparseError: As `trtsparse.Session`, `measure` and `trtsparse.precision.feeds.random_feeds`.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
        >>> options = BenchOptions(iterations=20, duration_s=0.0, warm_up_ms=1.0)
        >>> found = bench(parser.parse_model(text), shapes={"x": (5, 2)}, options=options)
        >>> found.shapes, found.random
        ({'x': (5, 2)}, ('x',))
    """
    given = dict(feeds or {})
    if isinstance(source, (Engine, DeviceEngine)):
        made = engine_feeds(source, given=given, shapes=shapes)
        measured = measure(source, {**made, **given}, options=options, cuda=cuda, progress=progress)
        return replace(measured, random=tuple(made))
    with Session(source, engine=engine, device=device, cuda=cuda) as session:
        loaded = session.engine
        made = random_inputs(source, loaded, given=given, shapes=shapes)
        measured = measure(loaded, {**made, **given}, options=options, cuda=cuda, progress=progress)
    return replace(measured, random=tuple(made))
