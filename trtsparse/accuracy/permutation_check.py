"""Prove by running both that two models compute the same but for rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtsparse.errors import EngineError, PrecisionError
from trtsparse.files.check import all_nodes
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import Comparison, compare_runs
from trtsparse.precision.feeds import check_feeds, random_feeds
from trtsparse.precision.graph import graphs, pack
from trtsparse.precision.ort import runner

__all__ = ["TOLERANCE", "check_unchanged"]

TOLERANCE = 1e-3  # of an output's largest magnitude: sums in float32 are added up in another order
_SAMPLES = 2
_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype"}


def check_unchanged(
    before: OnnxModel, after: OnnxModel, *, feeds: Iterable[Mapping[str, np.ndarray]] | None = None
) -> Comparison:
    """Compare the outputs of a model with those of the same model with its channels in another order.

    Both run in ONNX Runtime on the CPU; 16-bit floats are computed in float32, in which the order of a sum matters
    least and for which every operator has a kernel, and activations are not rounded to quantized numbers.

    Args:
        before: The reference.
        after: The model with other weights.
        feeds: Inputs; by default two random ones.

    Raises:
        PrecisionError: An output differs by more than `TOLERANCE`.
        FeedError: The inputs do not fit the model, or there are none.
        EngineError: ONNX Runtime does not run the models.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    first, second = _in_float32(before), _in_float32(after)
    if feeds is None:
        inputs = random_feeds(first, count=_SAMPLES)
    else:
        given = list(feeds)
        check_feeds(before, given)
        inputs = [_widened(feed) for feed in given]
    try:
        runs = [runner(model, optimize=False) for model in (first, second)]  # fused kernels may compute in INT8
        found = compare_runs(*runs, feeds=inputs)
    except EngineError as error:
        fix = "leave the comparison out: check=False (--no-check)"
        raise EngineError(error.what, where=error.where, got=error.got, fix=fix) from error
    if not found.error <= TOLERANCE:
        raise PrecisionError(
            "the model with permuted channels computes something else",
            where=f"output {found.worst!r} of {before.name}",
            error=found.error,
            limit=TOLERANCE,
            fix="report this model; excluding weights (exclude, --exclude) finds the operator that is to blame",
        )
    return found


def _widened(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32) if _is_half(value.dtype) else value for name, value in feed.items()}


def _is_half(dtype: np.dtype[np.generic]) -> bool:
    return dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def _in_float32(model: OnnxModel) -> OnnxModel:
    """The model itself, or a copy in which every 16-bit float is a float32 and activations are not quantized."""
    if not any(_is_rounded(model.proto)):
        return model
    proto = model.load()
    for graph in graphs(proto.graph):
        _skip_quantization(graph)
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del graph.value_info[:]  # types that were
    for node in all_nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
    return pack(proto, name=model.name)


def _is_rounded(proto: onnx.ModelProto) -> Iterator[bool]:
    """For every tensor, value and node: whether it is a 16-bit float or makes quantized numbers."""
    for graph in graphs(proto.graph):
        yield from (tensor.data_type in _HALF for tensor in graph.initializer)
        yield from (value.type.tensor_type.elem_type in _HALF for value in (*graph.input, *graph.output))
    for node in all_nodes(proto):
        yield node.op_type == "QuantizeLinear"
        for attribute in node.attribute:
            yield attribute.t.data_type in _HALF or (attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF)


def _skip_quantization(graph: onnx.GraphProto) -> None:
    """Make Identity of every QuantizeLinear that only DequantizeLinear reads, and of these.

    Where a sum is half-way between two numbers, its last bit decides which of them it is rounded to: that is no
    difference between the models.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or node.output[0] in outputs:
            continue
        reading = readers.get(node.output[0], [])
        if reading and all(reader.op_type == "DequantizeLinear" for reader in reading):
            for each in (node, *reading):
                each.CopyFrom(helper.make_node("Identity", [each.input[0]], [each.output[0]], each.name))


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALF:
        wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        tensor.CopyFrom(wide)
