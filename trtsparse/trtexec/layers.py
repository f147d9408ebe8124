"""Layers: what TensorRT's inspector tells about an engine, and the same for the other engines."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from trtsparse.errors import EngineError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import library, ort_errors

if TYPE_CHECKING:
    from trtsparse.engines.cusparselt.product import Used
    from trtsparse.tune.result import Kernel

__all__ = ["inspect_engine", "inspect_onnx", "inspect_products", "layer_names", "product_lines"]

_FORMATS = {
    "float32": "Row major linear FP32",
    "float16": "Row major linear FP16 format",
    "int8": "Row major Int8 format",
    "int32": "Row major linear Int32",
    "bool": "Row major linear BOOL",
}
"""As the inspector words them; others are named in the same way."""
_WEIGHT_TYPES = {"float32": "Float", "float16": "Half", "int8": "Int8", "int32": "Int32"}
_SILENT = 4


def inspect_engine(trt: Any, engine: Any, *, line: bool = False) -> str:
    """What the inspector tells about a loaded engine.

    Args:
        trt: The TensorRT module.
        engine: TensorRT's ICudaEngine.
        line: Text with one layer a line; else JSON, ``{"Layers": [...], "Bindings": [...]}``.

    Raises:
        EngineError: It tells nothing.
    """
    kind = trt.LayerInformationFormat.ONELINE if line else trt.LayerInformationFormat.JSON
    told = str(engine.create_engine_inspector().get_engine_information(kind) or "")
    if not told.strip():
        raise EngineError(
            "the engine tells nothing about its layers", fix="build it with --profilingVerbosity=detailed"
        )
    return told


def inspect_onnx(model: OnnxModel) -> str:
    """The nodes that ONNX Runtime executes for a model, after its optimizations, in the inspector's shape.

    Args:
        model: The model.

    Returns:
        JSON: ``{"Layers": [...], "Bindings": [...]}``; dims that are not known are -1.

    Raises:
        EngineError: ONNX Runtime does not load the model.
        MissingDependencyError: It is not installed.
    """
    graph = _optimized(model).graph
    weights = {tensor.name: _weights(tensor) for tensor in graph.initializer}
    tensors = _tensors(graph)
    layers = [_layer(node, index, weights, tensors) for index, node in enumerate(graph.node)]
    names = [value.name for value in graph.input if value.name not in weights]
    bindings = [*names, *(value.name for value in graph.output)]
    return json.dumps({"Layers": layers, "Bindings": bindings}, indent=1)


def inspect_products(products: Sequence[Used], bindings: Sequence[str]) -> str:
    """The products with weights that the cusparselt engine executes, in the inspector's shape.

    Args:
        products: Each with its kernel, which is chosen when a shape is first executed.
        bindings: Names of the engine's inputs and outputs.

    Returns:
        JSON: ``{"Layers": [...], "Bindings": [...]}``; what is no product with a weight is not in it.
    """
    return json.dumps({"Layers": [_product(one) for one in products], "Bindings": list(bindings)}, indent=1)


def product_lines(products: Sequence[Used]) -> str:
    """The same for people, a product a line."""
    return "\n".join(f"{one.node}: {one.gemm.key}: {_kernel(one.kernel)}" for one in products)


def layer_names(text: str) -> list[str]:
    """The names in the inspector's JSON.

    Example:
        >>> layer_names('{"Layers": ["conv", {"Name": "gemm"}], "Bindings": []}')
        ['conv', 'gemm']
    """
    return [layer if isinstance(layer, str) else str(layer.get("Name", "")) for layer in json.loads(text)["Layers"]]


def _optimized(model: OnnxModel) -> onnx.ModelProto:
    """The model as ONNX Runtime executes it, with shapes where they can be inferred, without large weights."""
    ort = library()
    with tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        path = model.path or model.save(Path(folder) / "model.onnx").path
        with ort_errors("ONNX Runtime does not load the model", where=model.name):
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = onnx.load(target, load_external_data=False)
    try:
        return onnx.shape_inference.infer_shapes(found)
    except (onnx.shape_inference.InferenceError, ValueError):
        return found  # operators that ONNX does not know: the dims between nodes stay unknown


def _tensors(graph: onnx.GraphProto) -> dict[str, dict[str, Any]]:
    """Name to what the inspector says about a tensor."""
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        found[value.name] = {"Dimensions": shape, "Format/Datatype": _format(kind.elem_type)}
    return found


def _format(kind: int) -> str:
    if kind == onnx.TensorProto.UNDEFINED:
        return "Unknown format"
    return _format_of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)))


def _format_of(dtype: np.dtype[Any]) -> str:
    return _FORMATS.get(str(dtype), f"Row major linear {str(dtype).upper()}")


def _weights(tensor: onnx.TensorProto) -> dict[str, Any]:
    name = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)))
    return {"Type": _WEIGHT_TYPES.get(name, name), "Count": math.prod(tensor.dims)}


def _layer(
    node: onnx.NodeProto, index: int, weights: Mapping[str, Any], tensors: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    unknown = {"Dimensions": [], "Format/Datatype": "Unknown format"}
    layer: dict[str, Any] = {
        "Name": node.name or f"{node.op_type}_{index}",
        "LayerType": node.op_type,
        "Inputs": [{"Name": n, **tensors.get(n, unknown)} for n in node.input if n and n not in weights],
        "Outputs": [{"Name": n, **tensors.get(n, unknown)} for n in node.output if n],
    }
    held = [weights[name] for name in node.input if name in weights]
    layer |= dict(zip(("Weights", "Bias"), held, strict=False))
    if node.domain not in ("", "ai.onnx"):
        layer["Domain"] = node.domain
    return layer


def _product(one: Used) -> dict[str, Any]:
    gemm, kernel = one.gemm, one.kernel
    x, y = gemm.input_type.numpy, gemm.output_type.numpy
    result = {"Dimensions": [gemm.m, gemm.n], "Format/Datatype": _format_of(y)}
    inputs = [{"Name": f"{one.node}.x", "Dimensions": [gemm.m, gemm.k], "Format/Datatype": _format_of(x)}]
    if gemm.has_addend:
        inputs.append({"Name": f"{one.node}.c", **result})
    return {
        "Name": one.node,
        "LayerType": "MatrixMultiply",
        "Inputs": inputs,
        "Outputs": [{"Name": f"{one.node}.y", **result}],
        "Weights": {"Type": _WEIGHT_TYPES.get(str(x), str(x)), "Count": gemm.n * gemm.k},
        "WeightName": one.tensor,
        "Epilogue": gemm.epilogue,
        "TacticName": _kernel(kernel),
        "Sparse": kernel is not None and kernel.kind == "sparse",
    }


def _kernel(kernel: Kernel | None) -> str:
    return "PyTorch's own kernel" if kernel is None else f"{kernel.kind} kernel {kernel.name}, {kernel.ms:.6g} ms"
