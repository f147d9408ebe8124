"""The BERT encoder (Devlin et al., 2018), base and large, named as in Hugging Face's ``BertModel``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto

from models._cli import main
from models._graph import Graph
from models._layers import attention, gelu, layer_norm, linear
from models._recipe import COUNT, DIM, FLAG, Recipe, option
from models._weights import Weight

__all__ = ["Bert", "make"]

_STD = 0.02
_EPSILON = 1e-12
_POSITIONS = 512
_TOKEN_TYPES = 2


def make(**options: Any) -> onnx.ModelProto:
    """Return a BERT encoder; the options are the fields of ``Bert``.

    Args:
        options: See ``Bert``.

    Returns:
        A model from "input_ids" and "token_type_ids" (N, S) int64, with ``mask`` also "attention_mask", to
        "last_hidden_state" (N, S, hidden).

    Raises:
        ConfigError: An option is unknown or wrong, or the options contradict each other.
        ModelError: The weights file is not one of this network.

    Example:
        >>> model = make(layers=1, hidden=16, heads=2, intermediate=32, vocabulary=100)
        >>> [value.name for value in model.graph.input]
        ['input_ids', 'token_type_ids']
    """
    return Bert.of(**options).model()


@dataclass(frozen=True, kw_only=True)
class Bert(Recipe):
    """BERT encoder without the pooler; weights files have Hugging Face's names, with or without "bert."."""

    name: ClassVar[str] = "bert"

    layers: int = option(12, COUNT, "number of layers")
    hidden: int = option(768, COUNT, "length of a token's vector")
    heads: int = option(12, COUNT, "attention heads; a divisor of hidden")
    intermediate: int = option(3072, COUNT, "length inside a feed-forward block")
    vocabulary: int = option(30522, COUNT, "number of tokens")
    sequence: int | str = option("S", DIM, "tokens per sequence, at most 512, or a name if known later")
    batch: int | str = option("N", DIM, "batch size, or a name if it is known later")
    mask: bool = option(False, FLAG, "add the input attention_mask")  # noqa: FBT003 - the default, not a switch

    def stored_names(self, name: str) -> Iterable[str]:
        """Names as saved by Hugging Face; the first checkpoints still call a LayerNorm's weights gamma and beta."""
        names = [name]
        if "LayerNorm" in name:
            names.append(name.replace(".weight", ".gamma").replace(".bias", ".beta"))
        return [prefix + stored for stored in names for prefix in ("", "bert.")]

    def graph(self) -> Graph:
        """Describe the network."""
        if self.hidden % self.heads:
            raise self.refused("heads", got=self.heads, expected=f"a divisor of hidden, {self.hidden}")
        if isinstance(self.sequence, int) and self.sequence > _POSITIONS:
            raise self.refused("sequence", got=self.sequence, expected=f"at most {_POSITIONS}")
        graph = Graph("bert")
        x = self._embeddings(graph)
        mask = self._mask(graph) if self.mask else None
        for layer in range(self.layers):
            last = layer == self.layers - 1
            x = self._layer(graph, x, mask, at=f"encoder.layer.{layer}", output="last_hidden_state" if last else None)
        graph.output(x, TensorProto.FLOAT, (self.batch, self.sequence, self.hidden))
        return graph

    def _embeddings(self, graph: Graph) -> str:
        """Sum the embeddings of token, type and position, and normalise: (N, S, hidden)."""
        at = "embeddings"

        def table(kind: str, rows: int) -> str:
            return graph.weight(Weight(f"{at}.{kind}_embeddings.weight", (rows, self.hidden), std=_STD))

        words, positions = table("word", self.vocabulary), table("position", _POSITIONS)
        types = table("token_type", _TOKEN_TYPES)
        ids = graph.input("input_ids", TensorProto.INT64, (self.batch, self.sequence))
        type_ids = graph.input("token_type_ids", TensorProto.INT64, (self.batch, self.sequence))
        x = graph.node("Gather", words, ids, at=f"{at}.word_embeddings")
        x = graph.node("Add", x, graph.node("Gather", types, type_ids, at=f"{at}.token_type_embeddings"), at=at)
        start = graph.constant("start", [0], np.int64)
        length = graph.node("Shape", ids, at=f"{at}.position_embeddings", start=1, end=2)
        near = graph.node("Slice", positions, start, length, start, at=f"{at}.position_embeddings")
        x = graph.node("Add", x, near, at=at)
        return layer_norm(graph, x, at=f"{at}.LayerNorm", length=self.hidden, epsilon=_EPSILON)

    def _mask(self, graph: Graph) -> str:
        """Turn 1 (read) and 0 (ignore) into what is added to the attention scores: (N, 1, 1, S)."""
        at = "attention_mask_bias"
        mask = graph.input("attention_mask", TensorProto.INT64, (self.batch, self.sequence))
        mask = graph.node("Unsqueeze", mask, graph.constant("mask_axes", [1, 2], np.int64), at=at)
        mask = graph.node("Cast", mask, at=at, to=TensorProto.FLOAT)
        ignored = graph.node("Sub", graph.constant("one", 1), mask, at=at)
        return graph.node("Mul", ignored, graph.constant("ignored_score", -10000), at=at)

    def _layer(self, graph: Graph, x: str, mask: str | None, *, at: str, output: str | None) -> str:
        square, wide = (self.hidden, self.hidden), (self.hidden, self.intermediate)
        inner = f"{at}.attention.self"
        query, key, value = (
            linear(graph, x, at=f"{inner}.{part}", size=square, std=_STD) for part in ("query", "key", "value")
        )
        mixed = attention(graph, query, key, value, at=inner, heads=self.heads, hidden=self.hidden, mask=mask)
        mixed = linear(graph, mixed, at=f"{at}.attention.output.dense", size=square, std=_STD)
        x = self._add_norm(graph, mixed, x, at=f"{at}.attention.output")
        inner = f"{at}.intermediate"
        wide_x = gelu(graph, linear(graph, x, at=f"{inner}.dense", size=wide, std=_STD), at=inner)
        narrow = linear(graph, wide_x, at=f"{at}.output.dense", size=wide[::-1], std=_STD)
        return self._add_norm(graph, narrow, x, at=f"{at}.output", output=output)

    def _add_norm(self, graph: Graph, x: str, skipped: str, *, at: str, output: str | None = None) -> str:
        total = graph.node("Add", x, skipped, at=at)
        return layer_norm(graph, total, at=f"{at}.LayerNorm", length=self.hidden, epsilon=_EPSILON, output=output)


if __name__ == "__main__":
    sys.exit(main(Bert))
