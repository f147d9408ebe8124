"""Wanda: keep the weights with the largest ``|w| * ||x||``, and leave their values as they are.

The rule is that of "A Simple and Effective Pruning Approach for Large Language Models" (Sun et al., 2023).
"""

from __future__ import annotations

import numpy as np

from trtsparse.accuracy.moments import Moments
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern, keep_mask

__all__ = ["wanda"]


def wanda(weights: np.ndarray, moments: Moments, *, pattern: Pattern = TWO_FOUR) -> np.ndarray:
    """Prune a matrix by weight times the norm of its input channel.

    Channels that were always zero in calibration are dropped first; among several of them magnitude decides.

    Args:
        weights: (R, C) float64, groups along the last axis.
        moments: Of the input, C columns.
        pattern: N:M.

    Returns:
        The pruned matrix, float64.

    Example:
        >>> moments = Moments(4)
        >>> moments.add(np.array([[9.0, 1, 1, 1]]))
        >>> wanda(np.array([[1.0, 2, 3, 4]]), moments).tolist()
        [[1.0, 0.0, 0.0, 4.0]]
    """
    norms = np.sqrt(np.diag(moments.algebra.get(moments.gram())))
    largest = norms.max(initial=0.0)
    norms = np.maximum(norms, largest * 1e-9) if largest > 0 else np.ones_like(norms)
    return np.where(keep_mask(np.abs(weights) * norms, axis=1, pattern=pattern), weights, 0.0)
