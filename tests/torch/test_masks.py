"""Masks of tensors are those that numpy gives for the same bytes, on any axis and for any type."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtsparse.errors import PatternError
from trtsparse.sparsity import pattern as reference
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.torch.masks import apply_mask, is_compliant, keep_mask, keep_mask_two_axes

TYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
PATTERNS = [TWO_FOUR, Pattern(1, 2), Pattern(1, 4), Pattern(3, 4), Pattern(2, 8), Pattern(8, 16)]


@st.composite
def weights(draw, most_m=16):
    """An array of any type and bits (NaN, infinities, both zeros, subnormals), an axis and a pattern for it."""
    pattern = draw(st.sampled_from([p for p in PATTERNS if p.m <= most_m]))
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    shape[axis] *= pattern.m
    dtype = draw(st.sampled_from(list(TYPES)))
    width = np.dtype(TYPES[dtype]).itemsize
    bits = draw(hnp.arrays(f"u{width}", tuple(shape)))
    if draw(st.booleans()):
        bits = bits % np.array(4, bits.dtype)  # many ties
    return bits, dtype, axis, pattern


def tensor_of(bits, dtype):
    return torch.from_numpy(bits.view(f"i{bits.itemsize}").copy()).view(getattr(torch, dtype))


@given(weights())
def test_a_mask_is_the_one_that_numpy_gives_for_the_same_bytes(case):
    bits, dtype, axis, pattern = case
    expected = reference.keep_mask(bits.view(TYPES[dtype]), axis=axis, pattern=pattern)
    mask = keep_mask(tensor_of(bits, dtype), axis=axis, pattern=pattern)
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    np.testing.assert_array_equal(mask.numpy(), expected)
    np.testing.assert_array_equal(
        keep_mask(tensor_of(bits, dtype), axis=axis - bits.ndim, pattern=pattern).numpy(), expected
    )


@given(weights())
def test_compliance_is_judged_as_numpy_judges_it(case):
    bits, dtype, axis, pattern = case
    array = bits.view(TYPES[dtype])
    before = reference.is_compliant(array, axis=axis, pattern=pattern)
    assert is_compliant(tensor_of(bits, dtype), axis=axis, pattern=pattern) == before
    reference.prune_array(array, axis=axis, pattern=pattern)
    assert is_compliant(tensor_of(bits, dtype), axis=axis, pattern=pattern)


@given(st.integers(0, 2**32 - 1), st.sampled_from([p for p in PATTERNS if p.m <= 4]), st.sampled_from(list(TYPES)))
def test_a_mask_along_two_axes_keeps_as_much_as_the_best_one(seed, pattern, dtype):
    generator = np.random.default_rng(seed)
    array = generator.standard_normal((2 * pattern.m, 3, pattern.m)).astype(TYPES[dtype])
    expected = reference.keep_mask_two_axes(array, axes=(0, 2), pattern=pattern)
    mask = keep_mask_two_axes(tensor_of(array, dtype), axes=(0, 2), pattern=pattern).numpy()
    for axis in (0, 2):
        assert reference.is_compliant(mask.astype(np.float32), axis=axis, pattern=pattern)
    magnitude = np.abs(array.astype(np.float64))
    assert (magnitude * mask).sum() == pytest.approx((magnitude * expected).sum(), rel=1e-5)


@given(weights())
def test_a_mask_is_applied_bit_for_bit_as_numpy_applies_it(case):
    bits, dtype, axis, pattern = case
    values = tensor_of(bits, dtype)
    mask = keep_mask(values, axis=axis, pattern=pattern)
    reference.apply_mask(bits.view(TYPES[dtype]), mask.numpy())
    apply_mask(values, mask)
    np.testing.assert_array_equal(
        values.view(getattr(torch, f"int{8 * bits.itemsize}")).numpy().view(bits.dtype), bits
    )


def test_a_mask_is_applied_through_any_strides():
    values = torch.randn(8, 8, 3, 3).to(memory_format=torch.channels_last)
    mask = keep_mask(values, axis=1)
    expected = values * mask
    apply_mask(values, mask)
    assert torch.equal(values, expected)


def test_infinity_and_nan_stay_along_two_axes():
    weight = torch.ones(4, 4)
    weight[0, 3] = float("nan")
    weight[2, 1] = float("-inf")
    mask = keep_mask_two_axes(weight, axes=(1, 0))
    assert mask[0, 3]
    assert mask[2, 1]


def test_a_weight_in_another_memory_format_gets_the_same_mask():
    weight = torch.randn(8, 8, 3, 3)
    expected = keep_mask(weight, axis=1)
    assert torch.equal(keep_mask(weight.to(memory_format=torch.channels_last), axis=1), expected)
    assert torch.equal(keep_mask(weight.permute(1, 0, 3, 2), axis=0).permute(1, 0, 3, 2), expected)


def test_a_mask_records_no_gradient_and_changes_nothing():
    weight = torch.nn.Parameter(torch.randn(4, 8))
    before = weight.detach().clone()
    assert not keep_mask(weight, axis=1).requires_grad
    keep_mask_two_axes(weight, axes=(0, 1))
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: keep_mask(torch.ones(2, 6), axis=1),
            "the reduction axis is not a multiple of 4 long\n  got: 6 elements along axis 1 of (2, 6)",
        ),
        (
            lambda: keep_mask(torch.ones(4), axis=1),
            "the weight has no such axis\n  got: axis 1\n  expected: one of 1 axes",
        ),
        (
            lambda: keep_mask(torch.ones(4, dtype=torch.int32), axis=0),
            "weights of this type cannot be pruned\n  got: torch.int32\n  expected: a float type",
        ),
        (
            lambda: keep_mask_two_axes(torch.ones(8, 8), axes=(0, 1), pattern=Pattern(4, 8)),
            "two axes at once are only searched for M up to 4\n  got: 4:8",
        ),
    ],
)
def test_a_tensor_that_cannot_carry_the_pattern_is_refused(call, message):
    with pytest.raises(PatternError) as caught:
        call()
    assert str(caught.value) == message
