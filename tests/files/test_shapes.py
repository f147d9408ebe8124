"""Given shapes agree with what the model says about its inputs, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tests.helpers import matmul, model, random, tensor
from trtsparse.errors import ConfigError
from trtsparse.files.shapes import check_shapes, input_dims

INPUTS = {"ids": ("N", "S"), "types": ("N", "S"), "image": ("?", 3), "free": ("a*2", "a*2"), "any": None}


def test_inputs_are_those_that_must_be_fed():
    proto = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("w", random(4))],
        inputs={"x": ["n", None, 4], "z": None, "w": [4]},
    )
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", 1, [4]))
    assert input_dims(proto.graph) == {"x": ("n", "?", 4), "z": None}
    assert input_dims(matmul(random(8, 4), rows=2).graph) == {"x": (2, 8)}


@given(n=st.integers(0, 9), s=st.integers(0, 9))
def test_shapes_that_agree_give_the_sizes_of_shared_names(n, s):
    shapes = {"ids": (n, s), "types": [n, s], "image": (n, 3), "free": (n, s), "any": (1, 2, 3), "unknown": (1,)}
    assert check_shapes(INPUTS, shapes) == {"N": n, "S": s}


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"image": (2, 4)}, "got: image: (2, 4)\n  expected: image: (?, 3)"),
        ({"image": (2,)}, "got: image: (2)\n  expected: image: (?, 3)"),
        ({"image": (-1, 3)}, "got: image: (-1, 3)\n  expected: image: (?, 3)"),
        ({"any": (-1, 3)}, "got: any: (-1, 3)\n  expected: sizes of 0 or more"),
    ],
)
def test_a_shape_that_contradicts_the_model_is_refused(shapes, text):
    with pytest.raises(ConfigError) as caught:
        check_shapes(INPUTS, shapes)
    assert str(caught.value) == f"a shape contradicts the model\n  where: shapes\n  {text}"


def test_two_sizes_for_one_name_are_refused():
    with pytest.raises(ConfigError) as caught:
        check_shapes(INPUTS, {"ids": (32, 384), "types": (16, 384)})
    assert str(caught.value) == (
        "two dims of the same name have different sizes\n  where: shapes, input 'types', dim 0 ('N')\n"
        "  got: 16\n  expected: 32, as in input 'ids', dim 0"
    )
    with pytest.raises(ConfigError, match="two dims of the same name have different sizes"):
        check_shapes({"square": ("n", "n")}, {"square": (2, 3)})
