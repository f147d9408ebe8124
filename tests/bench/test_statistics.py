"""Percentiles, summaries and warnings: against numpy where the definitions are one, against trtexec's rule else."""

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Measurement, Query
from trtsparse.bench.statistics import (
    advice,
    averages,
    percentile,
    summaries,
    summarize,
    throughput_qps,
    wall_ms,
)
from trtsparse.errors import ConfigError

TIMES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300)
PERCENTS = st.floats(0, 100)
NOTHING = "there is nothing measured\n  got: no queries\n  to fix: run longer"


def query(compute, *, h2d=0.0, d2h=0.0, enqueue=0.0, start=0.0):
    """A query whose parts follow each other."""
    marks = np.cumsum([start, h2d, compute, d2h]).tolist()
    return Query(start, start + enqueue, *marks[:2], *marks[1:3], *marks[2:4])


def measured(queries, *, place="gpu", **options):
    return Measurement(
        engine="kernels",
        description="kernels on GPU 0",
        place=place,
        options=BenchOptions(**options),
        queries=tuple(queries),
        warm_up_queries=0,
        warm_up_ms=0.0,
        wall_s=1.0,
    )


@given(TIMES, PERCENTS)
def test_a_percentile_is_the_time_at_trtexecs_index(values, percent):
    """trtexec computes in single precision, which may round to the neighbour of the exact index."""
    found = percentile(values, percent)
    count, ordered = len(values), sorted(values)
    excluded = (1 - Fraction(percent) / 100) * count
    indices = {
        max(count - 1 - math.floor(excluded + nudge), 0) for nudge in (Fraction(-1, 1000), 0, Fraction(1, 1000))
    }
    assert found in {ordered[min(index, count - 1)] for index in indices}


@pytest.mark.parametrize(
    ("count", "percent", "index"),
    # by hand: 1 - 0.9f is a little over a tenth, 1 - 0.99f a little under a hundredth
    [
        (10, 90, 8),
        (20, 95, 18),
        (100, 99, 99),
        (1000, 99, 990),
        (4, 50, 1),
        (5, 50, 2),
        (7, 100, 6),
        (7, 0, 0),
        (1, 0, 0),
    ],
)
def test_percentiles_are_trtexecs_to_the_index(count, percent, index):
    assert percentile(range(count), percent) == index


@given(TIMES, PERCENTS, PERCENTS)
def test_percentiles_grow_with_their_percent(values, a, b):
    low, high = sorted((a, b))
    assert percentile(values, low) <= percentile(values, high)
    assert percentile(values, 100) == max(values)
    assert percentile(values, 0) == min(values)


@given(TIMES)
def test_a_summary_agrees_with_numpy(values):
    found = summarize(values)
    assert found.count == len(values)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    assert [percent for percent, _ in found.percentiles] == [90, 95, 99]
    if len(values) == 1:
        assert found.cv is None
    else:
        assert found.cv == pytest.approx(np.std(values) / np.mean(values), abs=1e-9)


@given(TIMES, st.randoms(use_true_random=False))
def test_the_order_of_times_does_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert summarize(shuffled) == summarize(values)


def test_a_mean_of_zero_has_no_variation():
    assert summarize([0.0, 0.0]).cv is None


def test_a_summary_as_plain_data_names_its_percentiles():
    assert summarize([1.0, 3.0], (50, 99.9)).to_dict() == {
        "count": 2, "min_ms": 1.0, "max_ms": 3.0, "mean_ms": 2.0, "median_ms": 2.0,
        "percentiles_ms": {"p50": 1.0, "p99.9": 3.0}, "cv": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "judge",
    [
        lambda: percentile([], 50),
        lambda: summarize([]),
        lambda: throughput_qps([]),
        lambda: wall_ms([]),
        lambda: averages([]),
        lambda: advice([]),
        lambda: summaries(measured([])),
    ],
)
def test_nothing_measured_is_an_error_and_no_zero(judge):
    with pytest.raises(ConfigError) as caught:
        judge()
    assert str(caught.value) == NOTHING
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("wrong", [-1, 101, math.nan])
def test_a_percentile_out_of_range_is_refused(wrong):
    for judge in (lambda: percentile([1.0], wrong), lambda: summarize([1.0], (wrong,))):
        with pytest.raises(ConfigError) as caught:
            judge()
        assert str(caught.value) == (
            f"a percentile is out of range\n  where: percentiles\n  got: {wrong}\n  expected: 0 to 100"
        )


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_time_that_is_not_finite_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        summarize([1.0, wrong])
    assert str(caught.value) == f"a time is not finite\n  got: {wrong}"


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(1e-3, 1e3)), min_size=1, max_size=50))
def test_throughput_is_queries_by_the_time_between_the_first_and_the_last_copy(parts):
    queries = [query(spent, h2d=spent / 4, d2h=spent / 8, start=start) for start, spent in parts]
    wall = max(q.end_d2h_ms for q in queries) - min(q.start_h2d_ms for q in queries)
    assume(wall > 0)
    assert wall_ms(queries) == wall
    assert throughput_qps(queries) == pytest.approx(len(queries) * 1000 / wall)


def test_a_run_without_length_has_no_throughput():
    with pytest.raises(ConfigError) as caught:
        throughput_qps([Query(*[1.0] * 8)])
    assert str(caught.value) == "the run is too short to measure\n  got: 1 queries in 0 ms\n  to fix: run longer"


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.integers(1, 20))
def test_averages_are_of_full_groups_only(times, runs):
    queries = [query(ms, h2d=ms / 2, d2h=ms / 4, enqueue=ms / 8) for ms in times]
    found = averages(queries, runs)
    assert len(found) == len(times) // runs
    for number, row in enumerate(found):
        mean = statistics.fmean(times[number * runs : (number + 1) * runs])
        assert row.compute_ms == pytest.approx(mean)
        assert row.latency_ms == pytest.approx(1.75 * mean)
        assert row.enqueue_ms == pytest.approx(mean / 8)


def test_averages_of_no_runs_are_refused():
    with pytest.raises(ConfigError) as caught:
        averages([query(1.0)], 0)
    assert str(caught.value) == "averages are of at least one query\n  where: runs\n  got: 0"


def test_steady_queries_need_no_advice():
    assert advice([query(1.0, h2d=0.99, d2h=0.99, enqueue=0.8)] * 20) == ()


BOUND = "Throughput may be bound by {} rather than GPU Compute and the GPU may be under-utilized."


@pytest.mark.parametrize(
    ("parts", "kind", "by"),
    [
        ({"enqueue": 0.801}, "enqueue-bound", "Enqueue Time"),
        ({"h2d": 1.0}, "h2d-bound", "host-to-device transfers for the inputs"),
        ({"d2h": 1.0}, "d2h-bound", "device-to-host transfers for the outputs"),
    ],
)
def test_what_bounds_the_throughput_is_said(parts, kind, by):
    (found,) = advice([query(1.0, **parts)] * 5)
    assert (found.kind, found.text) == (kind, BOUND.format(by))
    assert found.value == pytest.approx(max(parts.values()))
    assert found.limit == pytest.approx(0.8 if kind == "enqueue-bound" else 1.0)


def test_medians_decide_not_single_queries():
    assert advice([query(1.0, h2d=0.1)] * 6 + [query(1.0, h2d=50.0)] * 5) == ()


@given(st.floats(0.001, 0.5))
def test_an_unstable_execution_is_said(spread):
    queries = [query(10.0 * (1 + sign * spread)) for sign in (-1, 1)] * 10
    found = [advised for advised in advice(queries) if advised.kind == "unstable"]
    assume(abs(spread - 0.025) > 1e-6)
    assert bool(found) == (spread > 0.025)
    if found:
        assert found[0].value == pytest.approx(spread)
        assert (
            found[0].text
            == f"GPU compute time is unstable, with coefficient of variance = {found[0].value * 100:g}%."
        )


def test_on_the_cpu_nothing_is_enqueued_or_copied():
    queries = [query(1.0)] * 5 + [query(2.0)] * 5
    (found,) = advice(measured(queries, place="cpu"))
    assert found.kind == "unstable"
    assert found.text == "Compute time is unstable, with coefficient of variance = 33.3333%."


@pytest.mark.parametrize(
    ("place", "transfers", "names"),
    [
        ("gpu", True, ["latency", "enqueue", "h2d", "compute", "d2h"]),
        ("gpu", False, ["latency", "enqueue", "compute"]),
        ("cpu", True, ["latency", "compute"]),
    ],
)
def test_only_what_was_measured_is_summarised(place, transfers, names):
    found = summaries(measured([query(1.0, h2d=0.5)], place=place, transfers=transfers, percentiles=(75,)))
    assert list(found) == names
    assert found["latency"].percentiles == ((75, 1.5),)
