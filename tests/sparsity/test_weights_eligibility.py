"""What is not eligible says why, and what is says what makes a gain unlikely."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.helpers import matmul, model, random, tensor
from tests.sparsity.finding import behind, node, only, sites
from trtsparse.sparsity.pattern import Pattern


def test_a_constant_that_is_no_tensor_is_said_so():
    constant = helper.make_node("Constant", [], ["w2"], value_floats=[1.0, 2.0])
    assert only(model([constant, node("MatMul", "x w2", "y")])).reason == "constant 'w2' is not stored as a tensor"


NO_PRODUCT = "the weight is a vector: no matrix product"


@pytest.mark.parametrize(
    ("nodes", "initializers", "inputs", "reason"),
    [
        ([node("MatMul", "x v", "y")], {}, {"x": [2, 8], "v": [8, 4]}, "not constant: 'v' is an input of the graph"),
        ([node("MatMul", "x nowhere", "y")], {}, None, "not constant: 'nowhere' is not defined"),
        ([node("Relu", "w", "r"), node("MatMul", "x r", "y")], {"w": (8, 4)}, None,
         "not constant: computed by Relu 'relu'"),
        ([helper.make_node("Relu", ["w"], ["r"]), node("MatMul", "x r", "y")], {"w": (8, 4)}, None,
         "not constant: computed by Relu 'r'"),
        ([node("MatMul", "x w", "y")], {"w": (6, 4)}, {"x": [2, 6]}, "reduction of 6 is not a multiple of 4"),
        ([node("MatMul", "x w", "y")], {"w": (8,)}, None, NO_PRODUCT),
        ([node("MatMul", "x w", "y")], {"w": (300,)}, {"x": [2, 300]}, NO_PRODUCT),
        ([node("Unsqueeze", "w one", "u"), node("MatMul", "x u", "y")], {"w": (8,)}, None, NO_PRODUCT),
        ([node("MatMul", "x w", "y")], {"w": (0, 4)}, {"x": [2, 0]}, "empty weight: dims [0, 4]"),
        ([node("Gemm", "w w", "y")], {"w": (8, 8)}, None,
         "both operands of Gemm are constant: TensorRT folds the product"),
        ([node("MatMul", "v w", "y")], {"v": (4, 8), "w": (8, 4)}, None,
         "both operands of MatMul are constant: TensorRT folds the product"),
        ([node("Conv", "x w", "y", group=4)], {"w": (8, 4, 3, 3)}, {"x": [1, 16, 8, 8]},
         "grouped convolution (group = 4): TensorRT never uses sparse kernels"),
        ([node("ConvTranspose", "x w", "y")], {"w": (8, 4, 3, 3)}, {"x": [1, 8, 8, 8]},
         "ConvTranspose: TensorRT is not known to use sparse kernels for it"),
        ([node("LSTM", "x w w", "y", hidden_size=2)], {"w": (1, 8, 4)}, {"x": [3, 2, 4]},
         "LSTM: TensorRT has no sparse kernels for recurrent layers"),
        ([node("GRU", "x w w", "y", hidden_size=2)], {"w": (1, 6, 4)}, {"x": [3, 2, 4]},
         "GRU: TensorRT has no sparse kernels for recurrent layers"),
        ([node("RNN", "x w w", "y", hidden_size=4)], {"w": (1, 4, 4)}, {"x": [3, 2, 4]},
         "RNN: TensorRT has no sparse kernels for recurrent layers"),
    ],
)  # fmt: skip
def test_what_is_not_eligible_says_why(nodes, initializers, inputs, reason):
    extra = [tensor("one", np.array([1]))]
    proto = model(
        nodes, [*(tensor(name, random(*shape)) for name, shape in initializers.items()), *extra], inputs=inputs
    )
    found_sites = sites(proto)
    assert {(site.eligible, site.reason) for site in found_sites} == {(False, reason)}


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("ConvInteger", "xi w", "ConvInteger: TensorRT does not support dynamic quantization"),
        ("QLinearConv", "xi s z w s z s z", "QLinearConv: TensorRT takes QuantizeLinear / DequantizeLinear instead"),
    ],
)
def test_integer_convolutions_are_not_eligible(op, inputs, reason):
    initializers = [tensor("w", np.ones((8, 4, 3, 3), np.int8)), tensor("s", np.float32(1)), tensor("z", np.int8(0))]
    proto = model(
        [
            node("Cast", "x", "xi", to=TensorProto.INT8),
            node(op, inputs, "o"),
            node("Cast", "o", "y", to=TensorProto.FLOAT),
        ],
        initializers,
        inputs={"x": [1, 4, 6, 6]},
    )
    site = only(proto)
    assert (site.reason, site.axis, site.dtype) == (reason, 1, "int8")


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("MatMulInteger", "xi w", "MatMulInteger: TensorRT does not support dynamic quantization"),
        (
            "QLinearMatMul",
            "xi s z w s z s z",
            "QLinearMatMul: TensorRT takes QuantizeLinear / DequantizeLinear instead",
        ),
    ],
)
def test_integer_products_are_not_eligible(op, inputs, reason):
    initializers = [tensor("w", np.ones((8, 4), np.int8)), tensor("s", np.float32(1)), tensor("z", np.int8(0))]
    site = only(
        model(
            [
                node("Cast", "x", "xi", to=TensorProto.INT8),
                node(op, inputs, "o"),
                node("Cast", "o", "y", to=TensorProto.FLOAT),
            ],
            initializers,
        )
    )
    assert (site.reason, site.axis, site.dtype, site.macs) == (reason, 0, "int8", 2 * 8 * 4)


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool", "complex64", "float4_e2m1fn"])
def test_types_that_sparse_tensor_cores_do_not_take_are_named(dtype):
    import ml_dtypes

    values = np.ones((8, 4)).astype(getattr(ml_dtypes, dtype, None) or dtype)
    site = only(behind([node("Cast", "w", "w2", to=TensorProto.FLOAT)], values))
    assert (site.dtype, site.reason) == (dtype, f"data type {dtype}: Sparse Tensor Cores do not take it")


def test_a_sparse_initializer_is_said_to_be_one():
    proto = model([node("MatMul", "x w", "y")])
    values, indices = tensor("w", np.float32([1, 2])), tensor("", np.array([0, 5]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 4]))
    assert only(proto).reason == "stored as a sparse tensor: TensorRT takes dense weights only"


def test_operators_of_other_domains_are_not_taken_for_onnxs():
    chain = [helper.make_node("Transpose", ["w"], ["w2"], domain="other", name="odd")]
    assert only(behind(chain, random(8, 4))).reason == "not constant: computed by Transpose 'odd'"
    custom = helper.make_node("MatMul", ["x", "w"], ["y"], domain="other")
    assert sites(model([custom], [tensor("w", random(8, 4))])) == ()


@pytest.mark.parametrize(
    ("scale", "zero", "axis", "reason"),
    [
        ("x", "", 1, "DequantizeLinear 'dequantizelinear' has a scale or zero point that is not constant"),
        (
            "three",
            "",
            1,
            "DequantizeLinear 'dequantizelinear' has scales along an axis that is not one of the stored tensor",
        ),
        (
            "four",
            "",
            7,
            "DequantizeLinear 'dequantizelinear' has scales along an axis that is not one of the stored tensor",
        ),
        ("one", "", 1, ""),
        ("four", "", 1, ""),
        ("eight", "", 0, ""),
        ("four", "zero", 1, ""),
    ],
)
def test_quantized_weights_need_constant_scales_along_a_stored_axis(scale, zero, axis, reason):
    sizes = {"one": 1, "three": 3, "four": 4, "eight": 8}
    extra = [tensor(name, random(size)) for name, size in sizes.items()] + [tensor("zero", np.int8([0, 1, 2, 3]))]
    chain = [helper.make_node("DequantizeLinear", ["w", scale, zero], ["w2"], axis=axis, name="dequantizelinear")]
    site = only(behind(chain, np.ones((8, 4), np.int8), extra=extra))
    assert site.reason == reason
    assert site.eligible == (not reason)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (random(8, 4), ("8 is not a multiple of 32, the depth of FP16", "8 input and 4 output channels")),
        (random(32, 256), ("32 is not a multiple of 64, the depth of INT8", "32 input and 256 output channels")),
        (random(256, 256), ()),
        (np.ones((256, 256), np.uint8), ("TensorRT takes signed INT8 only",)),
    ],
)
def test_warnings_say_what_makes_a_gain_unlikely(values, expected):
    chain = [node("Cast", "w", "w2", to=TensorProto.FLOAT)]
    warnings = only(behind(chain, values, inputs={"x": [2, len(values)]})).warnings
    assert len(warnings) == len(expected)
    for warning, part in zip(warnings, expected, strict=True):
        assert part in warning


def test_other_patterns_have_other_multiples():
    assert only(matmul(random(6, 4)), pattern=Pattern(1, 2)).eligible
    assert only(matmul(random(8, 4)), pattern=Pattern(2, 16)).reason == "reduction of 8 is not a multiple of 16"
