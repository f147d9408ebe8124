"""Checks that need no tensor data: opsets and operators that exist, names that are unique, tensors that fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
from onnx import defs

from trtsparse.errors import ModelError, OperatorError
from trtsparse.files.model import OnnxModel

__all__ = ["check"]

_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")


def check(model: OnnxModel, *, allow_unknown_operators: bool = False) -> None:
    """Refuse a model that no tool could run.

    Args:
        model: An opened model.
        allow_unknown_operators: Accept operators of the standard domain that this onnx does not know, such as
            TensorRT plugins exported without a domain. Operators of other domains are always accepted.

    Raises:
        OperatorError: An opset or operators that are unknown; every node is listed.
        ModelError: An initializer appears twice, or a tensor's dims and data disagree.
        ExternalDataError: A tensor's file is missing, short, or outside the model's folder.
    """
    proto = model.proto
    _check_opsets(model)
    graphs = list(_graphs(proto.graph))
    for graph in graphs:
        _check_names(graph, model.name)
        for tensor in graph.initializer:
            model.ref(tensor)
    if not allow_unknown_operators:
        _check_operators(model, graphs)


def _check_opsets(model: OnnxModel) -> None:
    newest = defs.onnx_opset_version()
    for opset in model.proto.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= newest:
            raise ModelError(
                "the model's opset is unknown",
                where=model.name,
                got=f"opset {opset.version}",
                expected=f"1 to {newest}, what onnx {onnx.__version__} knows",
                fix="install a newer onnx, or export the model with an older opset",
            )


def _check_names(graph: onnx.GraphProto, name: str) -> None:
    twice = [tensor for tensor, count in Counter(t.name for t in graph.initializer).items() if count > 1]
    if twice:
        raise ModelError(
            "an initializer appears more than once",
            where=f"graph {graph.name!r} of {name}",
            got=", ".join(repr(tensor) for tensor in twice),
            fix="give every initializer a name of its own",
        )


def _check_operators(model: OnnxModel, graphs: list[onnx.GraphProto]) -> None:
    proto = model.proto
    local = {(function.domain, function.name) for function in proto.functions}
    versions = {opset.domain or "ai.onnx": opset.version for opset in proto.opset_import}
    unknown = [
        f"{node.op_type} (node {node.name or node.output[0]!r}, opset {versions.get('ai.onnx', '?')})"
        for node in _nodes(graphs, proto.functions)
        if node.domain in ("", "ai.onnx")
        and (node.domain, node.op_type) not in local
        and not _is_known(node, versions)
    ]
    if unknown:
        raise OperatorError(
            "the model has operators that ONNX does not define",
            nodes=tuple(unknown),
            where=model.name,
            fix="check the exporter; for TensorRT plugins use allow_unknown_operators (--allow-unknown-operators)",
        )


def _is_known(node: onnx.NodeProto, versions: dict[str, int]) -> bool:
    try:
        defs.get_schema(node.op_type, versions.get("ai.onnx", defs.onnx_opset_version()), "")
    except defs.SchemaError:
        return False
    return True


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _nodes(graphs: list[onnx.GraphProto], functions: Iterable[onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    for graph in graphs:
        yield from graph.node
    for function in functions:
        yield from function.node
