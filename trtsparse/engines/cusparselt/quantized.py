"""Products between QuantizeLinear and DequantizeLinear become products of integers.

Symmetric int8 only, as TensorRT takes it: the activation with one scale, the weight with one, or one for each output
channel. What is quantized in other ways is computed as the model says it, on floating values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from trtsparse.engines.cusparselt.graph import Graph, Node

__all__ = ["quantize_products"]

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_KINDS = {0: np.dtype(np.uint8), TensorProto.UINT8: np.dtype(np.uint8), TensorProto.INT8: np.dtype(np.int8)}
"""What QuantizeLinear gives without a zero point, by its ``output_dtype``; other types are not folded."""


def quantize_products(graph: Graph) -> None:
    """Rewrite MatMul, Gemm and 1x1 Conv of two dequantized values into "QuantizedLinear" nodes, in place.

    Such a node has an activation, as it is before it is quantized, a weight as int8 and maybe a bias; and besides the
    attributes of a "Linear" node: ``x_scale``, a float; ``w_scale``, float32 of shape (N,); and ``to``, the ONNX
    type of its result, which is that of the scales and may be another one than the activation's. Weights that are
    left to be dequantized are so here, once and for all. Nodes that nothing reads any more are dropped.
    """
    _fold(graph, "QuantizeLinear", _quantized)
    _fold(graph, "DequantizeLinear", _dequantized, lambda values: values.dtype != np.int8)  # biases are int32
    producers = graph.producers()
    for node in list(graph.nodes):
        found = _product(graph, producers, node)
        if found is not None:
            graph.replace([node], found)
    _fold(graph, "DequantizeLinear", _dequantized)
    graph.prune()
    _take_casts(graph)


@dataclass(frozen=True)
class _Weight:
    """An int8 constant of two dims, or four of which the last are 1.

    Attributes:
        name: Of the constant.
        values: Its values.
        flipped: The product reads its transpose.
        scale: One number, or one for each index of ``axis``.
        axis: Counted from the first.
        to: The type that it is dequantized to.
    """

    name: str
    values: np.ndarray
    flipped: bool
    scale: np.ndarray
    axis: int
    to: np.dtype[Any]

    def scale_of(self, axis: int) -> np.ndarray | None:
        """A scale for each index of an axis; None where they differ along another one."""
        size = self.values.shape[axis]
        if self.scale.size == 1:
            return np.full(size, self.scale.reshape(-1)[0], np.float32)
        return self.scale.astype(np.float32) if self.axis == axis and self.scale.shape == (size,) else None


def _product(graph: Graph, producers: Mapping[str, Node], node: Node) -> Node | None:
    """The quantized form of a node; None where it has none."""
    if node.op not in ("MatMul", "Gemm", "Conv"):
        return None
    activation = _activation(graph, producers, node.inputs[0])
    weight = _weight(graph, producers, node.inputs[1])
    if activation is None or weight is None:
        return None
    transposed = _is_transposed(node, weight)
    if transposed is None:
        return None
    scale = weight.scale_of(0 if transposed else 1)
    bias = _bias(graph, node, weight.values.shape[0 if transposed else 1])
    if scale is None or bias is None:
        return None
    source, x_scale, to = activation
    if to != weight.to:
        return None
    attributes: dict[str, Any] = {
        "transposed": transposed, "act": "", "x_scale": x_scale, "w_scale": scale,
        "to": helper.np_dtype_to_tensor_dtype(to),
    }  # fmt: skip
    if node.op == "Conv":
        attributes["channels"] = True
    return Node(
        "QuantizedLinear", node.name, [source, weight.name, *bias], list(node.outputs), attributes, node.opset
    )


def _is_transposed(node: Node, weight: _Weight) -> bool | None:
    """Whether the constant is (N, K), else it is (K, N); None for a node that is no such product."""
    given, shape = node.attributes, weight.values.shape
    if node.op == "Conv":
        strides, pads = given.get("strides") or (), given.get("pads") or ()
        plain = given.get("group", 1) == 1 and not any(pads) and all(stride == 1 for stride in strides)
        return True if plain and not weight.flipped and len(shape) == 4 and shape[2:] == (1, 1) else None
    if len(shape) != 2 or given.get("transA") or given.get("alpha", 1.0) != 1.0:
        return None
    return bool(given.get("transB")) != weight.flipped


def _bias(graph: Graph, node: Node, size: int) -> list[str] | None:
    """The name of a constant vector, or no name; None for a bias of another kind."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return []
    constant = graph.constants.get(name)
    if constant is None or constant.shape not in ((size,), (1, size)):
        return None
    if node.attributes.get("beta", 1.0) != 1.0:
        return None
    if constant.ndim == 1:
        return [name]
    flat = f"{name} (flat)"
    graph.constants[flat] = constant.reshape(-1)
    return [flat]


def _activation(graph: Graph, producers: Mapping[str, Node], value: str) -> tuple[str, float, np.dtype[Any]] | None:
    """The value before a Q/DQ pair, the scale, and the type of the value after it, which both scales have."""
    after = producers.get(value)
    if after is None or after.op != "DequantizeLinear":
        return None
    before = producers.get(after.inputs[0])
    if before is None or before.op != "QuantizeLinear":
        return None
    scale = graph.scalar(before.inputs[1])
    if scale is None or scale != graph.scalar(after.inputs[1]):
        return None
    scales = [graph.constants[node.inputs[1]] for node in (before, after)]
    to = _dequantized_type(after, scales[1])
    if any(scale.dtype != to for scale in scales):
        return None
    is_int8 = bool(_zero(before)) or before.attributes.get("output_dtype") == TensorProto.INT8  # else it is uint8
    return (before.inputs[0], scale, to) if is_int8 and _is_symmetric(graph, before, after) else None


def _dequantized_type(node: Node, scale: np.ndarray) -> np.dtype[Any]:
    """What DequantizeLinear gives: its scale's type, unless it names another one."""
    named = node.attributes.get("output_dtype", 0)
    return helper.tensor_dtype_to_np_dtype(named) if named else scale.dtype


def _weight(graph: Graph, producers: Mapping[str, Node], value: str) -> _Weight | None:
    """A dequantized constant, possibly transposed after that."""
    node = producers.get(value)
    flipped = node is not None and node.op == "Transpose"
    if node is not None and flipped:
        if list(node.attributes.get("perm") or (1, 0)) != [1, 0]:
            return None
        node = producers.get(node.inputs[0])
    if node is None or node.op != "DequantizeLinear" or not _is_symmetric(graph, node):
        return None
    values, scale = graph.constants.get(node.inputs[0]), graph.constants.get(node.inputs[1])
    if values is None or scale is None or values.dtype != np.int8 or values.ndim < 2:
        return None
    axis = node.attributes.get("axis", 1) % values.ndim
    return _Weight(node.inputs[0], values, flipped, scale, axis, _dequantized_type(node, scale))


def _zero(node: Node) -> str:
    """The name of the zero point; "" without one."""
    return node.inputs[2] if len(node.inputs) > 2 else ""


def _is_symmetric(graph: Graph, *nodes: Node) -> bool:
    """Whether zero points are int8 zeros, where there are any."""
    zeros = [graph.constants.get(_zero(node)) for node in nodes if _zero(node)]
    return all(zero is not None and zero.dtype == np.int8 and not zero.any() for zero in zeros)


def _take_casts(graph: Graph) -> None:
    """Have products give 16-bit values themselves where that is what their float32 results are cast to."""
    readers = graph.readers()
    for node in [node for node in graph.nodes if node.op == "QuantizedLinear"]:
        if node.outputs[0] in graph.outputs or node.attributes["to"] != TensorProto.FLOAT:
            continue
        after = readers.get(node.outputs[0], [])
        if len(after) == 1 and after[0].op == "Cast" and after[0].attributes["to"] in _HALVES:
            attributes = {**node.attributes, "to": after[0].attributes["to"]}
            new = Node(node.op, node.name, node.inputs, after[0].outputs, attributes, node.opset)
            graph.replace([node, after[0]], new)


# -- constants -------------------------------------------------------------------------------------------------------

_Compute = Callable[[Node, np.ndarray, np.ndarray, "np.ndarray | None"], "np.ndarray | None"]


def _fold(
    graph: Graph, op: str, compute: _Compute, wanted: Callable[[np.ndarray], bool] = lambda _values: True
) -> None:
    """Compute now what nodes of a kind make of constants."""
    kept = []
    for node in graph.nodes:
        inputs = [graph.constants.get(name) for name in node.inputs if name] if node.op == op else []
        known = [value for value in inputs if value is not None]
        found = None
        if known and len(known) == len(inputs) and wanted(known[0]):
            found = compute(node, known[0], known[1], known[2] if len(known) > 2 else None)
        if found is None:
            kept.append(node)
        else:
            graph.constants[node.outputs[0]] = found
    graph.nodes[:] = kept


def _quantized(node: Node, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """What QuantizeLinear makes of a constant, for 8-bit integers."""
    kind = zero.dtype if zero is not None else _KINDS.get(node.attributes.get("output_dtype", 0))
    if kind not in _KINDS.values():
        return None
    steps = np.rint(values.astype(np.float32) / _along(node, scale, values))
    if zero is not None:
        steps = steps + _along(node, zero, values)
    limits = np.iinfo(kind)
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(kind))


def _dequantized(node: Node, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """What DequantizeLinear makes of a constant."""
    floats = values.astype(np.float32)
    if zero is not None:
        floats = floats - _along(node, zero, values)
    return np.asarray((floats * _along(node, scale, values)).astype(_dequantized_type(node, scale)))


def _along(node: Node, parameter: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A scale or zero point in float32, in a shape that broadcasts: of all values, of channels or of blocks."""
    floats = parameter.astype(np.float32)
    if parameter.size == 1:
        return floats.reshape(())
    axis = node.attributes.get("axis", 1) % values.ndim
    block = node.attributes.get("block_size", 0)
    if block:
        return np.repeat(floats, block, axis=axis).take(np.arange(values.shape[axis]), axis=axis)
    return floats.reshape([-1 if at == axis else 1 for at in range(values.ndim)])
