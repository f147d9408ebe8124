"""Second moments of a layer's input, gathered piece by piece in float64: how many, the mean, and X X^T."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.accuracy.algebra import NUMPY, Algebra
from trtsparse.errors import FeedError

__all__ = ["Moments", "output_error"]


@dataclass
class Moments:
    """Sums over the rows that a layer multiplies its weights with.

    Attributes:
        columns: How many inputs one output adds up: C.
        algebra: Where the sums are.
        count: Rows so far.
    """

    columns: int
    algebra: Algebra = NUMPY
    count: int = 0

    def __post_init__(self) -> None:
        self._sum = self.algebra.zeros(self.columns)
        self._gram = self.algebra.zeros(self.columns, self.columns)

    def add(self, rows: np.ndarray, *, name: str = "") -> None:
        """Take more rows.

        Args:
            rows: (N, C), any float type.
            name: What an error message calls the values.

        Raises:
            FeedError: A value is NaN or infinite.
        """
        values = self.algebra.put(rows)
        total = values.sum(0)
        if not math.isfinite(float(total.sum())) and not np.isfinite(rows).all():
            raise FeedError(
                "a value is not a finite number while calibrating",
                where=f"tensor {name!r}",
                got="NaN" if np.isnan(rows).any() else "infinity",
                fix="look at the calibration data, or exclude the layers that read this tensor",
            )
        self._gram += values.T @ values
        self._sum += total
        self.count += len(rows)

    @property
    def mean(self) -> Any:
        """The mean row (C,)."""
        return self._sum / max(self.count, 1)

    def gram(self, *, centred: bool = False) -> Any:
        """The mean of x x^T, (C, C).

        Args:
            centred: Less the mean's own: the covariance. What is left when a bias makes up for the mean.
        """
        whole = self._gram / max(self.count, 1)
        return whole - self.mean[:, None] * self.mean[None, :] if centred else whole

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows."""
        both = Moments(self.columns, self.algebra, self.count + other.count)
        both._sum = self._sum + other._sum
        both._gram = self._gram + other._gram
        return both


def output_error(
    weights: np.ndarray, pruned: np.ndarray, moments: Sequence[Moments], *, centred: bool = False
) -> float:
    """How far a layer's output moves: ``||(W - W') X|| / ||W X||``; 0 where it does not, infinite where W X is 0.

    Args:
        weights: The original (B, R, C).
        pruned: What replaces it (B, R, C).
        moments: Of the layer's input, for each of B.
        centred: The mean shift is made up for by a bias.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(np.array([[3.0, 0], [0, 4]]))
        >>> output_error(np.array([[[1.0, 1]]]), np.array([[[1.0, 0]]]), [moments])
        0.8
    """
    moved = sum(_power(w - p, m, centred=centred) for w, p, m in zip(weights, pruned, moments, strict=True))
    power = sum(_power(w, m, centred=False) for w, m in zip(weights, moments, strict=True))
    if moved <= 0:
        return 0.0
    return math.sqrt(moved / power) if power > 0 else math.inf


def _power(matrix: np.ndarray, moments: Moments, *, centred: bool) -> float:
    """The mean square of a product with the input, summed over the outputs."""
    rows = moments.algebra.put(matrix)
    return float(((rows @ moments.gram(centred=centred)) * rows).sum())
