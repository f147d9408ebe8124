"""From a node's input back to the constant that it holds, and the axes on the way.

The way may lead through Identity, Cast, Transpose, reshapes that keep the axis, QuantizeLinear and DequantizeLinear,
out of If, Loop and Scan bodies into the graphs around them. Functions are inlined before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.files.tensor import dtype_name

__all__ = [
    "FOLLOWED",
    "Constant",
    "Quantization",
    "Scope",
    "bodies",
    "dequantized_from",
    "is_followed",
    "stored_behind",
    "subgraphs",
    "trace",
]

_DOMAINS = {"", "ai.onnx", "com.microsoft"}
FOLLOWED = {
    "Identity", "Cast", "CastLike", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
_MOVING = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Quantization:
    """How a quantized constant is turned into numbers: ``(q - zero_point) * scale``.

    Attributes:
        scale: float32, broadcastable to the stored tensor.
        zero_point: int32, broadcastable to the stored tensor.
    """

    scale: np.ndarray
    zero_point: np.ndarray

    def same_as(self, other: Quantization | None) -> bool:
        """True when both turn every element into the same number."""
        return other is not None and all(
            np.array_equal(a, b) for a, b in ((self.scale, other.scale), (self.zero_point, other.zero_point))
        )


@dataclass(frozen=True)
class Constant:
    """The constant behind a value.

    Attributes:
        tensor: The initializer or Constant-node value.
        name: The initializer's name, or the Constant node's output.
        shape: As the consumer sees it.
        axes: For each dim of ``shape``, the stored tensor's axis that it is; None where a reshape merged or split it.
        quantization: For constants stored as quantized integers.
    """

    tensor: onnx.TensorProto
    name: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    quantization: Quantization | None


@dataclass
class Scope:
    """One graph's names, inside the scope of the graph around it."""

    graph: onnx.GraphProto
    outer: Scope | None = None
    producers: dict[str, onnx.NodeProto] = field(init=False)
    constants: dict[str, onnx.TensorProto] = field(init=False)
    inputs: set[str] = field(init=False)
    sparse: set[str] = field(init=False)
    types: dict[str, onnx.TypeProto] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.types = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}

    def find(self, name: str) -> Scope | None:
        """The innermost scope that defines a name."""
        scope: Scope | None = self
        while scope is not None:
            if any(name in names for names in (scope.constants, scope.producers, scope.inputs, scope.sparse)):
                return scope
            scope = scope.outer
        return None

    def dims(self, name: str) -> tuple[int, ...] | None:
        """A value's shape, or None where a dim or the rank is unknown."""
        scope = self.find(name)
        if scope is None:
            return None
        if name in scope.constants:
            return tuple(scope.constants[name].dims)
        kind = scope.types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim]
        return None if any(dim < 0 for dim in dims) else tuple(dims)

    def dtype(self, name: str) -> str:
        """A value's data type, as numpy and ml_dtypes call it; "" where it is not known."""
        scope = self.find(name)
        if scope is None:
            return ""
        if name in scope.constants:
            return dtype_name(scope.constants[name].data_type)
        kind = scope.types.get(name)
        return "" if kind is None or not kind.tensor_type.elem_type else dtype_name(kind.tensor_type.elem_type)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes: If branches, Loop and Scan bodies."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def bodies(node: onnx.NodeProto, position: int) -> list[tuple[str, onnx.GraphProto]]:
    """The `subgraphs` of the node at a position of its graph, each with a name that no other has there: "If_3.0"."""
    return [(f"{node.op_type}_{position}.{at}", graph) for at, graph in enumerate(subgraphs(node))]


def dequantized_from(scope: Scope, name: str) -> str:
    """The data type that DequantizeLinear made a value of, past nodes that only move values; "" for other values."""
    while True:
        found = scope.find(name)
        node = None if found is None else found.producers.get(name)
        if found is None or node is None:
            return ""
        scope = found
        if node.op_type not in _MOVING:
            break
        name = node.input[0]
    if node.op_type != "DequantizeLinear":
        return ""
    alike = (node.input[0], *node.input[2:3])  # what is dequantized, and its zero point
    return next((dtype for dtype in map(scope.dtype, alike) if dtype), "")


def trace(model: OnnxModel, scope: Scope, name: str) -> Constant | str:
    """Follow a value back to a constant.

    Returns:
        The constant, or why there is none, in words.
    """
    found = _origin(scope, name)
    return found if isinstance(found, str) else _forward(model, *found)


def stored_behind(scope: Scope, name: str) -> onnx.TensorProto | None:
    """The constant that a value comes from through nodes that `trace` follows, in whatever shape; None: none does."""
    found = _origin(scope, name)
    return None if isinstance(found, str) else found[0]


def is_followed(node: onnx.NodeProto) -> bool:
    """Whether `trace` goes on behind a node, to its first input."""
    return node.op_type in FOLLOWED and node.domain in _DOMAINS and bool(node.input)


def _origin(scope: Scope, name: str) -> tuple[onnx.TensorProto, str, list[tuple[onnx.NodeProto, Scope]]] | str:
    """The constant behind a value, its name, and the nodes between them from the value on; or why there is none."""
    chain: list[tuple[onnx.NodeProto, Scope]] = []
    while True:
        found = scope.find(name)
        if found is None:
            return f"not constant: {name!r} is not defined"
        scope = found
        if name in scope.constants:
            return scope.constants[name], name, chain
        if name in scope.sparse:
            return "stored as a sparse tensor: TensorRT takes dense weights only"
        node = scope.producers.get(name)
        if node is None:
            return f"not constant: {name!r} is an input of the {'graph' if scope.outer is None else 'subgraph'}"
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            return f"constant {name!r} is not stored as a tensor" if tensor is None else (tensor, name, chain)
        if not is_followed(node):
            return f"not constant: computed by {node.op_type} {node.name or name!r}"
        chain.append((node, scope))
        name = node.input[0]


def _forward(
    model: OnnxModel, tensor: onnx.TensorProto, name: str, chain: list[tuple[onnx.NodeProto, Scope]]
) -> Constant | str:
    """Apply the chain, from the constant to the consumer, to the shape and axes."""
    stored = tuple(tensor.dims)
    shape: tuple[int, ...] = stored
    axes: tuple[int | None, ...] = tuple(range(len(stored)))
    quantization = None
    quantized = True  # the numbers at this point of the chain are the stored ones
    for node, scope in reversed(chain):
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(reversed(range(len(shape)))))
            if sorted(perm) != list(range(len(shape))):
                return f"Transpose {node.name!r} has perm {perm} for {len(shape)} dims"
            shape = tuple(shape[p] for p in perm)
            axes = tuple(axes[p] for p in perm)
        elif node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            target = _reshaped(model, node, scope, shape)
            if target is None:
                return f"{node.op_type} {node.name!r} has a shape that is not known"
            axes = _carried(shape, axes, target)
            shape = target
        elif node.op_type == "QuantizeLinear":
            quantized = False
        elif node.op_type == "DequantizeLinear" and quantized and quantization is None:
            found = _quantization(model, node, scope, shape, axes, stored)
            if isinstance(found, str):
                return found
            quantization = found
    return Constant(tensor, name, shape, axes, quantization)


def _carried(shape: tuple[int, ...], axes: tuple[int | None, ...], target: tuple[int, ...]) -> tuple[int | None, ...]:
    """Axes after a reshape: a dim is kept when it has the same length and the same number of elements before it."""
    before = {(math.prod(shape[:i]), shape[i]): axes[i] for i in reversed(range(len(shape)))}
    return tuple(before.get((math.prod(target[:i]), target[i])) for i in range(len(target)))


def _reshaped(model: OnnxModel, node: onnx.NodeProto, scope: Scope, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The output shape of a node that only regroups dims, or None when it is not known."""
    known = scope.dims(node.output[0])
    if known is not None:
        return known
    if node.op_type == "Flatten":
        axis = _attribute(node, "axis", 1)
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    numbers = _integers(model, node, scope)
    if numbers is None:
        return None
    if node.op_type == "Reshape":
        target = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(numbers)]
        rest = math.prod(n for n in target if n != -1)
        return tuple(math.prod(shape) // rest if n == -1 and rest else n for n in target)
    if node.op_type == "Squeeze":
        dropped = {n % max(len(shape), 1) for n in numbers}
        return tuple(dim for i, dim in enumerate(shape) if i not in dropped)
    rank = len(shape) + len(numbers)
    added = {n % rank for n in numbers}
    rest_of = iter(shape)
    return tuple(1 if i in added else next(rest_of, 1) for i in range(rank))


def _integers(model: OnnxModel, node: onnx.NodeProto, scope: Scope) -> list[int] | None:
    """The shape or axes that a reshaping node was given, from its attribute or constant second input."""
    for attribute in node.attribute:
        if attribute.name in ("shape", "axes"):
            return list(attribute.ints)
    if len(node.input) < 2 or not node.input[1]:
        return None
    found = trace(model, scope, node.input[1])
    return None if isinstance(found, str) else [int(n) for n in model.array(found.tensor).reshape(-1)]


def _quantization(
    model: OnnxModel,
    node: onnx.NodeProto,
    scope: Scope,
    shape: tuple[int, ...],
    axes: tuple[int | None, ...],
    stored: tuple[int, ...],
) -> Quantization | str:
    """Scale and zero point of a DequantizeLinear, laid out like the stored tensor."""
    values = []
    for name in filter(None, node.input[1:3]):
        found = trace(model, scope, name)
        if isinstance(found, str):
            return f"DequantizeLinear {node.name!r} has a scale or zero point that is not constant"
        values.append(model.array(found.tensor))
    scale = values[0].astype(np.float32)
    zero_point = values[1].astype(np.int32) if len(values) > 1 else np.zeros_like(scale, np.int32)
    axis = _attribute(node, "axis", 1)
    block = _attribute(node, "block_size", 0)
    laid_out = [_laid_out(value, shape, axes, stored, axis, block) for value in (scale, zero_point)]
    if laid_out[0] is None or laid_out[1] is None:
        return f"DequantizeLinear {node.name!r} has scales along an axis that is not one of the stored tensor"
    return Quantization(laid_out[0], laid_out[1])


def _laid_out(
    value: np.ndarray,
    shape: tuple[int, ...],
    axes: tuple[int | None, ...],
    stored: tuple[int, ...],
    axis: int,
    block: int,
) -> np.ndarray | None:
    """A scale as an array that broadcasts to the stored tensor: per tensor, per axis, or per block."""
    if value.size == 1:
        return value.reshape((1,) * len(stored))
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if block:
        if axes != tuple(range(len(stored))):
            return None
        if value.shape != tuple(-(-dim // block) if i == axis else dim for i, dim in enumerate(stored)):
            return None
        return np.repeat(value, block, axis=axis)[tuple(slice(0, dim) for dim in stored)]
    place = axes[axis]
    if place is None or value.size != stored[place]:
        return None
    return value.reshape([stored[place] if i == place else 1 for i in range(len(stored))])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
