"""The graph that conversions start from: named nodes, inlined functions, folded constants, only the opsets in use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import inliner, version_converter

from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import graphs, name_nodes, pack, trim_opsets
from trtsparse.precision.ort import open_session

__all__ = ["OPSET", "fold"]

OPSET = 17  # every TensorRT from 8.6 reads it, ONNX Runtime runs all of it


def fold(model: OnnxModel, *, opset: int = 0) -> OnnxModel:
    """Give a copy after ONNX Runtime's basic optimizations: constants folded, Conv and BatchNormalization fused.

    Nodes without a name are called "<op>_<position>" first, as in reports about the original. A model with Q/DQ is
    not optimized: ONNX Runtime would quantize biases too, to int32, which TensorRT refuses.

    Args:
        model: The original.
        opset: Convert a model with an older opset to `OPSET` first.

    Returns:
        A model in memory. Every node of its skeleton has a name of its own.

    Raises:
        ModelError: The opset cannot be converted.
        EngineError: ONNX Runtime does not load the model.
        MissingDependencyError: It is not installed.
    """
    named = model.load()
    name_nodes(named)
    _drop_defaults(named.graph)
    if named.functions:
        named = inliner.inline_local_functions(named)
    if next((o.version for o in named.opset_import if o.domain in ("", "ai.onnx")), 0) < opset:
        named = _newer(named, model.name)
    quantized = any(node.op_type == "DequantizeLinear" for graph in graphs(named.graph) for node in graph.node)
    source = pack(named, name=model.name)
    if quantized:
        return source
    with tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True) as folder:
        open_session(source, optimized=Path(folder) / "folded.onnx")
        files = {"" if path.suffix == ".onnx" else path.name: path.read_bytes() for path in Path(folder).iterdir()}
    folded = OnnxModel(files, name=model.name)
    name_nodes(folded.proto)
    trim_opsets(folded.proto)
    return folded


def _newer(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:  # also above 2 GB
        raise ModelError(
            f"the model cannot be converted to opset {OPSET}",
            where=name,
            got=str(error),
            fix=f"export it with opset {OPSET}",
        ) from error


def _drop_defaults(graph: onnx.GraphProto) -> None:
    """Make constants of inputs that have a default value, as exporters before IR 4 write all weights."""
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    del graph.input[:]
    graph.input.extend(inputs)
