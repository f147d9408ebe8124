"""Axes that have to be permuted together.

An axis of a tensor is an `Axis`. A node that treats two axes alike, index by index, unites them; a node that cares
for the order pins them. Concat and Split make an axis a row of parts that are permuted each within itself, Reshape
makes it a product of axes as in row-major order. What is left of the whole graph are the leaves: every leaf without a
reason may be permuted, in all places where it occurs, and the model computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

__all__ = ["Axis", "concat", "find", "indices", "leaves", "occurrences", "pin", "product", "split", "unite"]

CONCAT, PRODUCT = "concat", "product"


class Axis:
    """Indices 0 to ``size`` - 1 of a tensor along one of its axes.

    Attributes:
        size: How many.
        parts: The axes that it consists of; empty for a leaf.
        kind: How the parts make the axis: "concat", one after another, or "product", the last one running fastest.
        reason: Why a leaf must keep its order; "" when it need not.
        united: An axis that stands for this one too; see `find`.
    """

    __slots__ = ("kind", "parts", "reason", "size", "united")

    def __init__(self, size: int, *, parts: Sequence[Axis] = (), kind: str = "") -> None:
        self.size = size
        self.parts = tuple(parts)
        self.kind = kind
        self.reason = ""
        self.united: Axis | None = None


def find(axis: Axis) -> Axis:
    """The axis that stands for all that were united with this one."""
    root = axis
    while root.united is not None:
        root = root.united
    while axis is not root:
        axis.united, axis = root, axis.united or root
    return root


def concat(parts: Sequence[Axis]) -> Axis:
    """The axis whose indices are those of the parts, one part after another."""
    return _joined([part for part in parts if part.size], CONCAT)


def product(parts: Sequence[Axis]) -> Axis:
    """The axis whose indices count through all parts, the last one fastest."""
    return _joined([part for part in parts if part.size != 1], PRODUCT)


def _joined(parts: Sequence[Axis], kind: str) -> Axis:
    if not parts:
        return Axis(int(kind == PRODUCT))
    size = sum(part.size for part in parts) if kind == CONCAT else math.prod(part.size for part in parts)
    return parts[0] if len(parts) == 1 else Axis(size, parts=parts, kind=kind)


def leaves(axis: Axis) -> Iterator[Axis]:
    """The leaves that an axis consists of, from the first to the last."""
    axis = find(axis)
    if not axis.parts:
        yield axis
    for part in axis.parts:
        yield from leaves(part)


def pin(axis: Axis, reason: str) -> None:
    """Forbid any other order of an axis; the first reason stays."""
    for leaf in leaves(axis):
        leaf.reason = leaf.reason or reason


def split(axis: Axis, sizes: Sequence[int], kind: str) -> bool:
    """Make a leaf consist of new leaves; False when it has parts already."""
    axis = find(axis)
    if axis.parts:
        return False
    _bind(axis, concat([Axis(size) for size in sizes]) if kind == CONCAT else product([Axis(size) for size in sizes]))
    return True


def unite(a: Axis, b: Axis, reason: str) -> None:
    """Let two axes have the same order from now on.

    Args:
        a: An axis.
        b: One of the same size; else, and where their parts do not fit each other, both are pinned.
        reason: Why they are pinned then.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size == b.size and not a.parts:
        _bind(a, b)
    elif a.size == b.size and not b.parts:
        _bind(b, a)
    elif a.size != b.size or not (_unite_parts(a, b, reason) or _unite_alike(a, b, reason)):
        pin(a, reason)
        pin(b, reason)


def _bind(leaf: Axis, other: Axis) -> None:
    other = find(other)
    leaf.united = other
    if leaf.reason:
        pin(other, leaf.reason)


def _unite_parts(a: Axis, b: Axis, reason: str) -> bool:
    """Unite the parts of two concatenations or products, the larger leaves of which are split to fit."""
    if a.kind != b.kind:
        return False
    left, right = list(reversed(a.parts)), list(reversed(b.parts))
    while left and right:
        first, second = find(left.pop()), find(right.pop())
        if first.kind == a.kind:
            left += reversed(first.parts)
            right.append(second)
        elif second.kind == a.kind:
            right += reversed(second.parts)
            left.append(first)
        elif first.size == second.size:
            unite(first, second, reason)
        else:
            small, large, rest = (first, second, right) if first.size < second.size else (second, first, left)
            sizes = _sizes(small.size, large.size, a.kind)
            if not sizes or not split(large, sizes, a.kind):
                return False
            rest += reversed(find(large).parts)
            (left if small is first else right).append(small)
    return not left and not right


def _sizes(first: int, whole: int, kind: str) -> tuple[int, ...]:
    if kind == CONCAT:
        return (first, whole - first)
    return () if whole % first else (first, whole // first)


def _unite_alike(a: Axis, b: Axis, reason: str) -> bool:
    """Equal parts one after another against a product of two: its first factor stays, all parts are the second."""
    row, pair = (a, b) if a.kind == CONCAT else (b, a)
    if row.kind != CONCAT or pair.kind != PRODUCT or len(pair.parts) != 2:
        return False
    outer, inner = pair.parts
    if len(row.parts) != outer.size or any(part.size != inner.size for part in row.parts):
        return False
    pin(outer, reason)
    for part in row.parts:
        unite(part, inner, reason)
    return True


def indices(axis: Axis, orders: Mapping[Axis, np.ndarray]) -> np.ndarray:
    """Where each place of an axis takes its element from.

    Args:
        axis: Any axis.
        orders: The new order of some leaves.

    Returns:
        (size,) int64.

    Example:
        >>> a, b = Axis(2), Axis(3)
        >>> indices(product([b, a]), {a: np.array([1, 0])}).tolist()
        [1, 0, 3, 2, 5, 4]
    """
    axis = find(axis)
    if not axis.parts:
        return orders.get(axis, np.arange(axis.size))
    found = [indices(part, orders) for part in axis.parts]
    if axis.kind == CONCAT:
        starts = np.cumsum([0, *(part.size for part in axis.parts[:-1])])
        return np.concatenate([start + part for start, part in zip(starts, found, strict=True)])
    whole = np.zeros(1, np.int64)
    for part in found:
        whole = (whole[:, None] * len(part) + part).reshape(-1)
    return whole


def occurrences(axis: Axis, leaf: Axis) -> Iterator[tuple[np.ndarray, int]]:
    """Where a leaf's elements are on an axis: at ``start + i * stride`` for each of the starts.

    Yields:
        The starts, (n,) int64, and the stride.

    Example:
        >>> a, b = Axis(2), Axis(3)
        >>> [(starts.tolist(), stride) for starts, stride in occurrences(product([b, a]), a)]
        [([0, 2, 4], 1)]
    """
    axis, leaf = find(axis), find(leaf)
    if axis is leaf:
        yield np.zeros(1, np.int64), 1
    sizes = [part.size for part in axis.parts]
    for i, part in enumerate(axis.parts):
        if axis.kind == CONCAT:
            yield from ((sum(sizes[:i]) + starts, stride) for starts, stride in occurrences(part, leaf))
            continue
        outer = np.arange(math.prod(sizes[:i]))[:, None, None] * math.prod(sizes[i:])
        inner = math.prod(sizes[i + 1 :])
        for starts, stride in occurrences(part, leaf):
            yield (outer + starts[:, None] * inner + np.arange(inner)).reshape(-1), stride * inner
