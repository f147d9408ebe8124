"""N:M arithmetic on arrays: at most ``n`` non-zeros in every ``m`` consecutive elements along one axis.

Everything works on bit patterns in pieces that stay in the processor's cache, several pieces at a time: numpy then
runs at the memory's speed. -0.0 is zero; NaN is not, and counts as larger than any number.

An array is seen as ``(rows, m, inner)``: a row holds ``inner`` groups whose ``m`` elements lie ``inner`` apart. That
covers every axis of a C-contiguous array without a copy.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trtsparse.errors import PatternError

__all__ = [
    "TWO_FOUR",
    "GroupCount",
    "Pattern",
    "apply_mask",
    "count_groups",
    "keep_mask",
    "keep_mask_two_axes",
    "prune_array",
]

_CHUNK = 1 << 18  # elements: their bits and the scratch beside them fit the L2 cache
_PARALLEL_COST = 1 << 24  # bytes read: below this handing work to threads costs more than it gains
_PRUNE_COST = 8  # pruning a byte takes about as long as counting this many
_MOST_THREADS = 16
_INNER_SHORT = 64  # shorter inner runs are handled by shifting the flat array instead of slicing it

_Result = TypeVar("_Result")


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
    grouped, elements = _grouped(weights, axis, pattern)
    chunks = _chunks(grouped.shape)

    def count(share: list[_Chunk]) -> _Counter:
        counter = _Counter(elements, pattern, grouped[chunks[0]] if chunks else grouped)
        for chunk in share:
            counter.add(grouped[chunk], row=chunk[0].start, column=chunk[2].start)
        return counter

    tallies = _in_parallel(count, chunks, grouped.nbytes)
    found = [tally.first for tally in tallies if tally.first is not None]
    first = None
    if found:
        row, column = min(found)
        flat = row * pattern.m * grouped.shape[2] + column
        first = tuple(int(i) for i in np.unravel_index(flat, weights.shape))
    violating = sum(tally.violating for tally in tallies)
    zeros = weights.size - sum(tally.nonzero for tally in tallies)
    return GroupCount(weights.size // pattern.m, violating, first, zeros)


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
    grouped, elements = _grouped(weights, axis, pattern)
    bits = grouped.view(f"u{grouped.dtype.itemsize}")
    mask = np.empty(grouped.shape, np.bool_)

    def fill(chunks: list[_Chunk]) -> None:
        for chunk in chunks:
            mask[chunk] = _kept(elements.magnitude(bits[chunk]), pattern.n).transpose(1, 0, 2)

    _in_parallel(fill, _chunks(grouped.shape), grouped.nbytes * _PRUNE_COST)
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
    if m > 4:
        raise PatternError("two axes at once are only searched for M up to 4", got=str(pattern))
    for axis in axes:
        _grouped(weights, axis, pattern)
    moved = np.moveaxis(weights, axes, (-2, -1))
    *batch, height, width = moved.shape
    blocks = moved.reshape(*batch, height // m, m, width // m, m).swapaxes(-3, -2)
    magnitude = np.abs(blocks.astype(np.float64)).reshape(-1, m * m)
    largest = np.finfo(np.float64).max / (m * m)  # stands for inf and NaN, so that sums stay finite
    magnitude = np.minimum(np.nan_to_num(magnitude, nan=largest, posinf=largest), largest)
    candidates = _two_axis_candidates(m, pattern.n)
    pieces = np.array_split(magnitude, len(magnitude) // _CHUNK + 1)
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
    elements = _elements_of(weights)
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
    grouped, elements = _grouped(weights, axis, pattern)

    def prune(chunks: list[_Chunk]) -> int:
        return sum(_prune_chunk(grouped[chunk], elements, pattern) for chunk in chunks)

    return sum(_in_parallel(prune, _chunks(grouped.shape), grouped.nbytes * _PRUNE_COST))


_Chunk = tuple[slice, slice, slice]  # of rows, elements (all) and inner columns; the first is the largest


@dataclass(frozen=True)
class _Elements:
    """How elements of one data type are tested and compared, as integers of their own width.

    Attributes:
        view: The numpy type to look at them as.
        shift: Bits to shift out at the top before testing for zero: the sign of a float, the unused half of a 4-bit
            integer's byte.
        sign: The sign bit of a float, else 0.
        signed: Two's complement: the magnitude is the absolute value.
    """

    view: str
    shift: int = 0
    sign: int = 0
    signed: bool = False

    def nonzero(self, chunk: np.ndarray, out: np.ndarray, scratch: np.ndarray | None = None) -> None:
        if self.shift:
            chunk = np.multiply(chunk, np.array(1 << self.shift, chunk.dtype), out=scratch)
        np.not_equal(chunk, 0, out=out)

    def magnitude(self, bits: np.ndarray) -> np.ndarray:
        """Unsigned integers in the order of magnitude, ``(rows, m, inner)`` to contiguous ``(m, rows, inner)``."""
        rows, m, inner = bits.shape
        out = np.empty((m, rows, inner), bits.dtype)
        source = bits.transpose(1, 0, 2)
        if not self.signed:
            np.bitwise_and(source, np.array(~self.sign & (256**bits.itemsize - 1), bits.dtype), out=out)
            return out
        signed = out.view(f"i{bits.itemsize}")
        np.multiply(source, np.array(1 << self.shift, bits.dtype), out=out)
        np.abs(signed, out=signed)  # the lowest value stays negative, which is the largest when unsigned: right
        return out


_ELEMENTS = {
    "float64": _Elements("f8", sign=1 << 63),  # numpy's own comparison handles -0.0 at full speed
    "float32": _Elements("f4", sign=1 << 31),
    "float16": _Elements("u2", sign=1 << 15, shift=1),
    "bfloat16": _Elements("u2", sign=1 << 15, shift=1),
    "float8_e4m3fn": _Elements("u1", sign=1 << 7, shift=1),
    "float8_e5m2": _Elements("u1", sign=1 << 7, shift=1),
    "int4": _Elements("u1", shift=4, signed=True),
    "uint4": _Elements("u1"),
    **{f"int{bits}": _Elements(f"i{bits // 8}", signed=True) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": _Elements(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
}


def _elements_of(weights: np.ndarray) -> _Elements:
    elements = _ELEMENTS.get(str(weights.dtype))
    if elements is None:
        raise PatternError(
            "weights of this type cannot be judged", got=str(weights.dtype), expected=", ".join(_ELEMENTS)
        )
    return elements


def _grouped(weights: np.ndarray, axis: int, pattern: Pattern) -> tuple[np.ndarray, _Elements]:
    """The array's elements as ``(rows, m, inner)``, a view when it is C-contiguous, and how to handle them."""
    elements = _elements_of(weights)
    if not -weights.ndim <= axis < weights.ndim:
        raise PatternError("the array has no such axis", got=f"axis {axis}", expected=f"one of {weights.ndim} axes")
    axis %= weights.ndim
    length = weights.shape[axis]
    if length % pattern.m:
        raise PatternError(
            f"the reduction axis is not a multiple of {pattern.m} long",
            got=f"{length} elements along axis {axis} of {weights.shape}",
        )
    inner = math.prod(weights.shape[axis + 1 :])
    rows = weights.size // (pattern.m * inner) if inner else 0
    contiguous = np.ascontiguousarray(weights)
    return contiguous.view(elements.view).reshape(rows, pattern.m, inner), elements


def _chunks(shape: tuple[int, ...]) -> list[_Chunk]:
    """Pieces of about `_CHUNK` elements: whole rows, or columns of one row where rows are longer."""
    rows, m, inner = shape
    whole = slice(None)
    if m * inner > _CHUNK:
        step = max(_CHUNK // m, 1)
        columns = [slice(start, min(start + step, inner)) for start in range(0, inner, step)]
        return [(slice(row, row + 1), whole, column) for row in range(rows) for column in columns]
    step = max(_CHUNK // max(m * inner, 1), 1)
    return [(slice(start, min(start + step, rows)), whole, slice(0, inner)) for start in range(0, rows, step)]


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="trtsparse-pattern")


def _in_parallel(work: Callable[[list[_Chunk]], _Result], chunks: list[_Chunk], cost: int) -> list[_Result]:
    """Call ``work`` on contiguous shares of the chunks, on several threads when there is enough to do.

    numpy lets other threads run while it computes. ``cost`` is in bytes of a plain pass over memory.
    """
    if cost < _PARALLEL_COST or len(chunks) < 2:
        return [work(chunks)]
    share = -(-len(chunks) // (4 * _threads()))  # several shares each even out the load
    return list(_pool().map(work, [chunks[start : start + share] for start in range(0, len(chunks), share)]))


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Counter:
    """Counts violating groups chunk by chunk, in scratch memory that stays in the cache.

    Attributes:
        violating: Groups with more than n non-zeros so far.
        nonzero: Non-zero elements so far.
        first: Row and column of the first violating group, in the order of the chunks.
    """

    def __init__(self, elements: _Elements, pattern: Pattern, chunk: np.ndarray) -> None:
        chunk_size = chunk.size
        self.violating = 0
        self.nonzero = 0
        self.first: tuple[int, int] | None = None
        self._elements = elements
        self._pattern = pattern
        self._shifted = np.empty(chunk_size if elements.shift else 0, chunk.dtype)
        self._nonzero = np.empty(chunk_size, np.bool_)
        self._sums = np.empty(chunk_size, np.uint8)
        self._limits = np.empty(0, np.uint8)
        self._limits_inner = 0

    def add(self, chunk: np.ndarray, row: int, column: int) -> None:
        """Count one chunk ``(rows, m, inner)`` that begins at this row and inner column."""
        nonzero = self._nonzero[: chunk.size].reshape(chunk.shape)
        shifted = self._shifted[: chunk.size].reshape(chunk.shape) if self._elements.shift else None
        self._elements.nonzero(chunk, nonzero, shifted)
        count = int(np.count_nonzero(nonzero))
        self.nonzero += count
        if count == chunk.size:  # a dense chunk: every group has m > n non-zeros
            self.violating += count // chunk.shape[1]
            self.first = self.first or (row, column)
            return
        violating = self._violating(nonzero)
        count = int(np.count_nonzero(violating))
        if count and self.first is None:
            flat = int(np.argmax(violating.reshape(-1)))
            stride = violating.size // chunk.shape[0]  # inner, or m * inner where only each first element can be True
            self.first = (row + flat // stride, column + flat % stride)
        self.violating += count

    def _violating(self, nonzero: np.ndarray) -> np.ndarray:
        """True once for every group with more than n non-zeros, as ``(rows, inner)`` or ``(rows, m * inner)``."""
        rows, m, inner = nonzero.shape
        limit = self._pattern.n
        if inner == 1 and m == 4:  # four booleans are one word; the product's top byte is their sum
            words = nonzero.reshape(-1).view(np.uint32)
            np.multiply(words, np.uint32(0x01010101), out=words)
            over: np.ndarray = np.greater_equal(words, np.uint32((limit + 1) << 24))
            return over
        counts = nonzero.view(np.uint8)
        if inner >= _INNER_SHORT:
            sums = self._sums[: rows * inner].reshape(rows, inner)
            np.add(counts[:, 0], counts[:, 1], out=sums)
            for element in range(2, m):
                np.add(sums, counts[:, element], out=sums)
            np.greater(sums, limit, out=sums.view(np.bool_))
            return sums.view(np.bool_)
        flat = counts.reshape(-1)  # short runs: add the flat array to itself, shifted; sums stand at first elements
        sums = self._sums[: flat.size]
        valid = flat.size - (m - 1) * inner
        np.add(flat[:-inner], flat[inner:], out=sums[:-inner])
        if m == 4:
            np.add(sums[:valid], sums[2 * inner : 2 * inner + valid], out=flat[:valid])
            sums = flat
        else:
            for element in range(2, m):
                np.add(sums[:valid], flat[element * inner : element * inner + valid], out=sums[:valid])
        if inner != self._limits_inner:  # the last piece of a long row is narrower than the others
            period = np.full((m, inner), 255, np.uint8)  # no sum of m booleans is larger
            period[0] = limit
            self._limits, self._limits_inner = np.resize(period, self._sums.size), inner
        violating: np.ndarray = sums.view(np.bool_)
        np.greater(sums, self._limits[: flat.size], out=violating)
        return violating


def _kept(magnitude: np.ndarray, n: int) -> np.ndarray:
    """Which of ``(m, ...)`` magnitudes are among the n largest along the first axis; ties go to the lower index.

    Each pair is compared once: an element is kept when fewer than n others beat it.
    """
    m = len(magnitude)
    beaten = np.empty(magnitude.shape, np.uint8)
    for index in range(m):
        beaten[index] = m - 1 - index  # by every later one, until it wins the comparison
    for first, second in itertools.combinations(range(m), 2):
        wins = np.greater_equal(magnitude[first], magnitude[second]).view(np.uint8)
        np.subtract(beaten[first], wins, out=beaten[first])
        np.add(beaten[second], wins, out=beaten[second])
    return np.less(beaten, n)


def _prune_chunk(chunk: np.ndarray, elements: _Elements, pattern: Pattern) -> int:
    bits = chunk.view(f"u{chunk.dtype.itemsize}")
    magnitude = elements.magnitude(bits)
    kept = _kept(magnitude, pattern.n)
    dropped = np.greater(np.not_equal(magnitude, 0), kept)
    transposed = bits.transpose(1, 0, 2)
    np.multiply(transposed, kept, out=transposed)
    return int(np.count_nonzero(dropped))


def _two_axis_candidates(m: int, n: int) -> np.ndarray:
    """All m x m 0/1 matrices with n ones in each row and column, flattened: ``(count, m * m)``."""
    rows = [row for row in itertools.product((0, 1), repeat=m) if sum(row) == n]
    found = [
        np.array(matrix).reshape(-1)
        for matrix in itertools.product(rows, repeat=m)
        if all(sum(column) == n for column in zip(*matrix, strict=True))
    ]
    return np.array(found, np.bool_)
