"""Random integers are ones that the model knows."""

import numpy as np
import pytest
from onnx import parser

import models
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.vocabulary import input_range

TABLE = "<float[5, 2] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>"


def model(text):
    return OnnxModel.open(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"g (int64[n] x) => (float[n, 2] y) {TABLE} {{ y = Gather(table, x) }}", 5),
        (f"g (int64[n] x) => (float[5, n] y) {TABLE} {{ y = Gather<axis = 1>(table, x) }}", 2),
        (f"g (int32[n] x) => (float[n, 2] y) {TABLE} {{ c = Cast<to = 7>(x) y = Gather(table, c) }}", 5),
        ("g (int64[n] x) => (float[n, 7] y) <int64 d = {7}, float[2] v = {0, 1}> { y = OneHot(x, d, v) }", 7),
        ("g (int64[n, 1] x) => (bool[n, 4] y) <int64[4] c = {0, 1, 2, 3}> { y = Equal(x, c) }", 4),
        ("g (int64[n] x) => (bool[n] y) <int64 pad = {9}> { y = Equal(x, pad) }", 2),
        ("g (int64[n] x) => (int64[n] y) { y = Abs(x) }", 2),
        (f"g (int64[1] x, float[2] t) => (float[1] y) {TABLE} {{ y = Gather(t, x) z = Gather(table, x) }}", 5),
    ],
)
def test_the_range_is_that_of_the_table_the_input_indexes(text, expected):
    assert input_range(model(text), "x") == expected


def test_the_smallest_of_several_tables_counts():
    text = (
        f"g (int64[n] x) => (float[n, 2] y) <float[3, 2] small = {{0, 1, 2, 3, 4, 5}}, "
        f"{TABLE[1:]} {{ a = Gather(table, x) b = Gather(small, x) y = Add(a, b) }}"
    )
    assert input_range(model(text), "x") == 3


def test_magika_takes_256_byte_values_and_a_padding_token():
    pytest.importorskip("magika")
    assert input_range(OnnxModel.open(models.get("magika")), "bytes") == 257


def test_random_tokens_stay_in_a_small_integer_type():
    text = f"g (uint8[n] x) => (float[n, 2] y) {TABLE} {{ c = Cast<to = 7>(x) y = Gather(table, c) }}"
    (feed,) = random_feeds(model(text), shapes={"x": (1000,)})
    assert feed["x"].dtype == np.uint8
    assert set(feed["x"].tolist()) == {0, 1, 2, 3, 4}
