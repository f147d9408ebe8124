"""How a measurement is made: what is refused, and in which words."""

import math

import pytest

from trtsparse.bench.options import BenchOptions
from trtsparse.errors import ConfigError


@pytest.mark.parametrize("name", ["iterations", "streams", "queue_depth"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_counts_are_positive_whole_numbers(name, value):
    with pytest.raises(ConfigError) as caught:
        BenchOptions(**{name: value})
    assert str(caught.value) == f"an option must be a positive whole number\n  where: {name}\n  got: {value!r}"


@pytest.mark.parametrize("name", ["duration_s", "warm_up_ms", "idle_ms", "sleep_ms"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "1"])
def test_times_are_not_negative(name, value):
    with pytest.raises(ConfigError) as caught:
        BenchOptions(**{name: value})
    assert str(caught.value) == f"an option must be a time of 0 or more\n  where: {name}\n  got: {value!r}"


@pytest.mark.parametrize("value", [-1, 100.5, math.nan])
def test_percentiles_are_between_0_and_100(value):
    with pytest.raises(ConfigError) as caught:
        BenchOptions(percentiles=(50, value))
    assert str(caught.value) == (
        f"a percentile is out of range\n  where: percentiles\n  got: {value}\n  expected: 0 to 100"
    )


def test_the_defaults_are_trtexecs():
    options = BenchOptions()
    assert (options.iterations, options.duration_s, options.warm_up_ms) == (10, 3.0, 200.0)
    assert (options.streams, options.depth, options.percentiles) == (1, 2, (90.0, 95.0, 99.0))
    assert (options.transfers, options.spin_wait, options.threads) == (True, False, False)


def test_exposed_copies_mean_one_query_at_a_time():
    assert BenchOptions(expose_dma=True, queue_depth=4).depth == 1
    assert BenchOptions(queue_depth=4).depth == 4
