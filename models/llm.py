"""The feed-forward blocks of a large language model: RMSNorm and SwiGLU, as in Llama 3 8B by default.

They hold two thirds of such a model's weights, and their MatMuls are the largest that 2:4 sparsity meets.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from onnx import TensorProto

from models._cli import main
from models._graph import Graph
from models._layers import linear, norm_weight
from models._recipe import COUNT, DIM, Recipe, option

__all__ = ["LLMBlock", "make"]

_STD = 0.02
_EPSILON = 1e-5


def make(**options: Any) -> onnx.ModelProto:
    """Return feed-forward blocks; the options are the fields of ``LLMBlock``.

    Args:
        options: See ``LLMBlock``.

    Returns:
        A model from "hidden_states" (N, S, hidden) to "output" (N, S, hidden).

    Raises:
        ConfigError: An option is unknown or wrong.
        ModelError: The weights file is not one of this network.

    Example:
        >>> model = make(hidden=16, intermediate=32)
        >>> sum(node.op_type == "MatMul" for node in model.graph.node)
        3
    """
    return LLMBlock.of(**options).model()


@dataclass(frozen=True, kw_only=True)
class LLMBlock(Recipe):
    """LLM feed-forward blocks; weights files have Hugging Face's names (Llama, Mistral, Qwen)."""

    name: ClassVar[str] = "llm"

    blocks: int = option(1, COUNT, "number of blocks")
    hidden: int = option(4096, COUNT, "length of a token's vector")
    intermediate: int = option(14336, COUNT, "length inside a block")
    sequence: int | str = option("S", DIM, "tokens per sequence, or a name if known later")
    batch: int | str = option("N", DIM, "batch size, or a name if it is known later")

    def graph(self) -> Graph:
        """Describe the network."""
        graph = Graph("llm")
        shape = (self.batch, self.sequence, self.hidden)
        x = graph.input("hidden_states", TensorProto.FLOAT, shape)
        for block in range(self.blocks):
            at = f"model.layers.{block}"
            inner = self._feed_forward(graph, self._rms_norm(graph, x, at=f"{at}.post_attention_layernorm"), at=at)
            x = graph.node("Add", x, inner, at=at, output="output" if block == self.blocks - 1 else None)
        graph.output(x, TensorProto.FLOAT, shape)
        return graph

    def _rms_norm(self, graph: Graph, x: str, *, at: str) -> str:
        square = graph.node("Pow", x, graph.constant("two", 2), at=at)
        mean = graph.node("ReduceMean", square, at=at, axes=(-1,), keepdims=1)
        root = graph.node("Sqrt", graph.node("Add", mean, graph.constant("epsilon", _EPSILON), at=at), at=at)
        gain = graph.weight(norm_weight(f"{at}.weight", self.hidden))
        return graph.node("Mul", graph.node("Div", x, root, at=at), gain, at=at)

    def _feed_forward(self, graph: Graph, x: str, *, at: str) -> str:
        at = f"{at}.mlp"
        wide, narrow = (self.hidden, self.intermediate), (self.intermediate, self.hidden)
        gate = linear(graph, x, at=f"{at}.gate_proj", size=wide, std=_STD, bias=False)
        gate = graph.node("Mul", gate, graph.node("Sigmoid", gate, at=at), at=at)
        up = linear(graph, x, at=f"{at}.up_proj", size=wide, std=_STD, bias=False)
        gated = graph.node("Mul", gate, up, at=at)
        return linear(graph, gated, at=f"{at}.down_proj", size=narrow, std=_STD, bias=False)


if __name__ == "__main__":
    sys.exit(main(LLMBlock))
