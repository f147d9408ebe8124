"""How many dims values have at the least, as far as the nodes themselves tell."""

from __future__ import annotations

from collections.abc import Sequence

from trtsparse.engines.cusparselt.graph import Graph, Node

__all__ = ["least_ranks"]

_AS_THE_FIRST = {
    "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Floor", "Ceil", "Round",
    "Sin", "Cos", "Not", "Sign", "Identity", "Dropout", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus",
    "Gelu", "Clip", "PRelu", "Cast", "Transpose", "Split", "Slice", "Tile", "Pad", "Softmax", "LogSoftmax",
    "LayerNormalization", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "MaxPool", "AveragePool",
    "GlobalAveragePool", "GlobalMaxPool", "Resize",
}  # fmt: skip
_AS_THE_LARGEST = {
    "Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or",
    "Max", "Min", "Sum", "Mean", "Where", "Concat", "Conv", "ConvTranspose",
}  # fmt: skip


def least_ranks(graph: Graph) -> dict[str, int]:
    """For each value a number of dims that it has, or fewer.

    Of a graph as it was read; what is fed may have any.

    Example:
        >>> import numpy as np
        >>> node = Node("Add", "", ["x", "c"], ["y"])
        >>> least_ranks(Graph([node], {"c": np.ones((1, 1, 8))}, ["x"], ["y"], ""))
        {'c': 3, 'y': 3}
    """
    found = {name: array.ndim for name, array in graph.constants.items()}
    for node in graph.nodes:
        least = _least(graph, node, [found.get(value, 0) for value in node.inputs])
        found.update(dict.fromkeys(node.outputs, max(least, 0)))
    return found


def _least(graph: Graph, node: Node, ranks: Sequence[int]) -> int:
    """The same of a node's outputs, from those of its inputs."""
    if node.op in _AS_THE_FIRST or (node.op.startswith("Reduce") and node.attributes.get("keepdims", 1)):
        return ranks[0]
    if node.op in _AS_THE_LARGEST:
        return max(ranks)
    if node.op == "MatMul":  # a vector takes a dim away
        return max(ranks) - (min(ranks) < 2)
    if node.op in ("Gemm", "Flatten"):
        return 2
    if node.op == "Gather":
        return ranks[0] + ranks[1] - 1
    if node.op == "Unsqueeze":
        return ranks[0] + len(node.attributes.get("axes", ())) + _length(graph, node, 1)
    if node.op in ("Reshape", "Expand"):
        return max(_length(graph, node, 1), ranks[0] if node.op == "Expand" else 0)
    return 0


def _length(graph: Graph, node: Node, index: int) -> int:
    """Of an input that is a constant; 0 of another one."""
    constant = graph.constants.get(node.inputs[index]) if len(node.inputs) > index else None
    return 0 if constant is None else constant.size
