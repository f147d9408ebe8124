"""Permute channels so that magnitude N:M pruning keeps more; the model computes the same as before.

The input channels of a weight change places, and with them the output channels of what makes them and all that lies
between. Only elements of constants change places: no node is added, none runs slower. The way of Pool and Yu,
"Channel Permutations for N:M Sparsity" (NeurIPS 2021), on the ONNX graph.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtsparse.accuracy.located import located
from trtsparse.accuracy.permutation_axes import Axis, indices
from trtsparse.accuracy.permutation_check import check_unchanged
from trtsparse.accuracy.permutation_groups import Channels, Layout, find_layout
from trtsparse.accuracy.permutation_model import prepared
from trtsparse.accuracy.permutation_score import cost, kept_elsewhere, sample, score
from trtsparse.accuracy.permutation_search import search_permutation
from trtsparse.errors import ConfigError
from trtsparse.files import atomic
from trtsparse.files.check import check as check_model
from trtsparse.files.model import OnnxModel
from trtsparse.files.tensor import TensorRef
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.prune import check_globs, matches_globs
from trtsparse.sparsity.values import pack_int4
from trtsparse.sparsity.weights import find_sites

__all__ = ["PermuteResult", "PermutedChannels", "permute"]

SCHEMA = "trtsparse.permute/1"
_STEPS = 1000  # of the progress


@dataclass(frozen=True)
class PermutedChannels:
    """Channels that were looked at together. Shares are of the sum of the weights' magnitudes.

    Attributes:
        weights: The weights that read the channels and in which pruning shall keep more.
        permuted: All tensors whose elements changed places; none where no better order was found.
        channels: How many.
        magnitude: The sum of the weights' magnitudes.
        kept_before: The share that N:M pruning keeps in the order as it was.
        kept_after: The share that it keeps now; never less.
        kept_bound: The share of the largest K * N / M weights of every row, which no order exceeds.
        seconds: For the search.
        converged: False when the time limit ended the search.
    """

    weights: tuple[str, ...]
    permuted: tuple[str, ...]
    channels: int
    magnitude: float
    kept_before: float
    kept_after: float
    kept_bound: float
    seconds: float
    converged: bool


@dataclass(frozen=True)
class PermuteResult:
    """A model with its channels in another order.

    Attributes:
        model: The model; ``model.save(path)`` writes it, ``model.load()`` gives a ModelProto.
        pattern: "2:4".
        groups: Channels that were permuted, or looked at without finding better.
        left_alone: (tensor, reason) for eligible weights whose channels keep their order.
        error: The largest difference between the outputs of both models, relative to the output's largest magnitude;
            None when they were not compared.
        seconds: For everything.
    """

    model: OnnxModel
    pattern: str
    groups: tuple[PermutedChannels, ...]
    left_alone: tuple[tuple[str, str], ...]
    error: float | None
    seconds: float

    @property
    def kept_before(self) -> float:
        """The share of all groups' magnitude that pruning kept in the order as it was."""
        return self._share([group.kept_before for group in self.groups])

    @property
    def kept_after(self) -> float:
        """The share that it keeps now."""
        return self._share([group.kept_after for group in self.groups])

    @property
    def kept_bound(self) -> float:
        """The share that no order exceeds."""
        return self._share([group.kept_bound for group in self.groups])

    def _share(self, shares: Sequence[float]) -> float:
        whole = math.fsum(group.magnitude for group in self.groups)
        kept = math.fsum(share * group.magnitude for share, group in zip(shares, self.groups, strict=True))
        return kept / whole if whole else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The changes as JSON types."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "pattern": self.pattern,
            "kept_before": self.kept_before,
            "kept_after": self.kept_after,
            "kept_bound": self.kept_bound,
            "error": self.error,
            "seconds": self.seconds,
            "groups": [
                {name: list(value) if isinstance(value, tuple) else value for name, value in vars(group).items()}
                for group in self.groups
            ],
            "left_alone": [{"tensor": name, "reason": reason} for name, reason in self.left_alone],
        }


def permute(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    output: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: Pattern = TWO_FOUR,
    time_limit_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
    check: bool | Iterable[Mapping[str, np.ndarray]] = True,
    allow_unknown_operators: bool = False,
) -> PermuteResult:
    """Put the channels of a model into an order in which magnitude pruning keeps more; the model computes the same.

    Channels that must change places together are found on the graph: all that read them and all that make them,
    through activations, normalizations, residual sums, pooling, depthwise convolutions, Concat, Split and Reshape.
    Where an operator or an output depends on the order, it stays, with the reason in ``left_alone``; so does that of
    weights that are compliant already. Equal arguments give equal results, unless the time limit ends the search.

    Args:
        model: A path, serialized bytes, or a model in memory. It is not changed, unless ``output`` is its path.
        output: Where to write; without it the result stays in memory. External data files are written beside it.
        include: Globs of tensors or nodes; only in such weights more shall be kept. Others are permuted along where
            the model asks for it. Empty: all.
        exclude: Globs of tensors or nodes whose weights must stay as they are.
        pattern: N:M.
        time_limit_s: The search ends after so many seconds with the best so far.
        progress: Called with (done, total) now and then.
        check: Compare the outputs of both models in ONNX Runtime before anything is written: on random inputs, or on
            the given ones. False: do not.
        allow_unknown_operators: Accept operators of the standard domain that ONNX does not define (plugins); channels
            that they read or make keep their order. ONNX Runtime does not run such a model: give ``check=False`` too.

    Raises:
        ModelError: The model cannot be read or contradicts itself.
        ConfigError: A glob matches nothing, or the time limit is not positive.
        PrecisionError: The outputs differ by more than sums in another order can; nothing is written.
        FeedError: The given inputs do not fit the model.
        EngineError: ONNX Runtime does not run the model.
        MissingDependencyError: ONNX Runtime is not installed.
        OutputError: ``output`` cannot be written; nothing is left behind.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[1, 1] x) => (float[1, 1] y)
        ... <float[1, 8] a = {1, 2, 3, 4, 5, 6, 7, 8}, float[8, 1] b = {8, 7, 6, 5, 1, 1, 1, 1}> {
        ...  h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }'''
        >>> result = permute(parser.parse_model(text))
        >>> group, = result.groups
        >>> group.weights, group.permuted, f"{group.kept_before:.3f} -> {group.kept_after:.3f}"
        (('b',), ('a', 'b'), '0.567 -> 0.867')
    """
    start = time.monotonic()
    if not time_limit_s > 0:
        raise ConfigError("a search needs time", where="time_limit_s", got=time_limit_s, expected="more than 0")
    opened = OnnxModel.open(model)
    if output is not None:
        atomic.check_writable(output)
    layout = _layout(opened, include, exclude, pattern, allow_unknown_operators=allow_unknown_operators)
    orders, groups = _search(layout, pattern, time_limit_s, progress)
    changes = _changes(layout, orders)
    error = None
    if check is not False and changes:
        feeds = None if check is True else check
        error = check_unchanged(opened, _permuted(opened, changes, output=None), feeds=feeds).error
    result = _permuted(opened, changes, output=output)
    seconds = time.monotonic() - start
    return PermuteResult(result, str(pattern), groups, tuple(layout.left_alone), error, seconds)


def _layout(
    model: OnnxModel,
    include: Sequence[str],
    exclude: Sequence[str],
    pattern: Pattern,
    *,
    allow_unknown_operators: bool,
) -> Layout:
    check_model(model, allow_unknown_operators=allow_unknown_operators)
    view = prepared(model)
    sites = find_sites(view, pattern=pattern, allow_unknown_operators=allow_unknown_operators)
    check_globs(sites, include, "include")
    check_globs(sites, exclude, "exclude")
    excluded = [site for site in sites if matches_globs(site, exclude)]
    included = [site for site in sites if site.eligible and (not include or matches_globs(site, include))]
    return find_layout(view, sites, pattern=pattern, included=included, excluded=excluded)


def _search(
    layout: Layout, pattern: Pattern, limit_s: float, progress: Callable[[int, int], None] | None
) -> tuple[dict[Axis, np.ndarray], tuple[PermutedChannels, ...]]:
    """The new orders, and what they bring; quick searches first, so that the time they leave goes to the others."""
    end = time.monotonic() + limit_s
    orders: dict[Axis, np.ndarray] = {}
    found: dict[int, PermutedChannels | None] = {}
    costs = [cost(channels) for channels in layout.channels]
    turns = sorted(range(len(costs)), key=lambda number: costs[number])
    done = 0.0
    for turn, number in enumerate(turns):
        part, left = costs[number] / sum(costs), sum(costs) - done

        def report(share: float, done: float = done / sum(costs), part: float = part) -> None:
            if progress is not None:
                progress(round(_STEPS * (done + part * share)), _STEPS)

        fair = (costs[number] / left + 1 / (len(turns) - turn)) / 2  # by size, but no group starves
        time_s = max(end - time.monotonic(), 0) * min(fair, 1)
        found[number] = _search_one(layout, layout.channels[number], pattern, time_s, orders, report)
        done += costs[number]
    if progress is not None:
        progress(_STEPS, _STEPS)
    return orders, _rows(layout, found)


def _rows(layout: Layout, found: Mapping[int, PermutedChannels | None]) -> tuple[PermutedChannels, ...]:
    """The results in the order of the graph; the groups of a grouped convolution are one row."""
    rows: dict[tuple[int, ...], PermutedChannels] = {}
    for number, channels in enumerate(layout.channels):
        group, same = found[number], tuple(map(id, channels.stored))
        if group is not None:
            rows[same] = _merged(rows[same], group) if same in rows else group
    return tuple(rows.values())


def _search_one(
    layout: Layout,
    channels: Channels,
    pattern: Pattern,
    time_s: float,
    orders: dict[Axis, np.ndarray],
    report: Callable[[float], None],
) -> PermutedChannels | None:
    """Find an order for some channels; it is added to ``orders`` if the exact sums say that it is better."""
    start = time.monotonic()
    weights = tuple(piece.site.tensor for piece in channels.pieces)
    before = after = score(layout, channels, pattern=pattern)
    if not math.isfinite(before.magnitude):
        layout.left_alone += [
            (name, "the values are not all finite, here or where the same is read") for name in weights
        ]
        return None
    order, converged = np.arange(channels.axis.size), False
    if time_s > 0:
        found = search_permutation(sample(layout, channels), pattern=pattern, time_limit_s=time_s, progress=report)
        order, converged = found.order, found.converged
    if not np.array_equal(order, np.arange(len(order))):
        new = score(layout, channels, pattern=pattern, order=order)
        tried = {**orders, channels.axis: order}
        if new.kept - before.kept > max(_lost(layout, channels, pattern, orders, tried), 0):
            orders[channels.axis], after = order, new
    whole = before.magnitude or 1.0
    return PermutedChannels(
        weights=weights,
        permuted=tuple(stored.names[0] for stored in channels.stored) if channels.axis in orders else (),
        channels=channels.axis.size,
        magnitude=before.magnitude,
        kept_before=before.kept / whole,
        kept_after=after.kept / whole,
        kept_bound=before.bound / whole,
        seconds=time.monotonic() - start,
        converged=converged,
    )


def _lost(
    layout: Layout,
    channels: Channels,
    pattern: Pattern,
    before: Mapping[Axis, np.ndarray],
    after: Mapping[Axis, np.ndarray],
) -> float:
    """What an order costs weights that it was not searched for."""
    kept = (kept_elsewhere(layout, channels, pattern=pattern, orders=orders) for orders in (before, after))
    return next(kept) - next(kept)


def _merged(a: PermutedChannels, b: PermutedChannels) -> PermutedChannels:
    whole = (a.magnitude + b.magnitude) or 1.0

    def share(name: str) -> float:
        return math.fsum(getattr(group, name) * group.magnitude for group in (a, b)) / whole

    return PermutedChannels(
        weights=a.weights,
        permuted=a.permuted or b.permuted,
        channels=a.channels + b.channels,
        magnitude=a.magnitude + b.magnitude,
        kept_before=share("kept_before"),
        kept_after=share("kept_after"),
        kept_bound=share("kept_bound"),
        seconds=a.seconds + b.seconds,
        converged=a.converged and b.converged,
    )


@dataclass(frozen=True)
class _Change:
    """A constant, and for some of its axes where every place takes its element from."""

    ref: TensorRef
    taken: tuple[tuple[int, np.ndarray], ...]


def _changes(layout: Layout, orders: Mapping[Axis, np.ndarray]) -> list[_Change]:
    changes = []
    for stored in layout.stored.values():
        found = [(i, indices(axis, orders)) for i, axis in enumerate(stored.axes)]
        taken = tuple((i, taken) for i, taken in found if not np.array_equal(taken, np.arange(len(taken))))
        if taken:
            changes.append(_Change(stored.ref, taken))
    return changes


def _permuted(model: OnnxModel, changes: Sequence[_Change], *, output: str | os.PathLike[str] | None) -> OnnxModel:
    """A changed copy, in memory or as a file."""
    target = None if output is None else Path(output)
    with model.copying(target, replaced=[change.ref for change in changes]) as copy:
        _apply(model, copy, changes)
    if output is not None:
        return OnnxModel.open(output)
    return OnnxModel(copy.files, name=copy.name, folder=copy.folder)  # its skeleton has small vectors' data


def _apply(original: OnnxModel, copy: OnnxModel, changes: Sequence[_Change]) -> None:
    """Let the elements of the copy's constants change places."""
    refs = {change.ref.key: change.ref for change in changes}
    if copy.proto is not original.proto:  # its data files have other names, and its tensors other offsets
        there = zip(located(original).refs(), located(copy).refs(), strict=True)
        refs = {old.key: new for old, new in there}
    for change in changes:
        with copy.edit(refs[change.ref.key]) as stored:
            values = _unpacked(stored, change.ref) if change.ref.packed else stored
            for axis, taken in change.taken:
                values = np.take(values, taken, axis=axis)
            stored[...] = pack_int4(values) if change.ref.packed else values


def _unpacked(packed: np.ndarray, ref: TensorRef) -> np.ndarray:
    """4-bit elements, one in the low half of each byte."""
    halves = np.stack((packed & 0x0F, packed >> 4), axis=-1).reshape(-1)
    return halves[: ref.size].reshape(ref.shape)
