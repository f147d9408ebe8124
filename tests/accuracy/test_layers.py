"""Layers as matrix products: weight rows times input rows are the node's own output, in ONNX Runtime."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers import model, random, tensor
from trtsparse.accuracy import layers as module
from trtsparse.accuracy.layers import open_layer
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner
from trtsparse.sparsity.trace import Scope
from trtsparse.sparsity.weights import find_sites


def layer_of(proto):
    opened = OnnxModel.open(proto)
    (site,) = find_sites(opened)
    node = next(node for node in opened.proto.graph.node if node.op_type == site.op)
    inferred = onnx.shape_inference.infer_shapes(opened.proto)
    return opened, open_layer(opened, Scope(inferred.graph), node, site), site


def check(proto, x):
    """The products of the layer's matrices and rows are the numbers of the node's output."""
    opened, layer, site = layer_of(proto)
    matrices = layer.weights.read(opened.read(site.ref))
    rows = np.concatenate(list(layer.rows(x)), axis=1)
    assert (rows.shape[0], rows.shape[2]) == (matrices.shape[0], matrices.shape[2])
    products = np.einsum("brc,bnc->brn", matrices, rows)
    output = runner(opened, optimize=False)({"x": x})["y"]
    np.testing.assert_allclose(np.sort(products, axis=None), np.sort(output, axis=None), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.weights.write(matrices), opened.read(site.ref))
    return layer, matrices


def conv(weights, x, **attributes):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    return model([node], [tensor("w", weights)], inputs={"x": list(x.shape)})


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    batch=st.integers(1, 2),
)
@settings(deadline=None, max_examples=40)
def test_a_convolution_is_unfolded_with_strides_pads_and_dilations(kernel, strides, dilations, pads, batch):
    x = random(batch, 4, 7, 8, seed=1)
    check(conv(random(3, 4, *kernel), x, strides=strides, dilations=dilations, pads=pads), x)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_a_convolution_is_unfolded_with_automatic_pads(auto_pad, strides):
    x = random(1, 4, 7, 8, seed=1)
    check(conv(random(3, 4, 3, 2), x, auto_pad=auto_pad, strides=strides), x)


@pytest.mark.parametrize("sizes", [(9,), (5, 4, 6)])
def test_convolutions_have_any_number_of_axes(sizes):
    x = random(2, 4, *sizes, seed=1)
    check(conv(random(3, 4, *[2] * len(sizes)), x), x)


def test_unfolding_in_small_pieces_gives_the_same_rows(monkeypatch):
    x = random(2, 4, 9, 5, seed=1)
    _, layer, _ = layer_of(conv(random(3, 4, 3, 3), x, pads=(1, 1, 1, 1)))
    whole = np.concatenate(list(layer.rows(x)), axis=1)
    monkeypatch.setattr(module, "_ELEMENTS", 100)
    pieces = list(layer.rows(x))
    assert len(pieces) == 18
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_the_columns_of_a_group_are_neighbouring_channels():
    x = random(1, 8, 4, 4, seed=1)
    _, matrices = check(conv(np.arange(8 * 4.0, dtype=np.float32).reshape(1, 8, 2, 2), x), x)
    assert matrices[0, 0, :4].tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_may_transpose_either_operand(first, trans_a, trans_b):
    sizes = {"a": (4, 3) if trans_a else (3, 4), "b": (5, 4) if trans_b else (4, 5)}
    x, w = (sizes["b"], sizes["a"]) if first else (sizes["a"], sizes["b"])
    names = ["w", "x"] if first else ["x", "w"]
    node = helper.make_node("Gemm", names, ["y"], transA=trans_a, transB=trans_b)
    values = random(*x, seed=1)
    check(model([node], [tensor("w", random(*w))], inputs={"x": list(x)}), values)


@pytest.mark.parametrize(
    ("x", "w", "first"),
    [
        ((3, 4), (4, 5), False),
        ((2, 3, 4), (4, 5), False),
        ((2, 2, 3, 4), (4, 5), False),
        ((4,), (4, 5), False),
        ((2, 3, 4), (2, 4, 5), False),
        ((3, 4), (2, 4, 5), False),
        ((3, 4), (1, 4, 5), False),
        ((6, 2, 3, 4), (2, 4, 5), False),
        ((6, 1, 3, 4), (1, 2, 4, 5), False),
        ((6, 2, 3, 4), (6, 1, 4, 5), False),
        ((4, 3), (5, 4), True),
        ((2, 4, 3), (5, 4), True),
        ((2, 4, 3), (2, 5, 4), True),
        ((4,), (5, 4), True),
    ],
)
def test_a_matmul_may_have_operands_of_any_rank(x, w, first):
    node = helper.make_node("MatMul", ["w", "x"] if first else ["x", "w"], ["y"])
    check(model([node], [tensor("w", random(*w))], inputs={"x": list(x)}), random(*x, seed=1))


def behind(chain, stored, x, op="MatMul", **attributes):
    """A model whose weight goes through nodes first; each is (op, attributes, more inputs)."""
    nodes, name, constants = [], "stored", [tensor("stored", stored)]
    for i, (kind, options, more) in enumerate(chain):
        names = [f"more_{i}_{j}" for j in range(len(more))]
        constants += [tensor(n, value) for n, value in zip(names, more, strict=True)]
        nodes.append(helper.make_node(kind, [name, *names], [f"v{i}"], **options))
        name = f"v{i}"
    nodes.append(helper.make_node(op, ["x", name], ["y"], name="layer", **attributes))
    return model(nodes, constants, inputs={"x": list(x.shape)})


@pytest.mark.parametrize(
    ("chain", "stored"),
    [
        ([("Transpose", {"perm": [1, 0]}, [])], (5, 4)),
        ([("Identity", {}, []), ("Transpose", {}, [])], (5, 4)),
        ([("Reshape", {}, [np.int64([4, 5])])], (4, 1, 5)),
        ([("Unsqueeze", {}, [np.int64([0])])], (4, 5)),
        ([("Transpose", {"perm": [2, 0, 1]}, []), ("Squeeze", {}, [np.int64([1])])], (1, 5, 4)),
    ],
)
def test_the_weight_is_found_behind_nodes_that_keep_its_axes(chain, stored):
    check(behind(chain, random(*stored), x := random(3, 4, seed=1)), x)


def test_a_convolution_weight_may_be_stored_in_another_order():
    x = random(1, 8, 5, 6, seed=1)
    chain = [("Transpose", {"perm": [3, 2, 0, 1]}, [])]  # height, width, in, out
    check(behind(chain, random(2, 3, 8, 5), x, op="Conv"), x)


def test_a_reshape_that_splits_axes_is_said_to():
    x = random(3, 4, 8, seed=1)
    chain = [("Reshape", {}, [np.int64([4, 8, 3])])]
    _, layer, _ = layer_of(behind(chain, random(32, 3), x))
    assert layer == "a reshape between the stored tensor and the node merges or splits axes"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_read_and_rounded_back(dtype):
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx_type, [3, 4])],
        [helper.make_tensor_value_info("y", onnx_type, None)],
        [tensor("w", random(4, 5).astype(dtype))],
    )
    opened, layer, site = layer_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    stored = opened.read(site.ref)
    matrices = layer.weights.read(stored)
    assert matrices.dtype == np.float64
    written = layer.weights.write(matrices * 1.5)
    assert written.dtype == stored.dtype
    np.testing.assert_array_equal(written, (stored.astype(np.float64) * 1.5).astype(dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_weights_are_read_as_numbers_and_rounded_to_their_grid(dtype):
    zero = np.full(5, 3 if dtype is np.uint8 else 0, dtype)
    scale = np.float32([0.1, 0.2, 0.3, 0.4, 0.5])
    stored = np.arange(20).reshape(4, 5).astype(dtype)
    chain = [("DequantizeLinear", {"axis": 1}, [scale, zero])]
    x = random(3, 4, seed=1)
    layer, matrices = check(behind(chain, stored, x), x)
    np.testing.assert_allclose(matrices[0].T, (stored.astype(float) - zero) * scale)
    limits = np.iinfo(dtype)
    assert np.all(layer.weights.write(matrices * 0 + 1e9) == limits.max)
    assert np.all(layer.weights.write(matrices * 0 - 1e9) == limits.min)


def test_layers_that_unfold_one_input_alike_are_told_from_others():
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["a"]),
        helper.make_node("MatMul", ["x", "k"], ["b"]),
        helper.make_node("MatMul", ["a", "k"], ["c"]),
        helper.make_node("Gemm", ["x", "q"], ["d"]),
        helper.make_node("Gemm", ["x", "q"], ["e"], transA=1),
    ]
    proto = model(
        nodes, [tensor("q", random(8, 8)), tensor("k", random(8, 4))], inputs={"x": [8, 8]}, outputs={"c": None}
    )
    opened = OnnxModel.open(proto)
    sites = find_sites(opened)
    scope = Scope(opened.proto.graph)
    found = [open_layer(opened, scope, n, s).unfolding for n, s in zip(opened.proto.graph.node, sites, strict=True)]
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_tied_weights_that_are_seen_alike_may_share_their_moments():
    w = tensor("w", random(4, 4))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Gemm", ["a", "t"], ["b"], transB=1),
        helper.make_node("Gemm", ["b", "w"], ["y"], transB=1),
    ]
    opened = OnnxModel.open(model(nodes, [w], inputs={"x": [3, 4]}))
    scope = Scope(opened.proto.graph)
    products = [node for node in opened.proto.graph.node if node.op_type != "Transpose"]
    a, b, c = (open_layer(opened, scope, n, s) for n, s in zip(products, find_sites(opened), strict=True))
    assert a.weights.same_columns(b.weights)
    assert not a.weights.same_columns(c.weights)


def test_an_integer_product_cannot_be_calibrated():
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [tensor("w", np.ones((4, 5), np.int8))],
    )
    _, layer, _ = layer_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert layer == "inputs of MatMulInteger cannot be calibrated"
