"""The inner loops of N:M arithmetic: numpy on pieces that stay in the processor's cache, several pieces at a time.

An array is seen as ``(rows, m, inner)``: a row holds ``inner`` groups whose ``m`` elements lie ``inner`` apart. That
covers every axis of a C-contiguous array without a copy.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trtsparse.errors import PatternError

__all__ = [
    "PRUNE_COST",
    "Chunk",
    "Counter",
    "Elements",
    "checked_axis",
    "chunks_of",
    "elements_of",
    "grouped_view",
    "in_parallel",
    "kept",
    "prune_chunk",
    "two_axis_candidates",
]

CHUNK = 1 << 19  # elements: the scratch stays in the cache, and threads hand over rarely
PARALLEL_COST = 1 << 24  # bytes read: below this handing work to threads costs more than it gains
PRUNE_COST = 3  # of pruning a byte: more than of counting it, but threads need larger pieces to gain
_MOST_THREADS = 16
_INNER_SHORT = 64  # shorter inner runs are handled by shifting the flat array instead of slicing it

_Result = TypeVar("_Result")
Chunk = tuple[slice, slice, slice]  # of rows, elements (all) and inner columns; the first is the largest


@dataclass(frozen=True)
class Elements:
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
        """Write True to ``out`` where the element is not zero; ``scratch`` is of the chunk's type and shape."""
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


_BY_DTYPE = {
    "float64": Elements("f8", sign=1 << 63),  # numpy's own comparison handles -0.0 at full speed
    "float32": Elements("f4", sign=1 << 31),
    "float16": Elements("u2", sign=1 << 15, shift=1),
    "bfloat16": Elements("u2", sign=1 << 15, shift=1),
    "float8_e4m3fn": Elements("u1", sign=1 << 7, shift=1),
    "float8_e5m2": Elements("u1", sign=1 << 7, shift=1),
    "int4": Elements("u1", shift=4, signed=True),
    "uint4": Elements("u1"),
    **{f"int{bits}": Elements(f"i{bits // 8}", signed=True) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": Elements(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
}


def elements_of(weights: np.ndarray) -> Elements:
    """How to handle elements of this array's type.

    Raises:
        PatternError: The type is none of those.
    """
    elements = _BY_DTYPE.get(str(weights.dtype))
    if elements is None:
        raise PatternError(
            "weights of this type cannot be judged", got=str(weights.dtype), expected=", ".join(_BY_DTYPE)
        )
    return elements


def checked_axis(shape: tuple[int, ...], axis: int, m: int) -> int:
    """The reduction axis, counted from the front.

    Raises:
        PatternError: It does not exist, or its length is not a multiple of ``m``.
    """
    if not -len(shape) <= axis < len(shape):
        raise PatternError("the weight has no such axis", got=f"axis {axis}", expected=f"one of {len(shape)} axes")
    axis %= len(shape)
    if shape[axis] % m:
        raise PatternError(
            f"the reduction axis is not a multiple of {m} long",
            got=f"{shape[axis]} elements along axis {axis} of {tuple(shape)}",
        )
    return axis


def grouped_view(weights: np.ndarray, axis: int, m: int) -> tuple[np.ndarray, Elements]:
    """The array's elements as ``(rows, m, inner)``, a view when it is C-contiguous, and how to handle them."""
    elements = elements_of(weights)
    axis = checked_axis(weights.shape, axis, m)
    inner = math.prod(weights.shape[axis + 1 :])
    rows = weights.size // (m * inner) if inner else 0
    contiguous = np.ascontiguousarray(weights)
    return contiguous.view(elements.view).reshape(rows, m, inner), elements


def chunks_of(shape: tuple[int, ...]) -> list[Chunk]:
    """Pieces of about `CHUNK` elements: whole rows, or columns of one row where rows are longer."""
    rows, m, inner = shape
    whole = slice(None)
    if m * inner > CHUNK:
        step = max(CHUNK // m, 1)
        columns = [slice(start, min(start + step, inner)) for start in range(0, inner, step)]
        return [(slice(row, row + 1), whole, column) for row in range(rows) for column in columns]
    step = max(CHUNK // max(m * inner, 1), 1)
    return [(slice(start, min(start + step, rows)), whole, slice(0, inner)) for start in range(0, rows, step)]


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="trtsparse-pattern")


def in_parallel(work: Callable[[Iterable[Chunk]], _Result], chunks: list[Chunk], cost: int) -> list[_Result]:
    """Call ``work`` with the chunks, or on several threads, each with the chunks that it comes to take.

    numpy lets other threads run while it computes. ``cost`` is in bytes of a plain pass over memory.
    """
    if cost < PARALLEL_COST or len(chunks) < 2:
        return [work(chunks)]
    shared = iter(chunks)  # taking the next of a list is one step that no other thread can interrupt
    return list(_pool().map(work, [shared] * _threads()))


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Scratch(threading.local):
    """Memory that each thread keeps for the next array: fresh memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        nbytes = size * dtype.itemsize
        kept = self._kept.get(name)
        if kept is None or kept.nbytes < nbytes:
            kept = self._kept[name] = np.empty(nbytes, np.uint8)
        return kept[:nbytes].view(dtype)


_scratch = _Scratch()


class Counter:
    """Counts violating groups chunk by chunk, in scratch memory that stays in the cache.

    Attributes:
        violating: Groups with more than n non-zeros so far.
        nonzero: Non-zero elements so far.
        first: Row and column of the first violating group, in the order of the chunks.
    """

    def __init__(self, elements: Elements, n: int, chunk: np.ndarray) -> None:
        chunk_size = chunk.size
        self.violating = 0
        self.nonzero = 0
        self.first: tuple[int, int] | None = None
        self._elements = elements
        self._n = n
        self._shifted = _scratch.take("shifted", chunk_size if elements.shift else 0, chunk.dtype)
        self._nonzero = _scratch.take("nonzero", chunk_size, np.dtype(np.bool_))
        self._sums = _scratch.take("sums", chunk_size, np.dtype(np.uint8))
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
        m, inner = nonzero.shape[1:]
        if inner == 1 and m == 4:  # four booleans are one word; the product's top byte is their sum
            words = nonzero.reshape(-1).view(np.uint32)
            np.multiply(words, np.uint32(0x01010101), out=words)
            over: np.ndarray = np.greater_equal(words, np.uint32((self._n + 1) << 24))
            return over
        counts = nonzero.view(np.uint8)
        return self._add_slices(counts) if inner >= _INNER_SHORT else self._add_shifted(counts)

    def _add_slices(self, counts: np.ndarray) -> np.ndarray:
        """Long inner runs: add the m slices."""
        rows, m, inner = counts.shape
        sums = self._sums[: rows * inner].reshape(rows, inner)
        np.add(counts[:, 0], counts[:, 1], out=sums)
        for element in range(2, m):
            np.add(sums, counts[:, element], out=sums)
        violating: np.ndarray = sums.view(np.bool_)
        np.greater(sums, self._n, out=violating)
        return violating

    def _add_shifted(self, counts: np.ndarray) -> np.ndarray:
        """Short inner runs: add the flat array to itself, shifted; the sums stand at the groups' first elements."""
        m, inner = counts.shape[1:]
        flat = counts.reshape(-1)
        sums: np.ndarray = self._sums[: flat.size]
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
            period[0] = self._n
            self._limits, self._limits_inner = np.resize(period, self._sums.size), inner
        violating: np.ndarray = sums.view(np.bool_)
        np.greater(sums, self._limits[: flat.size], out=violating)
        return violating


def kept(magnitude: np.ndarray, n: int) -> np.ndarray:
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


def prune_chunk(chunk: np.ndarray, elements: Elements, n: int) -> int:
    """Keep the n largest of every group of ``(rows, m, inner)`` in place; return how many non-zeros were dropped."""
    bits = chunk.view(f"u{chunk.dtype.itemsize}")
    magnitude = elements.magnitude(bits)
    keep = kept(magnitude, n)
    dropped = np.greater(np.not_equal(magnitude, 0), keep)
    transposed = bits.transpose(1, 0, 2)
    np.multiply(transposed, keep, out=transposed)
    return int(np.count_nonzero(dropped))


def two_axis_candidates(m: int, n: int) -> np.ndarray:
    """All m x m 0/1 matrices with n ones in each row and column, flattened: ``(count, m * m)``.

    Raises:
        PatternError: There are too many of them: ``m`` is larger than 4.
    """
    if m > 4:
        raise PatternError("two axes at once are only searched for M up to 4", got=f"{n}:{m}")
    rows = [row for row in itertools.product((0, 1), repeat=m) if sum(row) == n]
    found = [
        np.array(matrix).reshape(-1)
        for matrix in itertools.product(rows, repeat=m)
        if all(sum(column) == n for column in zip(*matrix, strict=True))
    ]
    return np.array(found, np.bool_)
