"""Which layers TensorRT found eligible and which run sparse kernels, read from its log and from the inspector.

Two families of log lines (issues of github.com/NVIDIA/TensorRT; the second is in the libraries of 10.x and RTX)::

    (Sparsity) Layers eligible for sparse math: A, B + C
    (Sparsity) TRT inference plan picked sparse implementation for layers: B + C

    (Sparsity) Found 2 layer(s) eligible to use sparse tactics: A, B + C
    (Sparsity) Chose 1 layer(s) using sparse tactics: B + C

The pair may come once per pass; the last one counts. Layer names are fused: "Conv_0 + Relu_1". The inspector's
``HasSparseWeights`` says that the weights qualify; that a sparse kernel runs is seen from ``TacticName``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["SparseLayers", "nodes_in", "read_inspector", "read_log"]

_LINE = re.compile(r"\(Sparsity\)\s*(?P<text>.*)", re.DOTALL)
_ELIGIBLE = re.compile(r"layers? eligible for sparse math|found \d+ layer\(s\) eligible", re.IGNORECASE)
_CHOSEN = re.compile(r"picked sparse implementation|chose \d+ layer\(s\)", re.IGNORECASE)
_COUNT = re.compile(r"(?:found|chose) (\d+) layer\(s\)", re.IGNORECASE)
_SPARSE_TACTIC = re.compile(r"spars|spmma|sptensor|sp_?gemm", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SEPARATORS = re.compile(r"\s\+\s|\s?\|\|\s?|,\s+|[{}()\x1e\x1f]|\.\.\.")
_SUFFIX = re.compile(r"/MatMulAddFusion$|\s*\[[^\]]*\]$")


@dataclass(frozen=True)
class SparseLayers:
    """Layers as TensorRT names them.

    Attributes:
        eligible: Layer names joined as in the log; None when nothing was said.
        chosen: Likewise.
        eligible_count: As the log states it, or the number of names.
        chosen_count: Likewise.
    """

    eligible: str | None = None
    chosen: str | None = None
    eligible_count: int | None = None
    chosen_count: int | None = None


def read_log(messages: Iterable[str]) -> SparseLayers:
    """Find the last pair of sparsity lines.

    Example:
        >>> found = read_log(["(Sparsity) Found 2 layer(s) eligible to use sparse tactics: A, B + C",
        ...                   "(Sparsity) Chose 1 layer(s) using sparse tactics: B + C"])
        >>> found.chosen, found.eligible_count, nodes_in(found.chosen, ["A", "B", "C"])
        ('B + C', 2, ('B', 'C'))
    """
    eligible: tuple[str, int] | None = None
    chosen: tuple[str, int] | None = None
    for message in messages:
        line = _LINE.search(message)
        if line is None:
            continue
        head, _, names = line["text"].partition(":")
        if _ELIGIBLE.search(head):
            eligible = (names.strip(), _count(head, names))
        elif _CHOSEN.search(head):
            chosen = (names.strip(), _count(head, names))
    return SparseLayers(
        eligible=eligible and eligible[0],
        chosen=chosen and chosen[0],
        eligible_count=eligible and eligible[1],
        chosen_count=chosen and chosen[1],
    )


def read_inspector(information: str) -> tuple[tuple[str, str], ...] | None:
    """Layers whose kernels are sparse, from the inspector's JSON.

    Args:
        information: What ``get_engine_information(JSON)`` returned.

    Returns:
        (layer name with the ONNX nodes in its metadata, tactic) each; None when the engine tells no tactics, because
        it was not built with detailed verbosity.
    """
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    detailed = [layer for layer in layers if isinstance(layer, dict) and "TacticName" in layer]
    if not detailed:
        return None
    return tuple(
        (_described(layer), str(layer["TacticName"]))
        for layer in detailed
        if _SPARSE_TACTIC.search(str(layer["TacticName"]))
    )


def nodes_in(layers: str, nodes: Iterable[str]) -> tuple[str, ...]:
    """Which of the given ONNX nodes are part of the named layers, in the order given.

    Args:
        layers: One or more layer names, fused or not, as the log or the inspector wrote them.
        nodes: Node names to look for.

    Example:
        >>> nodes_in("{ForeignNode[a...b]}, w + c || PWN(d) + e/MatMulAddFusion", ["c", "d", "e", "f"])
        ('c', 'd', 'e')
    """
    wanted = list(dict.fromkeys(nodes))
    found = set()
    rest = layers
    for name in sorted((name for name in wanted if _SEPARATORS.search(name)), key=len, reverse=True):
        if name in rest:  # a name that itself contains what separates names
            found.add(name)
            rest = rest.replace(name, ", ")
    parts = _parts(rest)
    return tuple(name for name in wanted if name in found or name in parts)


@functools.lru_cache(maxsize=8)  # one log line is asked for every node
def _parts(layers: str) -> frozenset[str]:
    parts = set()
    for piece in _SEPARATORS.split(layers):
        part = piece.strip().removeprefix("ForeignNode[")
        part = part if "[" in part else part.removesuffix("]")
        parts |= {part, _SUFFIX.sub("", part)}
    return frozenset(parts - {""})


def _count(head: str, names: str) -> int:
    stated = _COUNT.search(head)
    if stated:
        return int(stated[1])
    return len([name for name in names.split(", ") if name.strip()])


def _described(layer: dict[str, Any]) -> str:
    onnx_layers = _ONNX_LAYER.findall(str(layer.get("Metadata", "")))
    return ", ".join([str(layer.get("Name", "")), *onnx_layers])
