"""Where QuantizeLinear and DequantizeLinear go, so that TensorRT runs INT8 kernels, sparse ones too.

A layer (Conv, Gemm, MatMul with a constant weight) runs in INT8 when its input and weight come out of
DequantizeLinear. A sparse kernel was only ever seen chosen where its output is quantized too; TensorRT takes a
QuantizeLinear behind the activation into the layer. So a pair stands in front of each layer's input, that is behind
the activation of the layer before, and never between a layer and its activation. Of a residual addition the other
summand is quantized, as the sum is then computed in the layer's kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from trtsparse.files.model import OnnxModel

__all__ = ["Layer", "Placement", "candidates", "find_layers", "place"]

_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")


@dataclass(frozen=True)
class Layer:
    """A node that can run in INT8.

    Attributes:
        node: Its name.
        source: The value that it reads.
        weight: Its constant.
        axis: The weight's output-channel axis, along which scales differ.
    """

    node: str
    source: str
    weight: str
    axis: int


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        layers: In the order of the graph.
        reads: (node, input index) that read a dequantized value.
        outputs: Values that all their consumers read dequantized, because quantized outputs were asked for.
        open_layers: Names of layers whose output no QuantizeLinear follows.
    """

    layers: tuple[Layer, ...]
    reads: frozenset[tuple[str, int]]
    outputs: frozenset[str]
    open_layers: tuple[str, ...]


def find_layers(model: OnnxModel) -> tuple[Layer, ...]:
    """Every Conv, Gemm and MatMul of the main graph with a computed input and a constant float32 weight."""
    graph = model.proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        weight = constants.get(node.input[1])
        if weight is None or node.input[0] in constants or len(weight.dims) < 2:
            continue
        if weight.data_type == onnx.TensorProto.FLOAT:
            found.append(Layer(node.name, node.input[0], weight.name, _output_axis(node, len(weight.dims))))
    return tuple(found)


def place(
    model: OnnxModel, layers: Collection[Layer], *, keep: Collection[str] = (), quantize_outputs: bool = False
) -> Placement:
    """Decide what is quantized.

    Args:
        model: Folded; every node has a name.
        layers: From `find_layers`.
        keep: Names of layers that stay in float32.
        quantize_outputs: Also quantize outputs that no INT8 layer reads.
    """
    quantized = tuple(layer for layer in layers if layer.node not in keep)
    graph = _Graph(model.proto.graph, {layer.node for layer in quantized})
    reads = {(layer.node, 0) for layer in quantized}
    values = {layer.source for layer in quantized}
    ends = {layer.node: graph.end(layer.node) for layer in quantized}
    unread = {end for end, _ in ends.values()} - values - graph.outputs
    outputs = unread if quantize_outputs else set()
    values |= outputs
    pending = [(end, residual) for end, residual in ends.values() if residual is not None]
    while ready := [(end, residual) for end, residual in pending if end in values]:
        reads |= {residual for _, residual in ready}
        values |= {graph.nodes[node].input[i] for _, (node, i) in ready}
        pending = [entry for entry in pending if entry not in ready]
    return Placement(
        layers=quantized,
        reads=frozenset(reads),
        outputs=frozenset(outputs),
        open_layers=tuple(name for name, (end, _) in ends.items() if end not in values),
    )


def candidates(model: OnnxModel, layers: Collection[Layer]) -> tuple[str, ...]:
    """Every value that `place` may quantize, whatever is kept."""
    graph = _Graph(model.proto.graph, set())
    found = {layer.source: None for layer in layers}
    for layer in layers:
        end, residual = graph.end(layer.node)
        found[end] = None
        if residual is not None:
            found |= dict.fromkeys(graph.nodes[residual[0]].input)
    return tuple(found)


class _Graph:
    """Who reads and who makes a value."""

    def __init__(self, graph: onnx.GraphProto, layers: set[str]) -> None:
        self.layers = layers
        self.nodes = {node.name: node for node in graph.node}
        self.order = {node.name: i for i, node in enumerate(graph.node)}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def end(self, layer: str) -> tuple[str, tuple[str, int] | None]:
        """Follow a layer through what TensorRT fuses with it: bias, residual addition, activation.

        Returns:
            The last value, and the addition's other summand as (node, input index), if there is one.
        """
        value: str = self.nodes[layer].output[0]
        residual: tuple[str, int] | None = None
        following = self.only_reader(value)
        while following is not None and following.op_type == "Add" and residual is None:
            other = 1 - list(following.input).index(value)
            if following.input[other] not in self.constants:
                if not self.is_last(layer, following.input[other]):
                    return value, None  # the other branch's layer takes the addition
                residual = (following.name, other)
            value = following.output[0]
            following = self.only_reader(value)
        if following is not None and following.op_type in _ACTIVATIONS:
            value = following.output[0]
        return value, residual

    def only_reader(self, value: str) -> onnx.NodeProto | None:
        """The node that reads a value, if no other does and it is no output of the model."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def is_last(self, layer: str, other: str) -> bool:
        """True unless the other summand comes from a layer that is computed later."""
        maker = self.makers.get(other)
        return maker is None or maker.name not in self.layers or self.order[maker.name] < self.order[layer]


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return rank - 1
