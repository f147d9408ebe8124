"""Behaviour of each described class and function, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.doubles import builder, config, context, engine, messages, network, parser, values
from tests.doubles.values import NUMPY

CLASSES = {
    cls.__name__: cls
    for cls in (
        builder.Builder, config.IBuilderConfig, config.IOptimizationProfile, config.ITimingCache,
        context.IExecutionContext, context.IOutputAllocator, engine.EngineInspector, engine.ICudaEngine,
        engine.IRuntimeCache, engine.IRuntimeConfig, engine.ISerializationConfig, engine.Runtime,
        messages.IErrorRecorder, messages.ILogger, messages.IProfiler, messages.IProgressMonitor, messages.Logger,
        network.ILayer, network.INetworkDefinition, network.ITensor, parser.OnnxParser, parser.ParserError,
        values.Dims, values.IHostMemory, values.Weights,
    )
}  # fmt: skip
BUFFERS = {"IHostMemory": values.HostMemory}
"""Classes that need a base with the buffer protocol."""


def find(name: str) -> type:
    """The behaviour of a class; an empty one if it has none yet."""
    return CLASSES.get(name) or type(name, (), {})


def _volume(iterable: Any) -> int:
    volume = 1
    for element in iterable:
        volume *= element
    return volume


def function(lib: Any, name: str) -> Callable[..., Any]:
    """A module function of one version."""

    def nptype(trt_type: Any) -> type:
        if trt_type.name not in NUMPY:
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return NUMPY[trt_type.name]

    def init_libnvinfer_plugins(_logger: Any, _namespace: str) -> bool:
        return True

    def get_nv_onnx_parser_version() -> int:
        return 200 if lib.generation >= 10 else 0x800

    def missing(*_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError(f"double: {name} has no behaviour yet")

    known = {
        "nptype": nptype, "volume": _volume, "init_libnvinfer_plugins": init_libnvinfer_plugins,
        "get_nv_onnx_parser_version": get_nv_onnx_parser_version,
    }  # fmt: skip
    made = known.get(name, missing)
    made.__name__ = name
    return made
