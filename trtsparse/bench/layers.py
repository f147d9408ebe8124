"""Times of layers, put together over several executions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import LayerTime
from trtsparse.engines.base import LayerTimes

__all__ = ["WARM_UP_RUNS", "collect", "profile_runs"]

WARM_UP_RUNS = 2
"""Executions with timed layers that are not counted: the first ones set things up."""
_MOST_RUNS = 1000


def profile_runs(options: BenchOptions, *, query_ms: float) -> int:
    """How many executions to profile: as long as the measurement, but not more than a thousand.

    Example:
        >>> profile_runs(BenchOptions(duration_s=3.0), query_ms=10.0), profile_runs(BenchOptions(), query_ms=1000.0)
        (300, 10)
    """
    wanted = int(options.duration_s * 1e3 / query_ms) if query_ms > 0 else _MOST_RUNS
    return max(options.iterations, min(wanted, _MOST_RUNS))


def collect(runs: Sequence[LayerTimes]) -> tuple[LayerTime, ...]:
    """The times of each layer, in the order of the executions; layers of one name are told apart by their place.

    Example:
        >>> [(layer.name, layer.times_ms) for layer in collect([(("a", 1.0), ("a", 2.0)), (("a", 3.0), ("a", 4.0))])]
        [('a', (1.0, 3.0)), ('a', (2.0, 4.0))]
    """
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        seen: Counter[str] = Counter()
        for name, ms in run:
            found.setdefault((name, seen[name]), []).append(ms)
            seen[name] += 1
    return tuple(LayerTime(name, tuple(times)) for (name, _), times in found.items())
