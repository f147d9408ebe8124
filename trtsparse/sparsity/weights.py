"""One walk over a model that finds every weight site: one use of one constant tensor by one node.

Rules for what TensorRT can run on Sparse Tensor Cores are in one table and one function, `_verdict`
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html, "Sparsity").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import checker, inliner, shape_inference

from trtsparse.errors import ConfigError, ModelError
from trtsparse.files.check import all_nodes, check
from trtsparse.files.model import OnnxModel
from trtsparse.files.shapes import check_shapes, input_dims, with_sizes
from trtsparse.files.tensor import TensorRef, dtype_name
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.trace import Constant, Quantization, Scope, bodies, dequantized_from, trace

__all__ = ["WEIGHT_INPUTS", "WeightSite", "find_sites", "has_weights", "inlined", "with_shapes"]

_NO_SPARSE_KERNEL = {
    "ConvTranspose": "ConvTranspose: TensorRT is not known to use sparse kernels for it",
    "QLinearConv": "QLinearConv: TensorRT takes QuantizeLinear / DequantizeLinear instead",
    "QLinearMatMul": "QLinearMatMul: TensorRT takes QuantizeLinear / DequantizeLinear instead",
    "ConvInteger": "ConvInteger: TensorRT does not support dynamic quantization",
    "MatMulInteger": "MatMulInteger: TensorRT does not support dynamic quantization",
    "LSTM": "LSTM: TensorRT has no sparse kernels for recurrent layers",
    "GRU": "GRU: TensorRT has no sparse kernels for recurrent layers",
    "RNN": "RNN: TensorRT has no sparse kernels for recurrent layers",
}
_RECURRENT = {"LSTM", "GRU", "RNN"}
WEIGHT_INPUTS = {
    "Conv": (1,), "ConvTranspose": (1,), "ConvInteger": (1,), "QLinearConv": (3,),
    "Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
_SPARSE_TYPES = {"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int4", "uint4"}
_JUDGED_TYPES = _SPARSE_TYPES | {"float64", "int16", "int32", "int64", "uint16", "uint32", "uint64"}
_FEW_CHANNELS = 256  # below this TensorRT's timing rarely prefers the sparse kernel


@dataclass(frozen=True)
class WeightSite:
    """One use of one constant tensor by one node.

    Attributes:
        tensor: The constant's name; for a weight that is not constant, the name of the node's input.
        node: The node's name, or "<op>_<position>" where it has none.
        op: Its operator.
        shape: The dims of the tensor as stored.
        axis: The reduction axis in that shape, or -1 where it cannot be told.
        dtype: The stored data type, as numpy and ml_dtypes call it.
        parameters: Elements of the tensor; 0 when it is not constant.
        macs: Multiply-accumulates of the node for the model's shapes, of a recurrent layer those of this weight; None
            where shapes are not known.
        eligible: The structure allows a sparse kernel.
        reason: If not eligible, why, in words; else "".
        warnings: What makes a gain unlikely although the site is eligible.
        output_axis: The axis of the output channels in ``shape``, or -1.
        ref: Where the bytes are; None when not constant.
        quantization: For weights stored as quantized integers.
        dequantized: The data types that the node's two operands are dequantized from; empty unless both are.
        bodies: The subgraphs that the node is in, from outside to inside, each as "<op>_<position>.<number>".
    """

    tensor: str
    node: str
    op: str
    shape: tuple[int, ...]
    axis: int
    dtype: str
    parameters: int
    macs: int | None
    eligible: bool
    reason: str
    warnings: tuple[str, ...] = ()
    output_axis: int = -1
    ref: TensorRef | None = field(default=None, repr=False)
    quantization: Quantization | None = field(default=None, repr=False, compare=False)
    dequantized: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()

    @property
    def analysable(self) -> bool:
        """True when the values can be judged: a constant of numbers whose reduction axis is known."""
        return self.ref is not None and self.axis >= 0 and self.ref.size > 0 and self.dtype in _JUDGED_TYPES


def find_sites(
    model: OnnxModel,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    pattern: Pattern = TWO_FOUR,
    allow_unknown_operators: bool = False,
) -> tuple[WeightSite, ...]:
    """Find every weight of every Conv, Gemm, MatMul and their kin, in the order of the nodes.

    Args:
        model: An opened model.
        shapes: Input shapes for counting multiply-accumulates where the model's are dynamic; they also size dims of
            the same name in other inputs.
        pattern: N:M, for the rule that the reduction is a multiple of M long.
        allow_unknown_operators: As in `trtsparse.files.check.check`.

    Raises:
        ModelError: The model is damaged; see `trtsparse.files.check.check`.
        ConfigError: ``shapes`` names an input that the model does not have, or contradicts the model.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[2, 8] x) => (float[2, 4] y)
        ... <float[8, 4] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
        ...  24, 25, 26, 27, 28, 29, 30, 31}> { y = MatMul(x, w) }'''
        >>> site, = find_sites(OnnxModel.open(parser.parse_model(text)))
        >>> site.tensor, site.axis, site.macs, site.eligible
        ('w', 0, 64, True)
    """
    check(model, allow_unknown_operators=allow_unknown_operators)
    proto = with_shapes(model.proto, shapes or {}, model.name)
    return tuple(_walk(model, Scope(proto.graph), pattern))


def with_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], name: str) -> onnx.ModelProto:
    """The skeleton with functions inlined, given input shapes set, and all shapes inferred that can be.

    Raises:
        ModelError: The functions cannot be inlined.
        ConfigError: ``shapes`` names an input that the model does not have, or contradicts the model.
    """
    if proto.functions:
        proto = inlined(proto, name)
    if shapes:
        proto = _copy_with_inputs(proto, shapes)
    try:
        return shape_inference.infer_shapes(proto, data_prop=True)
    except (shape_inference.InferenceError, ValueError):
        return proto  # contradictory shapes: sites are still found, their multiply-accumulates unknown


def inlined(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The skeleton with its local functions inlined.

    Raises:
        ModelError: They cannot be.
    """
    try:
        return inliner.inline_local_functions(_with_defaults(proto))
    except (checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError("the model's functions cannot be inlined", where=name, got=str(error)) from error


def _with_defaults(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the default attributes of functions written into their calls, as onnx's inliner does not."""
    defaults = {(f.domain, f.name): f.attribute_proto for f in proto.functions if f.attribute_proto}
    if not defaults:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in all_nodes(copy):
        given = {attribute.name for attribute in node.attribute}
        missing = [a for a in defaults.get((node.domain, node.op_type), ()) if a.name not in given]
        node.attribute.extend(missing)
    return copy


def _copy_with_inputs(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    inputs = input_dims(proto.graph)
    for name in shapes:
        if name not in inputs:
            raise ConfigError("the model has no such input", where="shapes", got=name, expected=", ".join(inputs))
    sizes = check_shapes(inputs, shapes)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    values = {value.name: value.type.tensor_type for value in copy.graph.input}
    for name, dims in inputs.items():
        known = shapes.get(name) if name in shapes or dims is None else with_sizes(dims, sizes)
        if known is None:
            continue
        if dims is None:
            values[name].shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in known)
        for dim, size in zip(values[name].shape.dim, known, strict=True):
            if not isinstance(size, str):
                dim.dim_value = int(size)
    del copy.graph.value_info[:]  # inferred for other shapes
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy


def has_weights(node: onnx.NodeProto) -> bool:
    """Whether a node has sites: of ONNX's own domain, for other domains have operators of the same names."""
    return node.op_type in WEIGHT_INPUTS and node.domain in ("", "ai.onnx")


def _walk(model: OnnxModel, scope: Scope, pattern: Pattern, around: tuple[str, ...] = ()) -> Iterator[WeightSite]:
    for position, node in enumerate(scope.graph.node):
        if has_weights(node):
            dequantized = tuple(dequantized_from(scope, name) for name in node.input[:2])
            for site in _node_sites(model, scope, node, node.name or f"{node.op_type}_{position}", pattern):
                yield dataclasses.replace(site, dequantized=dequantized if all(dequantized) else (), bodies=around)
        for name, graph in bodies(node, position):
            yield from _walk(model, Scope(graph, scope), pattern, (*around, name))


def _node_sites(
    model: OnnxModel, scope: Scope, node: onnx.NodeProto, name: str, pattern: Pattern
) -> Iterator[WeightSite]:
    """The node's sites: its constant operands, or its second operand when none is constant."""
    inputs = [node.input[i] for i in WEIGHT_INPUTS[node.op_type] if i < len(node.input) and node.input[i]]
    traced = [(value, trace(model, scope, value)) for value in inputs]
    constants = [(value, found) for value, found in traced if isinstance(found, Constant)]
    if len(constants) > 1 and node.op_type in ("Gemm", "MatMul"):
        constants = constants[1:]  # a product of two constants is folded; the second stands for both
        folded = f"both operands of {node.op_type} are constant: TensorRT folds the product"
    else:
        folded = ""
    for value, constant in constants:
        yield _site(model, node, name, value, constant, _macs(node, scope, (value, constant)), pattern, folded)
    if not constants and traced:
        value, why = traced[-1]
        macs = _macs(node, scope, None)
        yield WeightSite(value, name, node.op_type, (), -1, "", 0, macs, eligible=False, reason=str(why))


def _site(
    model: OnnxModel,
    node: onnx.NodeProto,
    name: str,
    value: str,
    constant: Constant,
    macs: int | None,
    pattern: Pattern,
    folded: str,
) -> WeightSite:
    ref = model.ref(constant.tensor)
    seen, output_seen = _axes_seen(node, value, len(constant.shape))
    axis = _stored(constant, seen)
    dtype = dtype_name(constant.tensor.data_type)
    reason = folded or _verdict(node, constant, seen, dtype, pattern)
    return WeightSite(
        tensor=constant.name,
        node=name,
        op=node.op_type,
        shape=tuple(constant.tensor.dims),
        axis=-1 if axis is None else axis,
        dtype=dtype,
        parameters=math.prod(constant.tensor.dims),
        macs=macs,
        eligible=not reason,
        reason=reason,
        warnings=() if reason else _warnings(constant, seen, output_seen, dtype),
        output_axis=-1 if (output := _stored(constant, output_seen)) is None else output,
        ref=ref,
        quantization=constant.quantization,
    )


def _stored(constant: Constant, seen: int | None) -> int | None:
    return None if seen is None or not -len(constant.axes) <= seen < len(constant.axes) else constant.axes[seen]


def _axes_seen(node: onnx.NodeProto, value: str, rank: int) -> tuple[int | None, int | None]:
    """The reduction axis and the output-channel axis of a weight as its node sees it; None where there is none."""
    first = node.input[0] == value
    if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
        return 1, 0
    if node.op_type == "ConvTranspose":
        return 0, 1
    if node.op_type == "Gemm":
        transposed = next((bool(a.i) for a in node.attribute if a.name == ("transA" if first else "transB")), False)
        return (int(first != transposed), int(first == transposed))
    if node.op_type in _RECURRENT:
        return 2, 1
    if rank < 2:
        return (0 if rank else None), None
    return (-1, -2) if first else (-2, -1)


def _verdict(node: onnx.NodeProto, constant: Constant, seen: int | None, dtype: str, pattern: Pattern) -> str:
    """Why TensorRT cannot run this weight on Sparse Tensor Cores, in words; "" when it can."""
    op = node.op_type
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if not math.prod(constant.shape):
        return f"empty weight: dims {list(constant.shape)}"
    if op in _NO_SPARSE_KERNEL:
        return _NO_SPARSE_KERNEL[op]
    if group != 1:
        return f"grouped convolution (group = {group}): TensorRT never uses sparse kernels"
    if dtype not in _SPARSE_TYPES:
        return f"data type {dtype}: Sparse Tensor Cores do not take it"
    if min(len(constant.shape), len(constant.tensor.dims)) < 2 or seen is None:
        return "the weight is a vector: no matrix product"
    if _stored(constant, seen) is None:
        return "a reshape between the stored tensor and the node does not keep the reduction axis"
    length = constant.shape[seen]
    if length % pattern.m:
        return f"reduction of {length} is not a multiple of {pattern.m}"
    return ""


def _warnings(constant: Constant, seen: int | None, output_seen: int | None, dtype: str) -> tuple[str, ...]:
    if seen is None or output_seen is None:
        return ()
    found = []
    length, outputs = constant.shape[seen], constant.shape[output_seen]
    if length % 32:
        found.append(f"reduction of {length} is not a multiple of 32, the depth of FP16 sparse kernels")
    elif length % 64:
        found.append(f"reduction of {length} is not a multiple of 64, the depth of INT8 sparse kernels")
    if min(length, outputs) < _FEW_CHANNELS:
        found.append(f"{length} input and {outputs} output channels: fewer than {_FEW_CHANNELS} rarely gain")
    if dtype in ("int4", "uint4"):
        found.append("INT4 is weight-only in TensorRT: no sparse kernel is known to be chosen")
    if dtype == "uint8":
        found.append("TensorRT takes signed INT8 only")
    return tuple(found)


def _macs(node: onnx.NodeProto, scope: Scope, weight: tuple[str, Constant] | None) -> int | None:
    """Multiply-accumulates of a node: output elements times the reduction behind each of them.

    Of a recurrent layer those of one weight: every step of every sequence takes each of its elements once.
    """
    output, first = scope.dims(node.output[0]), scope.dims(node.input[0])
    shape = weight[1].shape if weight else None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return None if output is None or shape is None else math.prod(output) * math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return None if first is None or shape is None else math.prod(first) * math.prod(shape[1:])
    if node.op_type in _RECURRENT:
        shapes = [scope.dims(name) for name in node.input[1:3]] if shape is None else [shape]
        known = [math.prod(dims) for dims in shapes if dims is not None]
        return None if first is None or len(known) < len(shapes) else math.prod(first[:2]) * sum(known)
    if output is None:
        return None
    if weight is not None:
        value, shape = weight[0], weight[1].shape
    elif first is not None:
        value, shape = node.input[0], first
    else:
        return None
    seen, _ = _axes_seen(node, value, len(shape))
    return None if seen is None or not -len(shape) <= seen < len(shape) else math.prod(output) * shape[seen]
