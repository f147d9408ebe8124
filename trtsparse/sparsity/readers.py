"""Who else reads a tensor that is pruned, whatever name it has there: the zeros reach them too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import Scope, bodies, is_followed, stored_behind
from trtsparse.sparsity.weights import WEIGHT_INPUTS, WeightSite, has_weights, inlined

__all__ = ["Readers", "find_readers"]

Readers: TypeAlias = "Mapping[tuple[str, int], tuple[str, ...]]"  # key of a tensor -> such as "Gather 'embedding'"

_READ_NO_VALUES = {"Shape", "Size"}


def find_readers(model: OnnxModel, tensors: Sequence[Sequence[WeightSite]]) -> Readers:
    """Find what reads some tensors besides the given uses: other nodes, and outputs of the model or of a subgraph.

    Nodes that only pass a tensor on, such as Cast, are followed to those that read what they make; functions are
    inlined; names do not matter, for two of them may stand for the same bytes.

    Args:
        model: An opened model.
        tensors: The uses of each tensor, as sites of this model.

    Raises:
        ModelError: The model's functions cannot be inlined.

    Example:
        >>> from onnx import parser
        >>> from trtsparse.sparsity.weights import find_sites
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[2, 4] x, int64[n] i) => (float[2, 4] y, e)
        ... <float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
        ... { y = MatMul(x, w)  v = Identity(w)  e = Gather(v, i) }'''
        >>> model = OnnxModel.open(parser.parse_model(text))
        >>> list(find_readers(model, [find_sites(model)]).values())
        [("Gather 'e'",)]
    """
    keys = {site.ref.key for uses in tensors for site in uses if site.ref is not None}
    known = {(site.ref.key, site.bodies, site.node) for uses in tensors for site in uses if site.ref is not None}
    proto = inlined(model.proto, model.name) if model.proto.functions else model.proto
    found: dict[tuple[str, int], dict[str, None]] = {}
    for scope, value, label, place in _reads(Scope(proto.graph), ()):
        tensor = stored_behind(scope, value)
        ref = None if tensor is None else model.ref(tensor)
        if ref is not None and ref.key in keys and (place is None or (ref.key, *place) not in known):
            found.setdefault(ref.key, {})[label] = None
    return {key: tuple(labels) for key, labels in found.items()}


def _reads(
    scope: Scope, around: tuple[str, ...]
) -> Iterator[tuple[Scope, str, str, tuple[tuple[str, ...], str] | None]]:
    """Every value that is read: its scope, name, and reader; of a weight also the place of its site."""
    for position, node in enumerate(scope.graph.node):
        if not is_followed(node) and node.op_type not in _READ_NO_VALUES:
            weights = WEIGHT_INPUTS[node.op_type] if has_weights(node) else ()
            place = around, node.name or f"{node.op_type}_{position}"
            for i, value in enumerate(node.input):
                if value:
                    yield scope, value, _label(node), place if i in weights else None
        for name, graph in bodies(node, position):
            yield from _reads(Scope(graph, scope), (*around, name))
    for output in scope.graph.output:
        yield scope, output.name, f"output {output.name!r}", None


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {(node.name or next(filter(None, node.output), ''))!r}"
