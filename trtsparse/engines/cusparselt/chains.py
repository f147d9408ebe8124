"""Quantized products that only quantized products read give them what they want: integers."""

from __future__ import annotations

from trtsparse.engines.cusparselt.graph import Graph, Node

__all__ = ["chain_products"]


def chain_products(graph: Graph) -> None:
    """Give "QuantizedLinear" nodes the attribute ``y_scale``, in place: their results are quantized with it.

    That is where all that read a result are such nodes, with one scale; they take int8 as it is.
    """
    readers = graph.readers()
    for node in [node for node in graph.nodes if node.op == "QuantizedLinear"]:
        value = node.outputs[0]
        scales = {_scale(reader) for reader in readers.get(value, [])}
        if value not in graph.outputs and len(scales) == 1 and None not in scales:
            attributes = {**node.attributes, "y_scale": scales.pop()}
            graph.replace([node], Node(node.op, node.name, node.inputs, node.outputs, attributes, node.opset))


def _scale(reader: Node) -> float | None:
    """Of what it reads; None where that has to be floating, which may be what says the type of its result."""
    return reader.attributes["x_scale"] if reader.op == "QuantizedLinear" and reader.attributes.get("to") else None
