"""Find an order of a weight matrix's channels in which magnitude N:M pruning keeps more.

The columns of a stripe, M channels side by side, are pruned together; their order inside a stripe, and that of the
stripes, make no difference. As in Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021): the best swaps
of two channels until none is left, every arrangement of a few stripes, and random swaps to leave a local optimum.

What makes a swap cheap to judge: a stripe that loses channel i and gains j keeps, row by row, its other channels'
N - 1 largest magnitudes and the larger of their N-th largest and ``|w_j|``. Summed over the rows that is a table over
all (i, j), of which a swap changes only the rows of the channels in the two stripes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trtsparse.accuracy.permutation_sums import (
    PIECE_NBYTES,
    arrangement_count,
    best_arrangement,
    kept_magnitude,
    largest,
    largest_kept,
)
from trtsparse.errors import PatternError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern

__all__ = ["BLOCK", "SearchResult", "search_permutation"]

_ARRANGEMENTS = 6000  # of a few channels into stripes that are all tried; three stripes of 2:4 have 5775
_GROUPS = 2000  # groups of stripes that are looked at in one pass
_WORK = 1 << 28  # elements that such a pass adds up
BLOCK = 1024  # channels in one table: its memory is their square
_SMALL_BLOCK = 128
_ROUNDS = 8  # with small blocks, each time others
_EARLY = 0.3  # the share of the work that these are taken for
_ATTEMPTS = 100  # random perturbations
_KICK = 4  # swaps in one of them
_SAME = 2e-6  # of a stripe's kept magnitude: less is rounding


@dataclass(frozen=True)
class SearchResult:
    """The best order that a search found.

    Attributes:
        order: (K,) int64; place i takes the channel ``order[i]``. ``arange(K)`` where nothing better was found.
        kept_before: Sum of the magnitudes that N:M pruning keeps in the given order.
        kept_after: The same in the new order; never less.
        bound: What no order can exceed: the largest K * N / M of every row.
        converged: False when the time limit ended the search.
    """

    order: np.ndarray
    kept_before: float
    kept_after: float
    bound: float
    converged: bool


def search_permutation(
    weights: np.ndarray,
    *,
    pattern: Pattern = TWO_FOUR,
    seed: int = 0,
    time_limit_s: float = math.inf,
    attempts: int = _ATTEMPTS,
    progress: Callable[[float], None] | None = None,
) -> SearchResult:
    """Look for the order of the columns in which pruning along the rows keeps the largest sum of magnitudes.

    Up to three stripes (for 2:4: K = 12) every arrangement is tried; beyond, the result is a local optimum. Equal
    arguments give equal results, unless the time limit ends the search.

    Args:
        weights: (rows, K), K a multiple of M; signs do not matter.
        pattern: N:M.
        seed: Of the random perturbations.
        time_limit_s: After so many seconds the best order so far is returned.
        attempts: Random perturbations after the first local optimum.
        progress: Called now and then with the share of the work that is done, 0 to 1.

    Raises:
        PatternError: Not a matrix of finite numbers whose width is a multiple of M.

    Example:
        >>> found = search_permutation(np.float32([[4, 3, 2, 2, 1, 1, 0, 0]]))
        >>> found.kept_before, found.kept_after, found.bound
        (9.0, 11.0, 11.0)
    """
    magnitudes = _magnitudes(weights, pattern)
    width = magnitudes.shape[1]
    clock = _Clock(time_limit_s, progress or (lambda _share: None))
    before = kept_magnitude(magnitudes, pattern=pattern)
    bound = largest_kept(magnitudes, pattern=pattern)
    identity = np.arange(width)
    if width <= pattern.m or before >= bound * (1 - _SAME):
        return SearchResult(identity, before, before, bound, converged=True)
    columns = np.ascontiguousarray(magnitudes.T) / magnitudes.max()  # sums over many rows stay finite
    if arrangement_count(width, pattern.m) <= _ARRANGEMENTS:
        order = identity[best_arrangement(columns, pattern)]
    else:
        order = _local_search(columns, pattern, np.random.default_rng(seed), clock, attempts)
    after = kept_magnitude(magnitudes[:, order], pattern=pattern)
    if after <= before * (1 + _SAME / width):
        order, after = identity, before
    return SearchResult(order, before, after, bound, converged=not clock.expired)


def _magnitudes(weights: np.ndarray, pattern: Pattern) -> np.ndarray:
    if weights.ndim != 2 or weights.shape[1] % pattern.m or not weights.size:
        raise PatternError("not a matrix of whole groups", got=weights.shape, expected=f"(rows, K * {pattern.m})")
    magnitudes: np.ndarray = np.abs(weights).astype(np.float32, copy=False)
    if not np.isfinite(magnitudes.sum(dtype=np.float64)):
        raise PatternError("the weights are not all finite")
    return magnitudes


class _Clock:
    """Tells when the time is over, and how far the work has come."""

    def __init__(self, limit_s: float, progress: Callable[[float], None]) -> None:
        self._end = time.monotonic() + limit_s
        self._progress = progress
        self._share = 0.0
        self.expired = False

    def over(self) -> bool:
        self.expired = self.expired or time.monotonic() >= self._end
        return self.expired

    def report(self, share: float) -> None:
        self._share = max(self._share, min(share, 1.0))
        self._progress(self._share)


def _local_search(
    columns: np.ndarray, pattern: Pattern, random: np.random.Generator, clock: _Clock, attempts: int
) -> np.ndarray:
    """The order of a local optimum; most of the way to it is gone in small blocks, whose tables are quick to fill."""
    order = _start(columns, pattern)
    rounds = _ROUNDS if len(columns) > _SMALL_BLOCK else 0
    for number in range(rounds):
        span = (_EARLY * number / rounds, _EARLY / rounds)
        _search_blocks(order, columns, pattern, random, clock, _SMALL_BLOCK, None, span)
    early = _EARLY if rounds else 0.0
    _search_blocks(order, columns, pattern, random, clock, BLOCK, attempts, (early, 1 - early))
    return order


def _search_blocks(
    order: np.ndarray,
    columns: np.ndarray,
    pattern: Pattern,
    random: np.random.Generator,
    clock: _Clock,
    width: int,
    attempts: int | None,
    span: tuple[float, float],
) -> None:
    """Put the stripes into blocks at random, and improve the order within each block."""
    view = order.reshape(-1, pattern.m)
    blocks = -(-len(columns) // width)
    shuffled = random.permutation(len(view)) if blocks > 1 else np.arange(len(view))
    for number, chosen in enumerate(np.array_split(shuffled, blocks)):
        if clock.over():
            return
        channels = view[chosen].reshape(-1)
        part = (span[0] + span[1] * number / blocks, span[1] / blocks)
        found = _Block(columns[channels], pattern, random, clock, part).run(attempts)
        view[chosen] = channels[found].reshape(-1, pattern.m)


def _start(columns: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The given order, or the channels dealt out by size, large and small ones together, if that is better."""
    given = np.arange(len(columns))
    by_size = np.argsort(-columns.sum(axis=1, dtype=np.float64), kind="stable").reshape(pattern.m, -1)
    by_size[1::2] = by_size[1::2, ::-1]
    dealt = by_size.T.reshape(-1)
    kept = [kept_magnitude(columns[order].T, pattern=pattern) for order in (given, dealt)]
    return dealt if kept[1] > kept[0] else given


class _Block:
    """Channels that are exchanged among each other, with the table of what every exchange would keep.

    Args:
        columns: (K, rows) magnitudes, float32; they start in this order.
        pattern: N:M.
        random: For the perturbations.
        clock: When to stop.
        span: The share of the whole work where this block starts, and its length.
    """

    def __init__(
        self,
        columns: np.ndarray,
        pattern: Pattern,
        random: np.random.Generator,
        clock: _Clock,
        span: tuple[float, float],
    ) -> None:
        self._columns = columns
        self._pattern = pattern
        self._random = random
        self._clock = clock
        self._span = span
        width, rows = columns.shape
        self._stripes = width // pattern.m
        self._order = np.arange(width)
        self._stripe = np.repeat(np.arange(self._stripes), pattern.m)  # of each channel
        self._kept = np.zeros(self._stripes)
        self._fixed = np.zeros(width)  # without the channel: the others' N - 1 largest
        self._joined = np.zeros((width, width), np.float32)  # [i, j]: the others of i, N-th largest, against j
        self._step = max(1, PIECE_NBYTES // (4 * rows))
        self._piece = np.empty((min(self._step, width), rows), np.float32)

    def run(self, attempts: int | None) -> np.ndarray:
        """The best order found, as indices into the columns.

        Args:
            attempts: To leave the local optimum; None for swaps of two channels only.
        """
        found = self._refresh(range(self._stripes)) and self._swap_until_none_is_left()
        if found and attempts is not None and self._stripe_groups():
            self._escape(attempts)
        return self._order

    def _refresh(self, stripes: Sequence[int] | range) -> bool:
        """Bring the table up to date for the channels of these stripes; False when the time is over."""
        n, m = self._pattern.n, self._pattern.m
        for done, stripe in enumerate(stripes):
            if self._clock.over():
                return False
            members = self._order[stripe * m : (stripe + 1) * m]
            self._stripe[members] = stripe
            block = self._columns[members]
            ranked = largest(list(block), n + 1)
            top = np.sum(ranked[:n], axis=0)
            self._kept[stripe] = top.sum(dtype=np.float64)
            for channel, values in zip(members, block, strict=True):
                self._fixed[channel] = np.sum(top - np.maximum(values, ranked[n - 1]), dtype=np.float64)
                self._join(channel, np.where(values >= ranked[n - 1], ranked[n], ranked[n - 1]))
            if len(stripes) == self._stripes:
                self._report(0.5 * done / self._stripes)
        return True

    def _join(self, channel: int, values: np.ndarray) -> None:
        for start in range(0, len(self._columns), self._step):
            columns = self._columns[start : start + self._step]
            piece = np.maximum(columns, values, out=self._piece[: len(columns)])
            self._joined[channel, start : start + len(columns)] = piece.sum(axis=1)

    def _swap_until_none_is_left(self) -> bool:
        """Make the best swaps of channels, as many at once as touch different stripes; False when time is over."""
        kept = -1.0
        while self._kept.sum() > kept and (changed := self._swap()):  # rounding must not let it go on for ever
            kept = self._kept.sum()
            if not self._refresh(changed):
                return False
        return True

    def _swap(self) -> list[int]:
        """The stripes that changed."""
        alone = self._fixed - self._kept[self._stripe]
        gains = self._joined + self._joined.T
        gains += (alone[:, None] + alone[None, :]).astype(np.float32)
        gains[self._stripe[:, None] >= self._stripe[None, :]] = -1  # each pair once
        flat = gains.reshape(-1)
        best = np.argpartition(flat, -min(8 * len(gains), flat.size))[-8 * len(gains) :]
        best = best[flat[best] > _SAME * self._kept.mean()]
        best = best[np.lexsort((best, -flat[best]))]
        places = np.argsort(self._order)
        changed: set[int] = set()
        for first, second in zip(*(part.tolist() for part in np.divmod(best, len(gains))), strict=True):
            stripes = {int(self._stripe[first]), int(self._stripe[second])}
            if changed.isdisjoint(stripes):
                changed |= stripes
                self._order[places[first]], self._order[places[second]] = second, first
        return sorted(changed)

    def _stripe_groups(self) -> bool:
        """Try every arrangement of groups of stripes until no group gains; False when the time is over."""
        size = _group_size(self._stripes, self._columns.shape[1], self._pattern.m)
        improved = size > 1
        while improved:
            changed: set[int] = set()
            for number, group in enumerate(self._groups(size)):
                if self._clock.over():
                    return False
                if self._arrange(np.array(group)):
                    changed.update(group)
                self._report(0.5 + 0.1 * min(1, number / _GROUPS))
            improved = bool(changed)
            if not (self._refresh(sorted(changed)) and self._swap_until_none_is_left()):
                return False
        return True

    def _groups(self, size: int) -> Iterator[tuple[int, ...]]:
        """All groups of stripes, or some where they are many."""
        if math.comb(self._stripes, size) <= _GROUPS:
            return itertools.combinations(range(self._stripes), size)
        picked = (self._random.choice(self._stripes, size, replace=False) for _ in range(_GROUPS // 4))
        return (tuple(sorted(group.tolist())) for group in picked)

    def _arrange(self, group: np.ndarray) -> bool:
        """Give a few stripes their best arrangement; True when it is better than what they had."""
        view = self._order.reshape(self._stripes, self._pattern.m)
        channels = view[group].reshape(-1)
        best = best_arrangement(self._columns[channels], self._pattern)
        if np.array_equal(best, np.arange(len(best))):
            return False
        view[group] = channels[best].reshape(view[group].shape)
        return True

    def _escape(self, attempts: int) -> None:
        """Swap channels at random and improve again; what is not better is undone."""
        m = self._pattern.m
        for attempt in range(attempts):
            order, kept = self._order.copy(), float(self._kept.sum())
            swaps = min(_KICK, self._stripes // 2)
            stripes = self._random.choice(self._stripes, 2 * swaps, replace=False)
            places = stripes * m + self._random.integers(m, size=2 * swaps)
            self._order[places] = self._order[np.roll(places, swaps)]
            finished = self._refresh(sorted(stripes.tolist())) and self._swap_until_none_is_left()
            if not finished or self._kept.sum() <= kept + _SAME * self._kept.mean():
                changed = np.flatnonzero((self._order != order).reshape(self._stripes, m).any(axis=1))
                self._order = order
                if not finished or not self._refresh(changed.tolist()):
                    return
            self._report(0.6 + 0.4 * attempt / attempts)

    def _report(self, share: float) -> None:
        start, length = self._span
        self._clock.report(start + length * share)


def _group_size(stripes: int, rows: int, m: int) -> int:
    """How many stripes are arranged together: two, or more while trying all ways with all groups is quick."""

    def is_quick(size: int) -> bool:
        work = math.comb(stripes, size) * math.comb(size * m, m) * rows
        return math.comb(stripes, size) <= _GROUPS and work <= _WORK

    size = 1
    while arrangement_count((size + 1) * m, m) <= _ARRANGEMENTS and (size == 1 or is_quick(size + 1)):
        size += 1
    return min(size, stripes)
