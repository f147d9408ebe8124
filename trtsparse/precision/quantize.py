"""Write QuantizeLinear and DequantizeLinear into a graph: symmetric INT8, float32 scales, weights stored as int8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import Names, all_names, load_tensors
from trtsparse.precision.placement import Layer, Placement

__all__ = ["quantize", "quantize_weight"]

_LARGEST = 127


def quantize_weight(values: NDArray[np.float32], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a weight symmetrically, with one scale for each output channel. Zeros stay zeros.

    Args:
        values: Any shape.
        axis: The output channels'.

    Returns:
        The integers, of the same shape, and the scales ``(shape[axis],)``.

    Example:
        >>> quantize_weight(np.array([[1.0, -2.0], [0.0, 127.0]], np.float32), axis=0)
        (array([[  64, -127],
               [   0,  127]], dtype=int8), array([0.01574803, 1.        ], dtype=float32))
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    integers = np.clip(np.rint(values / scale), -_LARGEST, _LARGEST).astype(np.int8)
    return integers, scale.reshape(-1)


def quantize(model: OnnxModel, placement: Placement, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Give a copy with quantized layers.

    Args:
        model: Folded; every node of the skeleton has a name.
        placement: What is quantized.
        ranges: For each quantized value, the largest magnitude to represent.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    writer = _Writer(model, copy.graph, ranges)
    layers = {layer.node: layer for layer in placement.layers}
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            if (node.name, i) in placement.reads or name in placement.outputs:
                node.input[i] = writer.dequantized(name)
        if node.name in layers:
            node.input[1] = writer.weight(layers[node.name])
    writer.finish()
    return copy


class _Writer:
    """Adds Q/DQ nodes behind what makes their values, so that the order stays topological."""

    def __init__(self, model: OnnxModel, graph: onnx.GraphProto, ranges: Mapping[str, float]) -> None:
        self.model = model
        self.graph = graph
        self.ranges = ranges
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.names = Names(all_names(graph))
        self.added: dict[str, list[onnx.NodeProto]] = {}  # value to the pair behind it; "" for weights
        self.forms: dict[tuple[str, int], str] = {}  # (value, axis) to its dequantized form

    def dequantized(self, value: str) -> str:
        """The value after a Q/DQ pair, which all its readers share."""
        key = (value, -1)
        if key not in self.forms:
            scale = np.array(max(self.ranges[value] / _LARGEST, float(np.finfo(np.float32).tiny)), np.float32)
            if not self.ranges[value]:
                scale = np.array(1, np.float32)
            scale_name = self.constant(f"{value}_scale", scale)
            zero_point = self.constant(f"{value}_zero_point", np.array(0, np.int8))
            quantized, self.forms[key] = (
                self.names.unique(f"{value}_quantized"),
                self.names.unique(f"{value}_dequantized"),
            )
            self.added[value] = [
                self.node("QuantizeLinear", [value, scale_name, zero_point], quantized),
                self.node("DequantizeLinear", [quantized, scale_name, zero_point], self.forms[key]),
            ]
        return self.forms[key]

    def weight(self, layer: Layer) -> str:
        """The layer's weight, stored as int8, after its DequantizeLinear."""
        key = (layer.weight, layer.axis)
        if key not in self.forms:
            values = self.model.array(self.tensors[layer.weight])
            integers, scales = quantize_weight(values, axis=layer.axis)
            inputs = [
                self.constant(f"{layer.weight}_quantized", integers),
                self.constant(f"{layer.weight}_scale", scales),
                self.constant(f"{layer.weight}_zero_point", np.zeros(scales.shape, np.int8)),
            ]
            self.forms[key] = self.names.unique(f"{layer.weight}_dequantized")
            node = self.node("DequantizeLinear", inputs, self.forms[key])
            node.attribute.append(helper.make_attribute("axis", layer.axis))
            self.added.setdefault("", []).append(node)
        return self.forms[key]

    def finish(self) -> None:
        """Put the new nodes into their places, drop weights that nobody reads in float32, load those left."""
        nodes = list(self.added.pop("", []))
        nodes += [new for value in self.graph.input for new in self.added.get(value.name, [])]
        for node in self.graph.node:
            nodes.append(node)
            nodes += [new for name in node.output for new in self.added.get(name, [])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        load_tensors(self.model, self.graph)

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer."""
        unique = self.names.unique(name)
        self.graph.initializer.append(numpy_helper.from_array(values, unique))
        return unique

    def node(self, op: str, inputs: list[str], output: str) -> onnx.NodeProto:
        """A node named after what it makes."""
        return helper.make_node(op, inputs, [output], name=f"{op}_{output}")
