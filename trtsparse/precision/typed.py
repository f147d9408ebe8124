"""Give a float32 graph another floating-point type: float16 or bfloat16 where operators allow it.

One pass over the nodes in their order. Every value has the type that its producer gives it; where a consumer needs
the other one, a Cast is put in front of it, once for each value. So the order stays topological, and neighbours that
stay in float32 exchange float32: what overflows float16 never passes through it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import Names, all_names, graphs, whole
from trtsparse.sparsity.trace import subgraphs

__all__ = ["BF16", "EXACT", "FP16", "SENTINEL", "HalfType", "float_values", "half_array", "retype"]

_Form = Literal["float", "half", "clamped", "native"]

SENTINEL = 1e30  # beyond: "minus infinity" of an attention mask, not a number to compute with

# Elementwise operators and those that move data: after a Cast from integers they compute positions, sizes and masks,
# which float16 cannot hold exactly.
EXACT = {
    "Add", "Ceil", "Clip", "Concat", "Cos", "Div", "Equal", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max",
    "Min", "Mod", "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Round", "Sin", "Slice", "Split", "Sqrt", "Squeeze",
    "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_FUSED = {"Add", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Relu", "Sigmoid"}
# Scales stay float32, and the one that ONNX defines with float32 constants stays whole.
_FLOAT_OPS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MeanVarianceNormalization"}


@dataclass(frozen=True)
class HalfType:
    """A 16-bit floating-point type.

    Attributes:
        name: "fp16" or "bf16".
        onnx_type: The ``TensorProto`` data type.
        dtype: numpy's.
        largest: The largest finite number.
    """

    name: str
    onnx_type: int
    dtype: np.dtype[Any]
    largest: float


FP16 = HalfType("fp16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0)
BF16 = HalfType("bf16", TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), float.fromhex("0x1.fep127"))


def half_array(values: np.ndarray, half: HalfType) -> np.ndarray:
    """Round float32 numbers to a half type.

    Numbers beyond 1e30, which stand for infinity in masks, become half of the largest number, so that adding to them
    does not overflow; other finite ones beyond the range become the largest number. Zeros stay zeros.

    Example:
        >>> half_array(np.array([1.0, 7e4, -3.4e38, -np.inf], np.float32), FP16).tolist()
        [1.0, 65504.0, -32752.0, -inf]
    """
    magnitude = np.abs(values)
    if values.size and not magnitude.max() <= half.largest:
        bound = np.where(magnitude > SENTINEL, half.largest / 2, half.largest).astype(np.float32)
        values = np.where(np.isfinite(values), np.clip(values, -bound, bound), values)
    return values.astype(half.dtype)


def retype(model: OnnxModel, *, half: HalfType, keep: Collection[str] = (), emulate: bool = False) -> onnx.ModelProto:
    """Give a copy of a model whose float32 values are of a half type; inputs and outputs stay float32.

    Args:
        model: As `trtsparse.precision.fold.fold` gives it: every node of the skeleton has a name of its own.
        half: The type.
        keep: Names of nodes that stay in float32.
        emulate: Compute in float32 and round every value that would be of the half type: what hardware does that
            multiplies 16-bit numbers and adds in float32. ONNX Runtime runs that for any type.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    _Retyper(model, copy, half, frozenset(keep), emulate=emulate).graph(copy.graph, None)
    return copy


def float_values(model: OnnxModel) -> dict[str, tuple[str, ...]]:
    """The float32 values of the main graph: for each node, in order, the names of those that it reads and makes.

    Constants do not count.
    """
    graph = model.proto.graph
    types = _types(model.proto)[0]
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.name: tuple(
            name
            for name in (*node.input, *node.output)
            if name not in constants and types.get(name) == TensorProto.FLOAT and node.op_type != "Constant"
        )
        for node in graph.node
    }


def _quantized_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes that compute on quantized values, and those that TensorRT fuses with them up to the next QuantizeLinear.

    They stay in float32: a Cast between them and Q/DQ would make TensorRT compute them unquantized.
    """
    makers = {name: node for node in graph.node for name in node.output}
    dequantized = {name for name, node in makers.items() if node.op_type == "DequantizeLinear"}
    found = {node.name for node in graph.node if not dequantized.isdisjoint(node.input)}

    def reaches(name: str) -> bool:
        node = makers.get(name)
        if node is None or node.op_type not in _FUSED:
            return node is not None and node.name in found
        if node.name not in found and True in [reaches(source) for source in node.input]:  # all of them, no short cut
            found.add(node.name)
        return node.name in found

    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            reaches(node.input[0])
    return found


class _Scope:
    """One graph while its nodes are rewritten."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None, types: dict[str, int]) -> None:
        self.outer = outer
        self.types = types
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.half: set[str] = set()  # values whose producer gives the half type
        self.integral: set[str] = set()  # float32 values computed from integers
        self.versions: dict[tuple[str, _Form], str] = {}  # the name under which a form of a value is there

    def home(self, name: str) -> _Scope | None:
        """The innermost scope that has a value; None where its type is unknown."""
        scope: _Scope | None = self
        while scope is not None and name not in scope.types:
            scope = scope.outer
        return scope

    def is_float(self, name: str) -> bool:
        """True for a value that was float32 in the original."""
        home = self.home(name) if name else None
        return home is not None and home.types[name] == TensorProto.FLOAT


class _Retyper:
    """Rewrites the graphs of one model, outer ones before those inside."""

    def __init__(
        self, model: OnnxModel, copy: onnx.ModelProto, half: HalfType, keep: frozenset[str], *, emulate: bool
    ) -> None:
        self.model = model
        self.half = half
        self.keep = keep | _quantized_nodes(copy.graph)
        self.emulate = emulate
        self.opsets = {opset.domain or "ai.onnx": opset.version for opset in copy.opset_import}
        self.types = iter(_types(copy))
        self.names = Names(all_names(copy.graph))

    def graph(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        """Rewrite a graph in place; its inputs and outputs keep their types."""
        scope = _Scope(graph, outer, next(self.types))
        for name in scope.outputs & scope.constants.keys():
            self.constant(scope, name, "float")
        for node in graph.node:
            if (
                node.op_type == "Constant"
                and node.attribute[0].name == "value"
                and node.output[0] not in scope.outputs
            ):
                scope.constants[node.output[0]] = node.attribute[0].t
            else:
                self.node(scope, node)
        for value in graph.output:
            value.name = self.value(scope, value.name, "float")
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(scope.nodes)
        graph.initializer.extend(scope.initializers.values())

    def node(self, scope: _Scope, node: onnx.NodeProto) -> None:
        """Rewrite one node's inputs, append it, and note the types of its outputs."""
        for inner in subgraphs(node):
            self.graph(inner, scope)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(whole(self.model, attribute.t))
        forms, half_outputs = self.plan(scope, node)
        for i, name in enumerate(node.input):
            node.input[i] = self.value(scope, name, forms[i])
        scope.nodes.append(node)
        for i in half_outputs:
            self.half_output(scope, node, i)

    def plan(self, scope: _Scope, node: onnx.NodeProto) -> tuple[list[_Form], list[int]]:
        """The form in which a node takes each input, and which of its outputs are of the half type."""
        everything: list[_Form] = ["float"] * len(node.input)
        floats = [i for i, name in enumerate(node.input) if scope.is_float(name)]
        if node.op_type == "Cast":
            if not floats:
                scope.integral.update(node.output)
            return ["native"], []
        if _is_integral(scope, node, floats):
            scope.integral.update(node.output)
            return ["clamped"] * len(node.input), []
        schema = _schema(node, self.opsets)
        if schema is None or not floats or node.name in self.keep or node.op_type in _FLOAT_OPS or subgraphs(node):
            return everything, []
        if _has_containers(schema):
            return everything, []  # what is inside keeps its type on the whole way through sequences and optionals
        kinds = [_kind(schema.inputs, i) for i in range(len(node.input))]
        allowed = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
        half = {kinds[i] for i in floats} & allowed
        outputs = [i for i, name in enumerate(node.output) if scope.is_float(name)]
        half_outputs = [i for i in outputs if _kind(schema.outputs, i) in half]
        if outputs and not half_outputs:
            return everything, []
        if not outputs and not all(self.is_half(scope, node.input[i]) for i in floats):
            return everything, []  # comparisons and their kin: no rounding just for them
        return [("half" if kind in half else "float") for kind in kinds], half_outputs

    def is_half(self, scope: _Scope, name: str) -> bool:
        """True for a constant, or a value whose producer gives the half type."""
        home = scope.home(name)
        return home is not None and (name in home.half or name in home.constants)

    def value(self, scope: _Scope, name: str, form: _Form) -> str:
        """The name of a value in the form asked for, with a Cast where its producer gives another one."""
        home = scope.home(name) if name else None
        if home is None:
            return name
        if name in home.constants:
            return self.constant(home, name, form)
        is_half = name in home.half
        wants_half = form == "half"
        if home.types[name] != TensorProto.FLOAT or form == "native" or is_half == wants_half:
            return name
        if is_half and self.emulate:
            return name  # rounded already
        key: tuple[str, _Form] = (name, "half" if wants_half else "float")
        if key not in home.versions:
            home.versions[key] = self.names.unique(f"{name}_{self.half.name if wants_half else 'fp32'}")
            self.cast(home, name, home.versions[key], to_half=wants_half)
        return home.versions[key]

    def constant(self, home: _Scope, name: str, form: _Form) -> str:
        """The name of a constant in the form asked for; the first form keeps the constant's own name."""
        tensor = home.constants[name]
        if tensor.data_type != TensorProto.FLOAT or form == "native":
            form = "float"
        values = None if form == "float" else self.model.array(tensor)
        if form == "clamped" and values is not None:
            clamped = half_array(values, self.half)
            form = "clamped" if self.half is FP16 and _has_sentinels(values) else "float"
            values = np.where(np.abs(values) > SENTINEL, clamped.astype(np.float32), values)
        key = (name, form)
        if key not in home.versions:
            taken = name in home.initializers
            home.versions[key] = new = self.names.unique(f"{name}_{form}") if taken else name
            home.initializers[new] = stored = whole(self.model, tensor) if form == "float" else TensorProto()
            if values is not None and form != "float":
                converted = half_array(values, self.half) if form == "half" else values
                if self.emulate:
                    converted = converted.astype(np.float32)
                stored.CopyFrom(numpy_helper.from_array(np.asarray(converted, order="C")))
            stored.name = new
        return home.versions[key]

    def half_output(self, scope: _Scope, node: onnx.NodeProto, i: int) -> None:
        """Note that an output is of the half type; put a Cast behind it where float32 is promised."""
        name = node.output[i]
        if self.emulate:
            node.output[i] = self.names.unique(f"{name}_exact")
            self.cast(scope, node.output[i], name, to_half=True)
            scope.half.add(name)
        elif name in scope.outputs:
            node.output[i] = scope.versions[name, "half"] = self.names.unique(f"{name}_{self.half.name}")
            self.cast(scope, node.output[i], name, to_half=False)
        else:
            scope.half.add(name)

    def cast(self, scope: _Scope, source: str, target: str, *, to_half: bool) -> None:
        """Append a Cast; when emulating, one to the half type and back."""
        if self.emulate and to_half:
            rounded = self.names.unique(f"{target}_rounded")
            scope.nodes.append(self.cast_node(source, rounded, self.half.onnx_type))
            scope.nodes.append(self.cast_node(rounded, target, TensorProto.FLOAT))
        else:
            to = self.half.onnx_type if to_half else TensorProto.FLOAT
            scope.nodes.append(self.cast_node(source, target, to))

    def cast_node(self, source: str, target: str, to: int) -> onnx.NodeProto:
        """A Cast that is named after what it makes."""
        return helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=to)


def _types(model: onnx.ModelProto) -> list[dict[str, int]]:
    """For each graph, outer ones first, the element type of every value that is known."""
    try:
        inferred = shape_inference.infer_shapes(model)
    except (shape_inference.InferenceError, ValueError):
        inferred = model  # ONNX Runtime wrote most types when it folded the model
    return [
        {
            **{v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)},
            **{tensor.name: tensor.data_type for tensor in graph.initializer},
        }
        for graph in graphs(inferred.graph)
    ]


def _schema(node: onnx.NodeProto, opsets: dict[str, int]) -> Any:
    """The operator's definition, or None for operators that ONNX does not define."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        return defs.get_schema(node.op_type, opsets.get(domain or "ai.onnx", 1), domain)
    except defs.SchemaError:
        return None


def _kind(parameters: Sequence[Any], i: int) -> str:
    """The type variable of a parameter; the last one may be repeated."""
    return str(parameters[min(i, len(parameters) - 1)].type_str)


def _has_containers(schema: Any) -> bool:
    """True for operators that take or give sequences, optionals or maps, and never tensors in their place."""
    return any(
        not any(kind.startswith("tensor(") for kind in parameter.types)
        for parameter in (*schema.inputs, *schema.outputs)
    )


def _is_integral(scope: _Scope, node: onnx.NodeProto, floats: Sequence[int]) -> bool:
    """True when all that a node computes with comes from integers and constants."""
    if node.op_type not in EXACT:
        return False
    homes = [(name, home) for name in (node.input[i] for i in floats) if (home := scope.home(name)) is not None]
    computed = [name in home.integral for name, home in homes if name not in home.constants]
    return bool(computed) and all(computed)


def _has_sentinels(values: np.ndarray) -> bool:
    return bool(np.any(np.isfinite(values) & (np.abs(values) > SENTINEL)))
