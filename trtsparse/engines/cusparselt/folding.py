"""Graphs in fewer words: without identities, without what nothing reads, and with constants computed once."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from trtsparse.engines.cusparselt import fused, shaping, spatial
from trtsparse.engines.cusparselt.graph import PRODUCTS, Graph, Node
from trtsparse.engines.cusparselt.operators import FAILURES, OPERATORS, Tensor, is_known, to_tensor

__all__ = ["fold_constants", "simplify"]

_REGISTERED = (fused, shaping, spatial)  # importing them enters their operators into the table
_OURS = (*PRODUCTS, "Attention", "RmsNorm", "Silu")
"""Operators that rewriters make; what a model calls so, as ONNX does one of them from opset 23 on, is another one."""
_LEFT = ("DequantizeLinear", "QuantizeLinear", "ConstantOfShape")
"""Not folded: quantized weights stay as they are, and the last would be stored whole."""


def simplify(graph: Graph) -> None:
    """Drop identities, inputs that are left out, and outputs that nothing reads, of a graph as it was read."""
    read = {value for node in graph.nodes for value in node.inputs} | set(graph.outputs)
    for node in graph.nodes:
        while node.inputs and not node.inputs[-1]:
            node.inputs.pop()
        while node.op != "Split" and len(node.outputs) > 1 and not (node.outputs[-1] and node.outputs[-1] in read):
            node.outputs.pop()
        node.op = f"ai.onnx.{node.op}" if node.op in _OURS else node.op
    _skip_identities(graph)


def _skip_identities(graph: Graph) -> None:
    for node in [node for node in graph.nodes if node.op in ("Identity", "Dropout") and len(node.outputs) == 1]:
        source, copy = node.inputs[0], node.outputs[0]
        if copy in graph.outputs:
            continue
        graph.nodes[:] = [other for other in graph.nodes if other is not node]
        graph.rename(copy, source)


def fold_constants(graph: Graph) -> None:
    """Compute now what depends on constants only; quantized weights stay as they are.

    What fails stays too: it is refused with all else that is not executed, or not needed.
    """
    kept = []
    for node in graph.nodes:
        found = _computed(graph, node)
        if found is None:
            kept.append(node)
        else:
            graph.constants.update(zip(node.outputs, found, strict=False))
    graph.nodes[:] = kept


def _computed(graph: Graph, node: Node) -> list[np.ndarray] | None:
    """The outputs of a node that reads constants only; None for another one, and for what is not executed here."""
    given = [graph.constants.get(value) for value in node.inputs if value]
    known = [value for value in given if value is not None and is_known(value)]
    if node.op not in OPERATORS or node.op in _LEFT or not known or len(known) != len(given):
        return None
    arguments = [to_tensor(graph.constants[value]) if value else None for value in node.inputs]
    try:
        found = OPERATORS[node.op](node)(*arguments)
    except FAILURES:
        return None
    return [_array(value) for value in (found if isinstance(found, tuple) else (found,))]


def _array(value: Tensor) -> np.ndarray:
    import torch

    if value.dtype == torch.bfloat16:
        return np.asarray(value.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(value.numpy())
