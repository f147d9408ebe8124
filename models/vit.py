"""Vision transformers (Dosovitskiy et al., 2020), laid out and named as in torchvision."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto

from models._cli import main
from models._graph import Graph
from models._layers import attention, gelu, layer_norm, linear, linear_values, vector
from models._recipe import COUNT, DIM, Recipe, option
from models._weights import Weight, xavier

__all__ = ["ViT", "make"]

_STD = 0.02
_EPSILON = 1e-6


def make(**options: Any) -> onnx.ModelProto:
    """Return a vision transformer; the options are the fields of ``ViT``.

    Args:
        options: See ``ViT``.

    Returns:
        A model from "input" (N, 3, H, W) to "logits" (N, classes).

    Raises:
        ConfigError: An option is unknown or wrong, or the options contradict each other.
        ModelError: The weights file is not one of this network.

    Example:
        >>> model = make(layers=1, hidden=16, heads=2, intermediate=32, patch=8, image_size=16)
        >>> sum(node.op_type == "MatMul" for node in model.graph.node)
        6
    """
    return ViT.of(**options).model()


@dataclass(frozen=True, kw_only=True)
class ViT(Recipe):
    """Vision transformer; weights files have torchvision's names (vit_b_16, vit_h_14)."""

    name: ClassVar[str] = "vit"

    layers: int = option(12, COUNT, "number of layers")
    hidden: int = option(768, COUNT, "length of a token's vector")
    heads: int = option(12, COUNT, "attention heads; a divisor of hidden")
    intermediate: int = option(3072, COUNT, "length inside a feed-forward block")
    patch: int = option(16, COUNT, "height and width of a patch; a divisor of image_size")
    image_size: int = option(224, COUNT, "height and width of the input")
    num_classes: int = option(1000, COUNT, "number of classes")
    batch: int | str = option("N", DIM, "batch size, or a name if it is known later")

    def graph(self) -> Graph:
        """Describe the network."""
        if self.hidden % self.heads:
            raise self.refused("heads", got=self.heads, expected=f"a divisor of hidden, {self.hidden}")
        if self.image_size % self.patch:
            raise self.refused("patch", got=self.patch, expected=f"a divisor of image_size, {self.image_size}")
        graph = Graph("vit")
        x = self._tokens(graph)
        for layer in range(self.layers):
            x = self._layer(graph, x, at=f"encoder.layers.encoder_layer_{layer}")
        x = layer_norm(graph, x, at="encoder.ln", length=self.hidden, epsilon=_EPSILON)
        x = graph.node("Gather", x, graph.constant("first", 0, np.int64), at="heads", axis=1)
        shape = (self.num_classes, self.hidden)
        weight = graph.weight(Weight("heads.head.weight", shape, std=xavier(*shape), channels=0))
        bias = graph.weight(vector("heads.head.bias", self.num_classes))
        logits = graph.node("Gemm", x, weight, bias, at="heads.head", output="logits", transB=1)
        graph.output(logits, TensorProto.FLOAT, (self.batch, self.num_classes))
        return graph

    def _tokens(self, graph: Graph) -> str:
        """Project the patches, put the class token before them, add positions: (N, 1 + patches, hidden)."""
        side = self.image_size
        x = graph.input("input", TensorProto.FLOAT, (self.batch, 3, side, side))
        shape = (self.hidden, 3, self.patch, self.patch)
        kernel = graph.weight(Weight("conv_proj.weight", shape, std=(3 * self.patch**2) ** -0.5, channels=0))
        bias = graph.weight(vector("conv_proj.bias", self.hidden))
        square = (self.patch, self.patch)
        x = graph.node("Conv", x, kernel, bias, at="conv_proj", kernel_shape=square, strides=square)
        x = graph.node("Reshape", x, graph.constant("patches_shape", [0, self.hidden, -1], np.int64), at="patches")
        x = graph.node("Transpose", x, at="patches", perm=(0, 2, 1))
        token = graph.weight(Weight("class_token", (1, 1, self.hidden), std=_STD))
        batch = graph.node("Shape", x, at="class_token", start=0, end=1)
        one = graph.constant("token_shape", [1, self.hidden], np.int64)
        expanded = graph.node("Concat", batch, one, at="class_token", axis=0)
        x = graph.node("Concat", graph.node("Expand", token, expanded, at="class_token"), x, at="encoder", axis=1)
        tokens = 1 + (side // self.patch) ** 2
        positions = graph.weight(Weight("encoder.pos_embedding", (1, tokens, self.hidden), std=_STD))
        return graph.node("Add", x, positions, at="encoder")

    def _layer(self, graph: Graph, x: str, *, at: str) -> str:
        """Add attention and feed-forward, each normalised before and added to its input."""
        wide = (self.hidden, self.intermediate)
        normal = layer_norm(graph, x, at=f"{at}.ln_1", length=self.hidden, epsilon=_EPSILON)
        x = graph.node("Add", x, self._attention(graph, normal, at=f"{at}.self_attention"), at=at)
        normal = layer_norm(graph, x, at=f"{at}.ln_2", length=self.hidden, epsilon=_EPSILON)
        inner = gelu(graph, linear(graph, normal, at=f"{at}.mlp.0", size=wide, std=xavier(*wide)), at=f"{at}.mlp")
        return graph.node("Add", x, linear(graph, inner, at=f"{at}.mlp.3", size=wide[::-1], std=xavier(*wide)), at=at)

    def _attention(self, graph: Graph, x: str, *, at: str) -> str:
        packed = (self.hidden, 3 * self.hidden)
        names = (f"{at}.in_proj_weight", f"{at}.in_proj_bias")
        x = linear_values(graph, x, *names, at=at, size=packed, std=xavier(*packed))
        query, key, value = graph.split(x, 3, at=at, axis=-1)
        x = attention(graph, query, key, value, at=at, heads=self.heads, hidden=self.hidden)
        square = (self.hidden, self.hidden)
        return linear(graph, x, at=f"{at}.out_proj", size=square, std=xavier(*square))


if __name__ == "__main__":
    sys.exit(main(ViT))
