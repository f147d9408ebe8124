from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import parser

from trtsparse.errors import DtypeError, FeedError, ModelError, ShapeError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import FeedChecker, TensorSpec, check_named, input_specs, output_specs

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def opened(text):
    return OnnxModel.open(parser.parse_model(HEAD + text))


def checker(text):
    return FeedChecker(input_specs(opened(text)))


TWO = "g (float[n, 4] image, int64[n] label) => (float[n, 4] y) { y = Identity(image) }"
GOOD = {"image": np.zeros((2, 4), np.float32), "label": np.zeros(2, np.int64)}


def text_of(check, feeds, kind):
    with pytest.raises(kind) as caught:
        check(feeds)
    assert type(caught.value) is kind
    return str(caught.value)


def test_inputs_and_outputs_are_described():
    model = opened("g (float[n, 4] x) => (int64[2] y) { z = Shape(x) y = Identity(z) }")
    assert input_specs(model) == (TensorSpec("x", np.dtype("float32"), ("n", 4)),)
    assert output_specs(model) == (TensorSpec("y", np.dtype("int64"), (2,)),)


def test_a_dim_without_name_is_a_question_mark_and_a_missing_shape_is_none():
    proto = parser.parse_model(HEAD + "g (float[n, 4] x, float[2] z) => (float y) { y = Sum(x, z) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    first, second = input_specs(OnnxModel.open(proto))
    assert first.shape == ("?", 4)
    assert second.shape is None
    assert str(second) == "'z' float32 of any rank"
    FeedChecker([second])({"z": np.zeros((1, 2, 3), np.float32)})


def test_an_initializer_listed_as_input_is_no_input():
    proto = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4]))
    assert [spec.name for spec in input_specs(OnnxModel.open(proto))] == ["x"]


def test_an_input_that_is_no_tensor_is_refused():
    proto = parser.parse_model(HEAD + "g (seq(float[4]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(ModelError) as caught:
        input_specs(OnnxModel.open(proto))
    assert str(caught.value) == (
        "an input is not a tensor\n"
        "  where: input 'x'\n"
        "  got: sequence_type\n"
        "  to fix: export the model with plain tensors as inputs"
    )


def test_right_feeds_pass():
    checker(TWO)(GOOD)


def test_an_unknown_name_lists_the_inputs_and_guesses_the_right_one():
    text = text_of(checker(TWO), {"imge": GOOD["image"], "label": GOOD["label"]}, FeedError)
    assert text == (
        "the model has no such input\n"
        "  got: 'imge'\n"
        "  expected: 'image' float32 (n, 4); 'label' int64 (n)\n"
        "  to fix: did you mean 'image'?"
    )


def test_a_missing_input_is_named():
    assert text_of(checker(TWO), {"image": GOOD["image"]}, FeedError) == (
        "an input is missing\n"
        "  got: 'image'\n"
        "  expected: 'image' float32 (n, 4); 'label' int64 (n)\n"
        "  to fix: add 'label'"
    )


def test_a_wrong_data_type_says_how_to_cast():
    assert text_of(checker(TWO), {**GOOD, "image": np.zeros((2, 4))}, DtypeError) == (
        "an array has the wrong data type\n"
        "  where: input 'image'\n"
        "  got: float64\n"
        "  expected: float32\n"
        '  to fix: array.astype("float32")'
    )


def test_a_list_is_no_array():
    assert text_of(checker(TWO), {**GOOD, "label": [1, 2]}, DtypeError) == (
        "an input is not a numpy array\n"
        "  where: input 'label'\n"
        "  got: list\n"
        "  expected: int64\n"
        '  to fix: np.asarray(value, dtype="int64")'
    )


def test_another_byte_order_is_another_type():
    text_of(checker(TWO), {**GOOD, "image": np.zeros((2, 4), ">f4")}, DtypeError)


def test_a_wrong_size_names_the_dim():
    assert text_of(checker(TWO), {**GOOD, "image": np.zeros((2, 5), np.float32)}, ShapeError) == (
        "an array has the wrong shape\n  where: input 'image', dim 1\n  got: (2, 5)\n  expected: (n, 4)"
    )


def test_a_wrong_rank_is_told():
    assert text_of(checker(TWO), {**GOOD, "image": np.zeros(4, np.float32)}, ShapeError) == (
        "an array has the wrong number of dims\n  where: input 'image'\n  got: (4)\n  expected: (n, 4)"
    )


def test_dims_of_one_name_must_agree():
    assert text_of(checker(TWO), {**GOOD, "label": np.zeros(3, np.int64)}, ShapeError) == (
        "two dims of the same name have different sizes\n"
        "  where: input 'label', dim 0 ('n')\n"
        "  got: 3\n"
        "  expected: 2, as in input 'image', dim 0"
    )


@pytest.mark.parametrize("name", ["?", "unk__214", "", "DynamicDimension.0"])
def test_names_that_exporters_make_up_need_not_agree(name):
    proto = parser.parse_model(HEAD + TWO)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = name
    FeedChecker(input_specs(OnnxModel.open(proto)))({**GOOD, "label": np.zeros(3, np.int64)})


def test_strings_may_be_objects_or_unicode():
    check = FeedChecker([TensorSpec("s", np.dtype(object), (2,))])
    check({"s": np.array(["a", "b"])})
    check({"s": np.array(["a", "b"], object)})
    with pytest.raises(DtypeError, match=r"array.astype\(str\)"):
        check({"s": np.zeros(2)})
    with pytest.raises(DtypeError, match="not a numpy array"):
        check({"s": ["a", "b"]})


@pytest.mark.parametrize(
    ("wrong", "got", "fix"),
    [
        (b"cat", "bytes b'cat'", "np.char.decode(array.astype(bytes))"),
        (None, "NoneType None", "array.astype(str)"),
        (3, "int 3", "array.astype(str)"),
    ],
)
def test_only_str_is_a_string(wrong, got, fix):
    check = FeedChecker([TensorSpec("s", np.dtype(object), (1, 2))])
    array = np.array([["a", wrong]], object)
    assert text_of(check, {"s": array}, DtypeError) == (
        f"an array of strings has something else in it\n  where: input 's'\n  got: {got}\n  expected: str\n"
        f"  to fix: {fix}"
    )
    mended = eval(fix, {"np": np, "array": array[:, 1:]})  # noqa: S307 - the message's own words
    assert mended.tolist() == [[wrong.decode() if isinstance(wrong, bytes) else str(wrong)]]


@pytest.mark.parametrize("feeds", [[GOOD["image"]], GOOD["image"], None])
def test_arrays_without_names_are_refused(feeds):
    assert text_of(checker(TWO), feeds, FeedError) == (
        "arrays are given by name\n"
        f"  got: {type(feeds).__name__}\n"
        "  expected: 'image' float32 (n, 4); 'label' int64 (n)\n"
        "  to fix: {'image': array}"
    )


def test_any_mapping_gives_arrays_by_name():
    checker(TWO)(MappingProxyType(GOOD))
    check_named({}, [])
    with pytest.raises(FeedError) as caught:
        check_named([], [])
    assert str(caught.value) == "arrays are given by name\n  got: list"


def test_a_number_is_no_name():
    assert text_of(checker(TWO), {0: GOOD["image"]}, FeedError) == (
        "the model has no such input\n  got: 0\n  expected: 'image' float32 (n, 4); 'label' int64 (n)"
    )
