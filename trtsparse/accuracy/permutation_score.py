"""What pruning keeps of the weights that read some channels, in any order of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trtsparse.accuracy.permutation_axes import Axis, indices
from trtsparse.accuracy.permutation_groups import Channels, Layout
from trtsparse.accuracy.permutation_search import BLOCK
from trtsparse.accuracy.permutation_sums import kept_magnitude, largest_kept
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.values import unpack_int4
from trtsparse.sparsity.weights import WeightSite

__all__ = ["Score", "cost", "kept_elsewhere", "sample", "score"]

_SAMPLE = 1 << 22  # elements that a search compares with each other; of larger weights rows are sampled


@dataclass(frozen=True)
class Score:
    """Sums over all weights that read some channels.

    Attributes:
        magnitude: Of all elements; not finite when one of them is not.
        kept: Of those that pruning keeps.
        bound: Of the largest K * N / M of every row.
    """

    magnitude: float
    kept: float
    bound: float


def score(layout: Layout, channels: Channels, *, pattern: Pattern, order: np.ndarray | None = None) -> Score:
    """Sum up what pruning keeps.

    Args:
        layout: Where the weights are.
        channels: The channels.
        pattern: N:M.
        order: A new order of the channels.
    """
    sums = np.zeros(3)
    for block in _blocks(layout, channels):
        ordered = block if order is None else block[:, order]
        with np.errstate(over="ignore", invalid="ignore"):
            sums += (
                block.sum(dtype=np.float64),
                kept_magnitude(ordered, pattern=pattern),
                largest_kept(block, pattern=pattern),
            )
    return Score(*sums.tolist())


def sample(layout: Layout, channels: Channels, *, seed: int = 0) -> np.ndarray:
    """Magnitudes for a search, (rows, channels) float32: all rows, or as many as a search can look at."""
    share = min(1.0, _sampled(channels) / _rows(channels))
    random = np.random.default_rng(seed)
    picked = []
    for block in _blocks(layout, channels):
        count = math.ceil(len(block) * share)
        picked.append(block if count == len(block) else block[np.sort(random.permutation(len(block))[:count])])
    return np.concatenate(picked)


def cost(channels: Channels) -> float:
    """What a search takes, in relation to that of other channels."""
    return float(min(_rows(channels), _sampled(channels))) * channels.axis.size * min(channels.axis.size, BLOCK)


def kept_elsewhere(
    layout: Layout, channels: Channels, *, pattern: Pattern, orders: Mapping[Axis, np.ndarray]
) -> float:
    """What pruning keeps of the weights whose groups of M are not made of whole channels."""
    kept = 0.0
    for site in channels.disturbed:
        values = _magnitudes(layout.model, site, slice(None))
        moved = np.take(values, indices(layout.axis(site), orders), axis=site.axis)
        kept += kept_magnitude(_matrix(moved, site.axis), pattern=pattern)
    return kept


def _sampled(channels: Channels) -> int:
    """Rows that a search can look at."""
    return max(1, _SAMPLE // min(channels.axis.size, BLOCK))


def _rows(channels: Channels) -> int:
    return sum(
        piece.site.parameters // piece.site.shape[piece.site.axis] * len(piece.starts) for piece in channels.pieces
    )


def _blocks(layout: Layout, channels: Channels) -> Iterator[np.ndarray]:
    for piece in channels.pieces:
        for start in piece.starts.tolist():
            part = slice(start, start + channels.axis.size)
            yield _matrix(_magnitudes(layout.model, piece.site, part), piece.site.axis)


def _matrix(values: np.ndarray, axis: int) -> np.ndarray:
    """The values with the axis last, all others made one."""
    rows: np.ndarray = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    return rows


def _magnitudes(model: OnnxModel, site: WeightSite, part: slice) -> np.ndarray:
    """A part of a weight along its reduction axis: magnitudes, float32; of quantized ones what they stand for."""
    if site.ref is None:
        raise ConfigError("the weight is not constant", where=f"node {site.node!r}")

    def cut(values: np.ndarray) -> np.ndarray:
        return values[(slice(None),) * site.axis + (part,)] if values.shape[site.axis] > 1 else values

    values = model.read(site.ref)
    numbers = cut(unpack_int4(values, site) if site.ref.packed else values).astype(np.float32)
    if site.quantization is not None:
        numbers -= cut(site.quantization.zero_point)
        numbers *= cut(site.quantization.scale)
    return np.abs(numbers, out=numbers)
