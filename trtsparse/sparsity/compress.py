"""Compressed form of an N:M array: the kept values, and for each a 2-bit index of its place in the group.

The indices are laid out as in the metadata of NVIDIA's sparse matrix instructions (PTX ISA, "mma.sp"): two 2-bit
indices a group of four, ascending, the first in the low bits. 2:4 FP16 weights take 9/16 of their bytes, INT8 5/8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtsparse.errors import PatternError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern, count_groups, keep_mask

__all__ = ["Compressed", "compress", "decompress"]


@dataclass(frozen=True)
class Compressed:
    """An N:M array without the zeros that the pattern promises.

    Attributes:
        values: ``(..., length * N / M)``: the reduction axis moved to the end, N values a group.
        metadata: uint8, four 2-bit indices a byte in the order of ``values``, the first in the low bits.
        shape: Of the original array.
        axis: The reduction axis in it.
        pattern: N:M.
    """

    values: np.ndarray
    metadata: np.ndarray
    shape: tuple[int, ...]
    axis: int
    pattern: Pattern

    @property
    def nbytes(self) -> int:
        """Bytes of values and metadata."""
        return self.values.nbytes + self.metadata.nbytes


def compress(weights: np.ndarray, *, axis: int, pattern: Pattern = TWO_FOUR) -> Compressed:
    """Drop the zeros that the pattern promises.

    Args:
        weights: Compliant along ``axis``; types as in `trtsparse.sparsity.pattern.count_groups`.
        axis: The reduction axis.
        pattern: N:M with M at most 4.

    Returns:
        Values and 2-bit indices. Groups with fewer than N non-zeros keep some zeros, lower indices first.

    Raises:
        PatternError: A group is violating (the message says where), or M is larger than 4.

    Example:
        >>> compressed = compress(np.array([0.0, 5, 0, 7, 1, 0, 0, 0], np.float32), axis=0)
        >>> compressed.values.tolist(), compressed.metadata.tolist()
        ([5.0, 7.0, 1.0, 0.0], [77])
    """
    if pattern.m > 4:
        raise PatternError("2-bit indices hold M up to 4", got=str(pattern))
    count = count_groups(weights, axis=axis, pattern=pattern)
    if count.violating:
        raise PatternError(
            "cannot compress weights that are not compliant",
            where=f"group at index {count.first}",
            got=f"{count.violating} of {count.groups} groups with more than {pattern.n} non-zeros",
            fix="prune them first",
        )
    moved = np.moveaxis(weights, axis, -1)
    kept = np.ascontiguousarray(np.moveaxis(keep_mask(weights, axis=axis, pattern=pattern), axis, -1))
    length = moved.shape[-1] * pattern.n // pattern.m
    indices = (np.nonzero(kept.reshape(-1))[0] % pattern.m).astype(np.uint8)
    values = np.ascontiguousarray(moved)[kept].reshape(*moved.shape[:-1], length)
    return Compressed(values, _pack(indices), weights.shape, axis % weights.ndim, pattern)


def decompress(compressed: Compressed) -> np.ndarray:
    """The original array; dropped elements are 0.

    Example:
        >>> weights = np.array([0.0, 5, 0, 7], np.float32)
        >>> decompress(compress(weights, axis=0)).tolist()
        [0.0, 5.0, 0.0, 7.0]
    """
    pattern = compressed.pattern
    size = math.prod(compressed.shape)
    indices = _unpack(compressed.metadata, compressed.values.size)
    group = np.arange(compressed.values.size) // pattern.n
    flat = np.zeros(size, compressed.values.dtype)
    flat[group * pattern.m + indices] = compressed.values.reshape(-1)
    axis = compressed.axis
    moved = (*compressed.shape[:axis], *compressed.shape[axis + 1 :], compressed.shape[axis])
    return np.ascontiguousarray(np.moveaxis(flat.reshape(moved), -1, axis))


def _pack(indices: np.ndarray) -> np.ndarray:
    padded = np.zeros((-(-indices.size // 4), 4), np.uint8)
    padded.reshape(-1)[: indices.size] = indices
    packed: np.ndarray = padded[:, 0] | padded[:, 1] << 2 | padded[:, 2] << 4 | padded[:, 3] << 6
    return packed


def _unpack(metadata: np.ndarray, size: int) -> np.ndarray:
    return np.stack([metadata >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(-1)[:size]
