"""Quantized products found in graphs, and what they compute, against ONNX Runtime."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import models
from tests.engines.cusparselt.programs import needs_new_onnx_runtime
from tests.engines.cusparselt.quantized_programs import X_SCALE, activation, check, execute, rewritten
from tests.helpers import model, random, sparse, tensor
from trtsparse.engines.cusparselt.graph import Graph, Node
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.program import Program
from trtsparse.engines.cusparselt.quantized import quantize_products
from trtsparse.engines.cusparselt.quantized_product import QuantizedProduct
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.int8 import to_int8
from trtsparse.precision.ort import runner
from trtsparse.precision.quantize import quantize_weight

torch = pytest.importorskip("torch")


def weight(values, *, axis=None, zero=0):
    """A dequantized weight ``w_dq``: one scale, or one for each index of an axis."""
    if axis is None:
        largest = np.abs(values).max()
        scale = np.float32(largest / 127)
        integers, zeros, given = np.rint(values / scale).astype(np.int8), np.int8(zero), {}
    else:
        integers, scale = quantize_weight(values, axis=axis)
        zeros, given = np.full(scale.shape, zero, np.int8), {"axis": axis}
    node = helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_dq"], **given)
    return [node], [tensor("w_q", integers), tensor("w_s", scale), tensor("w_z", zeros)]


def quantized(op, shape, values, *, axis=None, bias=None, x=None, w=None, before=(), **attributes):
    """One product of ``x_dq`` and ``w_dq``, or of what ``before`` makes of the weight: ``w``."""
    x_nodes, x_constants = x or activation()
    w_nodes, w_constants = w or weight(values, axis=axis)
    name = before[-1].output[0] if before else "w_dq"
    inputs = ["x_dq", name, *([] if bias is None else ["b"])]
    node = helper.make_node(op, inputs, ["y"], name="it", **attributes)
    constants = [*x_constants, *w_constants, *([] if bias is None else [tensor("b", bias)])]
    return model([*x_nodes, *w_nodes, *before, node], constants, inputs={"x": list(shape)}, opset=21)


TURN = helper.make_node("Transpose", ["w_dq"], ["w_t"], perm=[1, 0])
W = random(48, 40)
CASES = {
    "matmul, one scale": quantized("MatMul", (6, 48), W),
    "matmul, scales of channels": quantized("MatMul", (6, 48), W, axis=1),
    "matmul, last axis": quantized("MatMul", (6, 48), W, w=weight(W, axis=-1)),
    "matmul of a batch": quantized("MatMul", (2, 3, 5, 48), W, axis=1),
    "matmul of a transposed weight": quantized("MatMul", (6, 48), W.T, axis=0, before=[TURN]),
    "matmul of odd dims": quantized("MatMul", (3, 7), random(7, 5), axis=1),
    "gemm": quantized("Gemm", (6, 48), W, axis=1),
    "gemm with a bias": quantized("Gemm", (6, 48), W.T, axis=0, bias=random(40), transB=1),
    "gemm with a row as bias": quantized("Gemm", (6, 48), W, bias=random(1, 40)),
    "gemm of a weight transposed twice": quantized("Gemm", (6, 48), W, axis=1, before=[TURN], transB=1),
    "conv": quantized("Conv", (2, 48, 3, 5), W.T.reshape(40, 48, 1, 1), axis=0),
    "conv with a bias": quantized("Conv", (2, 48, 3, 5), W.T.reshape(40, 48, 1, 1), axis=0, bias=random(40)),
    "pruned": quantized("MatMul", (6, 48), sparse(48, 40, axis=0), axis=1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_quantized_product_is_one_of_integers(name):
    graph = check(CASES[name], QuantizedLinear=1, QuantizeLinear=0, DequantizeLinear=0)
    node = next(node for node in graph.nodes if node.op == "QuantizedLinear")
    assert node.inputs[0] == "x"
    assert graph.constants[node.inputs[1]].dtype == np.int8
    assert node.attributes["x_scale"] == float(X_SCALE)
    assert node.attributes["w_scale"].dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40), k=st.integers(2, 70), n=st.integers(2, 40), by_channel=st.booleans(),
    transposed=st.booleans(), scale=st.floats(2**-12, 8, width=32), biased=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_gemm_is_what_onnx_runtime_computes(m, k, n, by_channel, transposed, scale, biased, seed):
    values = random(n, k, seed=seed) if transposed else random(k, n, seed=seed)
    check(
        quantized(
            "Gemm", (m, k), values, axis=(0 if transposed else 1) if by_channel else None,
            x=activation(scale=np.float32(scale)), bias=random(n) if biased else None, transB=int(transposed),
        ),
        QuantizedLinear=1,
    )  # fmt: skip


def test_rounding_is_half_to_even_and_saturates():
    """With a power of two as scale, ties are ties."""
    scale, identity = np.float32(1 / 32), np.eye(8, dtype=np.float32) * 127
    feeds = {"x": np.float32([[0.5, 1.5, -2.5, 126.5, 127.5, 500, -128.5, -500]]) * scale}
    source = quantized("MatMul", (1, 8), identity, x=activation(scale=scale))
    found = execute(rewritten(source), feeds)["y"]
    assert (found / scale / 127).tolist() == [[0, 2, -2, 126, 127, 127, -128, -128]]
    np.testing.assert_array_equal(found, runner(OnnxModel.open(source), optimize=False)(feeds)["y"])


def test_an_int8_output_type_stands_for_a_zero_point():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_s"], ["x_q"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["x_q", "x_s"], ["x_dq"]),
    ]
    check(quantized("MatMul", (6, 48), W, x=(nodes, [tensor("x_s", X_SCALE)])), QuantizedLinear=1)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, None])
def test_a_type_of_integers_without_a_zero_point_is_that_of_what_is_not_rewritten_too(kind):
    given = {} if kind is None else {"output_dtype": kind}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], **given),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    source = model(nodes, [tensor("s", X_SCALE)], inputs={"x": [6, 48]})
    check(source, QuantizeLinear=1, DequantizeLinear=1)
    found = execute(rewritten(source), {"x": np.full((6, 48), 200, np.float32)})["y"]
    np.testing.assert_allclose(found, X_SCALE * (127 if kind == TensorProto.INT8 else 255), rtol=1e-6)


@pytest.mark.parametrize(("bias", "adds"), [((8,), 1), ((8, 1), 1), ((8, 1, 1), 0), ((1, 8, 1, 1), 0)])
def test_a_bias_after_a_convolution_has_a_number_for_each_channel(bias, adds):
    source = quantized("Conv", (1, 48, 8, 8), random(8, 48, 1, 1), axis=0)
    source.graph.node[-1].output[0] = "sums"
    source.graph.node.append(helper.make_node("Add", ["sums", "c"], ["y"]))
    source.graph.initializer.append(tensor("c", random(*bias)))
    check(source, QuantizedLinear=1, Add=adds)


def typed(x, first, second, *, opset):
    """Ones of a type, quantized by a scale of one type, dequantized by one of another, times 127 everywhere."""
    x_nodes, constants = activation(scale=np.asarray(0.5, first), second_scale=np.asarray(0.5, second))
    w_nodes, w_constants = weight(np.full((16, 8), 63.5, np.float32))
    w_constants[1] = tensor("w_s", np.asarray(0.5, second))
    nodes = [*x_nodes, *w_nodes, helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"])]
    source = model(nodes, [*constants, *w_constants], inputs={"x": [1, 16]}, opset=opset)
    source.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(x))
    source.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(second))
    return source


@needs_new_onnx_runtime
@pytest.mark.parametrize(
    ("x", "first", "second", "opset", "count"),
    [
        (np.float16, np.float16, np.float16, 19, 1),
        (np.float16, np.float16, np.float32, 19, 0),
        (np.float32, np.float32, np.float16, 21, 0),
        (np.float32, np.float16, np.float16, 23, 1),
        (np.float16, np.float32, np.float32, 23, 1),
    ],
)
def test_a_product_has_the_type_of_its_scales(x, first, second, opset, count):
    source = typed(x, first, second, opset=opset)
    check(source, tolerance=1e-3, QuantizedLinear=count)
    feeds = {"x": np.full((1, 16), 63, x)}
    found, right = execute(rewritten(source), feeds)["y"], runner(OnnxModel.open(source), optimize=False)(feeds)["y"]
    assert found.dtype == right.dtype == second
    np.testing.assert_array_equal(found, right)


@needs_new_onnx_runtime
def test_a_product_of_float16_that_is_cast_to_bfloat16_is_of_float16_first():
    """Its range is smaller."""
    source = typed(np.float16, np.float16, np.float16, opset=19)
    source.graph.node[-1].output[0] = "narrow"
    source.graph.node.append(helper.make_node("Cast", ["narrow"], ["b"], to=TensorProto.BFLOAT16))
    source.graph.node.append(helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT16))
    check(source, tolerance=1e-2, QuantizedLinear=1, Cast=2)


def test_a_weight_that_is_quantized_in_the_graph_is_stored_as_int8():
    """As training with fake quantization exports it."""
    scale = np.abs(W).max(axis=0) / np.float32(127)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "w_s", "w_z"], ["w_q"], axis=1),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_dq"], axis=1),
    ]
    constants = [tensor("w", W), tensor("w_s", scale), tensor("w_z", np.zeros(40, np.int8))]
    graph = check(quantized("MatMul", (6, 48), W, w=(nodes, constants)), QuantizedLinear=1)
    assert graph.constants["w_q"].dtype == np.int8
    assert "w" not in graph.constants


def test_a_bias_of_int32_is_dequantized_beforehand():
    """As ONNX Runtime quantizes one."""
    source = quantized("Gemm", (6, 48), W, axis=1)
    scale = np.float32(0.001)
    source.graph.initializer.extend([tensor("b_q", np.arange(40, dtype=np.int32)), tensor("b_s", scale)])
    source.graph.node.insert(0, helper.make_node("DequantizeLinear", ["b_q", "b_s"], ["b"]))
    source.graph.node[-1].input.append("b")
    graph = check(source, QuantizedLinear=1)
    node = next(node for node in graph.nodes if node.op == "QuantizedLinear")
    np.testing.assert_allclose(graph.constants[node.inputs[2]], np.arange(40) * scale)


def test_a_pair_that_others_read_too_stays_for_them():
    source = quantized("MatMul", (6, 48), W)
    source.graph.node.append(helper.make_node("Relu", ["x_dq"], ["also"]))
    source.graph.output.append(helper.make_tensor_value_info("also", 1, None))
    check(source, QuantizedLinear=1, QuantizeLinear=1, DequantizeLinear=1)


def test_one_weight_serves_several_products():
    source = quantized("MatMul", (6, 48), W, axis=1)
    source.graph.node.append(helper.make_node("MatMul", ["x_dq", "w_dq"], ["again"]))
    source.graph.output.append(helper.make_tensor_value_info("again", 1, None))
    check(source, QuantizedLinear=2)


EXTRA = tensor("c", random(6, 40))
LEFT_ALONE = {
    "uint8": quantized("MatMul", (6, 48), W, x=activation(kind=np.uint8, zero=128)),
    "an asymmetric activation": quantized("MatMul", (6, 48), W, x=activation(zero=3)),
    "an asymmetric weight": quantized("MatMul", (6, 48), W, w=weight(W, zero=2)),
    "two scales": quantized("MatMul", (6, 48), W, x=activation(second_scale=np.float32(0.05))),
    "scales along the reduction": quantized("MatMul", (6, 48), W, axis=0),
    "a transposed activation": quantized("Gemm", (48, 6), W, transA=1),
    "a factor": quantized("Gemm", (6, 48), W, alpha=0.5),
    "a matrix as bias": quantized("Gemm", (6, 48), W, bias=random(6, 40)),
    "a factor of the bias": quantized("Gemm", (6, 48), W, bias=random(40), beta=0.5),
    "a larger kernel": quantized("Conv", (1, 4, 5, 5), random(8, 4, 3, 3), axis=0),
    "strides": quantized("Conv", (1, 4, 5, 5), random(8, 4, 1, 1), axis=0, strides=[2, 2]),
    "pads": quantized("Conv", (1, 4, 5, 5), random(8, 4, 1, 1), axis=0, pads=[1, 0, 0, 0]),
    "a kernel that is transposed": quantized(
        "Conv", (1, 1, 50, 50), W.T.reshape(40, 48, 1, 1), before=[helper.make_node("Transpose", ["w_dq"], ["w_t"])]
    ),
    "groups": quantized("Conv", (1, 8, 5, 5), random(8, 4, 1, 1), axis=0, group=2),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_products_stay_and_their_weights_are_dequantized_once(name):
    graph = check(LEFT_ALONE[name], QuantizedLinear=0, QuantizeLinear=1, DequantizeLinear=1)
    assert all(array.dtype != np.int8 or array.size == 1 for array in graph.constants.values())


def test_a_product_whose_activation_is_not_quantized_stays():
    nodes, constants = weight(W, axis=1)
    source = model(
        [*nodes, helper.make_node("MatMul", ["x", "w_dq"], ["y"])], constants, inputs={"x": [6, 48]}, opset=21
    )
    check(source, QuantizedLinear=0, Linear=1, DequantizeLinear=0)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        (ml_dtypes.int4, np.float32),
        (ml_dtypes.float8_e4m3fn, np.float32),
        (np.uint8, np.float32),
        (np.int8, np.float16),
    ],
)
def test_constants_of_every_type_are_dequantized_in_the_type_of_their_scale(kind, scale):
    values, scales = np.arange(6).reshape(2, 3).astype(kind), np.array([0.5, 2, 3], scale)
    graph = Graph(
        [Node("DequantizeLinear", "d", ["q", "s"], ["y"], {"axis": 1})], {"q": values, "s": scales}, [], ["y"], "g"
    )
    quantize_products(graph)
    assert graph.nodes == []
    assert graph.constants["y"].dtype == scale
    np.testing.assert_array_equal(graph.constants["y"], np.arange(6).reshape(2, 3) * scales)


def test_scales_and_zero_points_of_blocks_are_spread():
    values = np.arange(10, dtype=np.int8).reshape(2, 5)
    scales, zeros = np.float32([[1, 2, 3], [4, 5, 6]]), np.int8([[0, 1, 2], [0, 0, 0]])
    node = Node("DequantizeLinear", "d", ["q", "s", "z"], ["y"], {"axis": 1, "block_size": 2})
    graph = Graph([node], {"q": values, "s": scales, "z": zeros}, [], ["y"], "g")
    quantize_products(graph)
    np.testing.assert_array_equal(graph.constants["y"], [[0, 1, 2, 4, 6], [20, 24, 35, 40, 54]])


def test_a_constant_is_dequantized_to_the_type_that_is_named():
    node = Node("DequantizeLinear", "d", ["q", "s"], ["y"], {"output_dtype": TensorProto.FLOAT16})
    graph = Graph([node], {"q": np.arange(3, dtype=np.int8), "s": np.float32(0.5)}, [], ["y"], "g")
    quantize_products(graph)
    assert graph.constants["y"].dtype == np.float16
    assert graph.constants["y"].tolist() == [0, 0.5, 1]


SMALL = {"hidden": 64, "heads": 4, "intermediate": 128}


@pytest.mark.parametrize(
    ("name", "options", "shapes", "count"),
    [
        ("mlp", {"widths": (64, 96, 48, 10)}, {"input": (5, 64)}, 3),
        ("bert-base", {**SMALL, "layers": 2, "vocabulary": 99}, {"input_ids": (3, 20)}, 8),
        ("vit-base", {**SMALL, "layers": 1, "image_size": 32, "num_classes": 10}, None, 5),
    ],
)
def test_models_that_were_converted_give_what_onnx_runtime_gives(name, options, shapes, count):
    feeds = random_feeds(models.get(name, **options), shapes=shapes, count=4)
    converted = to_int8(models.get(name, **options), calibration=list(feeds), max_error=0.5).model
    # a difference in the last bit may become one of a step of 1/127
    check(converted, shapes, tolerance=0.02, QuantizedLinear=count)


def test_a_cast_to_sixteen_bits_is_part_of_the_product():
    """As it stands in models whose other values were converted."""
    source = quantized("MatMul", (6, 48), W, axis=1)
    source.graph.node[-1].output[0] = "wide"
    source.graph.node.append(helper.make_node("Cast", ["wide"], ["y"], to=TensorProto.FLOAT16))
    source.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    check(source, tolerance=1e-3, QuantizedLinear=1, Cast=0)
    source.graph.output.append(helper.make_tensor_value_info("wide", 1, None))
    check(source, tolerance=1e-3, QuantizedLinear=1, Cast=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_not_quantized_may_be_of_sixteen_bits(precision):
    plain = models.get("mlp", widths=(64, 96, 48, 10))
    feeds = random_feeds(plain, shapes={"input": (5, 64)}, count=4)
    rest = "fp16" if precision == "fp16" else "fp32"
    source = to_int8(plain, calibration=list(feeds), max_error=0.5, rest=rest).model
    graph = rewritten(source)
    assert graph.counts()["QuantizedLinear"] == 3
    floating = torch.bfloat16 if precision == "bf16" else None
    owner = Products(torch.device("cpu"), floating, lambda _gemm, _compliant: None)
    program = Program(graph, device="cpu", floating=floating, linear=partial(QuantizedProduct, owner))
    for feed in feeds:
        (found,) = program([torch.from_numpy(feed["input"])])
        (wanted,) = runner(OnnxModel.open(source), optimize=False)(feed).values()
        assert np.abs(found.float().numpy() - wanted).max() <= 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("by_channel", [False, True])
def test_what_onnx_runtime_quantizes_is_found(tmp_path, by_channel):
    quantization = pytest.importorskip("onnxruntime.quantization")
    path, out = tmp_path / "mlp.onnx", tmp_path / "int8.onnx"
    OnnxModel.open(models.get("mlp", widths=(64, 96, 48, 10))).save(path)
    feeds = list(random_feeds(path, shapes={"input": (5, 64)}, count=3))

    class Reader(quantization.CalibrationDataReader):
        left = iter(feeds)

        def get_next(self):
            return next(self.left, None)

    quantization.quantize_static(
        str(path), str(out), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=by_channel,
        activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )  # fmt: skip
    check(out, {"input": (5, 64)}, tolerance=0.02, QuantizedLinear=3)
