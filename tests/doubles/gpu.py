"""Engines of the TensorRT double on the in-memory CUDA, in one call. Tests only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx

from tests.doubles import installed, samples
from tests.doubles.cuda import MemoryCuda
from trtsparse.engines.tensorrt import TensorRTEngine

__all__ = ["built", "engine_on"]


def built(trt: Any, model: onnx.ModelProto, *profiles: dict[str, Any], flags: tuple[str, ...] = ()) -> bytes:
    """A plan with profiles of the form {input: (min, opt, max)}."""
    build = samples.Build(trt)
    assert build.parse(model), build.logger.lines
    for shapes in profiles:
        profile = build.builder.create_optimization_profile()
        for name, triple in shapes.items():
            profile.set_shape(name, *triple)
        build.config.add_optimization_profile(profile)
    for flag in flags:
        build.config.set_flag(getattr(trt.BuilderFlag, flag))
    plan = build.run()
    assert plan is not None, build.logger.lines
    return bytes(plan)


@contextlib.contextmanager
def engine_on(
    cuda: MemoryCuda, model: onnx.ModelProto, *profiles: dict[str, Any], version: str = "10.13.3", flags: Any = ()
) -> Iterator[tuple[TensorRTEngine, Any]]:
    """The adapter over a double whose executions go to the in-memory CUDA; also the double itself."""
    with installed(version) as trt:
        trt.submit = cuda.submit
        yield TensorRTEngine(built(trt, model, *profiles, flags=flags), device=cuda.device), trt
