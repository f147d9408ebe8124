"""Which constant takes back the shift of a layer's mean output, and which must not."""

import numpy as np
import pytest
from onnx import helper

from tests.helpers import arrays, model, random, tensor
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.prune import prune
from trtsparse.precision.ort import runner

X = np.random.default_rng(0).normal(1, 1, (40, 8)).astype(np.float32)
IMAGES = np.random.default_rng(0).normal(1, 1, (2, 8, 5, 6)).astype(np.float32)


def pruned(nodes, x=X, outputs=None, **constants):
    used = [tensor(name, value) for name, value in constants.items()]
    proto = model(nodes, used, inputs={"x": list(x.shape)}, outputs=outputs, opset=17)
    options = Calibration([{"x": x}])
    return proto, prune(proto, method="wanda", calibration=options)


def keeps_the_mean(proto, result, x=X, axes=(0,)):
    before, after = (runner(source)({"x": x})["y"] for source in (result_of(proto), result.model))
    return np.allclose(before.mean(axes), after.mean(axes), atol=1e-4)


def result_of(proto):
    from trtsparse.files.model import OnnxModel

    return OnnxModel.open(proto)


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
@pytest.mark.parametrize("swapped", [True, False])
def test_an_add_behind_a_matmul_is_its_bias(shape, swapped):
    names = ["b", "h"] if swapped else ["h", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", names, ["y"])]
    proto, result = pruned(nodes, w=random(8, 4), b=random(*shape))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result)


def test_a_subtrahend_is_a_bias_with_the_other_sign():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sub", ["h", "b"], ["y"])]
    proto, result = pruned(nodes, w=random(8, 4), b=random(4))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (2.0, -1.0)])
def test_a_gemm_s_bias_counts_with_alpha_and_beta(alpha, beta):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=alpha, beta=beta, transB=1)]
    proto, result = pruned(nodes, w=random(4, 8), b=random(4))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result)


def test_a_gemm_with_the_weight_first_has_a_column_as_bias():
    nodes = [helper.make_node("Gemm", ["w", "x", "b"], ["y"], transB=1)]
    proto, result = pruned(nodes, w=random(4, 8), b=random(4, 1))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result, axes=(1,))


def test_a_gemm_whose_beta_is_zero_has_no_bias():
    _, result = pruned(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=0.0, transB=1)], w=random(4, 8), b=random(4)
    )
    assert result.layers[0].biases == ()


def test_an_add_behind_a_gemm_counts_with_alpha():
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], alpha=0.5), helper.make_node("Add", ["h", "b"], ["y"])]
    proto, result = pruned(nodes, w=random(8, 4), b=random(4))
    assert keeps_the_mean(proto, result)


def test_a_matmul_with_the_weight_first_has_a_column_as_bias():
    nodes = [helper.make_node("MatMul", ["w", "x"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    x = np.ascontiguousarray(X.T)
    proto, result = pruned(nodes, x, w=random(4, 8), b=random(4, 1))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result, x, axes=(1,))


@pytest.mark.parametrize("reshaped", [True, False])
def test_a_convolution_s_bias_may_be_its_own_or_added(reshaped):
    if reshaped:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"]),
            helper.make_node("Unsqueeze", ["b", "axes"], ["wide"]),
            helper.make_node("Identity", ["wide"], ["same"]),
            helper.make_node("Add", ["h", "same"], ["y"]),
        ]
        constants = {"b": random(4), "axes": np.int64([1, 2])}
    else:
        nodes, constants = [helper.make_node("Conv", ["x", "w", "b"], ["y"])], {"b": random(4)}
    proto, result = pruned(nodes, IMAGES, w=random(4, 8, 2, 2), **constants)
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result, IMAGES, axes=(0, 2, 3))


def test_a_bias_in_a_constant_node_is_changed_too():
    nodes = [
        helper.make_node("Constant", [], ["b"], value=tensor("", random(4))),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    proto, result = pruned(nodes, w=random(8, 4))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result)


NORMALIZED = {name: np.ones(4, np.float32) for name in ("scale", "var")} | {
    "shift": np.zeros(4, np.float32),
    "mean": random(4, seed=1),
}
NORMALIZATION = helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"])


@pytest.mark.parametrize(
    ("product", "x", "weight", "axes"),
    [
        pytest.param(helper.make_node("MatMul", ["x", "w"], ["h"]), X, random(8, 4), (0,), id="rows"),
        pytest.param(helper.make_node("Gemm", ["x", "w"], ["h"]), X, random(8, 4), (0,), id="gemm"),
        pytest.param(
            helper.make_node("MatMul", ["w", "x"], ["h"]),
            X.reshape(5, 8, 8),
            random(4, 8),
            (0, 2),
            id="stacked columns",
        ),
        pytest.param(helper.make_node("Conv", ["x", "w"], ["h"]), IMAGES, random(4, 8, 1, 1), (0, 2, 3), id="images"),
    ],
)
def test_the_mean_of_a_normalization_over_the_layer_s_outputs_is_a_bias(product, x, weight, axes):
    proto, result = pruned([product, NORMALIZATION], x, w=weight, **NORMALIZED)
    assert result.layers[0].biases == ("mean",)
    assert keeps_the_mean(proto, result, x, axes)


@pytest.mark.parametrize(
    ("product", "x", "weight"),
    [
        pytest.param(helper.make_node("MatMul", ["x", "w"], ["h"]), X.reshape(10, 4, 8), random(8, 4), id="rows"),
        pytest.param(
            helper.make_node("MatMul", ["w", "x"], ["h"]), X.reshape(1, 4, 8, 10)[..., :4], random(4, 8), id="stacked"
        ),
        pytest.param(helper.make_node("Gemm", ["w", "x"], ["h"]), X.T[:, :4].copy(), random(4, 8), id="weight first"),
    ],
)
def test_the_mean_of_a_normalization_over_another_axis_of_the_same_length_stays(product, x, weight):
    x = np.ascontiguousarray(x)
    proto, result = pruned([product, NORMALIZATION], x, w=weight, **NORMALIZED)
    assert result.layers[0].rows > 0  # calibrated
    assert result.layers[0].biases == ()
    assert np.array_equal(arrays(result.model)["mean"], arrays(proto)["mean"])


def test_the_rank_of_an_input_is_known_where_the_model_does_not_tell_shapes():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["w", "r"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    x = np.ascontiguousarray(X.T)
    proto, result = pruned(nodes, x, w=random(4, 8), b=random(4, 1))
    assert result.layers[0].biases == ("b",)
    assert keeps_the_mean(proto, result, x, axes=(1,))


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"]),
                helper.make_node("Add", ["h", "b"], ["i"]),
                helper.make_node("Mul", ["i", "b"], ["y"]),
            ],
            {"b": random(4)},
            id="another node reads the bias",
        ),
        pytest.param(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"]),
                helper.make_node("Add", ["h", "b"], ["i"]),
                helper.make_node("Add", ["h", "i"], ["y"]),
            ],
            {"b": random(4)},
            id="another node reads the product",
        ),
        pytest.param(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
            {"b": random(40, 4)},
            id="the constant differs from row to row",
        ),
        pytest.param(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
            {"b": np.float32([1])},
            id="one number for all outputs",
        ),
        pytest.param(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sub", ["b", "h"], ["y"])],
            {"b": random(4)},
            id="the product is subtracted",
        ),
        pytest.param([helper.make_node("MatMul", ["x", "w"], ["y"])], {}, id="none"),
    ],
)
def test_what_is_not_the_layer_s_own_bias_stays(nodes, constants):
    proto, result = pruned(nodes, w=random(8, 4), **constants)
    assert result.layers[0].biases == ()
    if constants:
        assert np.array_equal(arrays(result.model)["b"], arrays(proto)["b"])


def test_a_bias_behind_an_output_of_the_model_stays():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    _, result = pruned(nodes, outputs={"h": None, "y": None}, w=random(8, 4), b=random(4))
    assert result.layers[0].biases == ()


def test_half_biases_are_rounded_to_their_type():
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=10),
        helper.make_node("MatMul", ["half", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=1),
    ]
    _, result = pruned(nodes, w=random(8, 4).astype(np.float16), b=random(4).astype(np.float16))
    assert result.layers[0].biases == ("b",)
    assert arrays(result.model)["b"].dtype == np.float16
