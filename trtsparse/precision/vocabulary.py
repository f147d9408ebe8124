"""How many values an integer input can take, read off the graph: the rows of the table that it indexes.

Random tokens have to be ones that the model knows; and tokens that are all 0 or 1 make a degenerate input, on which
networks answer by chance and no comparison means anything.
"""

from __future__ import annotations

import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import Scope, trace

__all__ = ["input_range"]

_CARRIED = {
    "Cast",
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Flatten",
    "Expand",
    "Slice",
    "Concat",
}


def input_range(model: OnnxModel, name: str) -> int:
    """The number of values 0, 1, ... that an integer input may take.

    Found are the embedding or table that it indexes (Gather) and the depth of its one-hot encoding (OneHot, or Equal
    with a constant vector), through Casts and changes of shape.

    Returns:
        The smallest of those, or 2 where there is none: a mask.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (int64[2] ids) => (float[2, 1] y)
        ... <float[3, 1] table = {1, 2, 3}> { y = Gather(table, ids) }'''
        >>> input_range(OnnxModel.open(parser.parse_model(text)), "ids")
        3
    """
    scope = Scope(model.proto.graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.proto.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    sizes: list[int] = []
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for node in readers.get(value, ()):
            size = _indexed(model, scope, node, value)
            if size is not None:
                sizes.append(size)
            elif node.op_type in _CARRIED:
                waiting.extend(node.output)
    return max(min(sizes, default=2), 1)


def _indexed(model: OnnxModel, scope: Scope, node: onnx.NodeProto, value: str) -> int | None:
    """How many different values ``node`` can tell apart in ``value``; None when it says nothing."""
    if node.op_type == "Gather" and list(node.input[1:2]) == [value]:
        table = trace(model, scope, node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return None if isinstance(table, str) or not table.shape else table.shape[axis]
    if node.op_type == "OneHot" and node.input[0] == value:
        depth = trace(model, scope, node.input[1])
        return None if isinstance(depth, str) else int(model.array(depth.tensor).reshape(-1)[0])
    if node.op_type == "Equal":
        other = trace(model, scope, next((name for name in node.input if name != value), value))
        if not isinstance(other, str) and max(other.shape, default=1) > 1:
            return int(model.array(other.tensor).max()) + 1
    return None
