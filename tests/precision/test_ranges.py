import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.precision.observe import Observer
from trtsparse.precision.ranges import METHODS, Histogram, measure_ranges


def gathered(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


@given(st.lists(st.lists(st.floats(-1e5, 1e5, width=32), max_size=30), min_size=1, max_size=5))
def test_minmax_is_the_largest_magnitude_and_every_value_is_counted(arrays):
    histogram = gathered(*arrays)
    values = [abs(value) for array in arrays for value in array]
    assert histogram.threshold("minmax") == max(values, default=0)
    assert histogram.counts.sum() == len(values)
    for method in METHODS:
        assert 0 <= histogram.threshold(method) <= max(values, default=0)


def test_percentile_leaves_out_one_value_in_ten_thousand():
    values = np.random.default_rng(0).normal(size=400_000)
    found = gathered(*np.split(values, 4)).threshold("percentile")
    assert found == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.01)


def test_entropy_clips_outliers_and_keeps_what_has_none():
    random = np.random.default_rng(0)
    normal = random.normal(size=200_000)
    spoiled = np.concatenate([normal, [200.0, -150.0]])
    assert gathered(spoiled).threshold("entropy") < 25
    uniform = random.uniform(-1, 1, 200_000)
    assert gathered(uniform).threshold("entropy") > 0.95


def test_masses_of_zeros_do_not_change_the_entropy_threshold():
    values = np.abs(np.random.default_rng(0).normal(size=50_000))
    zeros = np.zeros(500_000)
    assert gathered(np.concatenate([values, zeros])).threshold("entropy") > 2


def test_infinities_and_nans_are_not_counted():
    assert gathered([1, np.inf, np.nan, -2]).threshold("minmax") == 2


def test_nothing_but_zeros_has_no_range():
    assert [gathered(np.zeros(10)).threshold(method) for method in METHODS] == [0, 0, 0]


def test_ranges_are_measured_over_all_feeds(parse):
    observer = Observer(parse("g (float[2] x) => (float[2] y) { y = Add(x, x) }"), values=["x", "y"], name="m")
    feeds = [{"x": np.float32([1, -3])}, {"x": np.float32([2, 0])}]
    assert measure_ranges(observer, feeds, method="minmax") == {"x": 3, "y": 6}
