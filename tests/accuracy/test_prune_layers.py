"""Which layers calibration reaches, in whatever type they are stored, and what is pruned by magnitude instead."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.accuracy.pruning import METHODS, chain, feeds, images, output_of
from tests.helpers import arrays, model, random, tensor
from trtsparse.accuracy.prune import prune
from trtsparse.errors import PruneError
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import prune as prune_by_magnitude
from trtsparse.sparsity.validate import validate


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_weights_are_written_in_their_type(dtype, method):
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    proto = model(nodes, [tensor("w", random(16, 8).astype(dtype))], inputs={"x": [20, 16]}, opset=17)
    result = prune(proto, method=method, calibration=feeds(20, 16))
    (layer,) = result.layers
    assert layer.error <= layer.magnitude_error
    assert arrays(result.model)["w"].dtype == dtype
    assert validate(result.model).compliant


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_weights_stay_on_their_grid(dtype):
    zero = np.full(8, 100 if dtype is np.uint8 else 0, dtype)
    stored = (random(16, 8) * 100).round().astype(np.int32) + zero.astype(np.int32)
    constants = [
        tensor("w", stored.astype(dtype)),
        tensor("scale", np.linspace(0.01, 0.03, 8, dtype=np.float32)),
        tensor("zero", zero),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    proto = model(nodes, constants, inputs={"x": [20, 16]})
    result = prune(proto, method="sparsegpt", calibration=feeds(20, 16))
    (layer,) = result.layers
    assert layer.method == "sparsegpt"
    assert layer.error < layer.magnitude_error
    assert validate(result.model).compliant
    assert result.zeroed == np.count_nonzero((arrays(result.model)["w"] == zero) & (stored != zero))


def test_layers_inside_conditions_are_pruned_by_magnitude_and_say_why():
    branch = [
        helper.make_graph(
            [
                helper.make_node("Constant", [], [f"w{i}"], value=tensor("", random(8, 8, seed=i))),
                helper.make_node("MatMul", ["x", f"w{i}"], [f"o{i}"], name=f"inner{i}"),
            ],
            "branch",
            [],
            [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, None)],
        )
        for i in range(2)
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["choice"]),
        helper.make_node("If", ["choice"], ["h"], name="if", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="outer"),
    ]
    constants = [tensor("zero", np.float32(0)), tensor("v", random(8, 4))]
    proto = model(nodes, constants, inputs={"x": [10, 8]}, opset=17)
    result = prune(proto, method="sparsegpt", calibration=feeds(10, 8))
    reason = "inputs inside If 'if' cannot be observed"
    assert [(layer.method, layer.reason) for layer in result.layers] == [
        ("magnitude", reason),
        ("magnitude", reason),
        ("sparsegpt", ""),
    ]
    assert result.layers[0].error is None
    assert validate(result.model).compliant


def test_layers_in_functions_are_calibrated():
    function = helper.make_function(
        "own", "Dense", ["a", "w"], ["b"], [helper.make_node("MatMul", ["a", "w"], ["b"], name="product")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["h"], domain="own", name="one"),
        helper.make_node("Dense", ["h", "v"], ["y"], domain="own", name="two"),
    ]
    constants = [tensor("w", random(16, 12)), tensor("v", random(12, 8))]
    proto = model(nodes, constants, inputs={"x": [20, 16]}, functions=[function], opset=17)
    result = prune(proto, method="sparsegpt", calibration=feeds(20, 16))
    assert [layer.method for layer in result.layers] == ["sparsegpt", "sparsegpt"]
    plain = model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])],
        constants, inputs={"x": [20, 16]}, opset=17,
    )  # fmt: skip
    expected = arrays(prune(plain, method="sparsegpt", calibration=feeds(20, 16)).model)
    for name, values in arrays(result.model).items():
        np.testing.assert_array_equal(values, expected[name])


def tied(*nodes, **constants):
    used = [tensor(name, value) for name, value in constants.items()]
    return model(nodes, used, inputs={"x": [20, 8]}, opset=17)


def test_a_tied_weight_is_pruned_once_with_the_moments_of_all_its_uses():
    proto = tied(
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="b"),
        w=random(8, 8),
    )
    result = prune(proto, method="sparsegpt", calibration=feeds(20, 8))
    (layer,) = result.layers
    assert (layer.nodes, layer.method, layer.rows) == (("a", "b"), "sparsegpt", 240)
    assert validate(result.model).compliant


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [
                helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
                helper.make_node("Gemm", ["h", "w"], ["y"], name="b", transB=1),
            ],
            "its uses add up along different axes",
        ),
        (
            [
                helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
                helper.make_node("Gather", ["w", "rows"], ["g"], name="embedding"),
                helper.make_node("MatMul", ["h", "g"], ["y"]),
            ],
            "also read by Gather 'embedding'",
        ),
        (
            [
                helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
                helper.make_node("Identity", ["w"], ["table"]),
                helper.make_node("Gather", ["table", "rows"], ["g"], name="embedding"),
                helper.make_node("MatMul", ["h", "g"], ["y"]),
            ],
            "also read by Gather 'embedding'",
        ),
    ],
)
def test_a_tied_weight_that_cannot_be_calibrated_is_pruned_by_magnitude(nodes, reason):
    proto = tied(*nodes, w=random(8, 8), rows=np.arange(8))
    result = prune(proto, method="sparsegpt", calibration=feeds(20, 8))
    (layer,) = result.layers
    assert (layer.method, layer.reason, layer.error) == ("magnitude", reason, None)
    expected = prune_by_magnitude(proto).model
    assert np.array_equal(arrays(result.model)["w"], arrays(expected)["w"])


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_whose_input_is_constant_is_pruned_by_magnitude(method):
    proto = tied(
        helper.make_node("Sin", ["places"], ["p"]),
        helper.make_node("MatMul", ["p", "w"], ["k"], name="positions"),
        helper.make_node("MatMul", ["x", "v"], ["q"], name="values"),
        helper.make_node("Add", ["q", "k"], ["y"]),
        places=random(20, 8), w=random(8, 8), v=random(8, 8, seed=1),
    )  # fmt: skip
    result = prune(proto, method=method, calibration=feeds(20, 8))
    assert [(layer.tensor, layer.method, layer.reason) for layer in result.layers] == [
        ("w", "magnitude", "its input does not depend on the model's inputs"),
        ("v", method, ""),
    ]
    assert validate(result.model).compliant


def test_operators_of_other_domains_with_the_same_names_are_passed_over():
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["r"], domain="com.microsoft.nchwc", channels_last=0),
        helper.make_node("Conv", ["r", "w"], ["c"], domain="com.microsoft.nchwc", kernel_shape=[1, 1]),
        helper.make_node("ReorderOutput", ["c"], ["o"], domain="com.microsoft.nchwc", channels=16),
        helper.make_node("Flatten", ["o"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    constants = [tensor("w", random(16, 16, 1, 1)), tensor("v", random(64, 8))]
    proto = model(nodes, constants, inputs={"x": [3, 16, 2, 2]}, opset=17)
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    result = prune(proto, method="sparsegpt", calibration=images(3, 16, 2, 2))
    assert [(layer.tensor, layer.method) for layer in result.layers] == [("v", "sparsegpt")]


def test_a_pattern_that_two_axes_cannot_have_names_the_tensor():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "w"], ["y"], transB=1)]
    with pytest.raises(PruneError) as caught:
        prune(tied(*nodes, w=random(8, 8)), method="wanda", calibration=feeds(20, 8), pattern=Pattern(4, 8))
    assert str(caught.value) == (
        "two axes at once are only searched for M up to 4\n"
        "  where: 'w'\n  got: 4:8\n  to fix: exclude it: exclude=['w']"
    )


def test_a_weight_that_is_wider_than_allowed_is_pruned_by_magnitude(monkeypatch):
    monkeypatch.setattr("trtsparse.accuracy.calibrate._WIDEST", 12)
    result = prune(chain(), method="sparsegpt", calibration=feeds(20, 16))
    assert [layer.method for layer in result.layers] == ["magnitude", "sparsegpt"]
    assert result.layers[0].reason == "the moments of 16 columns are too large"


def test_weights_that_are_not_finite_are_pruned_by_magnitude():
    weights = random(8, 4)
    weights[0, 0] = np.inf
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("IsInf", ["h"], ["i"]),
             helper.make_node("Cast", ["i"], ["y"], to=1)]  # fmt: skip
    result = prune(
        model(nodes, [tensor("w", weights)], inputs={"x": [5, 8]}), method="sparsegpt", calibration=feeds(5, 8)
    )
    assert [(layer.method, layer.reason) for layer in result.layers] == [("magnitude", "the weights are not finite")]


def test_a_batch_normalization_behind_a_layer_takes_the_shift():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "variance"], ["y"]),
    ]
    constants = {
        "w": random(6, 8, 1, 1),
        "scale": random(6),
        "shift": random(6),
        "mean": random(6),
        "variance": random(6) ** 2,
    }
    proto = model(nodes, [tensor(n, v) for n, v in constants.items()], inputs={"x": [2, 8, 9, 10]})
    data = images(2, 8, 9, 10)
    result = prune(proto, method="wanda", calibration=data)
    assert result.layers[0].biases == ("mean",)
    difference = (output_of(proto, data) - output_of(result.model, data)).reshape(-1, 6, 90)
    np.testing.assert_allclose(difference.mean((0, 2)), 0, atol=1e-4)
