"""Second moments, gathered piece by piece, and the output error that they give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtsparse.accuracy.moments import Moments, output_error
from trtsparse.errors import FeedError


def rows(seed, count=40, columns=8):
    return np.random.default_rng(seed).normal(1, 2, (count, columns))


def gathered(values, pieces=1):
    moments = Moments(values.shape[1])
    for part in np.array_split(values, pieces):
        moments.add(part)
    return moments


@given(seed=st.integers(0, 99), pieces=st.integers(1, 7))
@settings(deadline=None, max_examples=20)
def test_pieces_add_up_to_the_whole(seed, pieces):
    values = rows(seed)
    moments = gathered(values, pieces)
    assert moments.count == 40
    np.testing.assert_allclose(moments.mean, values.mean(0))
    np.testing.assert_allclose(moments.gram(), values.T @ values / 40)
    np.testing.assert_allclose(moments.gram(centred=True), np.cov(values.T, bias=True), atol=1e-12)


def test_sums_are_float64_whatever_comes_in():
    big = np.full((10, 1), 2.0**20, np.float32)
    small = np.full((10, 1), 2.0**-10, np.float32)
    moments = gathered(np.concatenate([big, small]), 20)
    assert moments.gram()[0, 0] == (10 * 2.0**40 + 10 * 2.0**-20) / 20


def test_two_sets_of_rows_can_be_added():
    values = rows(0)
    both = gathered(values[:10]) + gathered(values[10:])
    np.testing.assert_allclose(both.gram(), gathered(values).gram())
    assert both.count == 40


def test_no_rows_have_zero_moments():
    moments = Moments(4)
    assert (moments.mean.tolist(), moments.gram().sum()) == ([0, 0, 0, 0], 0)


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_output_error_is_that_of_the_output(seed):
    values = rows(seed)
    generator = np.random.default_rng(seed)
    dense, pruned = generator.normal(size=(2, 5, 8))
    moved = (dense - pruned) @ values.T
    error = output_error(dense[None], pruned[None], [gathered(values)])
    assert error == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(dense @ values.T))
    centred = output_error(dense[None], pruned[None], [gathered(values)], centred=True)
    left = moved - moved.mean(1, keepdims=True)
    assert centred == pytest.approx(np.linalg.norm(left) / np.linalg.norm(dense @ values.T))


def test_an_output_error_of_nothing_is_zero_and_of_something_over_nothing_infinite():
    zeros, ones = np.zeros((1, 1, 4)), np.ones((1, 1, 4))
    moments = gathered(rows(0, columns=4))
    assert output_error(ones, ones, [moments]) == 0
    assert output_error(zeros, zeros, [moments]) == 0
    assert output_error(zeros, ones, [moments]) == np.inf
    assert output_error(ones, zeros, [Moments(4)]) == 0


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_value_that_is_no_finite_number_is_an_error_that_names_the_tensor(value, name):
    moments = Moments(4)
    values = rows(0, columns=4)
    values[3, 2] = value
    with pytest.raises(FeedError) as caught:
        moments.add(values, name="relu_3")
    assert str(caught.value) == (
        "a value is not a finite number while calibrating\n"
        "  where: tensor 'relu_3'\n"
        f"  got: {name}\n"
        "  to fix: look at the calibration data, or exclude the layers that read this tensor"
    )


def test_large_finite_values_are_no_error():
    moments = Moments(1)
    moments.add(np.full((4, 1), 3e38, np.float32))
    assert moments.count == 4
