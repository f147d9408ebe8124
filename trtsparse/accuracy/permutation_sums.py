"""Sums of magnitudes that N:M pruning keeps, and every way to put a few channels into stripes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from trtsparse.errors import PatternError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern

__all__ = ["PIECE_NBYTES", "arrangement_count", "best_arrangement", "kept_magnitude", "largest", "largest_kept"]

PIECE_NBYTES = 1 << 19  # of a temporary: it stays in the cache
_ELEMENTS = 1 << 22  # handled at once


def kept_magnitude(weights: np.ndarray, *, pattern: Pattern = TWO_FOUR) -> float:
    """The sum of magnitudes that N:M pruning along the last axis keeps.

    Args:
        weights: (rows, K), K a multiple of M.
        pattern: N:M.

    Raises:
        PatternError: K is not a multiple of M.

    Example:
        >>> kept_magnitude(np.float32([[1, -3, 2, 2]]))
        5.0
    """
    if weights.ndim != 2 or weights.shape[1] % pattern.m:
        raise PatternError("not a matrix of whole groups", got=weights.shape, expected=f"(rows, K * {pattern.m})")
    return sum(_kept(np.abs(piece), pattern) for piece in _pieces(weights))


def largest_kept(weights: np.ndarray, *, pattern: Pattern = TWO_FOUR) -> float:
    """The sum of the K * N / M largest magnitudes of every row: no order of the columns keeps more.

    Args:
        weights: (rows, K).
        pattern: N:M.

    Example:
        >>> largest_kept(np.float32([[4, 3, 2, 2, 1, 1, 0, 0]]))
        11.0
    """
    left = weights.shape[1] - weights.shape[1] * pattern.n // pattern.m
    return sum(
        float(np.partition(np.abs(piece), left, axis=1)[:, left:].sum(dtype=np.float64)) for piece in _pieces(weights)
    )


def best_arrangement(columns: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The best of all ways to put a few channels into stripes; the given one if none is better."""
    subsets, arrangements = _arrangements(len(columns), pattern.m)
    kept = np.empty(len(subsets))
    step = max(1, PIECE_NBYTES // (4 * columns.shape[1]))
    for start in range(0, len(subsets), step):
        piece = subsets[start : start + step]
        ranked = largest([columns[piece[:, i]] for i in range(pattern.m)], pattern.n)
        kept[start : start + step] = np.sum([values.sum(axis=1, dtype=np.float64) for values in ranked], axis=0)
    totals = kept[arrangements].sum(axis=1)
    best = int(np.argmax(totals))
    order: np.ndarray = subsets[arrangements[best]].reshape(-1)
    return order if totals[best] > totals[0] * (1 + 1e-9) else np.arange(len(columns))


def arrangement_count(channels: int, m: int) -> int:
    """The ways to put channels into stripes when the order of and in the stripes does not matter."""
    stripes = channels // m
    in_stripes: int = math.factorial(m) ** stripes
    return math.factorial(channels) // (in_stripes * math.factorial(stripes))


@functools.cache
def _arrangements(channels: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """All stripes (subsets of m channels), and all arrangements as indices of these; the first is 0, 1, 2, ..."""
    subsets = list(itertools.combinations(range(channels), m))
    numbers = {subset: i for i, subset in enumerate(subsets)}

    def arranged(rest: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if not rest:
            yield ()
            return
        for others in itertools.combinations(rest[1:], m - 1):
            left = tuple(channel for channel in rest[1:] if channel not in others)
            yield from ((numbers[rest[:1] + others], *more) for more in arranged(left))

    return np.array(subsets), np.array(list(arranged(tuple(range(channels)))))


def _pieces(weights: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _ELEMENTS // max(weights.shape[1], 1))
    return (weights[start : start + rows] for start in range(0, len(weights), rows))


def _kept(magnitudes: np.ndarray, pattern: Pattern) -> float:
    stripes = [magnitudes[:, i :: pattern.m] for i in range(pattern.m)]
    return sum(float(values.sum(dtype=np.float64)) for values in largest(stripes, pattern.n))


def largest(values: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The ``count`` largest of several arrays, element by element, the largest first."""
    rest = list(values)
    for i in range(count):
        for j in range(i + 1, len(rest)):
            rest[i], rest[j] = np.maximum(rest[i], rest[j]), np.minimum(rest[i], rest[j])
    return rest[:count]
