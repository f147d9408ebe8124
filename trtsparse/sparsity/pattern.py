"""N:M arithmetic on arrays: at most ``n`` non-zeros in every ``m`` consecutive elements along one axis.

-0.0 is zero; NaN is not, and counts as larger than any number. The inner loops are in `trtsparse.sparsity.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trtsparse.errors import PatternError
from trtsparse.sparsity.kernels import (
    CHUNK,
    PRUNE_COST,
    Chunk,
    Counter,
    chunks_of,
    elements_of,
    grouped_view,
    in_parallel,
    kept,
    prune_chunk,
    two_axis_candidates,
)

__all__ = [
    "TWO_FOUR",
    "GroupCount",
    "Pattern",
    "apply_mask",
    "count_groups",
    "is_compliant",
    "keep_mask",
    "keep_mask_two_axes",
    "prune_array",
]


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` of every ``m`` consecutive weights along the reduction axis are non-zero.

    Raises:
        PatternError: Not 0 < n < m <= 16.

    Example:
        >>> Pattern.parse("1:2")
        Pattern(n=1, m=2)
        >>> str(Pattern())
        '2:4'
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m <= 16:
            raise PatternError("not an N:M pattern", got=f"{self.n}:{self.m}", expected="0 < N < M <= 16, as in 2:4")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "N:M".

        Raises:
            PatternError: The text is not of this form.
        """
        n, colon, m = text.partition(":")
        if not (colon and n.isdecimal() and m.isdecimal()):
            raise PatternError("not an N:M pattern", got=text, expected="0 < N < M <= 16, as in 2:4")
        return cls(int(n), int(m))


TWO_FOUR = Pattern()


@dataclass(frozen=True)
class GroupCount:
    """What `count_groups` found.

    Attributes:
        groups: Groups of ``m`` elements in the array.
        violating: Groups with more than ``n`` non-zeros.
        first: Index of the first element of the first violating group, in memory order; None when there is none.
        zeros: Elements that are zero.
    """

    groups: int
    violating: int
    first: tuple[int, ...] | None
    zeros: int


def count_groups(weights: np.ndarray, *, axis: int, pattern: Pattern = TWO_FOUR) -> GroupCount:
    """Count the groups along an axis that break the pattern.

    Args:
        weights: Any shape; float64/32/16, bfloat16, float8 (e4m3fn, e5m2) or integers (4-bit ones unpacked).
        axis: The reduction axis.
        pattern: N:M.

    Raises:
        PatternError: The axis does not exist, its length is not a multiple of M, or the type is another.

    Example:
        >>> count_groups(np.array([[1.0, 0, 2, 0, 1, 2, 3, 0]], np.float32), axis=1)
        GroupCount(groups=2, violating=1, first=(0, 4), zeros=3)
    """
    grouped, elements = grouped_view(weights, axis, pattern.m)
    chunks = chunks_of(grouped.shape)

    def count(share: Iterable[Chunk]) -> Counter:
        counter = Counter(elements, pattern.n, grouped[chunks[0]] if chunks else grouped)
        for chunk in share:
            counter.add(grouped[chunk], row=chunk[0].start, column=chunk[2].start)
        return counter

    tallies = in_parallel(count, chunks, grouped.nbytes)
    found = [tally.first for tally in tallies if tally.first is not None]
    first = None
    if found:
        row, column = min(found)
        flat = row * pattern.m * grouped.shape[2] + column
        first = tuple(int(i) for i in np.unravel_index(flat, weights.shape))
    violating = sum(tally.violating for tally in tallies)
    zeros = weights.size - sum(tally.nonzero for tally in tallies)
    return GroupCount(weights.size // pattern.m, violating, first, zeros)


def is_compliant(weights: np.ndarray, *, axis: int, pattern: Pattern = TWO_FOUR) -> bool:
    """True when no group breaks the pattern; a dense array is told by its first piece.

    Args:
        weights: As in `count_groups`.
        axis: The reduction axis.
        pattern: N:M.

    Raises:
        PatternError: As in `count_groups`.

    Example:
        >>> is_compliant(np.array([1.0, 0, 2, 0]), axis=0)
        True
    """
    grouped, elements = grouped_view(weights, axis, pattern.m)
    for first in chunks_of(grouped.shape)[:1]:
        counter = Counter(elements, pattern.n, grouped[first])
        counter.add(grouped[first], row=0, column=0)
        if counter.violating:
            return False
    return count_groups(weights, axis=axis, pattern=pattern).violating == 0


def keep_mask(weights: np.ndarray, *, axis: int, pattern: Pattern = TWO_FOUR) -> np.ndarray:
    """The elements that magnitude pruning keeps: the N largest of each group.

    Args:
        weights: As in `count_groups`; magnitudes computed elsewhere will do.
        axis: The reduction axis.
        pattern: N:M.

    Returns:
        A bool array of the same shape with exactly N True per group. Of equal magnitudes the lower index is kept.

    Raises:
        PatternError: As in `count_groups`.

    Example:
        >>> keep_mask(np.array([1.0, -3, 2, 2], np.float32), axis=0).tolist()
        [False, True, True, False]
    """
    grouped, elements = grouped_view(weights, axis, pattern.m)
    bits = grouped.view(f"u{grouped.dtype.itemsize}")
    mask = np.empty(grouped.shape, np.bool_)

    def fill(chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            mask[chunk] = kept(elements.magnitude(bits[chunk]), pattern.n).transpose(1, 0, 2)

    in_parallel(fill, chunks_of(grouped.shape), grouped.nbytes * PRUNE_COST)
    return mask.reshape(weights.shape)


def keep_mask_two_axes(weights: np.ndarray, *, axes: tuple[int, int], pattern: Pattern = TWO_FOUR) -> np.ndarray:
    """The elements to keep so that the pattern holds along both axes, with the largest sum of magnitudes.

    Every M x M block gets the best of the 0/1 matrices with N ones in each row and column (90 of them for 2:4).

    Args:
        weights: As in `count_groups`.
        axes: Two different axes, each a multiple of M long.
        pattern: N:M with M at most 4.

    Returns:
        A bool array of the same shape.

    Raises:
        PatternError: As in `count_groups`, or M is larger than 4.

    Example:
        >>> kept = keep_mask_two_axes(np.arange(16.0).reshape(4, 4), axes=(0, 1))
        >>> kept.sum(axis=0).tolist(), kept.sum(axis=1).tolist()
        ([2, 2, 2, 2], [2, 2, 2, 2])
    """
    m = pattern.m
    candidates = two_axis_candidates(m, pattern.n)
    for axis in axes:
        grouped_view(weights, axis, m)
    moved = np.moveaxis(weights, axes, (-2, -1))
    *batch, height, width = moved.shape
    blocks = moved.reshape(*batch, height // m, m, width // m, m).swapaxes(-3, -2)
    magnitude = np.abs(blocks.astype(np.float64)).reshape(-1, m * m)
    largest = np.finfo(np.float64).max / (m * m)  # stands for inf and NaN, so that sums stay finite
    magnitude = np.minimum(np.nan_to_num(magnitude, nan=largest, posinf=largest), largest)
    pieces = np.array_split(magnitude, len(magnitude) // CHUNK + 1)
    best = np.concatenate([np.argmax(piece @ candidates.T.astype(np.float64), axis=1) for piece in pieces])
    kept = candidates[best].reshape(blocks.shape).swapaxes(-3, -2).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(kept, (-2, -1), axes))


def apply_mask(weights: np.ndarray, mask: np.ndarray) -> int:
    """Set the elements where ``mask`` is False to zero, in place.

    Args:
        weights: A writable array, types as in `count_groups`.
        mask: bool, the same shape.

    Returns:
        How many non-zero elements became zero.

    Raises:
        PatternError: The shapes differ, or the type is not one of those.

    Example:
        >>> weights = np.array([1.0, -3, 0, 2], np.float32)
        >>> apply_mask(weights, keep_mask(weights, axis=0)), weights.tolist()
        (1, [0.0, -3.0, 0.0, 2.0])
    """
    elements = elements_of(weights)
    if weights.shape != mask.shape:
        raise PatternError("mask and weights differ in shape", got=mask.shape, expected=weights.shape)
    values = weights.view(elements.view)
    dropped = np.empty(mask.shape, np.bool_)
    elements.nonzero(values, dropped)
    np.logical_and(dropped, ~mask, out=dropped)
    bits = weights.view(f"u{weights.dtype.itemsize}")
    np.multiply(bits, mask, out=bits)
    return int(np.count_nonzero(dropped))


def prune_array(weights: np.ndarray, *, axis: int, pattern: Pattern = TWO_FOUR) -> int:
    """Magnitude-prune an array in place: `apply_mask` of `keep_mask`, without the memory of a mask.

    Args:
        weights: A C-contiguous, writable array, types as in `count_groups`.
        axis: The reduction axis.
        pattern: N:M.

    Returns:
        How many non-zero elements became zero.

    Raises:
        PatternError: As in `count_groups`, or the array is not C-contiguous.

    Example:
        >>> weights = np.array([1.0, -3, 2, 2], np.float32)
        >>> prune_array(weights, axis=0), weights.tolist()
        (2, [0.0, -3.0, 2.0, 0.0])
    """
    if not weights.flags.c_contiguous:
        raise PatternError(
            "cannot prune an array in place that is not C-contiguous", got=f"strides {weights.strides}"
        )
    grouped, elements = grouped_view(weights, axis, pattern.m)

    def prune(chunks: Iterable[Chunk]) -> int:
        return sum(prune_chunk(grouped[chunk], elements, pattern.n) for chunk in chunks)

    return sum(in_parallel(prune, chunks_of(grouped.shape), grouped.nbytes * PRUNE_COST))
