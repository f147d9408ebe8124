"""The graph that conversions start from: named nodes, inlined functions, folded constants, only the opsets in use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import Names, all_names, graphs, inlined_and_named, name_nodes, pack, trim_opsets
from trtsparse.precision.ort import open_session

__all__ = ["OPSET", "fold"]

OPSET = 17  # every TensorRT from 8.6 reads it, ONNX Runtime runs all of it
_LAST_ASYMMETRIC = 10  # Resize of this opset and Upsample compute what later ones call asymmetric


def fold(model: OnnxModel, *, opset: int = 0) -> OnnxModel:
    """Give a copy after ONNX Runtime's basic optimizations: constants folded, Conv and BatchNormalization fused.

    Functions are inlined and nodes without a name called "<op>_<position>" first, as in reports about the original.
    A model with Q/DQ is not optimized: ONNX Runtime would quantize biases too, to int32, which TensorRT refuses.

    Args:
        model: The original.
        opset: Convert a model with an older opset to `OPSET` first.

    Returns:
        A model in memory. Every node of its skeleton has a name of its own.

    Raises:
        ModelError: The opset cannot be converted, or functions not inlined.
        EngineError: ONNX Runtime does not load the model.
        MissingDependencyError: It is not installed.
    """
    named = inlined_and_named(model.load(), model.name)
    names = [node.name for graph in graphs(named.graph) for node in graph.node]
    _drop_defaults(named.graph)
    if _opset(named) < opset:
        named = _newer(named, model.name)
        name_nodes(named, taken=names)
    quantized = any(node.op_type == "DequantizeLinear" for graph in graphs(named.graph) for node in graph.node)
    source = pack(named, name=model.name)
    if quantized:
        return source
    with tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True) as folder:
        open_session(source, optimized=Path(folder) / "folded.onnx")
        files = {"" if path.suffix == ".onnx" else path.name: path.read_bytes() for path in Path(folder).iterdir()}
    folded = OnnxModel(files, name=model.name)
    name_nodes(folded.proto, taken=names)
    trim_opsets(folded.proto)
    return folded


def _opset(model: onnx.ModelProto) -> int:
    return next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)


def _newer(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        newer = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:  # also above 2 GB
        raise ModelError(
            f"the model cannot be converted to opset {OPSET}",
            where=name,
            got=str(error),
            fix=f"export it with opset {OPSET}",
        ) from error
    if _opset(model) <= _LAST_ASYMMETRIC:
        _keep_sampling(newer)
    return newer


def _keep_sampling(model: onnx.ModelProto) -> None:
    """Write into every Resize what its old opset computed; the version converter leaves the new defaults.

    The nearest element is the one below, in dims that shrink the one above, as in ONNX's own tests of opset 10.
    """
    found = list(graphs(model.graph))
    constants = {tensor.name: tensor for graph in found for tensor in graph.initializer}
    nodes = (node for graph in found for node in graph.node)
    constants |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    names = Names(all_names(model.graph))
    for graph in found:
        for position, node in reversed(list(enumerate(graph.node))):
            given = {attribute.name: attribute.s for attribute in node.attribute}
            if node.op_type != "Resize" or "coordinate_transformation_mode" in given:
                continue
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            scales = constants.get(node.input[2])
            if given.get("mode", b"nearest") == b"nearest":
                values = np.ones(1) if scales is None else numpy_helper.to_array(scales)
                _keep_nearest(graph, position, values, names)


def _keep_nearest(graph: onnx.GraphProto, position: int, scales: np.ndarray, names: Names) -> None:
    """Say which element is the nearest; where some dims shrink and others grow, a Resize before does the former."""
    node = graph.node[position]
    shrinks = bool((scales < 1).any())
    if shrinks and (scales > 1).any():
        first = onnx.NodeProto()
        first.CopyFrom(node)
        first.name, first.output[0] = "", names.unique(f"{node.output[0]}_shrunk")
        node.input[0] = first.output[0]
        for resize, part in ((first, np.minimum(scales, 1)), (node, np.maximum(scales, 1))):
            resize.input[2] = names.unique(f"{node.output[0]}_scales")
            graph.initializer.append(numpy_helper.from_array(part, resize.input[2]))
        first.attribute.append(helper.make_attribute("nearest_mode", "ceil"))
        graph.node.insert(position, first)
        shrinks = False
    node.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))


def _drop_defaults(graph: onnx.GraphProto) -> None:
    """Make constants of inputs that have a default value, as exporters before IR 4 write all weights."""
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    del graph.input[:]
    graph.input.extend(inputs)
