"""The constant that a layer's output is shifted by: a Conv's or Gemm's own bias, or that of the node behind it.

Pruning moves the mean of every output; where the layer has a bias that nothing else reads, the bias takes it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from trtsparse.accuracy.layers import Layer
from trtsparse.accuracy.stages import Graph, reads
from trtsparse.files.tensor import TensorRef
from trtsparse.sparsity.trace import Constant, Scope, trace

__all__ = ["Bias", "Biases"]

_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_KEEP_ORDER = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


@dataclass(frozen=True)
class Bias:
    """A constant that can be changed to move a layer's mean output.

    Attributes:
        tensor: Its name.
        ref: Where its bytes are.
        factor: What a change of 1 adds to the layer's output, in the unit of weight times input.
    """

    tensor: str
    ref: TensorRef
    factor: float

    def shifted(self, stored: np.ndarray, shift: np.ndarray) -> np.ndarray | None:
        """The constant that moves the mean output by ``shift`` (R,); None where its type cannot hold it."""
        with np.errstate(over="ignore"):
            moved = (stored.astype(np.float64) + shift.reshape(stored.shape) / self.factor).astype(stored.dtype)
        return moved if np.isfinite(moved.astype(np.float64)).all() else None


class Biases:
    """Finds the biases of a model's layers.

    Args:
        graph: The model; every tensor is located (see `trtsparse.accuracy.located`).
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._scope = Scope(graph.proto.graph)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in reads(node):
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in graph.proto.graph.output}
        self._uses = Counter(ref.key for ref in graph.model.refs())

    def find(self, layer: Layer, *, input_rank: int) -> Bias | None:
        """The first changeable bias of a layer, or None.

        Args:
            layer: One use of a weight.
            input_rank: How many dims the layer's input has.
        """
        if layer.weights.shape[0] != 1:
            return None
        places = self._places(layer, input_rank)
        found = (self._constant(value, layer, from_end, factor) for value, from_end, factor in places)
        return next((bias for bias in found if bias is not None), None)

    def _places(self, layer: Layer, input_rank: int) -> Iterator[tuple[str, int, float]]:
        """Values that may be a bias, the axis of the outputs from the end, and the factor."""
        node = layer.node
        rank, from_end = _output_axis(layer, input_rank)
        if from_end > rank:
            return
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2]:
            alpha, beta = (next((a.f for a in node.attribute if a.name == n), 1.0) for n in ("alpha", "beta"))
            if node.op_type == "Conv":
                yield node.input[2], 1, 1.0
            elif alpha and beta:
                yield node.input[2], from_end, beta / alpha
        output = node.output[0]
        readers = self._readers.get(output, [])
        if output in self._outputs or len(readers) != 1:
            return
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0) if node.op_type == "Gemm" else 1.0
        yield from _behind(readers[0], output, rank, from_end, alpha)

    def _constant(self, value: str, layer: Layer, from_end: int, factor: float) -> Bias | None:
        """The constant behind a value, if only this layer uses it and it has one number for each output."""
        graph = self._graph
        constant = trace(graph.model, self._scope, value)
        if not isinstance(constant, Constant) or constant.quantization is not None or not self._is_own(value):
            return None
        rows = layer.weights.shape[1]
        shape = (1,) * (from_end - len(constant.shape)) + constant.shape
        rest = shape[: len(shape) - from_end] + shape[len(shape) - from_end + 1 :]
        ref = graph.model.ref(constant.tensor)
        if shape[len(shape) - from_end] != rows or any(dim != 1 for dim in rest) or ref is None:
            return None
        if self._uses[ref.key] != 1 or ref.encoding != "raw_data" or str(ref.dtype) not in _FLOATS:
            return None
        return Bias(constant.name, ref, factor)

    def _is_own(self, value: str) -> bool:
        """True when nothing else reads the value, nor anything on the way to its constant."""
        while True:
            if len(self._readers.get(value, [])) != 1 or value in self._outputs:
                return False
            if value in self._graph.initializers:
                return value not in {given.name for given in self._graph.proto.graph.input}
            maker = self._graph.nodes[self._graph.makers[value]]
            if maker.op_type == "Constant":
                return True
            if maker.op_type not in _KEEP_ORDER:
                return False
            value = maker.input[0]


def _output_axis(layer: Layer, input_rank: int) -> tuple[int, int]:
    """How many dims the node's output has, and which of them, counted from the end, are the layer's outputs."""
    if layer.node.op_type == "Conv":
        return input_rank, input_rank - 1
    rank = max(input_rank, len(layer.weights.seen))
    return rank - (input_rank == 1), 2 if layer.first else 1  # a MatMul drops the dim that it gives a vector


def _behind(
    node: onnx.NodeProto, output: str, rank: int, from_end: int, alpha: float
) -> Iterator[tuple[str, int, float]]:
    """A bias in the only node that reads a layer's output."""
    if not alpha:
        return
    along_axis_1 = rank - from_end == 1  # as the means of a normalization are, whatever that axis is to the layer
    if node.op_type == "Add":
        yield node.input[1] if node.input[0] == output else node.input[0], from_end, 1 / alpha
    elif node.op_type == "Sub" and node.input[0] == output:
        yield node.input[1], from_end, -1 / alpha
    elif node.op_type == "BatchNormalization" and along_axis_1 and len(node.output) == 1 and node.input[0] == output:
        yield node.input[3], 1, -1 / alpha
