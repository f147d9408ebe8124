"""Products of the same input, such as those of queries, keys and values, become one: larger ones are faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt.graph import PRODUCTS, Graph, Node, is_two_four

__all__ = ["merge_products"]

_LARGE = 4096  # output channels with which a product fills a GPU by itself
_ALIGNED = 16  # output channels of sparse products are multiples of 16 bytes of values, of INT8 at the least


def merge_products(graph: Graph) -> None:
    """Replace products that read the same value by one of all their weights and a split of its result.

    Those with compliant weights are kept apart from the others, and so are convolutions and what has an activation.
    What has no sparse kernel for its number of output channels would take it from the others, and is left alone.
    Large ones stay as they are: on an H100 one of 2 x 14336 output channels was 8 % slower than two of 14336.
    """
    for products in list(_alike(graph)):
        names = [[node.inputs[at] for node in products] for at in range(1, len(products[0].inputs))]
        weights = [_rows(graph, node) for node in products]
        inputs = [products[0].inputs[0], *(_free(graph, " + ".join(of_kind)) for of_kind in names)]
        graph.constants[inputs[1]] = np.concatenate(weights)
        for bias in inputs[2:]:
            graph.constants[bias] = np.concatenate([graph.constants[node.inputs[2]] for node in products])
        name, outputs = " + ".join(node.name for node in products), [node.outputs[0] for node in products]
        attributes = {**products[0].attributes, "transposed": True}
        if "w_scale" in attributes:
            attributes["w_scale"] = np.concatenate([node.attributes["w_scale"] for node in products])
        merged = Node(products[0].op, name, inputs, [" + ".join(outputs)], attributes)
        lengths = {"axis": -1, "split": [len(weight) for weight in weights]}
        split = Node("Split", f"{name} (split)", merged.outputs, outputs, lengths)
        first = min(_position(graph, node) for node in products)
        graph.nodes[first : first + 1] = [merged, split]
        graph.nodes[:] = [node for node in graph.nodes if all(node is not gone for gone in products)]


def _alike(graph: Graph) -> Iterator[Sequence[Node]]:
    """Groups of products that can be one."""
    found: dict[tuple[Any, ...], list[Node]] = {}
    for node in graph.nodes:
        if node.op in PRODUCTS and not node.attributes.get("channels") and not node.attributes["act"]:
            weight = _rows(graph, node)
            if len(weight) >= _LARGE or len(weight) % _ALIGNED:
                continue
            quantized = node.attributes.get("x_scale"), node.attributes.get("to")
            alike = (node.op, node.inputs[0], len(node.inputs), weight.dtype.name, quantized)
            found.setdefault(alike, []).append(node)
    for nodes in found.values():
        compliant = [len(nodes) > 1 and is_two_four(_rows(graph, node)) for node in nodes]
        for kind in (True, False):
            group = [node for node, holds in zip(nodes, compliant, strict=True) if holds is kind]
            if len(group) > 1:
                yield group


def _rows(graph: Graph, node: Node) -> np.ndarray:
    """The weight as (N, K)."""
    weight = graph.constants[node.inputs[1]]
    return weight if node.attributes["transposed"] else weight.T


def _free(graph: Graph, name: str) -> str:
    """A name that no constant has."""
    while name in graph.constants:
        name += "'"
    return name


def _position(graph: Graph, node: Node) -> int:
    return next(at for at, other in enumerate(graph.nodes) if other is node)
