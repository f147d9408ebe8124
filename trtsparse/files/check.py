"""Checks that need no tensor data: opsets and operators that exist, names that are unique, tensors that fit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import defs

from trtsparse.errors import ModelError, OperatorError
from trtsparse.files.model import OnnxModel

__all__ = ["all_nodes", "check"]


def check(model: OnnxModel, *, allow_unknown_operators: bool = False) -> None:
    """Refuse a model that no tool could run.

    Args:
        model: An opened model.
        allow_unknown_operators: Accept operators of the standard domain that this onnx does not know, such as
            TensorRT plugins exported without a domain. Operators of other domains are always accepted.

    Raises:
        OperatorError: An opset or operators that are unknown; every node is listed.
        ModelError: An initializer appears twice, nodes form a cycle or lack inputs, a name is not text, or a tensor's
            dims and data disagree.
        ExternalDataError: A tensor's file is missing, short, or outside the model's folder.
    """
    proto = model.proto
    _check_opsets(model)
    graphs = list(_graphs(proto.graph))
    _check_text(proto, graphs, model.name)
    for graph in graphs:
        _check_names(graph, model.name)
        _check_order(graph, model.name)
        for tensor in graph.initializer:
            model.ref(tensor)
    _check_operators(model, allow_unknown=allow_unknown_operators)


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


def _check_text(proto: onnx.ModelProto, graphs: list[onnx.GraphProto], name: str) -> None:
    """Names that are not UTF-8 come as bytes from protobuf."""
    texts: Iterable[object] = itertools.chain(
        *((v.name for v in (*graph.initializer, *graph.input, *graph.output)) for graph in graphs),
        *((n.name, n.op_type, n.domain, *n.input, *n.output) for n in all_nodes(proto)),
    )
    wrong = next((text for text in texts if isinstance(text, bytes)), None)
    if wrong is not None:
        raise ModelError("a name is not UTF-8 text", where=name, got=repr(wrong), fix="export the model again")


def _check_order(graph: onnx.GraphProto, name: str) -> None:
    producers = {value: i for i, node in enumerate(graph.node) for value in node.output if value}
    needs = {i: {producers[v] for v in node.input if v in producers} for i, node in enumerate(graph.node)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        nodes = [graph.node[i] for i in error.args[1]]
        raise ModelError(
            "nodes need each other's results",
            where=f"graph {graph.name!r} of {name}",
            got=" <- ".join(node.name or node.op_type for node in nodes),
        ) from error


def _check_operators(model: OnnxModel, *, allow_unknown: bool) -> None:
    proto = model.proto
    local = {(function.domain, function.name) for function in proto.functions}
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), defs.onnx_opset_version())
    unknown = []
    for node in all_nodes(proto):
        if node.domain not in ("", "ai.onnx") or (node.domain, node.op_type) in local:
            continue
        schema = _schema(node.op_type, opset)
        if schema is None:
            unknown.append(f"{node.op_type} (node {_label(node)}, opset {opset})")
        elif len(node.input) < schema.min_input or len(node.output) < schema.min_output:
            raise ModelError(
                "a node lacks inputs or outputs",
                where=f"{node.op_type} {_label(node)} in {model.name}",
                got=f"{len(node.input)} inputs, {len(node.output)} outputs",
                expected=f"at least {schema.min_input} inputs, {schema.min_output} outputs",
            )
    if unknown and not allow_unknown:
        raise OperatorError(
            "the model has operators that ONNX does not define",
            nodes=tuple(unknown),
            where=model.name,
            fix="check the exporter; for TensorRT plugins use allow_unknown_operators (--allow-unknown-operators)",
        )


def _schema(op_type: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None


def _label(node: onnx.NodeProto) -> str:
    return repr(node.name or next(iter(node.output), ""))


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: in its graph, subgraphs, and functions with theirs."""
    for graph in _graphs(proto.graph):
        yield from graph.node
    for function in proto.functions:
        for node in function.node:
            yield node
            for inner in _subgraphs(node):
                yield from inner.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _graphs(inner)
