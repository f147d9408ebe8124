"""Percentiles, medians and warnings: pure functions over times, for `trtsparse.bench` and trtexec's report alike.

The definitions are trtexec's, so that figures can be compared: see each function.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trtsparse.bench.records import Measurement, Query
from trtsparse.errors import ConfigError

__all__ = ["Advice", "Average", "Summary", "advice", "averages", "percentile", "summaries", "summarize",
           "throughput_qps", "wall_ms"]  # fmt: skip

ENQUEUE_BOUND = 0.8
"""Of the median execution: an enqueueing that takes longer keeps the GPU waiting."""
UNSTABLE = 0.025
"""Coefficient of variation of the execution from which the clock is called unstable."""
_METRICS = ("latency", "enqueue", "h2d", "compute", "d2h")


@dataclass(frozen=True)
class Summary:
    """What a sequence of times has in common.

    Attributes:
        count: How many there are.
        min: The shortest.
        max: The longest.
        mean: The average.
        median: The middle one, or the average of the two in the middle.
        percentiles: Pairs of a percentile and its time, as asked.
        cv: Coefficient of variation: standard deviation (of the whole, not of a sample) by mean; None for a single
            time, or where the mean is 0.
    """

    count: int
    min: float
    max: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...]
    cv: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; percentiles as "p99"."""
        return {
            "count": self.count,
            "min_ms": self.min,
            "max_ms": self.max,
            "mean_ms": self.mean,
            "median_ms": self.median,
            "percentiles_ms": {f"p{percent:g}": value for percent, value in self.percentiles},
            "cv": self.cv,
        }


@dataclass(frozen=True)
class Average:
    """Averages of some queries that followed each other, in milliseconds.

    Attributes:
        compute_ms: Of the execution.
        latency_ms: Of copies and execution.
        enqueue_ms: Of the enqueueing.
    """

    compute_ms: float
    latency_ms: float
    enqueue_ms: float


@dataclass(frozen=True)
class Advice:
    """Something that the figures say about the measurement.

    Attributes:
        kind: "enqueue-bound", "h2d-bound", "d2h-bound" or "unstable".
        text: One sentence, in trtexec's words.
        fix: What may help.
        value: The figure that was judged: for "unstable" the coefficient of variation, else a median in milliseconds.
        limit: What it was judged by, in the same unit.
    """

    kind: Literal["enqueue-bound", "h2d-bound", "d2h-bound", "unstable"]
    text: str
    fix: str
    value: float
    limit: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The time that so many percent of the times do not exceed, by trtexec's rule: always one of them.

    Of n sorted times it takes the one at ``max(n - 1 - int((1 - percent / 100) * n), 0)``, in single precision as
    trtexec does: the 90th percentile of ten times is the ninth, the 99th of a hundred is the last.

    Args:
        values: In any order.
        percent: From 0 to 100.

    Raises:
        ConfigError: There are no times, or ``percent`` is out of range.

    Example:
        >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([3.0, 1.0, 2.0, 4.0], 99)
        (2.0, 4.0)
    """
    _require_some(values)
    return _percentile(sorted(values), percent)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ConfigError("a percentile is out of range", where="percentiles", got=percent, expected="0 to 100")
    count = len(ordered)
    one, hundred = np.float32(1), np.float32(100)
    excluded = int((one - np.float32(percent) / hundred) * np.float32(count))
    return ordered[max(count - 1 - excluded, 0)]


def summarize(values: Sequence[float], percentiles: Sequence[float] = (90, 95, 99)) -> Summary:
    """Summarise times.

    Args:
        values: In any order.
        percentiles: As in `percentile`.

    Raises:
        ConfigError: There are no times, one of them is not finite, or a percentile is out of range.

    Example:
        >>> found = summarize([1.0, 2.0, 3.0, 4.0], (50,))
        >>> found.median, found.percentiles, round(found.cv, 3)
        (2.5, ((50, 2.0),), 0.447)
    """
    _require_some(values)
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    if not math.isfinite(mean):
        raise ConfigError("a time is not finite", got=next((v for v in values if not math.isfinite(v)), mean))
    known = len(ordered) > 1 and mean > 0
    return Summary(
        count=len(ordered),
        min=ordered[0],
        max=ordered[-1],
        mean=mean,
        median=statistics.median(ordered),
        percentiles=tuple((percent, _percentile(ordered, percent)) for percent in percentiles),
        cv=statistics.pstdev(ordered, mean) / mean if known else None,
    )


def summaries(measurement: Measurement) -> dict[str, Summary]:
    """A summary of each part that was measured: "latency", "enqueue", "h2d", "compute", "d2h".

    On the CPU there are "latency" and "compute"; without transfers "h2d" and "d2h" are missing.

    Raises:
        ConfigError: There are no queries.
    """
    names = list(_METRICS) if measurement.place == "gpu" else ["latency", "compute"]
    if not measurement.options.transfers:
        names = [name for name in names if name not in ("h2d", "d2h")]
    return {
        name: summarize(
            [getattr(query, f"{name}_ms") for query in measurement.queries], measurement.options.percentiles
        )
        for name in names
    }


def wall_ms(queries: Sequence[Query]) -> float:
    """From the start of the first copy, or execution, to the end of the last.

    Raises:
        ConfigError: There are no queries.
    """
    _require_some(queries)
    return max(query.end_d2h_ms for query in queries) - min(query.start_h2d_ms for query in queries)


def throughput_qps(queries: Sequence[Query]) -> float:
    """Queries per second; a batch counts as one query.

    Raises:
        ConfigError: There are no queries, or they took no time.

    Example:
        >>> throughput_qps([Query(0, 0, 0, 0, 0, 2, 2, 2), Query(0, 0, 2, 2, 2, 4, 4, 4)])
        500.0
    """
    spent = wall_ms(queries)
    if spent <= 0:
        raise ConfigError(
            "the run is too short to measure", got=f"{len(queries)} queries in {spent:g} ms", fix="run longer"
        )
    return len(queries) / spent * 1e3


def averages(queries: Sequence[Query], runs: int = 10) -> list[Average]:
    """Averages of each ``runs`` queries in their order; a last group that is not full is left out, as in trtexec.

    Raises:
        ConfigError: There are no queries, or ``runs`` is not positive.
    """
    _require_some(queries)
    if runs < 1:
        raise ConfigError("averages are of at least one query", where="runs", got=runs)
    groups = [queries[start : start + runs] for start in range(0, len(queries) - runs + 1, runs)]
    return [
        Average(*(math.fsum(values) / runs for values in zip(*map(_averaged, group), strict=True)))
        for group in groups
    ]


def _averaged(query: Query) -> tuple[float, float, float]:
    return query.compute_ms, query.latency_ms, query.enqueue_ms


def advice(measured: Measurement | Sequence[Query]) -> tuple[Advice, ...]:
    """What the figures say about the measurement, by trtexec's thresholds.

    Args:
        measured: On the CPU there is nothing to enqueue or to copy, so that only the variation is judged.

    Returns:
        - "enqueue-bound": the median enqueueing exceeds 0.8 times the median execution;
        - "h2d-bound", "d2h-bound": the median copies take at least as long as the median execution;
        - "unstable": the coefficient of variation of the execution exceeds 2.5 %.

    Raises:
        ConfigError: There are no queries.
    """
    queries = measured.queries if isinstance(measured, Measurement) else measured
    on_gpu = not isinstance(measured, Measurement) or measured.place == "gpu"
    compute = summarize([query.compute_ms for query in queries], ())
    found = _bounds(queries, compute.median) if on_gpu else []
    if compute.cv is not None and compute.cv > UNSTABLE:
        found.append(_unstable(compute.cv, on_gpu=on_gpu))
    return tuple(found)


def _bounds(queries: Sequence[Query], compute: float) -> list[Advice]:
    found = []
    enqueue = statistics.median(query.enqueue_ms for query in queries)
    if enqueue > ENQUEUE_BOUND * compute:
        text = "Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized."
        found.append(Advice("enqueue-bound", text, "use CUDA graphs", enqueue, ENQUEUE_BOUND * compute))
    h2d = statistics.median(query.h2d_ms for query in queries)
    if h2d >= compute:
        text = (
            "Throughput may be bound by host-to-device transfers for the inputs rather than GPU Compute and the GPU "
            "may be under-utilized."
        )
        found.append(Advice("h2d-bound", text, "keep the inputs on the GPU", h2d, compute))
    d2h = statistics.median(query.d2h_ms for query in queries)
    if d2h >= compute:
        text = (
            "Throughput may be bound by device-to-host transfers for the outputs rather than GPU Compute and the GPU "
            "may be under-utilized."
        )
        found.append(Advice("d2h-bound", text, "keep the outputs on the GPU", d2h, compute))
    return found


def _unstable(cv: float, *, on_gpu: bool) -> Advice:
    if on_gpu:
        text = f"GPU compute time is unstable, with coefficient of variance = {cv * 100:g}%."
        fix = "lock the GPU's clock, or let the host spin while it waits"
    else:
        text = f"Compute time is unstable, with coefficient of variance = {cv * 100:g}%."
        fix = "leave the processor to the measurement, and run longer"
    return Advice("unstable", text, fix, cv, UNSTABLE)


def _require_some(values: Sequence[Any]) -> None:
    if not len(values):
        raise ConfigError("there is nothing measured", got="no queries", fix="run longer")
