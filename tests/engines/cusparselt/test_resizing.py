"""Resize: the pixels that ONNX Runtime takes, for every scale."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.cusparselt.programs import check
from tests.engines.cusparselt.test_operators import node_model

pytest.importorskip("torch")
PLACES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
SCALES = st.sampled_from([0.25, 0.4, 0.5, 0.6, 0.75, 1.25, 1.5, 1.7, 2.0, 2.25, 2.5, 3.0])


@pytest.mark.parametrize(("place", "rounding"), list(itertools.product(PLACES, ROUNDINGS)))
@given(size=st.integers(4, 11), scale=SCALES)
def test_the_nearest_pixels_are_onnx_runtimes(place, rounding, size, scale):
    options = {"coordinate_transformation_mode": place, "nearest_mode": rounding}
    check(node_model("Resize", [(1, 2, size, 4)], constants=[None, np.float32([1, 1, scale, 2])], **options))


@pytest.mark.parametrize("place", ["half_pixel", "pytorch_half_pixel", "align_corners"])
@given(size=st.integers(8, 12), scale=SCALES)
def test_what_lies_between_pixels_is_onnx_runtimes(place, size, scale):
    options = {"coordinate_transformation_mode": place, "mode": "linear"}
    check(node_model("Resize", [(1, 2, size, 8)], constants=[None, np.float32([1, 1, scale, 2])], **options))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@given(size=st.integers(2, 11), wanted=st.integers(2, 23))
def test_sizes_may_be_given_in_place_of_scales(mode, size, wanted):
    sizes = np.array([1, 2, wanted, 5], np.int64)
    check(node_model("Resize", [(1, 2, size, 5)], constants=[None, None, sizes], mode=mode))


@pytest.mark.parametrize("scale", [0.7, 0.9, 1.4, 2.6])
def test_sizes_are_rounded_as_onnx_runtime_rounds_them(scale):
    """In float32: 10 times 0.7 is 7 there."""
    scales = np.float32([1, 1, scale, scale])
    check(node_model("Resize", [(1, 2, 10, 10)], constants=[None, scales], mode="linear"))


def test_an_axis_of_one_pixel_may_stay_so():
    options = {"coordinate_transformation_mode": "pytorch_half_pixel", "mode": "linear"}
    check(node_model("Resize", [(1, 2, 1, 8)], constants=[None, np.float32([1, 1, 1, 2])], **options))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_of_some_axes_leave_the_others(mode):
    sizes = np.array([7, 9], np.int64)
    constants = [None, None, sizes]
    check(node_model("Resize", [(1, 2, 4, 6)], constants=constants, mode=mode, axes=[2, 3], opset=18))


@pytest.mark.parametrize(("shape", "scales"), [((1, 2, 4, 4), [1, 2, 2, 2]), ((3, 4), [2, 1.5]), ((4,), [3])])
def test_any_axes_may_be_resized_to_the_nearest(shape, scales):
    options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    check(node_model("Resize", [shape], constants=[None, np.float32(scales)], **options))
