import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import parser

from trtsparse.errors import FeedError, ModelError
from trtsparse.precision.compare import compare_models, compare_runs

HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[n] x)'
FLOATS = arrays.arrays(np.float32, st.integers(1, 20), elements=st.integers(-1000, 1000))


def error_of(a, b, **more):
    return compare_runs(lambda _: {"y": np.asarray(a)}, lambda _: {"y": np.asarray(b)}, feeds=[{}], **more).error


@given(FLOATS, st.integers(0, 2**32 - 1))
def test_the_error_is_the_largest_difference_relative_to_the_largest_magnitude(a, seed):
    b = a + np.random.default_rng(seed).normal(size=a.shape).astype(np.float32)
    expected = np.abs(a - b).max() / np.abs(a).max() if np.abs(a).max() else math.inf
    assert error_of(a, b) == pytest.approx(expected if np.abs(a - b).max() else 0)


@given(FLOATS)
def test_equal_outputs_have_no_error(a):
    assert error_of(a, a.copy()) == 0


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0),
        ([1.0, np.inf], [1.0, np.inf], 0),
        ([1.0, np.inf], [1.0, -np.inf], math.inf),
        ([1.0, 2.0], [1.0, np.nan], math.inf),
        ([1.0, np.nan], [1.0, 2.0], math.inf),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 1.0], math.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, True], 0.5),
        (["a", "b"], ["a", "b"], 0),
        ([1.0, 2.0], [1.0], math.inf),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), 0),
    ],
)
def test_special_values(a, b, error):
    assert error_of(a, b) == error


def test_feeds_share_one_scale():
    outputs = iter([1.0, 1.5, 100.0, 100.0])
    run = lambda _: {"y": np.float32([next(outputs)])}  # noqa: E731
    found = compare_runs(run, run, feeds=[{}, {}])
    assert found.error == pytest.approx(0.005)
    assert found.feeds == 2


def test_models_are_compared_output_by_output():
    a = parser.parse_model(HEAD + " => (float[n] y, float[n] z) { y = Add(x, x) z = Abs(x) }")
    b = parser.parse_model(HEAD + " => (float[n] y, float[n] z) <float c = {2.5}> { y = Mul(x, c) z = Abs(x) }")
    found = compare_models(a, b, feeds=[{"x": np.float32([1, -4])}])
    assert found.per_output == {"y": 0.25, "z": 0.0}
    assert found.worst == "y"
    assert json.loads(json.dumps(found.to_dict()))["error"] == 0.25


def test_an_infinite_error_is_json():
    a = parser.parse_model(HEAD + " => (float[n] y) { y = Identity(x) }")
    b = parser.parse_model(HEAD + " => (float[n] y) { y = Log(x) }")
    found = compare_models(a, b, feeds=[{"x": np.float32([0.0, -1.0])}])
    assert json.dumps(found.to_dict()) == '{"error": "inf", "per_output": {"y": "inf"}, "feeds": 1}'


def test_models_with_different_outputs_are_refused():
    a = parser.parse_model(HEAD + " => (float[n] y) { y = Abs(x) }")
    b = parser.parse_model(HEAD + " => (float[n] z) { z = Abs(x) }")
    with pytest.raises(ModelError) as caught:
        compare_models(a, b, feeds=[])
    assert str(caught.value) == "the models have different outputs\n  where: ModelProto\n  got: 'z'\n  expected: 'y'"


def test_outputs_that_are_not_tensors_are_refused():
    model = parser.parse_model(HEAD + " => (seq(float[n]) s) { s = SequenceConstruct(x, x) }")
    with pytest.raises(ModelError) as caught:
        compare_models(model, model, feeds=[{"x": np.ones(2, np.float32)}])
    assert str(caught.value) == (
        "an output is not a tensor\n"
        "  where: output 's'\n"
        "  got: sequence_type\n"
        "  to fix: export the model with plain tensors as outputs"
    )


def test_an_output_without_a_type_is_compared():
    model = parser.parse_model(HEAD + " => (float[n] y) { y = Abs(x) }")
    model.graph.output[0].ClearField("type")
    assert compare_models(model, model, feeds=[{"x": np.ones(2, np.float32)}]).error == 0


def test_no_feeds_are_refused():
    a = parser.parse_model(HEAD + " => (float[n] y) { y = Abs(x) }")
    with pytest.raises(FeedError) as caught:
        compare_models(a, a, feeds=[])
    assert str(caught.value) == "there is nothing to compare: no feeds were given"
