"""The range of numbers that INT8 should cover, from values seen in calibration: minmax, percentile or entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trtsparse.precision.observe import Observer

__all__ = ["METHODS", "Histogram", "measure_ranges"]

METHODS = ("minmax", "entropy", "percentile")

_BINS = 2048
_LEVELS = 128  # magnitudes of a symmetric INT8
_STEP = 16
_PERCENTILE = 99.99


class Histogram:
    """How often magnitudes occur, gathered array by array in constant memory.

    The bins cover 0 to a largest magnitude; when a larger one comes, the range doubles and pairs of bins are merged.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.range = 0.0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the finite values of an array."""
        magnitudes = np.abs(values[np.isfinite(values)])
        largest = float(magnitudes.max()) if magnitudes.size else 0.0
        self.largest = max(self.largest, largest)
        if not self.range:
            self.range = largest
        if not self.range:
            self.counts[0] += magnitudes.size
            return
        while largest > self.range:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate((merged, np.zeros(_BINS // 2, np.int64)))
            self.range *= 2
        self.counts += np.histogram(magnitudes, _BINS, (0.0, self.range))[0]

    def threshold(self, method: str) -> float:
        """The largest magnitude that INT8 should represent; larger ones are clipped.

        "minmax" is the largest seen, "percentile" leaves out 0.01 % of the values, "entropy" loses least information
        (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
        """
        if method == "minmax" or not self.range:
            return self.largest
        width = self.range / _BINS
        if method == "percentile":
            share = np.cumsum(self.counts) / max(int(self.counts.sum()), 1)
            bins = int(np.searchsorted(share, _PERCENTILE / 100)) + 1
        else:
            bins = _least_divergent(self.counts.astype(np.float64))
        return min(bins * width, self.largest)


def measure_ranges(observer: Observer, feeds: Iterable[Mapping[str, np.ndarray]], *, method: str) -> dict[str, float]:
    """The threshold of each value that the observer gives, over all feeds.

    Args:
        observer: Of the model in float32.
        feeds: Calibration data, gone through once.
        method: One of `METHODS`.
    """
    histograms: dict[str, Histogram] = {}
    for feed in feeds:
        for name, value in observer.run(feed):
            histograms.setdefault(name, Histogram()).add(value)
    return {name: histogram.threshold(method) for name, histogram in histograms.items()}


def _least_divergent(counts: NDArray[np.float64]) -> int:
    """The number of bins to keep so that the quantized distribution diverges least from the real one."""
    counts = counts.copy()
    counts[0] = 0.0  # exact zeros, which rectifiers make in masses, are represented by any scale
    used = int(np.flatnonzero(counts).max(initial=0)) + 1
    candidates: list[int] = [*range(_LEVELS, used, _STEP), max(used, _LEVELS)]
    return min(candidates, key=lambda bins: _divergence(counts, bins))


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Kullback-Leibler divergence of ``bins`` bins, quantized to 128 levels, from the distribution clipped there."""
    kept = counts[:bins]
    real = kept.copy()
    real[-1] += counts[bins:].sum()
    level = np.arange(bins) * _LEVELS // bins
    occupied = kept > 0
    totals = np.bincount(level, kept, _LEVELS)
    shares = np.bincount(level, occupied, _LEVELS)
    quantized = np.where(occupied, totals[level] / np.maximum(shares[level], 1), 0.0)
    if not quantized.sum() or not real.sum():
        return np.inf
    p, q = real / real.sum(), quantized / quantized.sum()
    shared = p > 0
    return float(np.sum(p[shared] * np.log(p[shared] / np.maximum(q[shared], 1e-12))))
