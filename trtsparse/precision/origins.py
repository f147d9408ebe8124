"""Names of nodes, from the user's model to its folded form and back."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import all_names, graphs, inlined_and_named, name_nodes
from trtsparse.precision.specs import did_you_mean
from trtsparse.sparsity.trace import subgraphs

__all__ = ["Origins"]

_INSERTED = "InsertedPrecisionFreeCast_"  # before values that ONNX Runtime computes in float32 instead of float16
_SHARED = 8  # elements: of equal constants up to this size, ONNX Runtime keeps one


class Origins:
    """Which nodes of a model stand behind which nodes of its folded form.

    Folding fuses nodes, some under a new name (a MatMul with a bias becomes the Gemm "<name>/MatMulAddFusion"), and
    writes old operators as several new ones. A folded node stands for the node whose name it kept, and for those that
    are gone and lie between what it makes and what is still there of what they read. Of nodes that compute the same
    one is left, which stands for all of them.

    Nodes of the user's model are called as in reports about it: "<op>_<position>" where they have no name, and those
    of model-local functions as inlining calls them.

    Args:
        original: The user's model.
        folded: As `trtsparse.precision.fold.fold` gives it.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        ... { [one] a = Abs(x) [two] y = Relu(a) }'''
        >>> fused = text.replace("[one] a = Abs(x) [two] y = Relu(a)", "[fused] y = Clip(x)")
        >>> original, folded = (OnnxModel.open(parser.parse_model(model)) for model in (text, fused))
        >>> Origins(original, folded).sources("fused")
        ('one', 'two')
        >>> Origins(original, folded).matching(["on?"])
        ['fused']
    """

    def __init__(self, original: OnnxModel, folded: OnnxModel) -> None:
        tagged = _tagged(original)
        self._source = _Nodes(tagged)
        self._equal = _Equal(tagged, original.array)
        self._aliases = _aliases(original.proto, self._source)
        constants = (tensor.name for graph in graphs(folded.proto.graph) for tensor in graph.initializer)
        self._constants = {self._equal.values.get(name, name) for name in constants}
        self._present = {name.removeprefix(_INSERTED) for name in all_names(folded.proto.graph)}
        nodes = [node for graph in graphs(folded.proto.graph) for node in graph.node]
        gone = self._source.by_name.keys() - {node.name for node in nodes} - self._source.constant
        merged = self._merged(nodes)
        self._behind = {node.name: self._between(node, gone, merged[node.name]) for node in nodes}
        self._join_equal(gone)
        self._spread(nodes)

    def sources(self, node: str) -> tuple[str, ...]:
        """The names in the user's model of what a folded node stands for, in the order of the graph.

        A node that kept its name is called by it alone.
        """
        behind = self._behind[node]
        if node in behind or not behind:
            return (node,)
        return tuple(name for name in self._source.by_name if name in behind)

    def layers(self, node: str) -> tuple[str, ...]:
        """Like `sources`, without biases and activations that were fused with a Conv, Gemm or MatMul."""
        found = self.sources(node)
        weighted = ("Conv", "Gemm", "MatMul")
        nodes = self._source.by_name
        return tuple(name for name in found if name in nodes and nodes[name].op_type in weighted) or found

    def translated(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        """What is said about folded nodes, by the names in the user's model and in the order of the graph."""
        found: dict[str, Any] = {}
        for node in (node for node in self._behind if node in nodes):
            for name in self.sources(node):
                found.setdefault(name, nodes[node])
        return found

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Names of the folded model's nodes that stand for nodes of the user's model.

        Args:
            patterns: Names or patterns. The name of a model-local function's call stands for all nodes that it
                expands to, the name of a node in a function for that node in all its calls.

        Raises:
            ConfigError: A pattern matches no node, or a node is gone that is more than a constant.
        """
        found: dict[str, None] = {}
        for pattern in patterns:
            aliases = [pattern] if pattern in self._aliases else fnmatch.filter(self._aliases, pattern)
            if not aliases:
                raise ConfigError(
                    "the model has no such node",
                    where="keep_fp32",
                    got=repr(pattern),
                    expected=f"one of {len(self._aliases)} node names, or a pattern",
                    fix=did_you_mean(pattern, self._aliases),
                )
            names = {name for alias in aliases for name in self._aliases[alias]}
            found |= dict.fromkeys(node for node, behind in self._behind.items() if not behind.isdisjoint(names))
            self._check_lost(names.difference(*self._behind.values()))
        return list(found)

    def _merged(self, nodes: list[onnx.NodeProto]) -> dict[str, set[str]]:
        """For each folded node: values that are gone, because they equal one that it reads."""
        values = self._equal.values
        same: dict[Hashable, set[str]] = {}
        for node in self._source.by_name.values():
            if node.op_type != "Identity":  # what reads it now reads its input, and stands for it
                for name in set(node.output) - self._present - {""}:
                    same.setdefault(values[name], set()).add(name)
        read: dict[str, set[Hashable]] = {}
        new: dict[str, set[Hashable]] = {}  # for values that folding put in: those of the user's model before them
        for node in nodes:
            found = read[node.name] = set()
            for name in (name.removeprefix(_INSERTED) for name in node.input):
                found |= {values[name]} if name in values else new.get(name, set())
            new |= dict.fromkeys(set(node.output) - values.keys(), found)
        return {name: {value for key in found for value in same.get(key, ())} for name, found in read.items()}

    def _join_equal(self, gone: set[str]) -> None:
        """What stands for a node also stands for equal ones that are gone and have nothing else."""
        lost: dict[Hashable, set[str]] = {}
        for name in gone.difference(*self._behind.values()):
            lost.setdefault(self._equal.nodes[name], set()).add(name)
        for behind in self._behind.values():
            behind.update(*(lost.get(self._equal.nodes[name], ()) for name in tuple(behind)))

    def _between(self, node: onnx.NodeProto, gone: set[str], merged: set[str]) -> set[str]:
        """What a folded node stands for: itself, and what is gone before it, up to ``merged`` values."""
        made = [name.removeprefix(_INSERTED) for name in node.output]
        makers = {maker for name in made for maker in self._source.makers.get(name, ())}
        own = {node.name} & self._source.by_name.keys()
        starts = own & makers or (own | makers & gone if own else makers)
        return self._source.before(starts, among=gone, until=lambda name: name in self._present or name in merged)

    def _spread(self, nodes: list[onnx.NodeProto]) -> None:
        """Nodes that a conversion of the opset put in stand for what reads them."""
        readers: dict[str, list[str]] = {}
        for node in nodes:
            for name in filter(None, node.input):
                readers.setdefault(name, []).append(node.name)
        for node in reversed(nodes):
            if not self._behind[node.name]:
                reading = (reader for name in node.output for reader in readers.get(name, ()))
                self._behind[node.name] = set().union(*(self._behind[reader] for reader in reading))

    def _check_lost(self, names: Collection[str]) -> None:
        """Refuse names that nothing stands for, unless what they made became a constant or nobody reads it."""
        lost = [name for name in names if name not in self._source.constant and self._is_read(name)]
        if lost:
            raise ConfigError(
                "a node that should stay in float32 is gone from the folded model",
                where="keep_fp32",
                got=", ".join(map(repr, sorted(lost))),
                fix="name the node that reads its output",
            )

    def _is_read(self, name: str) -> bool:
        """True when an output of the model is computed from what a node makes, other than by way of a constant."""
        seen, waiting = {name}, [name]
        while waiting:
            for value in filter(None, self._source.by_name[waiting.pop()].output):
                if value in self._source.outputs:
                    return True
                if self._equal.values[value] not in self._constants:
                    new = self._source.readers.get(value, set()) - seen
                    seen |= new
                    waiting += new
        return False


class _Nodes:
    """The nodes of a model, those of inner graphs too.

    Attributes:
        by_name: In the order of the graphs.
        makers: For each value, names of the nodes that make it: branches may use a name twice.
        readers: For each value, names of the nodes that read it.
        outputs: Names of the outputs of all graphs.
        constant: Names of nodes that compute with constants only.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        inner = list(graphs(model.graph))
        self.by_name = {node.name: node for graph in inner for node in graph.node}
        self.outputs = {value.name for graph in inner for value in graph.output}
        self.makers: dict[str, set[str]] = {}
        self.readers: dict[str, set[str]] = {}
        self.constant: set[str] = set()
        computed = {value.name for graph in inner for value in graph.input}
        computed -= {tensor.name for graph in inner for tensor in graph.initializer}
        for name, node in self.by_name.items():
            for values, nodes in ((node.output, self.makers), (node.input, self.readers)):
                for value in filter(None, values):
                    nodes.setdefault(value, set()).add(name)
            if _is_constant(node, computed):
                self.constant.add(name)
            else:
                computed.update(node.output)

    def before(self, starts: Collection[str], *, among: Collection[str], until: Callable[[str], bool]) -> set[str]:
        """Nodes and those before them: from node to node as long as these are ``among`` and values not ``until``."""
        found, waiting = set(starts), list(starts)
        while waiting:
            values = (value for value in self.by_name[waiting.pop()].input if not until(value))
            makers = {maker for value in values for maker in self.makers.get(value, ())}
            new = {maker for maker in makers - found if maker in among}
            found |= new
            waiting += new
        return found


class _Equal:
    """Which nodes and values are equal, so that ONNX Runtime may keep only one of them.

    Attributes:
        nodes: For each node a key, the same for nodes that do the same with equal inputs.
        values: For each value that a node makes, and each constant, a key, the same for equal ones.

    Args:
        model: Inlined and named.
        array: Gives a tensor's elements.
    """

    def __init__(self, model: onnx.ModelProto, array: Callable[[onnx.TensorProto], np.ndarray]) -> None:
        self.nodes: dict[str, Hashable] = {}
        self.values: dict[str, Hashable] = {}
        self._numbers: dict[Hashable, int] = {}  # short keys: those of inputs are part of a node's
        self._array = array
        for position, graph in enumerate(graphs(model.graph)):
            for tensor in graph.initializer:
                self.values[tensor.name] = self._constant(tensor.name, tensor)
            for node in graph.node:
                self._add(node, position)

    def _add(self, node: onnx.NodeProto, graph: int) -> None:
        inputs = tuple(self.values.get(name, name) for name in node.input)
        attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
        key = self._number((graph, node.domain, node.op_type, inputs, *attributes))
        self.nodes[node.name] = key
        for i, name in enumerate(node.output):
            if node.op_type == "Identity":
                self.values[name] = inputs[0]
            elif node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.values[name] = self._constant(name, node.attribute[0].t)
            elif name:
                self.values[name] = self._number((key, i))

    def _constant(self, name: str, tensor: onnx.TensorProto) -> Hashable:
        if math.prod(tensor.dims) > _SHARED:
            return name
        return self._number((tensor.data_type, *tensor.dims, str(self._array(tensor).tolist())))

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _is_constant(node: onnx.NodeProto, computed: Collection[str]) -> bool:
    """True for a node that reads constants only; random numbers and what has graphs inside do not count."""
    if not node.input:
        return node.op_type == "Constant"
    return not subgraphs(node) and not any(name in computed for name in node.input)


def _tagged(original: OnnxModel) -> onnx.ModelProto:
    """The skeleton, inlined and named; ``doc_string`` of nodes that were in a function: their names there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(original.proto)
    for node in (node for graph in graphs(copy.graph) for node in graph.node):
        node.ClearField("doc_string")
    for function in copy.functions:
        inside = onnx.GraphProto(node=function.node)
        for node in (node for graph in graphs(inside) for node in graph.node):
            node.doc_string = node.name
        del function.node[:]
        function.node.extend(inside.node)
    return inlined_and_named(copy, original.name)


def _aliases(proto: onnx.ModelProto, source: _Nodes) -> dict[str, set[str]]:
    """For each name that a user may give: the nodes of the inlined model."""
    aliases = {name: {name} for name in source.by_name}
    if not proto.functions:
        return aliases
    for name, node in source.by_name.items():
        if node.doc_string:
            aliases.setdefault(node.doc_string, set()).add(name)
    outer = onnx.ModelProto()
    outer.CopyFrom(proto)
    name_nodes(outer)
    functions = {(function.domain, function.name) for function in proto.functions}
    values = all_names(outer.graph)
    for call in (node for graph in graphs(outer.graph) for node in graph.node):
        if (call.domain, call.op_type) in functions:
            last = {maker for name in call.output for maker in source.makers.get(name, ())}
            expanded = source.before(last, among=source.by_name, until=values.__contains__)
            aliases.setdefault(call.name, set()).update(expanded)
    return aliases
