"""Runs an engine's model on arrays in host memory, through ONNX Runtime."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from tests.doubles.values import STORED

Evaluate = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def evaluator(data: bytes) -> Evaluate:
    """A function from named inputs to outputs; ONNX's reference where ONNX Runtime has no kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base of their own
        from onnx.reference import ReferenceEvaluator

        reference = ReferenceEvaluator(onnx.load_from_string(data))
        return lambda feeds: reference.run(None, feeds)
    return lambda feeds: session.run(None, feeds)


class Model:
    """An engine's model: evaluated when first needed, its shapes inferred once for each set of input shapes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._shapes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}

    @cached_property
    def evaluate(self) -> Evaluate:
        """A function from named inputs to outputs."""
        return evaluator(self.data)

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The model without its large weights, which no shape depends on."""
        model = onnx.load_from_string(self.data)
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) > 256:
                tensor.ClearField("raw_data")
        del model.graph.value_info[:]
        for value in model.graph.output:  # forget what the graph promised: it may only name the sizes
            for dim in value.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.Clear()
        return model

    @cached_property
    def types(self) -> dict[str, np.dtype]:
        """Element types that the model itself wants, which differ where TensorRT narrows (INT64 on 8.6)."""
        graph = self.skeleton.graph
        values = [*graph.input, *graph.output]
        return {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in values}

    def output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs for given input shapes; -1 where only the data decides."""
        key = tuple(sorted(shapes.items()))
        if key not in self._shapes:
            self._shapes[key] = self._infer(shapes)
        return self._shapes[key]

    def _infer(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
                dim.dim_value = size
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        return {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
            )
            for value in inferred.graph.output
        }

    def run(self, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs in the engine's types."""
        wanted = {name: array.astype(self.types[name], copy=False) for name, array in feeds.items()}
        return dict(zip(names, self.evaluate(wanted), strict=True))


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * np.dtype(STORED[dtype]).itemsize


def read_memory(address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A copy of the tensor at an address."""
    data = ctypes.string_at(address, nbytes(dtype, shape))
    return np.frombuffer(data, STORED[dtype]).reshape(shape)


def write_memory(address: int, dtype: str, array: np.ndarray) -> None:
    """Put a tensor at an address."""
    data = np.ascontiguousarray(array.astype(STORED[dtype], copy=False)).tobytes()
    ctypes.memmove(address, data, len(data))
