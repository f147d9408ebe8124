"""Measuring an engine that works in host memory, by the host's clock."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from trtsparse.bench.layers import WARM_UP_RUNS, collect, profile_runs
from trtsparse.bench.loop import Pace, Progress, in_threads, quiet
from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import LayerTime, Measurement, Query
from trtsparse.bench.statistics import wall_ms
from trtsparse.engines.base import Engine, ProfilingEngine
from trtsparse.precision.specs import FeedChecker

__all__ = ["measure_on_cpu"]

_FOR_GPUS = ("graphs", "transfers", "expose_dma", "queue_depth", "spin_wait")
_clock = time.perf_counter_ns
_sleep = time.sleep


class _Times(NamedTuple):
    """One query, in milliseconds since the run began."""

    start: float
    end: float
    stream: int


def measure_on_cpu(
    engine: Engine, feeds: Mapping[str, Any], *, options: BenchOptions, progress: Progress | None = None
) -> Measurement:
    """Measure; see `trtsparse.bench.measure.measure`."""
    FeedChecker(engine.inputs)(feeds)
    if options.sleep_ms:
        _sleep(options.sleep_ms / 1e3)
    origin = _clock()
    works = [
        partial(_serve, engine, feeds, options, origin, number, None if number else progress)
        for number in range(options.streams)
    ]
    with quiet():
        served = in_threads(works)
    times = sorted(times for found, _ in served for times in found)
    counted = [query for query in times if query.start >= options.warm_up_ms]
    zero = min((query.start for query in counted), default=0.0)
    queries = tuple(_query(query, zero) for query in counted)
    layers, profiled, why_not = _profile(engine, feeds, options, queries)
    last = max(times, key=lambda query: query.end).stream
    return Measurement(
        engine=engine.name,
        description=engine.description,
        place="cpu",
        options=options,
        queries=queries,
        warm_up_queries=len(times) - len(queries),
        warm_up_ms=zero,
        wall_s=wall_ms(queries) / 1e3,
        shapes={spec.name: np.shape(feeds[spec.name]) for spec in engine.inputs},
        layers=layers,
        profile_queries=profiled,
        outputs=served[last][1],
        notes=(*_notes(options), *why_not),
    )


def _serve(
    engine: Engine,
    feeds: Mapping[str, Any],
    options: BenchOptions,
    origin: int,
    number: int,
    progress: Progress | None,
    stop: threading.Event,
) -> tuple[list[_Times], dict[str, np.ndarray]]:
    """Run one query after another until the run is over; returns the last one's outputs, too."""
    pace = Pace(options, progress=progress)
    found: list[_Times] = []
    outputs: dict[str, np.ndarray] = {}
    while not (pace.done or stop.is_set()):
        before = _clock()
        outputs = engine.run(feeds)
        after = _clock()
        start = (before - origin) / 1e6
        found.append(_Times(start, (after - origin) / 1e6, number))
        pace.finished((start,))
        if options.idle_ms and pace.is_warm:
            _sleep(options.idle_ms / 1e3)
    return found, outputs


def _query(times: _Times, zero: float) -> Query:
    start, end = times.start - zero, times.end - zero
    return Query(start, start, start, start, start, end, end, end, stream=times.stream)


def _profile(
    engine: Engine, feeds: Mapping[str, Any], options: BenchOptions, queries: tuple[Query, ...]
) -> tuple[tuple[LayerTime, ...] | None, int, list[str]]:
    """Times of layers and of how many queries, or the reason why there are none."""
    if not options.profile_layers:
        return None, 0, []
    if not isinstance(engine, ProfilingEngine):
        return None, 0, [f"no times of layers: {engine.name} does not tell them"]
    runs = profile_runs(options, query_ms=statistics.median(query.compute_ms for query in queries))
    found = engine.profile(feeds, runs=runs + WARM_UP_RUNS)[WARM_UP_RUNS:]
    return collect(found), len(found), []


def _notes(options: BenchOptions) -> list[str]:
    """Options that were asked for and mean nothing here."""
    usual = {field.name: field.default for field in fields(options)}
    ignored = [name for name in _FOR_GPUS if getattr(options, name) != usual[name]]
    notes = [f"without effect on the CPU: {', '.join(ignored)}"] if ignored else []
    return [*notes, "no power and energy: they are measured on GPUs"] if options.energy else notes
