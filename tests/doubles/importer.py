"""Reads an ONNX model as TensorRT's parser would: what it accepts, what it refuses and with which words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, external_data_helper, inliner, numpy_helper, shape_inference

_REFUSED = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear ImageDecoder MatMulInteger
MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement
OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase
SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
StringSplit SwiGLU TfIdfVectorizer Unique
"""
UNSUPPORTED = frozenset(_REFUSED.split())
"""ONNX operators that the parser of TensorRT-RTX 1.7.1 knows and refuses."""
TYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT8: "INT8", TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8", TensorProto.INT4: "INT4", TensorProto.DOUBLE: "FLOAT",
}  # fmt: skip
SPOKEN = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT32": "Int32", "INT64": "Int64"}
ELEMENTWISE = {"Add": "SUM", "Sub": "SUB", "Mul": "PROD", "Div": "DIV", "Max": "MAX", "Min": "MIN", "Pow": "POW"}
PLUGIN = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
DTYPE = (
    'Assertion failed: convertDtype(onnxDtype.elem_type(), &trtDtype) && "Failed to convert ONNX date type to '
    'TensorRT data type."'
)


@dataclass(frozen=True)
class Problem:
    """One parser error, as `get_error` tells it; `log` are the lines said before it."""

    code: str
    desc: str
    func: str
    file: str
    line: int
    node: int = -1
    node_name: str = ""
    operator: str = ""
    log: tuple[str, ...] = ()


@dataclass
class TensorInfo:
    """A network tensor: dynamic sizes are -1, `dtype` is the name of a DataType member."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dimension_names: tuple[str, ...] = ()


@dataclass
class Imported:
    """What parsing a model leaves behind."""

    model: onnx.ModelProto
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def _message_end(data: bytes) -> int:
    """Where a protobuf reader stops: at a zero tag, at an end-group tag, or at the end.

    That is why much garbage parses: nothing is left over that the reader looks at.
    """
    at = 0
    while at < len(data):
        start, tag, shift = at, 0, 0
        while at < len(data) and shift < 70:
            byte = data[at]
            tag |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        if tag == 0 or tag & 7 == 4:
            return start
        if tag & 7 == 0:
            while at < len(data) and data[at] >= 0x80:
                at += 1
            at += 1
        elif tag & 7 == 2:
            length, shift = 0, 0
            while at < len(data):
                byte = data[at]
                length |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if byte < 0x80:
                    break
            at += length
        else:
            at += {1: 8, 5: 4}.get(tag & 7, len(data))
    return len(data)


def read(data: bytes) -> onnx.ModelProto | None:
    """The model in some bytes; None where protobuf refuses them."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data[: _message_end(data)])
    except Exception:  # noqa: BLE001 - the class of the error depends on the protobuf implementation
        return None
    return model


def unreadable() -> Problem:
    """The error of bytes that are no protobuf message."""
    desc = "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model."
    return Problem("MODEL_DESERIALIZE_FAILED", desc, "deserializeOnnxModel", "onnxProtoUtils.hpp", 73)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return TensorInfo(value.name, shape, TYPES.get(tensor.elem_type, ""), tuple(dim.dim_param for dim in dims))


def _load_weights(imported: Imported, folder: Path) -> Problem | None:
    """Bring external data inside; the problem of the first initializer that cannot be."""
    for initializer in imported.model.graph.initializer:
        if not external_data_helper.uses_external_data(initializer):
            continue
        entry = external_data_helper.ExternalDataInfo(initializer)
        path, offset, said = folder / entry.location, entry.offset or 0, ""
        if not path.is_file():
            said = f"WeightsContext.cpp:203: Failed to open file: {path}"
        elif offset + (entry.length or 0) > path.stat().st_size:
            said = (
                f"WeightsContext.cpp:222: ONNX external weights offset/length out of range for file: {path} "
                f"(offset={offset}, length={entry.length}, file size={path.stat().st_size})"
            )
        if said:
            text = (
                "Failed to import initializer: In node -1 with name:  and operator:  (importInitializers): "
                "UNSUPPORTED_NODE: Assertion failed: ctx->getWeightsContext().convertOnnxWeights(initializer, "
                f"&weights): Failed to import initializer: {initializer.name}"
            )
            return Problem("INVALID_GRAPH", text, "importInitializers", "ModelImporter.cpp", 899, log=(said,))
        external_data_helper.load_external_data_for_tensor(initializer, str(folder))
        initializer.data_location = TensorProto.DEFAULT
        del initializer.external_data[:]
    return None


def _refused(index: int, node: onnx.NodeProto, known: set[str]) -> Problem | None:
    where = {"node": index, "node_name": node.name, "operator": node.op_type}
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "" and node.op_type in UNSUPPORTED:
        return Problem("UNSUPPORTED_NODE", "false", f"check{node.op_type}", "onnxOpCheckers.cpp", 1130, **where)
    if domain or not onnx.defs.has(node.op_type, domain):
        return Problem("INVALID_NODE", PLUGIN, "checkFallbackPluginImporter", "onnxOpCheckers.cpp", 998, **where)
    if any(name and name not in known for name in node.input):
        text = "Assertion failed: (ctx->tensors().count(inputName)): Node input was not registered."
        return Problem("INVALID_GRAPH", text, "parseNode", "ModelImporter.cpp", 356, **where)
    return None


def _mixed_types(node: onnx.NodeProto, types: dict[str, str], opset: int) -> str:
    """What is wrong with the types of a node's inputs; empty if nothing is."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return ""
    seen: dict[str, str] = {}
    for i, name in enumerate(node.input):
        if not schema.inputs:
            break
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        kind = types.get(name, "")
        first = seen.setdefault(formal.type_str, kind)
        if not kind or not first or kind == first or not formal.is_homogeneous:
            continue
        a, b = SPOKEN.get(first, first), SPOKEN.get(kind, kind)
        if node.op_type in ("MatMul", "Gemm"):
            kinds = f"`A` is of type {a} and `B` is of type {b}."
            return f"{node.name}: IMatrixMultiplyLayer must have same input types. {kinds}"
        operation = ELEMENTWISE.get(node.op_type)
        if operation:
            same = f"ElementWiseOperation {operation} must have same input types."
            return f"{node.name}: {same} But they are of types {a} and {b}."
        return f"{node.name}: {node.op_type} must have same input types. But they are of types {a} and {b}."
    return ""


def _invalid(index: int, node: onnx.NodeProto, why: str) -> Problem:
    said = f"ITensor::getDimensions: Error Code 4: API Usage Error ({why})"
    return Problem(
        "INVALID_NODE", f"Invalid Node - {node.name}\n{said}", "parseNode", "ModelImporter.cpp", 489,
        node=index, node_name=node.name, operator=node.op_type, log=(said,),
    )  # fmt: skip


def _infer(imported: Imported, opset: int) -> Problem | None:
    """Shapes and types of every tensor; the problem of the first node that contradicts itself."""
    graph = imported.model.graph
    error = ""
    try:
        inferred = shape_inference.infer_shapes(imported.model, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError as problem:
        error = str(problem)
        inferred = shape_inference.infer_shapes(imported.model).graph
    types = {i.name: TYPES.get(i.data_type, "") for i in graph.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        imported.tensors[value.name] = info = _info(value)
        types.setdefault(value.name, info.dtype)
    for index, node in enumerate(graph.node):
        if why := _mixed_types(node, types, opset):
            return _invalid(index, node, why)
        if error and re.search(rf"op_type: ?{node.op_type}, node name: {re.escape(node.name)}\)", error):
            return _invalid(index, node, f"{node.name}: {error.splitlines()[-1]}")
    return None


def _import_inputs(imported: Imported) -> Problem | None:
    weights = {initializer.name for initializer in imported.model.graph.initializer}
    for value in imported.model.graph.input:
        if value.name in weights:
            continue
        info = _info(value)
        if not info.dtype:
            return Problem("UNSUPPORTED_NODE", DTYPE, "importInput", value.name, 992)
        imported.inputs.append(info)
    return None


def import_model(model: onnx.ModelProto, folder: Path) -> Imported:
    """Import a model that protobuf could read.

    Args:
        model: It is changed: external data is brought inside, local functions are inlined.
        folder: Where external data lies.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    imported = Imported(model)
    problem = _import_inputs(imported) or _load_weights(imported, folder)
    if problem:
        imported.problems.append(problem)
        return imported
    graph = model.graph
    domains = {opset.domain: opset.version for opset in model.opset_import}
    known = {i.name for i in graph.initializer} | {i.name for i in graph.input}
    known |= {s.values.name for s in graph.sparse_initializer}
    for index, node in enumerate(graph.node):
        if refused := _refused(index, node, known):
            imported.problems.append(refused)
        known |= set(node.output)
    if not imported.problems and graph.node:
        opset = min(domains.get("", 1), onnx.defs.onnx_opset_version())
        problem = _infer(imported, opset)
        imported.problems += [problem] if problem else []
    if not imported.problems:
        imported.nodes = list(graph.node)
        imported.outputs = [imported.tensors.get(value.name) or _info(value) for value in graph.output]
    return imported


def constant(model: onnx.ModelProto, name: str) -> Any:
    """The array of an initializer or of a Constant node, else None."""
    for initializer in model.graph.initializer:
        if initializer.name == name:
            return numpy_helper.to_array(initializer)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name and node.attribute[0].HasField("t"):
            return numpy_helper.to_array(node.attribute[0].t)
    return None
