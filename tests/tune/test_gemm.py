import json

import pytest
from hypothesis import given

from tests.tune.results import INPUTS, gemms
from trtsparse.errors import ConfigError
from trtsparse.tune.gemm import DTYPES, EPILOGUES, Gemm

MOST = 1 << 20


@given(gemms(MOST))
def test_a_product_survives_json(gemm):
    assert Gemm(**json.loads(json.dumps(gemm.to_dict()))) == gemm


@given(gemms(MOST), gemms(MOST))
def test_keys_tell_products_apart(one, other):
    assert (one.key == other.key) == (one == other)


@given(gemms(MOST))
def test_padded_rows_are_the_least_multiple_of_16_bytes_in_both_types(gemm):
    step = 16 // min(gemm.input_type.nbytes, gemm.output_type.nbytes)
    assert gemm.padded_m % step == 0
    assert 0 <= gemm.padded_m - gemm.m < step


@pytest.mark.parametrize(("dtype", "out"), [("bf16", "bf16"), ("fp16", "fp16"), ("int8", "int8"), ("tf32", "fp32")])
def test_the_output_has_a_usual_type(dtype, out):
    assert Gemm(8, 8, 8, dtype).out_dtype == out
    assert Gemm(8, 8, 8, dtype).types == f"{dtype}->{out}"


def test_the_bias_of_integers_is_float32():
    assert Gemm(8, 8, 8, "int8", "int8", "bias").bias_type == DTYPES["fp32"]
    assert Gemm(8, 8, 8, "int8", "fp16", "bias").bias_type == DTYPES["fp16"]
    assert Gemm(8, 8, 8, "bf16", "", "bias").bias_type == DTYPES["bf16"]
    assert (Gemm(8, 8, 8, epilogue="bias_gelu").has_bias, Gemm(8, 8, 8, epilogue="gelu").has_bias) == (True, False)
    assert Gemm(8, 8, 8, epilogue="bias_gelu").activation == "gelu"


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_an_epilogue_is_told_by_its_parts(epilogue):
    gemm = Gemm(8, 8, 8, epilogue=epilogue)
    parts = "bias" * gemm.has_bias, "add" * gemm.has_addend, gemm.activation
    assert epilogue == ("_".join(filter(None, parts)) or "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (8, 8, 8, "fp64"),
            f"no such data type of a product\n  where: dtype\n  got: fp64\n  expected: {', '.join(INPUTS)}",
        ),
        (
            (8, 8, 8, "int32"),
            f"no such data type of a product\n  where: dtype\n  got: int32\n  expected: {', '.join(INPUTS)}",
        ),
        (
            (8, 8, 8, "bf16", "fp16"),
            "bf16 products have no such output type\n  where: out_dtype\n  got: fp16\n  expected: bf16",
        ),
        (
            (8, 8, 8, "bf16", "", "silu"),
            f"no such epilogue\n  where: epilogue\n  got: silu\n  expected: {', '.join(EPILOGUES)}",
        ),
        (
            (8, 8, 8, "int8", "", "bias_add"),
            (
                "products of integers add no matrix\n  where: epilogue\n  got: bias_add\n"
                "  expected: none, bias, relu, gelu, bias_relu, bias_gelu\n  to fix: add it in a pass of its own"
            ),
        ),
        ((8, 0, 8), "the dims of a product are positive\n  where: gemm\n  got: 8, 0, 8"),
    ],
)
def test_a_wrong_product_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        Gemm(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "8,8", "8x8x8", "8,8,8,8", "8,-8,8", "8,8,k"])
def test_dims_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        Gemm.parse(text)
    got = f"\n  got: {text}"
    assert str(caught.value) == f"cannot read a product's dims\n  where: gemm{got}\n  expected: M,N,K"
