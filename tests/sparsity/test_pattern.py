"""N:M arithmetic against loops and brute force that share no code with it."""

import itertools
import os
import signal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtsparse.errors import PatternError
from trtsparse.sparsity import kernels
from trtsparse.sparsity.pattern import (
    GroupCount,
    Pattern,
    apply_mask,
    count_groups,
    keep_mask,
    keep_mask_two_axes,
    prune_array,
)

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
INTEGERS = [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4, np.int16, np.int32]
DTYPES = [np.dtype(t) for t in FLOATS + INTEGERS]
PATTERNS = [Pattern(n, m) for m in (2, 4, 8) for n in range(1, m)] + [Pattern(1, 3), Pattern(15, 16)]


@pytest.fixture(autouse=True, params=["usual sizes", "tiny pieces, several threads"])
def sizes(request, monkeypatch):
    """Run every test a second time with limits so small that all ways through the code are taken."""
    if request.param != "usual sizes":
        monkeypatch.setattr(kernels, "CHUNK", 24)
        monkeypatch.setattr(kernels, "PARALLEL_COST", 1)


def numbers(dtype):
    """A few bit patterns of a type, with both zeros, its extremes, NaN and infinity where it has them."""
    if dtype.kind in "iu" or dtype.name in ("int4", "uint4"):
        info = ml_dtypes.iinfo(dtype)
        special = [0, 1, info.min, info.max, info.max - 1, max(info.min, -1)]
        return np.array(special).astype(dtype)
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, float(ml_dtypes.finfo(dtype).smallest_subnormal), np.nan, -np.nan]
    special += [float(ml_dtypes.finfo(dtype).max), *([np.inf, -np.inf] if dtype.name != "float8_e4m3fn" else [])]
    return np.array(special).astype(dtype)


@st.composite
def cases(draw, *, dtypes=DTYPES, patterns=PATTERNS, nans=True):
    """An array of any type, rank and memory layout, an axis of it, and a pattern that divides the axis."""
    dtype, pattern = draw(st.sampled_from(dtypes)), draw(st.sampled_from(patterns))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = pattern.m * draw(st.integers(1, 4))
    pool = numbers(dtype)
    if not nans:
        pool = pool[np.isfinite(pool.astype(np.float64))]
    if draw(st.booleans()):  # values between the special ones, zeros among them
        bits = draw(hnp.arrays(np.uint8, 16))
        extra = (bits.astype(np.float64) - 128) / (1 if dtype.kind in "iu" or "int" in dtype.name else 16)
        pool = np.concatenate([pool, np.clip(extra, *limits(dtype)).astype(dtype)])
    picks = draw(hnp.arrays(np.int64, tuple(shape), elements=st.integers(0, len(pool) - 1)))
    return (
        laid_out(pool[picks], draw(st.sampled_from(LAYOUTS))),
        axis - draw(st.sampled_from([0, len(shape)])),
        pattern,
    )


def limits(dtype):
    info = ml_dtypes.iinfo(dtype) if dtype.kind in "iu" or "int" in dtype.name else ml_dtypes.finfo(dtype)
    return float(info.min), float(info.max)


LAYOUTS = ["contiguous", "transposed", "reversed", "strided", "unaligned"]


def laid_out(values, layout):
    """The same values, differently in memory."""
    if layout == "transposed":
        return np.ascontiguousarray(values.T).T
    if layout == "reversed":
        return np.ascontiguousarray(values[::-1])[::-1]
    if layout == "strided":
        wide = np.repeat(values, 2, axis=-1)
        return wide[..., ::2]
    if layout == "unaligned":
        buffer = np.zeros(values.nbytes + 1, np.uint8)
        buffer[1:] = np.frombuffer(values.tobytes(), np.uint8)
        return buffer[1:].view(values.dtype).reshape(values.shape)
    return values


def groups_of(weights, axis, m):
    """Every group as a list of (index, value), in memory order of its first element."""
    axis %= weights.ndim
    for first in np.ndindex(*weights.shape):
        if first[axis] % m == 0:
            indices = [(*first[:axis], first[axis] + i, *first[axis + 1 :]) for i in range(m)]
            yield [(index, weights[index]) for index in indices]


def is_zero(value):
    return float(value) == 0.0


def size_of(value):
    """The magnitude, NaN above infinity."""
    number = abs(float(value))
    return (1, 0.0) if np.isnan(number) else (0, number)


def bits_of(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@given(cases())
def test_counting_equals_a_plain_loop(case):
    weights, axis, pattern = case
    counts = [
        (group[0][0], sum(not is_zero(value) for _, value in group)) for group in groups_of(weights, axis, pattern.m)
    ]
    violating = [index for index, nonzero in counts if nonzero > pattern.n]
    found = count_groups(weights, axis=axis, pattern=pattern)
    assert found.groups == len(counts)
    assert found.violating == len(violating)
    assert found.first == (violating[0] if violating else None)
    assert found.zeros == sum(is_zero(value) for value in weights.reshape(-1))


@given(cases())
def test_the_kept_ones_are_the_largest_of_each_group_and_ties_keep_the_lower_index(case):
    weights, axis, pattern = case
    mask = keep_mask(weights, axis=axis, pattern=pattern)
    assert mask.dtype == np.bool_
    assert mask.shape == weights.shape
    for group in groups_of(weights, axis, pattern.m):
        by_size = sorted(group, key=lambda item: size_of(item[1]), reverse=True)  # stable: lower indices first
        assert [index for index, _ in group if mask[index]] == sorted(index for index, _ in by_size[: pattern.n])


@given(cases(nans=False))
def test_the_kept_sum_is_the_largest_of_all_combinations(case):
    weights, axis, pattern = case
    mask = keep_mask(weights, axis=axis, pattern=pattern)
    for group in groups_of(weights, axis, pattern.m):
        sizes = [abs(float(value)) for _, value in group]
        best = max(sum(sizes[i] for i in chosen) for chosen in itertools.combinations(range(pattern.m), pattern.n))
        assert sum(size for size, (index, _) in zip(sizes, group, strict=True) if mask[index]) == pytest.approx(best)


def test_all_orders_of_four_magnitudes_keep_the_two_largest_of_the_six_choices():
    weights = np.array(list(itertools.product([0, 1, 2, 3], repeat=4)), np.float32)
    mask = keep_mask(weights, axis=1)
    choices = np.array(list(itertools.combinations(range(4), 2)))
    best = weights[:, choices].sum(axis=2).max(axis=1)
    assert np.array_equal((weights * mask).sum(axis=1), best)


@given(cases())
def test_pruning_in_place_is_the_mask_applied(case):
    weights, axis, pattern = case
    weights = np.ascontiguousarray(weights)
    mask = keep_mask(weights, axis=axis, pattern=pattern)
    expected = np.where(mask, bits_of(weights), 0)
    dropped = sum(not is_zero(value) for value in weights[~mask])
    by_mask, in_place = weights.copy(), weights.copy()
    assert apply_mask(by_mask, mask) == dropped
    assert prune_array(in_place, axis=axis, pattern=pattern) == dropped
    assert np.array_equal(bits_of(by_mask), expected)
    assert np.array_equal(bits_of(in_place), expected)


@given(cases())
def test_pruned_arrays_are_compliant_and_pruning_again_changes_nothing(case):
    weights, axis, pattern = case
    weights = np.ascontiguousarray(weights)
    prune_array(weights, axis=axis, pattern=pattern)
    before = weights.tobytes()
    assert count_groups(weights, axis=axis, pattern=pattern).violating == 0
    assert prune_array(weights, axis=axis, pattern=pattern) == 0
    assert weights.tobytes() == before


@given(cases())
def test_memory_layout_does_not_matter(case):
    weights, axis, pattern = case
    contiguous = np.ascontiguousarray(weights).copy()
    assert count_groups(weights, axis=axis, pattern=pattern) == count_groups(contiguous, axis=axis, pattern=pattern)
    mask = keep_mask(contiguous, axis=axis, pattern=pattern)
    assert np.array_equal(keep_mask(weights, axis=axis, pattern=pattern), mask)
    apply_mask(weights, mask)
    apply_mask(contiguous, mask)
    assert np.array_equal(bits_of(weights), bits_of(contiguous))


@given(cases())
def test_the_array_that_is_judged_is_not_changed(case):
    weights, axis, pattern = case
    before = weights.tobytes()
    count_groups(weights, axis=axis, pattern=pattern)
    keep_mask(weights, axis=axis, pattern=pattern)
    assert weights.tobytes() == before


@pytest.mark.parametrize("dtype", [np.dtype(t) for t in FLOATS], ids=str)
def test_minus_zero_is_zero_and_nan_is_not(dtype):
    weights = np.array([-0.0, 1, np.nan, -0.0, -0.0, 1, np.nan, 1]).astype(dtype)
    found = count_groups(weights, axis=0)
    assert (found.violating, found.first, found.zeros) == (1, (4,), 3)
    assert prune_array(weights, axis=0) == 1
    assert np.isnan(weights.astype(float)).tolist() == [False, False, True, False, False, False, True, False]
    assert weights.astype(float)[[1, 5, 7]].tolist() == [1, 1, 0]


@pytest.mark.parametrize("dtype", [np.dtype(t) for t in FLOATS if t is not ml_dtypes.float8_e4m3fn], ids=str)
def test_nan_is_kept_before_infinity_and_infinity_before_numbers(dtype):
    weights = np.array([np.inf, 1, -np.nan, 2, 3, -np.inf, np.inf, 1]).astype(dtype)
    assert keep_mask(weights, axis=0).tolist() == [True, False, True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("dtype", "values", "kept"),
    [
        (np.int8, [-128, 127, -127, 126], [True, True, False, False]),
        (np.int8, [127, 126, -1, -128], [True, False, False, True]),
        (np.uint8, [127, 128, 255, 1], [False, True, True, False]),
        (ml_dtypes.int4, [7, -8, -7, 6], [True, True, False, False]),
        (ml_dtypes.int4, [7, 7, 6, -8], [True, False, False, True]),
        (ml_dtypes.uint4, [7, 8, 15, 1], [False, True, True, False]),
    ],
)
def test_the_lowest_integer_has_the_largest_magnitude(dtype, values, kept):
    weights = np.array(values).astype(dtype)
    assert keep_mask(weights, axis=0).tolist() == kept
    prune_array(weights, axis=0)
    assert weights.astype(int).tolist() == [value if keep else 0 for value, keep in zip(values, kept, strict=True)]


@pytest.mark.parametrize("raw", [0x08, 0xF8], ids=["as unpacked from a byte", "sign-extended"])
def test_the_unused_half_of_an_int4_byte_does_not_count(raw):
    weights = np.array([raw, 0x07, 0x07, 0x00], np.uint8).view(ml_dtypes.int4)
    assert keep_mask(weights, axis=0).tolist() == [True, True, False, False]
    assert count_groups(weights, axis=0).zeros == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_arrays_larger_than_a_piece_are_judged_whole(axis, dtype):
    weights = np.random.default_rng(axis).integers(-2, 3, (8, 132, 68)).astype(dtype)
    blocks = np.moveaxis(weights, axis, -1)
    nonzero = np.count_nonzero(blocks.reshape(*blocks.shape[:-1], -1, 4), axis=-1)
    found = count_groups(weights, axis=axis)
    assert (found.groups, found.violating) == (nonzero.size, np.count_nonzero(nonzero > 2))
    assert found.zeros == np.count_nonzero(weights == 0)
    expected = weights * keep_mask(weights, axis=axis)
    prune_array(weights, axis=axis)
    assert np.array_equal(weights, expected)
    assert count_groups(weights, axis=axis).violating == 0


@pytest.mark.parametrize("extra", [1, 4, 63, 64, 65])
@pytest.mark.parametrize("pattern", [Pattern(), Pattern(1, 2), Pattern(4, 8)])
def test_rows_that_end_in_a_narrow_piece_are_judged_to_their_end(extra, pattern):
    inner = (kernels.CHUNK // pattern.m) + extra  # cut into columns, the last of them few
    weights = np.random.default_rng(extra).integers(0, 2, (2 * pattern.m, inner)).astype(np.int8)
    nonzero = weights.reshape(2, pattern.m, inner).sum(axis=1)
    violating = np.argwhere(nonzero > pattern.n)
    found = count_groups(weights, axis=0, pattern=pattern)
    assert found.violating == len(violating)
    first = (violating[0][0] * pattern.m, violating[0][1]) if len(violating) else None
    assert found.first == first
    prune_array(weights, axis=0, pattern=pattern)
    assert np.array_equal(weights.reshape(2, pattern.m, inner).sum(axis=1), np.minimum(nonzero, pattern.n))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_judges_large_arrays_too():
    weights = np.ones((64, 64), np.float32) if kernels.CHUNK < 64 else np.ones((4096, 2048), np.float32)
    expected = count_groups(weights, axis=1).violating
    child = os.fork()
    if not child:  # threads do not survive a fork: waiting for them would never end
        signal.alarm(5)
        os._exit(0 if count_groups(weights, axis=1).violating == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("shape", [(2, 8), (8, 2), (3, 4, 5), (64, 4, 1)])
def test_one_violating_group_is_found_wherever_it_is(shape):
    axis = max(range(len(shape)), key=lambda i: shape[i] % 4 == 0)
    zeros = np.zeros(shape, np.float32)
    for group in groups_of(zeros, axis, 4):
        weights = zeros.copy()
        for index, _ in group[1:]:
            weights[index] = 1
        found = count_groups(weights, axis=axis)
        assert (found.violating, found.first) == (1, group[0][0])


@pytest.mark.parametrize(("shape", "axis"), [((0, 4), 1), ((4, 0), 0), ((0,), 0), ((0, 4), 0), ((2, 0, 4), 2)])
def test_empty_arrays_have_no_groups(shape, axis):
    weights = np.zeros(shape, np.float32)
    assert count_groups(weights, axis=axis) == GroupCount(0, 0, None, 0)
    assert keep_mask(weights, axis=axis).shape == shape
    assert prune_array(weights, axis=axis) == 0


def two_axis_masks(n, m):
    """All 0/1 matrices with n ones in every row and column, by brute force over all matrices of such rows."""
    rows = [row for row in itertools.product((0, 1), repeat=m) if sum(row) == n]
    found = [np.array(matrix, bool) for matrix in itertools.product(rows, repeat=m)]
    return np.array([matrix for matrix in found if (matrix.sum(axis=0) == n).all()])


def test_there_are_90_masks_for_2_of_4_along_two_axes():
    assert len(two_axis_masks(2, 4)) == 90


@given(st.integers(0, 2**32 - 1), st.sampled_from([Pattern(), Pattern(1, 2), Pattern(1, 4), Pattern(3, 4)]))
def test_masks_along_two_axes_are_the_best_of_all(seed, pattern):
    generator = np.random.default_rng(seed)
    m = pattern.m
    weights = generator.normal(size=(2 * m, 3 * m)).astype(np.float32)
    kept = keep_mask_two_axes(weights, axes=(0, 1), pattern=pattern)
    masks = two_axis_masks(pattern.n, m)
    for row in range(0, 2 * m, m):
        for column in range(0, 3 * m, m):
            block, mask = (a[row : row + m, column : column + m] for a in (np.abs(weights).astype(float), kept))
            assert (mask.sum(axis=0) == pattern.n).all()
            assert (mask.sum(axis=1) == pattern.n).all()
            assert block[mask].sum() == pytest.approx((block * masks).sum(axis=(1, 2)).max())


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (0, 2), (3, 1), (-1, 0)])
def test_masks_along_any_two_axes_of_any_rank_hold_along_both(axes):
    weights = np.random.default_rng(0).normal(size=(4, 8, 4, 8)).astype(np.float16)
    kept = keep_mask_two_axes(weights, axes=axes)
    for axis in axes:
        assert count_groups(kept.astype(np.uint8), axis=axis).violating == 0
    assert kept.sum() == weights.size // 2


def test_masks_along_two_axes_keep_nan_and_infinity():
    weights = np.ones((4, 4), np.float32)
    weights[1, 2], weights[3, 0] = np.nan, -np.inf
    kept = keep_mask_two_axes(weights, axes=(0, 1))
    assert kept[1, 2]
    assert kept[3, 0]


@pytest.mark.parametrize("text", ["2:4", "1:2", "15:16", "1:4"])
def test_patterns_are_read_as_they_are_written(text):
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "2", "2:", ":4", "2/4", "-2:4", "2:4:8", "a:b", "2.0:4", " 2:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text)
    assert str(caught.value) == f"not an N:M pattern\n  got: {text}\n  expected: 0 < N < M <= 16, as in 2:4"


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4), (2, 17)])
def test_impossible_patterns_are_refused(n, m):
    with pytest.raises(PatternError) as caught:
        Pattern(n, m)
    assert str(caught.value) == f"not an N:M pattern\n  got: {n}:{m}\n  expected: 0 < N < M <= 16, as in 2:4"


TYPES = (
    "float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int4, uint4, int8, int16, int32, int64, uint8, "
    "uint16, uint32, uint64"
)


@pytest.mark.parametrize("function", [count_groups, keep_mask, prune_array])
@pytest.mark.parametrize(
    ("weights", "axis", "message"),
    [
        (
            np.zeros((2, 6), np.float32),
            1,
            "the reduction axis is not a multiple of 4 long\n  got: 6 elements along axis 1 of (2, 6)",
        ),
        (np.zeros((2, 4), np.float32), 2, "the weight has no such axis\n  got: axis 2\n  expected: one of 2 axes"),
        (np.zeros((2, 4), np.float32), -3, "the weight has no such axis\n  got: axis -3\n  expected: one of 2 axes"),
        (np.float32(1)[()].reshape(()), 0, "the weight has no such axis\n  got: axis 0\n  expected: one of 0 axes"),
        (
            np.zeros(4, complex),
            0,
            f"weights of this type cannot be judged\n  got: complex128\n  expected: {TYPES}",
        ),
    ],
)
def test_arrays_that_cannot_carry_the_pattern_are_refused(function, weights, axis, message):
    with pytest.raises(PatternError) as caught:
        function(np.asarray(weights), axis=axis)
    assert str(caught.value) == message


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(PatternError) as caught:
        apply_mask(np.ones((2, 4), np.float32), np.ones((4, 2), bool))
    assert str(caught.value) == "mask and weights differ in shape\n  got: (4, 2)\n  expected: (2, 4)"


def test_an_array_that_is_not_contiguous_is_not_pruned_in_place():
    with pytest.raises(PatternError) as caught:
        prune_array(np.ones((4, 4), np.float32).T, axis=0)
    assert str(caught.value) == ("cannot prune an array in place that is not C-contiguous\n  got: strides (4, 16)")


def test_two_axes_are_not_searched_for_large_groups():
    with pytest.raises(PatternError) as caught:
        keep_mask_two_axes(np.ones((8, 8), np.float32), axes=(0, 1), pattern=Pattern(2, 8))
    assert str(caught.value) == "two axes at once are only searched for M up to 4\n  got: 2:8"


@given(cases(dtypes=[np.dtype(np.float32)], patterns=[Pattern()]))
@example((np.zeros((1, 4), np.float32), 1, Pattern()))
def test_every_group_that_is_not_violating_stays_as_it_is(case):
    weights, axis, pattern = case
    weights = np.ascontiguousarray(weights)
    before = weights.copy()
    prune_array(weights, axis=axis, pattern=pattern)
    for group in groups_of(before, axis, pattern.m):
        if sum(not is_zero(value) for _, value in group) <= pattern.n:
            for index, value in group:
                assert np.array_equal(weights[index], value, equal_nan=True)
