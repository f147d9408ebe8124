"""A multilayer perceptron: Gemm and ReLU, the smallest network with every property that matters here."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from onnx import TensorProto

from models._cli import main
from models._graph import Graph
from models._layers import vector
from models._recipe import COUNTS, DIM, Recipe, option
from models._weights import Weight, he

__all__ = ["MLP", "make"]


def make(**options: Any) -> onnx.ModelProto:
    """Return a multilayer perceptron; the options are the fields of ``MLP``.

    Args:
        options: See ``MLP``.

    Returns:
        A model from "input" (N, first width) to "output" (N, last width).

    Raises:
        ConfigError: An option is unknown or wrong.
        ModelError: The weights file is not one of this network.

    Example:
        >>> model = make(widths=(8, 16, 4))
        >>> [node.op_type for node in model.graph.node]
        ['Gemm', 'Relu', 'Gemm']
    """
    return MLP.of(**options).model()


@dataclass(frozen=True, kw_only=True)
class MLP(Recipe):
    """Multilayer perceptron; weights files hold layers.0.weight (N, K), layers.0.bias, layers.1.weight ..."""

    name: ClassVar[str] = "mlp"

    widths: tuple[int, ...] = option((1024, 4096, 4096, 1000), COUNTS, "lengths of the input, ..., the output")
    batch: int | str = option("N", DIM, "batch size, or a name if it is known later")

    def graph(self) -> Graph:
        """Describe the network."""
        graph = Graph("mlp")
        x = graph.input("input", TensorProto.FLOAT, (self.batch, self.widths[0]))
        last = len(self.widths) - 2
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.widths)):
            at = f"layers.{layer}"
            weight = graph.weight(Weight(f"{at}.weight", (outputs, inputs), std=he(inputs), channels=0))
            bias = graph.weight(vector(f"{at}.bias", outputs))
            x = graph.node("Gemm", x, weight, bias, at=at, output="output" if layer == last else None, transB=1)
            if layer < last:
                x = graph.node("Relu", x, at=at)
        graph.output(x, TensorProto.FLOAT, (self.batch, self.widths[-1]))
        return graph


if __name__ == "__main__":
    sys.exit(main(MLP))
