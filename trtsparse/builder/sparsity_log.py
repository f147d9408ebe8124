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

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["NodeNames", "SparseLayers", "nodes_in", "read_inspector", "read_log"]

_LINE = re.compile(r"\(Sparsity\)\s*(?P<text>.*)", re.DOTALL)
_ELIGIBLE = re.compile(r"layers? eligible for sparse math|found \d+ layer\(s\) eligible", re.IGNORECASE)
_CHOSEN = re.compile(r"picked sparse implementation|chose \d+ layer\(s\)", re.IGNORECASE)
_COUNT = re.compile(r"(?:found|chose) (\d+) layer\(s\)", re.IGNORECASE)
_SPARSE_TACTIC = re.compile(r"spars|spmma|sptensor|sp_?gemm", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*$|[\x1e\x1f]|[,\s]*\[[\w ]+: )", re.DOTALL)
_SEPARATORS = re.compile(r"\s\+\s|\s?\|\|\s?|,\s+|[{}()\x1e\x1f]|\.\.\.")
_SUFFIX = re.compile(r"/MatMulAddFusion$|\s*\[[^\]]*\]$|\]$")
_FOREIGN = "ForeignNode["
_BEFORE = r"(?:^|(?<=\s\+\s)|(?<=\|\|)|(?<=\|\|\s)|(?<=,\s)|(?<=[{}()\x1e\x1f])|(?<=\.\.\.)|(?<=ForeignNode\[))"
_BEHIND = r"(?=$|\s\+\s|\s?\|\||,\s|[{}()\x1e\x1f]|\.\.\.|/MatMulAddFusion|\s*\[|\])"


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
        nodes: Node names to look for: best all of a model, as only then "fc" is known not to be meant by "fc[1]".

    Example:
        >>> nodes_in("{ForeignNode[a...b]}, w + c || PWN(d) + e/MatMulAddFusion", ["c", "d", "e", "f"])
        ('c', 'd', 'e')
    """
    wanted = tuple(dict.fromkeys(nodes))
    found = NodeNames(wanted).within(layers)
    return tuple(name for name in wanted if name in found)


class NodeNames:
    """The names of a model's nodes, to be recognised in names of layers.

    A name may itself contain what separates names, and be the end of another: the longest that stands between
    separators is meant. Of the rest, a name is meant as it is written before what TensorRT may have appended to it.

    Args:
        names: Of all nodes.

    Example:
        >>> names = NodeNames(["fc", "fc[1]", "fc(1)", "big fc(1)"])
        >>> sorted(names.within("fc[1], big fc(1) + relu")), names.within("PWN(fc(1))"), names.within("fc [Gemm]")
        (['big fc(1)', 'fc[1]'], {'fc(1)'}, {'fc'})
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names) - {""}
        special = sorted((name for name in self._names if _SEPARATORS.search(name)), key=len, reverse=True)
        either = "|".join(map(re.escape, special))
        self._special = re.compile(f"{_BEFORE}(?:{either}){_BEHIND}") if special else None

    def within(self, layers: str) -> set[str]:
        """The names that are part of the named layers."""
        found = set()
        if self._special is not None:
            found = set(self._special.findall(layers))
            layers = self._special.sub("", layers)
        for part in _SEPARATORS.split(layers):
            found |= {next((name for name in _spellings(part) if name in self._names), "")}
        return found - {""}

    def layers(self, text: str) -> tuple[str, ...]:
        """The layers of a log line, one by one."""
        if self._special is not None:
            text = self._special.sub(lambda name: name[0].replace(", ", "\0"), text)
        return tuple(layer.replace("\0", ", ") for layer in text.split(", ") if layer)


def _spellings(part: str) -> Iterator[str]:
    """What a node may be called whose name TensorRT wrote so: first as it is, then with less and less of the end."""
    part = part.strip()
    yield part
    part, shorter = "", part.removeprefix(_FOREIGN)
    while shorter != part:
        yield shorter
        part, shorter = shorter, _SUFFIX.sub("", shorter)


def _count(head: str, names: str) -> int:
    stated = _COUNT.search(head)
    if stated:
        return int(stated[1])
    return len([name for name in names.split(", ") if name.strip()])


def _described(layer: dict[str, Any]) -> str:
    onnx_layers = _ONNX_LAYER.findall(str(layer.get("Metadata", "")))
    return ", ".join([str(layer.get("Name", "")), *onnx_layers])
