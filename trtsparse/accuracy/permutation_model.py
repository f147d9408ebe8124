"""A model made ready for a walk: functions inlined, shapes inferred, the place of every constant known."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper, shape_inference

from trtsparse.accuracy.located import located
from trtsparse.files.check import all_nodes
from trtsparse.files.model import OnnxModel
from trtsparse.files.tensor import INLINE_NBYTES
from trtsparse.precision.graph import graphs
from trtsparse.sparsity.weights import with_shapes

__all__ = ["prepared"]

# operators whose output has the first input's shape, which onnx does not infer: domain, name -> such outputs
_LIKE_INPUT = {
    ("", "GroupNormalization"): (0,),
    ("com.microsoft", "BiasGelu"): (0,),
    ("com.microsoft", "FastGelu"): (0,),
    ("com.microsoft", "Gelu"): (0,),
    ("com.microsoft", "QuickGelu"): (0,),
    ("com.microsoft", "SimplifiedLayerNormalization"): (0,),
    ("com.microsoft", "SkipLayerNormalization"): (0, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (0, 3),
}


def prepared(model: OnnxModel) -> OnnxModel:
    """The same model, opened so that `OnnxModel.ref` answers for every constant; small vectors have their data too.

    Args:
        model: Any model.
    """
    found = located(model)
    for tensor in _tensors(found.proto):
        ref = found.ref(tensor)
        if ref is not None and not ref.location and len(ref.shape) < 2 and ref.nbytes <= INLINE_NBYTES:
            tensor.raw_data = found.read(ref).tobytes()  # shape inference reads it
            tensor.data_location = onnx.TensorProto.DEFAULT
    proto = with_shapes(found.proto, {}, model.name)
    _infer_more(proto)
    return OnnxModel(model.files, name=model.name, folder=model.folder, proto=proto)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(proto.graph):
        yield from graph.initializer
    for node in all_nodes(proto):
        yield from (a.t for a in node.attribute if a.HasField("t"))


def _infer_more(proto: onnx.ModelProto) -> None:
    """Add the shapes that follow once operators that keep a shape are taken for Identity."""
    if not any((node.domain, node.op_type) in _LIKE_INPUT for node in proto.graph.node):
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = [simple for node in proto.graph.node for simple in _simplified(node)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    try:
        inferred = shape_inference.infer_shapes(copy, data_prop=True)
    except (shape_inference.InferenceError, ValueError):
        return  # contradictory shapes: what depends on them stays unknown
    for known, more in (
        (proto.graph.value_info, inferred.graph.value_info),
        (proto.graph.output, inferred.graph.output),
    ):
        del known[:]
        known.extend(more)


def _simplified(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    kept = _LIKE_INPUT.get((node.domain, node.op_type))
    if kept is None:
        return [node]
    names = [node.output[i] for i in kept if i < len(node.output) and node.output[i]]
    return [helper.make_node("Identity", [node.input[0]], [name]) for name in names]
