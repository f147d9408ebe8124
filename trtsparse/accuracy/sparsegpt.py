"""SparseGPT / optimal brain surgeon: choose what to drop group by group, and let the other weights make up for it.

The order of the work is that of "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (Frantar
and Alistarh, 2023): columns from left to right, each group's choice made on weights that earlier groups have updated,
the inverse of the remaining columns' second moments read off one Cholesky factor. Two steps differ. The choice in a
group is the best of all its patterns together (the paper ranks single weights). And when all choices are made, every
row's remaining weights are fitted once more, all of them together; in one pass from the left the first groups could
not answer to what the last ones dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from trtsparse.accuracy.algebra import Algebra
from trtsparse.accuracy.moments import Moments
from trtsparse.errors import PruneError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern

__all__ = ["Solution", "refit", "sparsegpt"]

_BLOCK = 128  # columns updated at once
_PATTERNS = 70  # of a group, searched together: up to 4:8
_ELEMENTS = 1 << 22  # of the rows solved at once
_STEPS = 30  # of the fit: on PP-OCR's layers the error is then within 0.1 % of its limit
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Solution:
    """A pruned matrix.

    Attributes:
        weights: (R, C) float64.
        damping: What was added to the diagonal, relative to its mean.
    """

    weights: np.ndarray
    damping: float


def sparsegpt(
    weights: np.ndarray,
    moments: Moments,
    *,
    pattern: Pattern = TWO_FOUR,
    damping: float = 0.01,
    centred: bool = False,
    fit: bool = True,
) -> Solution:
    """Prune a matrix so that its output on the calibration data moves least.

    Args:
        weights: (R, C) float64, groups along the last axis.
        moments: Of the input, C columns.
        pattern: N:M.
        damping: Added to the diagonal of the second moments, relative to its mean; ten times more, and again, while
            the matrix is not positive definite. Keeps weights of channels that calibration hardly saw near their
            values.
        centred: Weights need not keep the mean output: a bias will.
        fit: Fit the remaining weights of each row together when all choices are made.

    Raises:
        PruneError: The second moments are not positive definite with any damping.

    Example:
        >>> moments = Moments(4)
        >>> moments.add(np.array([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))  # the first two are always equal
        >>> sparsegpt(np.array([[3.0, 3, 1, 4]]), moments, damping=1e-9).weights.round(3).tolist()
        [[6.0, 0.0, 0.0, 4.0]]
    """
    algebra = moments.algebra
    gram, inverse, used = _damped(moments.gram(centred=centred), damping, algebra)
    step = max(1, _ELEMENTS // weights.shape[1])
    pieces = []
    for start in range(0, len(weights), step):
        rows = algebra.put(weights[start : start + step])
        pruned = _choose(rows, inverse, pattern, algebra)
        if fit:
            pruned = refit(rows, pruned, gram)
        pieces.append(algebra.get(pruned))
    return Solution(np.concatenate(pieces), used)


def refit(target: Any, start: Any, gram: Any, *, steps: int = _STEPS, tolerance: float = _TOLERANCE) -> Any:
    """Fit the non-zero weights of every row by least squares, with conjugate gradients from where they are.

    The distance ``tr((T - W) G (T - W)^T)`` never grows; enough steps reach the closed-form solution.

    Args:
        target: The dense matrix T (R, C).
        start: A sparse matrix (R, C), whose zeros stay.
        gram: Symmetric, positive definite (C, C).
        steps: At most so many.
        tolerance: Stop when the gradient of every row, scaled by the diagonal, is this fraction of what it was.

    Returns:
        The fitted matrix W.
    """
    free = start != 0
    weights = start + 0.0
    scale = gram.diagonal()
    left = ((target - weights) @ gram) * free
    step = left / scale
    power = (left * step).sum(1)
    limit = power * tolerance**2
    for _ in range(steps):
        if not bool((power > limit).any()):
            break
        moved = (step @ gram) * free
        length = power / _or_one((step * moved).sum(1))
        weights = weights + length[:, None] * step
        left = left - length[:, None] * moved
        scaled = left / scale
        now = (left * scaled).sum(1)
        step = scaled + (now / _or_one(power))[:, None] * step
        power = now
    return weights


def _or_one(values: Any) -> Any:
    """The values, with 1 for 0: what is divided there is 0 too."""
    return values + (values == 0)


def _damped(gram: Any, damping: float, algebra: Algebra) -> tuple[Any, Any, float]:
    """The damped moments, the upper triangular U with ``U^T U`` their inverse, and the damping it took."""
    mean = float(gram.diagonal().mean())
    if not mean > 0:  # nothing ever came in: all directions count the same
        mean = 1.0
    used = damping
    while used <= 1e3:
        tried = gram + 0.0
        index = np.arange(len(tried))
        tried[index, index] += used * mean
        try:
            inverse = _inverse_factor(tried, algebra)
        except algebra.xp.linalg.LinAlgError:
            inverse = None
        if inverse is not None and math.isfinite(float(abs(inverse).max())):
            return tried, inverse, used
        used = max(10 * used, 1e-8)
    raise PruneError("the second moments are not positive definite, however damped", got=f"mean diagonal {mean:.3g}")


def _inverse_factor(gram: Any, algebra: Algebra) -> Any:
    """Upper triangular U with ``U^T U = gram^-1``; ``U[i:, i:]`` is that of ``gram[i:, i:]``."""
    xp = algebra.xp
    lower = xp.linalg.cholesky(xp.flip(gram, (0, 1)))
    return xp.linalg.inv(xp.flip(lower, (0, 1)))


def _choose(weights: Any, inverse: Any, pattern: Pattern, algebra: Algebra) -> Any:
    """Drop weights from left to right; what is to their right makes up for it, a block at a time."""
    m, columns = pattern.m, weights.shape[1]
    weights = weights + 0.0
    block = -(-_BLOCK // m) * m
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        carried = weights[:, start:stop] * 0
        for i in range(start, stop, m):
            corner = inverse[i : i + m, i : i + m]
            removed, kept = _best(weights[:, i : i + m], corner.T @ corner, pattern, algebra)
            moved = removed @ corner.T
            carried[:, i - start : i - start + m] = moved
            weights[:, i:stop] -= moved @ inverse[i : i + m, i:stop]
            weights[:, i : i + m] *= kept
        weights[:, stop:] -= carried @ inverse[start:stop, stop:]
    return weights


def _best(group: Any, inverse: Any, pattern: Pattern, algebra: Algebra) -> tuple[Any, Any]:
    """What to drop in each row of a group: multipliers (R, M), not zero only where dropped, and what is kept.

    Dropping the set S costs ``w_S (F_SS)^-1 w_S`` and moves all weights by ``-(F_SS)^-1 w_S`` times rows S of F, the
    inverse of the remaining columns' moments. Of equal costs, the one that drops the later weights is taken.
    """
    xp, dropped = algebra.xp, pattern.m - pattern.n
    if math.comb(pattern.m, dropped) > _PATTERNS:
        return _ranked(group, inverse, dropped, algebra)
    sets = [list(chosen) for chosen in combinations(range(pattern.m), dropped)][::-1]
    kept = np.ones((len(sets), pattern.m))
    costs, multipliers = [], []
    for number, chosen in enumerate(sets):
        kept[number, chosen] = 0
        values = group[:, chosen]
        solved = values @ xp.linalg.inv(inverse[chosen][:, chosen])
        costs.append((solved * values).sum(1))
        whole = group * 0
        whole[:, chosen] = solved
        multipliers.append(whole)
    best = xp.stack(costs).argmin(0)
    return xp.stack(multipliers)[best, xp.arange(len(group))], algebra.put(kept)[best]


def _ranked(group: Any, inverse: Any, dropped: int, algebra: Algebra) -> tuple[Any, Any]:
    """As `_best`, for groups with too many patterns: what each weight alone would cost decides, as in the paper."""
    xp = algebra.xp
    chosen = (group**2 / inverse.diagonal()).argsort(1)[:, :dropped]
    rows = xp.arange(len(group))[:, None]
    values = group[rows, chosen]
    solved = xp.linalg.solve(inverse[chosen[:, :, None], chosen[:, None, :]], values[:, :, None])[:, :, 0]
    multipliers, kept = group * 0, group * 0 + 1
    multipliers[rows, chosen] = solved
    kept[rows, chosen] = 0
    return multipliers, kept
