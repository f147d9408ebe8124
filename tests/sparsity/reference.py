"""Pruning written plainly, to compare with."""

import numpy as np


def magnitude_pruned(values, axis, n=2, m=4):
    """Of every ``m`` weights along an axis the ``n`` largest, and zeros."""
    moved = np.moveaxis(np.array(values), axis, -1)
    groups = moved.reshape(-1, m).copy()
    for group in groups:
        order = sorted(range(m), key=lambda i: (-abs(float(group[i])), i))
        group[order[n:]] = 0
    return np.moveaxis(groups.reshape(moved.shape), -1, axis)
