"""Small helpers for rewriting graphs whose weights are still in files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import subgraphs
from trtsparse.sparsity.weights import inlined

__all__ = [
    "Names",
    "all_names",
    "graphs",
    "inlined_and_named",
    "load_tensors",
    "name_nodes",
    "pack",
    "trim_opsets",
    "whole",
]

_LARGEST_PROTO = 2**31 - 2**24  # protobuf's limit, with room for the graph
_EXTERNAL = "weights.data"


class Names:
    """Hands out names that are not taken.

    Args:
        taken: Those that are.

    Example:
        >>> names = Names(["x"])
        >>> names.unique("x"), names.unique("y"), names.unique("x")
        ('x_2', 'y', 'x_3')
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def unique(self, name: str) -> str:
        """The name, or one like it; it is taken from now on."""
        candidates = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
        free = next(candidate for candidate in candidates if candidate not in self._taken)
        self._taken.add(free)
        return free


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it, outer ones first."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every value's name, in graphs inside too."""
    found: set[str] = set()
    for inner in graphs(graph):
        found.update(value.name for value in (*inner.input, *inner.output, *inner.initializer))
        found.update(name for node in inner.node for name in (*node.input, *node.output))
    return found


def name_nodes(model: onnx.ModelProto, *, taken: Iterable[str] = ()) -> None:
    """Give every node a name of its own: "<op>_<position>" where it has none, "<name>_<n>" where it is taken.

    Args:
        model: Changed in place.
        taken: Names that no node gets besides those that have them.
    """
    given = {node.name for graph in graphs(model.graph) for node in graph.node}
    names, used = Names(given.union(taken)), {""}
    for graph in graphs(model.graph):
        for position, node in enumerate(graph.node):
            if node.name in used:
                node.name = names.unique(node.name or f"{node.op_type}_{position}")
            used.add(node.name)


def inlined_and_named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Inline model-local functions, then name all nodes as reports about the model do.

    Args:
        model: Changed in place when it has no functions.
        name: What error messages call it.

    Raises:
        ModelError: The functions cannot be inlined.
    """
    model = inlined(model, name) if model.functions else model
    name_nodes(model)
    return model


def trim_opsets(model: onnx.ModelProto) -> None:
    """Drop the opset imports that no node uses; ONNX Runtime adds all of its own, which TensorRT warns about."""
    used = {node.domain or "ai.onnx" for graph in graphs(model.graph) for node in graph.node} | {"ai.onnx"}
    kept = [opset for opset in model.opset_import if (opset.domain or "ai.onnx") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def whole(model: OnnxModel, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A copy of a tensor of a model's skeleton, with its data."""
    ref = model.ref(tensor)
    copy = onnx.TensorProto()
    if ref is None:
        copy.CopyFrom(tensor)
    else:
        copy.name, copy.data_type, copy.raw_data = tensor.name, tensor.data_type, model.read(ref).tobytes()
        copy.dims.extend(tensor.dims)
    return copy


def load_tensors(model: OnnxModel, graph: onnx.GraphProto) -> None:
    """Load the data of a rewritten skeleton's tensors, and drop initializers that nothing reads any more."""
    read = {value.name for value in graph.output}
    read.update(name for inner in graphs(graph) for node in inner.node for name in node.input)
    read.update(value.name for inner in graphs(graph) for value in inner.output)
    for inner in graphs(graph):
        kept = [whole(model, tensor) for tensor in inner.initializer if tensor.name in read]
        del inner.initializer[:]
        inner.initializer.extend(kept)
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    attribute.t.CopyFrom(whole(model, attribute.t))


def pack(model: onnx.ModelProto, *, name: str) -> OnnxModel:
    """Open a model that was changed in memory; above protobuf's limit its weights become external data in memory.

    Args:
        model: Changed when its weights are moved out.
        name: What error messages call it.
    """
    large = [t for graph in graphs(model.graph) for t in graph.initializer if len(t.raw_data) > 1024]
    if sum(len(tensor.raw_data) for tensor in large) < _LARGEST_PROTO:
        return OnnxModel({"": model.SerializeToString()}, name=name)
    data = bytearray()
    for tensor in large:
        data += bytes(-len(data) % 64)
        _set_external(tensor, len(data))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    return OnnxModel({"": model.SerializeToString(), _EXTERNAL: data}, name=name)


def _set_external(tensor: onnx.TensorProto, offset: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": _EXTERNAL, "offset": offset, "length": len(tensor.raw_data)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
