"""What a model does beside its weight products: a rough count of it, for bounds of what sparsity can gain in all.

Two counts are made. In one every node reads its inputs from memory and writes its outputs. In the other, chains of
pointwise nodes and reductions are one kernel, or part of the product before them; attention never writes its scores;
and what only moves values is done by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import Scope, bodies
from trtsparse.sparsity.weights import WeightSite, with_shapes
from trtsparse.tune.gpus import LAUNCH_MS, Gpu

__all__ = ["Rest", "Work", "count_rest"]

_FREE = {
    "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
}  # fmt: skip
_POINTWISE = {
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Div", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "Log", "Max",
    "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round",
    "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where",
}  # fmt: skip
_REDUCING = {
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "LpNormalization",
    "RMSNormalization", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "Softmax",
}  # fmt: skip
_MOVING = {"Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Tile", "Transpose"}
_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
_FLOP_SHARE = 0.3
"""Of the peak: products of activations and grouped convolutions do not fill Tensor Cores."""


@dataclass
class Work:
    """A count.

    Attributes:
        elements: Values that are read and written.
        flops: Operations of products.
        kernels: How many kernels do it.
    """

    elements: int = 0
    flops: int = 0
    kernels: int = 0

    def ms(self, gpu: Gpu, *, value_nbytes: int, dtype: str) -> float:
        """An estimate of the time on a GPU, in milliseconds."""
        peak = gpu.tflops.get(dtype, gpu.tflops["fp16"])
        computing = self.flops / (peak * 1e9 * _FLOP_SHARE)
        return computing + gpu.copy_ms(self.elements * value_nbytes) + self.kernels * LAUNCH_MS


@dataclass(frozen=True)
class Rest:
    """What a model does beside its weight products.

    Attributes:
        fused: When everything is fused that usually is.
        unfused: When nothing is.
        int8: Nodes whose output is quantized right after, past pointwise nodes: the bodies that they are in, and
            their names, as weight sites call them.
    """

    fused: Work
    unfused: Work
    int8: frozenset[tuple[str, ...]] = frozenset()


def count_rest(
    model: OnnxModel,
    sites: Collection[WeightSite],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    products: Collection[str],
) -> Rest:
    """Count what the main graph of a model does beside some of its nodes.

    Args:
        model: An opened model.
        sites: All of its weight sites.
        shapes: Of its inputs; values of unknown shape count as nothing.
        products: Names of the main graph's nodes that are not counted, as weight sites call them.
    """
    graph = _Graph(with_shapes(model.proto, shapes or {}, model.name).graph, products)
    for site in sites:
        if site.bodies:
            continue
        graph.macs[site.node] = site.macs or 0
        if site.ref is not None:
            graph.weights[site.node] = site.parameters
    return Rest(_fused(graph), _unfused(graph), frozenset(_quantized(graph.proto, ())))


@dataclass
class _Node:
    name: str
    op: str
    inputs: list[str]
    outputs: list[str]


@dataclass
class _Graph:
    """Nodes, and the sizes of values that are not constant."""

    proto: onnx.GraphProto
    products: Collection[str]
    macs: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scope = Scope(self.proto)
        self.nodes = [
            _Node(node.name or f"{node.op_type}_{at}", node.op_type, list(node.input), [o for o in node.output if o])
            for at, node in enumerate(self.proto.node)
        ]
        self.size: dict[str, int] = {}
        for node in self.nodes:
            node.inputs = [name for name in node.inputs if name and name not in scope.constants]
            for name in (*node.inputs, *node.outputs):
                self.size[name] = _elements(scope, name)
        self.producer = {name: node for node in self.nodes for name in node.outputs}
        self.consumers: dict[str, list[_Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self.results = {value.name for value in self.proto.output}

    def moved(self, node: _Node) -> int:
        """Values that a node reads and writes when it is a kernel of its own."""
        read = 0 if node.op == "Gather" else sum(self.size[name] for name in set(node.inputs))  # reads what it writes
        written = sum(self.size[name] for name in node.outputs)
        return read + written * (2 if node.op == "Gather" else 1) + self.weights.get(node.name, 0)

    def counted(self) -> Iterator[_Node]:
        """Nodes that do something and are not among the products."""
        return (node for node in self.nodes if node.op not in _FREE and node.name not in self.products)

    def quantized(self) -> Iterator[str]:
        """Products whose output reaches a QuantizeLinear past pointwise nodes alone."""
        for node in self.nodes:
            if node.op in _PRODUCTS and any(self._reaches_int8(name, 0) for name in node.outputs):
                yield node.name

    def _reaches_int8(self, name: str, depth: int) -> bool:
        after = self.consumers.get(name, [])
        if any(node.op == "QuantizeLinear" for node in after):
            return True
        pointwise = [node for node in after if node.op in _POINTWISE - {"DequantizeLinear"} and depth < 8]
        return any(self._reaches_int8(output, depth + 1) for node in pointwise for output in node.outputs)


def _quantized(proto: onnx.GraphProto, around: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Products of a graph and of those inside whose output is quantized right after."""
    for name in _Graph(proto, ()).quantized():
        yield (*around, name)
    for position, node in enumerate(proto.node):
        for name, body in bodies(node, position):
            yield from _quantized(body, (*around, name))


def _elements(scope: Scope, name: str) -> int:
    """Of a value that is data; shapes and other small integers count too, and do not matter."""
    dims = scope.dims(name)
    if dims is None:
        return 0
    total = 1
    for dim in dims:
        total *= dim
    return total


def _unfused(graph: _Graph) -> Work:
    work = Work()
    for node in graph.counted():
        work.elements += graph.moved(node)
        work.flops += 2 * graph.macs.get(node.name, 0)
        work.kernels += 1
    return work


def _fused(graph: _Graph) -> Work:
    work, scores = Work(), set[str]()
    for group in _groups(graph):
        scores |= _add_group(graph, group, work)
    for node in graph.counted():
        if node.op in _POINTWISE or node.op in _REDUCING or node.op in _MOVING:
            continue
        hidden = sum(graph.size[name] for name in {*node.inputs, *node.outputs} & scores)
        work.elements += graph.moved(node) - hidden
        work.flops += 2 * graph.macs.get(node.name, 0)
        work.kernels += 1
    return work


def _add_group(graph: _Graph, group: list[_Node], work: Work) -> set[str]:
    """Count a fused chain; returns the values that never get to memory because attention is one kernel."""
    inside = {node.name for node in group}
    read = {name for node in group for name in node.inputs if _name_of(graph.producer.get(name)) not in inside}
    written = {name for node in group for name in node.outputs if _leaves(graph, name, inside)}
    before = [name for name in read if _op_of(graph.producer.get(name)) in _PRODUCTS]
    after = {node.op for name in written for node in graph.consumers.get(name, []) if node.name not in graph.products}
    if any(node.op == "Softmax" for node in group) and before and after & _PRODUCTS:
        return read | written
    sizes = graph.size
    elements = sum(sizes[name] for name in read | written)
    if before and not any(node.op in _REDUCING for node in group):  # the product before writes it in its own stead
        elements -= max(sizes[name] for name in before) + max((sizes[name] for name in written), default=0)
    else:
        work.kernels += 1
    work.elements += max(elements, 0)
    return set()


def _leaves(graph: _Graph, name: str, inside: set[str]) -> bool:
    return name in graph.results or any(node.name not in inside for node in graph.consumers.get(name, []))


def _groups(graph: _Graph) -> list[list[_Node]]:
    """Pointwise and reducing nodes that hang together, with no other kernel needed in between."""
    soft = [node for node in graph.counted() if node.op in _POINTWISE or node.op in _REDUCING]
    root = {node.name: node.name for node in soft}
    level = _levels(graph, root)

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for node in soft:
        for value in node.inputs:
            before = graph.producer.get(value)
            if before is not None and before.name in root and level[before.name] == level[node.name]:
                root[find(node.name)] = find(before.name)
    groups: dict[str, list[_Node]] = {}
    for node in soft:
        groups.setdefault(find(node.name), []).append(node)
    return list(groups.values())


def _levels(graph: _Graph, soft: Collection[str]) -> dict[str, int]:
    """How many kernels that are not fused the longest way to each node has."""
    level: dict[str, int] = {}
    for node in graph.nodes:
        before = [graph.producer[name] for name in node.inputs if name in graph.producer]
        own = {other.name: other.name not in soft and other.op not in _FREE for other in before}
        level[node.name] = max((level.get(other.name, 0) + own[other.name] for other in before), default=0)
    return level


def _name_of(node: _Node | None) -> str:
    return "" if node is None else node.name


def _op_of(node: _Node | None) -> str:
    return "" if node is None else node.op
