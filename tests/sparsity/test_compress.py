"""Compressing an N:M array and back loses nothing, and the indices are those of the sparse instructions."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtsparse.errors import PatternError
from trtsparse.sparsity.compress import compress, decompress
from trtsparse.sparsity.pattern import Pattern, prune_array

TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, ml_dtypes.int4]


@st.composite
def pruned_arrays(draw):
    pattern = draw(st.sampled_from([Pattern(2, 4), Pattern(1, 2), Pattern(1, 4), Pattern(3, 4)]))
    shape = list(draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = pattern.m * draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = np.random.default_rng(seed).integers(-7, 8, shape).astype(draw(st.sampled_from(TYPES)))
    prune_array(weights, axis=axis, pattern=pattern)
    return weights, axis, pattern


@given(pruned_arrays())
def test_decompressing_gives_the_same_bytes_back(case):
    weights, axis, pattern = case
    restored = decompress(compress(weights, axis=axis, pattern=pattern))
    assert restored.dtype == weights.dtype
    assert restored.shape == weights.shape
    assert restored.tobytes() == weights.tobytes()


@given(pruned_arrays())
def test_values_and_indices_have_the_promised_size(case):
    weights, axis, pattern = case
    compressed = compress(weights, axis=axis, pattern=pattern)
    kept = weights.size * pattern.n // pattern.m
    assert compressed.values.size == kept
    assert compressed.values.shape[-1] == weights.shape[axis] * pattern.n // pattern.m
    assert compressed.metadata.nbytes == -(-kept // 4)


@pytest.mark.parametrize("places", list(itertools.combinations(range(4), 2)))
def test_two_indices_a_group_stand_in_ascending_order_the_first_in_the_low_bits(places):
    weights = np.zeros(8, np.float16)
    weights[list(places)] = [3, 5]
    weights[[4, 5]] = [7, 9]
    compressed = compress(weights, axis=0)
    assert compressed.values.tolist() == [3, 5, 7, 9]
    first, second = places
    assert compressed.metadata.tolist() == [first | second << 2 | 0 << 4 | 1 << 6]


@pytest.mark.parametrize(("dtype", "share"), [(np.float16, 9 / 16), (ml_dtypes.bfloat16, 9 / 16), (np.int8, 5 / 8)])
def test_weights_take_nine_sixteenths_in_16_bit_types_and_five_eighths_in_int8(dtype, share):
    weights = np.zeros((64, 64), dtype)
    assert compress(weights, axis=1).nbytes == weights.nbytes * share


def test_the_sign_of_a_zero_that_is_kept_survives():
    weights = np.array([-0.0, 0, 0, 5], np.float32)
    assert np.signbit(decompress(compress(weights, axis=0)))[0]


def test_weights_that_are_not_compliant_are_refused():
    weights = np.zeros((2, 8), np.float32)
    weights[1, 4:7] = 1
    with pytest.raises(PatternError) as refused:
        compress(weights, axis=1)
    assert str(refused.value) == (
        "cannot compress weights that are not compliant\n"
        "  where: group at index (1, 4)\n"
        "  got: 1 of 4 groups with more than 2 non-zeros\n"
        "  to fix: prune them first"
    )


def test_indices_of_more_than_two_bits_are_refused():
    with pytest.raises(PatternError, match="2-bit indices hold M up to 4\n  got: 4:8"):
        compress(np.zeros(8, np.float32), axis=0, pattern=Pattern(4, 8))
