"""Random operands, and what a product of them should be in float64.

To fill a large matrix with random numbers takes seconds on the host. So a matrix is one random block, repeated on
the device. Its length is 4 times a prime, so that rows of usual lengths do not repeat; any row can be computed here.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.tune.gemm import DataType, Gemm

__all__ = ["Check", "Matrix", "Reference", "gelu_scale", "poison", "random_block", "scale"]

_PERIOD = 4 * 2_097_143  # groups of four; the factor is a prime
_ROWS, _COLUMNS = 64, 512
_INT8_DEVIATION = 24.0
_GELU_DEVIATION = 1.5
"""Of what a GELU gets, so that it bends it."""


@functools.cache
def _normals(kind: DataType) -> np.ndarray:
    """Normally distributed values of a type, one for each of the 2^16 numbers that select them."""
    values = np.random.default_rng(0).standard_normal(1 << 16)
    if kind.exact:
        return np.clip(np.rint(values * _INT8_DEVIATION), -127, 127).astype(kind.numpy)
    return values.astype(kind.numpy)


@functools.cache
def _masks(n: int, m: int) -> np.ndarray:
    """Every way to keep N of M, as rows of booleans."""
    rows = [[bool(bits >> at & 1) for at in range(m)] for bits in range(1 << m) if bits.bit_count() == n]
    return np.array(rows)


def random_block(
    kind: DataType, size: int, *, rng: np.random.Generator, pattern: tuple[int, int] | None = None
) -> np.ndarray:
    """Normally distributed values, N:M sparse where a pattern is given.

    Args:
        kind: Their type.
        size: How many; a multiple of M.
        rng: Where they come from.
        pattern: N and M.

    Returns:
        A vector.

    Example:
        >>> from trtsparse.tune.gemm import DTYPES
        >>> block = random_block(DTYPES["bf16"], 8, rng=np.random.default_rng(1), pattern=(2, 4))
        >>> block.dtype, [int(count) for count in (block.reshape(-1, 4) != 0).sum(axis=1)]
        (dtype(bfloat16), [2, 2])
    """
    block: np.ndarray = _normals(kind)[rng.integers(0, 1 << 16, size, dtype=np.uint16)]
    if pattern is not None:
        masks = _masks(*pattern)
        block[~masks[rng.integers(0, len(masks), size // pattern[1])].reshape(-1)] = 0
    return block


@dataclass(frozen=True)
class Matrix:
    """A matrix that is a block repeated row after row.

    Attributes:
        block: Its first values.
        rows: How many rows it has.
        columns: How many columns.
    """

    block: np.ndarray
    rows: int
    columns: int

    @classmethod
    def random(
        cls,
        kind: DataType,
        rows: int,
        columns: int,
        *,
        rng: np.random.Generator,
        pattern: tuple[int, int] | None = None,
    ) -> Matrix:
        """A random matrix; see `random_block`."""
        return cls(random_block(kind, min(_PERIOD, rows * columns), rng=rng, pattern=pattern), rows, columns)

    @property
    def nbytes(self) -> int:
        """Of the whole matrix."""
        return self.rows * self.columns * int(self.block.itemsize)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, in float64."""
        at = (rows[:, None] * self.columns + np.arange(self.columns)) % self.block.size
        return self.block[at].astype(np.float64)


def scale(gemm: Gemm) -> float:
    """The factor alpha that keeps random products inside the output's range: a power of two, so that it is exact."""
    if gemm.dtype != "int8" or gemm.out_dtype == "int32":
        return 1.0
    deviation = math.sqrt(gemm.k / 2) * _INT8_DEVIATION**2
    wanted = _GELU_DEVIATION if gemm.activation == "gelu" else _INT8_DEVIATION
    return 2.0 ** round(math.log2(wanted / deviation))


def gelu_scale(gemm: Gemm) -> float:
    """The factor after a GELU with which a sparse kernel's INT8 results fill their range; 1 for other products."""
    return 16.0 if gemm.out_dtype == "int8" and gemm.activation == "gelu" else 1.0


@dataclass(frozen=True)
class Check:
    """How far a kernel's output is from the right one.

    Attributes:
        error: Relative, in the Frobenius norm; infinite where values are missing or not finite.
        bound: The most that is right for the types.
        largest: The largest error of one value, relative to the root mean square of all.
    """

    error: float
    bound: float
    largest: float

    @property
    def passed(self) -> bool:
        """Whether the kernel may be used."""
        return self.error <= self.bound and self.largest <= 16 * self.bound


class Reference:
    """The right values of a product at some rows and columns, at least one in every 128 x 128 values of usual sizes.

    Args:
        gemm: The product.
        x: Its activation.
        w: Its weight.
        bias: N values or None.
        c: What is added, or None.
        factor: What results are multiplied by at the end.
    """

    def __init__(
        self,
        gemm: Gemm,
        x: Matrix,
        w: Matrix,
        bias: np.ndarray | None,
        c: Matrix | None = None,
        *,
        factor: float = 1.0,
    ) -> None:
        self.gemm = gemm
        rng = np.random.default_rng()
        self.rows = _spread(gemm.m, _ROWS, rng)
        self.columns = _spread(gemm.n, _COLUMNS, rng)
        values = scale(gemm) * (x.take(self.rows) @ w.take(self.columns).T)
        if bias is not None:
            values += bias[self.columns].astype(np.float64)
        if c is not None:
            values += c.take(self.rows)[:, self.columns]
        self.values = factor * _activated(values, gemm.activation)

    def check(self, y: np.ndarray) -> Check:
        """Compare an output of shape (at least M, N) whose memory was poisoned before."""
        kind, output = self.gemm.input_type, self.gemm.output_type
        got = y[np.ix_(self.rows, self.columns)].astype(np.float64)
        if _unwritten(y[: self.gemm.m], output) or not np.isfinite(got).all():
            return Check(math.inf, 0.0, math.inf)
        wanted = self.values
        if output.exact:
            limits = np.iinfo(output.numpy)
            wanted = np.clip(np.rint(wanted), limits.min, limits.max)
        size = float(np.sqrt(np.mean(np.square(wanted)))) or 1.0
        difference = np.abs(got - wanted)
        error = float(np.sqrt(np.mean(np.square(difference)))) / size
        # INT8 outputs are rounded once more, at ties one way or the other
        bound = (0.05 if self.gemm.out_dtype == "int8" else 0.0) if output.exact else kind.bound + output.rounding
        return Check(error, bound, float(difference.max()) / size)


def poison(output: DataType) -> int:
    """The byte that outputs are filled with: a NaN in every type that has one."""
    return 0x80 if output.exact else 0xFF


def _unwritten(y: np.ndarray, output: DataType) -> bool:
    """Whether any poison is left. One byte of INT8 may be a result: there the sample has to show it."""
    if output.nbytes == 1:
        return False
    bits = y.view(np.uint16 if output.nbytes == 2 else np.uint32)
    mark = int.from_bytes(bytes([poison(output)] * output.nbytes), "little")
    return bool((bits == mark).any())


def _spread(length: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """One random index in each of at most so many equal parts."""
    parts = min(length, most)
    edges = np.linspace(0, length, parts + 1).astype(np.int64)
    chosen: np.ndarray = rng.integers(edges[:-1], edges[1:])
    return chosen


def _activated(values: Any, activation: str) -> Any:
    if activation == "relu":
        return np.maximum(values, 0)
    if activation == "gelu":
        return 0.5 * values * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
    return values
