"""Layers of transformers, with their operators spelled out as exporters do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from models._weights import Weight

if TYPE_CHECKING:
    from models._graph import Graph

__all__ = ["attention", "gelu", "layer_norm", "linear", "linear_values", "norm_weight", "vector"]

_BIAS_STD = 0.02
_GAIN_STD = 0.1


def vector(name: str, length: int, *, std: float = _BIAS_STD, mean: float = 0.0, trained: bool = True) -> Weight:
    """Return a bias or another weight of one axis."""
    return Weight(name, (length,), std=std, mean=mean, trained=trained)


def norm_weight(name: str, length: int) -> Weight:
    """Return the gain of a normalisation: near one."""
    return vector(name, length, std=_GAIN_STD, mean=1.0)


def linear(graph: Graph, x: str, *, at: str, size: tuple[int, int], std: float, bias: bool = True) -> str:
    """Add MatMul and Add with the weights ``<at>.weight`` (K, N) and ``<at>.bias``; ``size`` is (K, N)."""
    return linear_values(graph, x, f"{at}.weight", f"{at}.bias" if bias else None, at=at, size=size, std=std)


def linear_values(
    graph: Graph, x: str, weight: str, bias: str | None, *, at: str, size: tuple[int, int], std: float
) -> str:
    """Add MatMul and Add like ``linear``, for weights whose names do not follow from the module's."""
    matrix = graph.weight(Weight(weight, size, std=std, channels=1, transposed=True))
    x = graph.node("MatMul", x, matrix, at=at)
    return x if bias is None else graph.node("Add", x, graph.weight(vector(bias, size[1])), at=at)


def layer_norm(graph: Graph, x: str, *, at: str, length: int, epsilon: float, output: str | None = None) -> str:
    """Add LayerNormalization over the last axis with the weights ``<at>.weight`` and ``<at>.bias``."""
    gain = graph.weight(norm_weight(f"{at}.weight", length))
    bias = graph.weight(vector(f"{at}.bias", length))
    return graph.node("LayerNormalization", x, gain, bias, at=at, output=output, epsilon=epsilon, axis=-1)


def gelu(graph: Graph, x: str, *, at: str) -> str:
    """Add the exact GELU: x * (1 + erf(x / sqrt 2)) * 0.5."""
    scaled = graph.node("Div", x, graph.constant("sqrt_two", math.sqrt(2)), at=at)
    shifted = graph.node("Add", graph.node("Erf", scaled, at=at), graph.constant("one", 1), at=at)
    return graph.node("Mul", graph.node("Mul", x, shifted, at=at), graph.constant("half", 0.5), at=at)


def attention(
    graph: Graph, query: str, key: str, value: str, *, at: str, heads: int, hidden: int, mask: str | None = None
) -> str:
    """Add multi-head attention between projected values.

    Args:
        graph: The graph under construction.
        query: Name of a value (N, S, hidden).
        key: Name of a value (N, S, hidden).
        value: Name of a value (N, S, hidden).
        at: The module that the nodes belong to.
        heads: Number of heads.
        hidden: Length of the last axis.
        mask: Name of a value that is added to the scores, broadcast to (N, heads, S, S).

    Returns:
        The name of a value (N, S, hidden).
    """
    split = graph.constant("heads_shape", [0, 0, heads, hidden // heads], np.int64)
    joined = graph.constant("hidden_shape", [0, 0, hidden], np.int64)

    def by_head(x: str, perm: tuple[int, ...]) -> str:
        return graph.node("Transpose", graph.node("Reshape", x, split, at=at), at=at, perm=perm)

    query, key, value = by_head(query, (0, 2, 1, 3)), by_head(key, (0, 2, 3, 1)), by_head(value, (0, 2, 1, 3))
    scores = graph.node("MatMul", query, key, at=at)
    scores = graph.node("Div", scores, graph.constant("sqrt_head", math.sqrt(hidden // heads)), at=at)
    if mask is not None:
        scores = graph.node("Add", scores, mask, at=at)
    mixed = graph.node("MatMul", graph.node("Softmax", scores, at=at, axis=-1), value, at=at)
    mixed = graph.node("Transpose", mixed, at=at, perm=(0, 2, 1, 3))
    return graph.node("Reshape", mixed, joined, at=at)
