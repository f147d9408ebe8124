import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.sparsity.pattern import Pattern, is_compliant
from trtsparse.tune.data import Matrix, Reference, poison, random_block, scale
from trtsparse.tune.gemm import DTYPES, Gemm

INPUTS = [name for name, kind in DTYPES.items() if kind.outputs]


def rng():
    return np.random.default_rng(1)


@pytest.mark.parametrize("dtype", INPUTS)
def test_random_weights_hold_the_pattern_of_their_type(dtype):
    kind = DTYPES[dtype]
    n, m = kind.pattern
    weights = random_block(kind, 4096, rng=rng(), pattern=kind.pattern).reshape(64, 64)
    assert weights.dtype == kind.numpy
    assert is_compliant(weights.astype(np.float32), axis=1, pattern=Pattern(n, m))
    assert (np.asarray(weights, np.float32) != 0).mean() == pytest.approx(n / m, abs=0.05)


@pytest.mark.parametrize("dtype", INPUTS)
def test_every_way_to_keep_two_of_four_occurs(dtype):
    kind = DTYPES[dtype]
    n, m = kind.pattern
    groups = random_block(kind, 4096, rng=rng(), pattern=kind.pattern).reshape(-1, m).astype(np.float32) != 0
    full = {tuple(row) for row in groups if row.sum() == n}
    assert len(full) == math.comb(m, n)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_matrix_gives_the_rows_of_its_repeated_block(rows, columns):
    block = np.arange(7, dtype=np.float32)
    whole = (
        np.resize(block, (rows, columns)) if rows * columns > 7 else np.arange(rows * columns).reshape(rows, columns)
    )
    wanted = np.arange(0, rows, 3)
    np.testing.assert_array_equal(Matrix(block, rows, columns).take(wanted), whole[wanted])


@pytest.mark.parametrize("k", [64, 1024, 14336])
def test_int8_products_are_scaled_into_the_range_of_their_output(k):
    factor = scale(Gemm(8, 8, k, "int8"))
    assert math.log2(factor).is_integer()
    assert 5 < factor * math.sqrt(k / 2) * 24**2 < 60
    assert scale(Gemm(8, 8, k, "int8", "int32")) == scale(Gemm(8, 8, k)) == 1.0


def computed(gemm, seed=0):
    """The operands, and the output that a right kernel writes."""
    generator = np.random.default_rng(seed)
    kind, output = gemm.input_type, gemm.output_type
    x = Matrix.random(kind, gemm.m, gemm.k, rng=generator)
    w = Matrix.random(kind, gemm.n, gemm.k, rng=generator, pattern=kind.pattern)
    bias = generator.standard_normal(gemm.n).astype(gemm.bias_type.numpy) if gemm.has_bias else None
    y = scale(gemm) * (x.take(np.arange(gemm.m)) @ w.take(np.arange(gemm.n)).T)
    y = y if bias is None else y + bias.astype(np.float64)
    c = Matrix.random(output, gemm.m, gemm.n, rng=generator) if gemm.has_addend else None
    y = y if c is None else y + c.take(np.arange(gemm.m))
    if "relu" in gemm.epilogue:
        y = np.maximum(y, 0)
    if "gelu" in gemm.epilogue:
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    if output.exact:
        limits = np.iinfo(output.numpy)
        y = np.clip(np.rint(y), limits.min, limits.max)
    return Reference(gemm, x, w, bias, c), y.astype(output.numpy)


@pytest.mark.parametrize("epilogue", ["none", "bias", "bias_relu", "gelu"])
@pytest.mark.parametrize("dtype", INPUTS)
def test_a_right_result_passes(dtype, epilogue):
    reference, y = computed(Gemm(96, 80, 256, dtype, epilogue=epilogue))
    assert reference.check(y).passed


@pytest.mark.parametrize("dtype", [name for name in INPUTS if name != "int8"])
def test_what_is_added_has_to_be_in_the_result(dtype):
    reference, y = computed(Gemm(96, 80, 256, dtype, epilogue="bias_add_relu"))
    assert reference.check(y).passed
    _, without = computed(Gemm(96, 80, 256, dtype, epilogue="bias_relu"))
    assert not reference.check(without).passed


@pytest.mark.parametrize("dtype", INPUTS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda y: y * 1.1,
        lambda y: np.roll(y, 1, axis=0),
        lambda y: np.concatenate([y[:, 1:], y[:, :1]], axis=1),
        lambda y: np.where(np.arange(len(y))[:, None] < len(y) // 4, 0, y),
    ],
    ids=["scaled", "rows shifted", "columns shifted", "a quarter missing"],
)
def test_a_wrong_result_does_not_pass(dtype, damage):
    reference, y = computed(Gemm(96, 80, 256, dtype))
    wrong = damage(y.astype(np.float64))
    assert not reference.check(wrong.astype(y.dtype)).passed


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "tf32"])
def test_one_value_that_was_not_written_is_seen_wherever_it_is(dtype):
    gemm = Gemm(96, 80, 256, dtype)
    reference, y = computed(gemm)
    y.view(np.uint8).reshape(96, -1)[95, -gemm.output_type.nbytes :] = poison(gemm.output_type)
    check = reference.check(y)
    assert (check.error, check.passed) == (math.inf, False)


def test_rows_beyond_the_product_do_not_count():
    gemm = Gemm(90, 80, 256)
    reference, y = computed(gemm)
    padded = np.concatenate([y, np.full((6, 80), np.nan, y.dtype)])
    assert reference.check(padded).passed


def test_rows_of_the_check_are_spread_over_the_product():
    gemm = Gemm(4096, 2048, 64)
    rows = Reference(gemm, Matrix.random(gemm.input_type, 4096, 64, rng=rng()),
                     Matrix.random(gemm.input_type, 2048, 64, rng=rng()), None)  # fmt: skip
    assert {int(row) // 64 for row in rows.rows} == set(range(64))
    assert {int(column) // 128 for column in rows.columns} == set(range(16))
