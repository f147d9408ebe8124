"""A model as a list of nodes over constants, ready to be rewritten and executed step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner

from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import TWO_FOUR, is_compliant

__all__ = ["PRODUCTS", "Graph", "Node", "is_two_four", "read_graph"]

PRODUCTS = ("Linear", "QuantizedLinear")
"""Operators that products with weights were rewritten to."""


@dataclass
class Node:
    """One step.

    Attributes:
        op: ONNX operator, or the name of a fused one.
        name: The node's, for messages and reports.
        inputs: Names of values; "" for one left out.
        outputs: Names of values.
        attributes: By name, as Python values; tensors as numpy arrays.
        opset: Of the standard domain in the model.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17


@dataclass
class Graph:
    """Nodes in an order in which they can be executed.

    Attributes:
        nodes: The steps.
        constants: Weights and other constants, by name.
        inputs: Names of what is fed.
        outputs: Names of what is returned.
        name: What messages call the model.
    """

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]
    name: str

    def producers(self) -> dict[str, Node]:
        """Value name to the node that computes it."""
        return {output: node for node in self.nodes for output in node.outputs}

    def readers(self) -> dict[str, list[Node]]:
        """Value name to the nodes that read it; an output of the graph has one reader more than is listed."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                if value:
                    found.setdefault(value, []).append(node)
        return found

    def scalar(self, value: str) -> float | None:
        """The number in a constant of one element; None for anything else."""
        constant = self.constants.get(value)
        return None if constant is None or constant.size != 1 else float(constant.reshape(()))

    def replace(self, old: Iterable[Node], new: Node) -> None:
        """Put one node where the last of some others is."""
        gone = {id(node) for node in old}
        at = max(index for index, node in enumerate(self.nodes) if id(node) in gone)
        self.nodes[at] = new
        self.nodes[:] = [node for node in self.nodes if id(node) not in gone]

    def rename(self, old: str, new: str) -> None:
        """Let every reader of a value read another one."""
        for node in self.nodes:
            node.inputs = [new if value == old else value for value in node.inputs]
        self.outputs = [new if value == old else value for value in self.outputs]

    def prune(self) -> None:
        """Drop nodes and constants that nothing needs."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes[:] = reversed(kept)
        self.constants = {name: array for name, array in self.constants.items() if name in needed}

    def counts(self) -> Counter[str]:
        """How often each operator occurs."""
        return Counter(node.op for node in self.nodes)


def read_graph(model: OnnxModel) -> Graph:
    """The model's graph, with local functions inlined and constants as arrays.

    Raises:
        ModelError: There are no nodes but constants, or what is not executed here: a graph inside a node (If, Loop,
            Scan), or a constant of strings or of sparse values.
    """
    proto = model.proto
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    graph = proto.graph
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    constants = {tensor.name: model.array(tensor) for tensor in graph.initializer}
    nodes = []
    for position, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{position}"
        where = f"{model.name}: node {name!r} ({node.op_type})"
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(
                "this engine does not execute graphs inside of nodes",
                where=where,
                fix="export the model without control flow, or run it with engine='onnxruntime'",
            )
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        attributes = {attribute.name: _value(model, attribute) for attribute in node.attribute}
        if op == "Constant":
            constants[node.output[0]] = _constant(attributes, where)
        else:
            nodes.append(Node(op, name, list(node.input), list(node.output), attributes, opset))
    inputs = [value.name for value in graph.input if value.name not in constants]
    if not nodes:
        raise ModelError(
            "the model has no nodes but constants", where=model.name, fix="run it with engine='onnxruntime'"
        )
    return Graph(nodes, constants, inputs, [value.name for value in graph.output], model.name)


def is_two_four(weight: np.ndarray) -> bool:
    """Whether a weight (N, K) is 2:4 along K; read as it lies in memory, where it is often (K, N).

    Example:
        >>> stored = np.array([[1.0], [0], [2], [0]], np.float32)
        >>> is_two_four(stored.T), is_two_four(np.ones((1, 4), np.float32))
        (True, False)
    """
    turned = weight.T.flags.c_contiguous
    aligned = weight.shape[1] % TWO_FOUR.m == 0
    return aligned and is_compliant(weight.T if turned else weight, axis=0 if turned else 1)


def _value(model: OnnxModel, attribute: onnx.AttributeProto) -> Any:
    if attribute.HasField("t"):
        return model.array(attribute.t)
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _constant(attributes: dict[str, Any], where: str) -> np.ndarray:
    kind, value = next(iter(attributes.items()), ("no value", None))
    if kind == "value":
        return np.asarray(value)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    raise ModelError(
        "a constant of a kind that is not executed here",
        where=where,
        got=kind,
        expected="value, value_int, value_ints, value_float or value_floats",
        fix="export it as a dense tensor of numbers, or run the model with engine='onnxruntime'",
    )
