"""Where constants are and how they are stored, from Constant nodes to 4-bit integers."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.accuracy.permuting import Net, assert_unchanged, layout_of, shuffled
from tests.helpers import point_to, save_external
from trtsparse.accuracy.permutation_check import check_unchanged
from trtsparse.files.model import OnnxModel


def two_layers():
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    return net.model(net.linear("z", x, 16, 8))


def left_alone(model):
    return dict(layout_of(model).left_alone)


def test_constant_nodes_are_permuted_as_initializers_are():
    model = two_layers()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [helper.make_node("Constant", [], [name], name, value=tensor) for name, tensor in weights.items()]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    assert assert_unchanged(model) == {"a", "a_bias", "z"}


def test_weights_are_found_behind_identity_cast_and_transpose():
    net = Net()
    a = net.node("Identity", net.weight("a", 16, 12))
    x = net.node("MatMul", net.input("x", [4, 12]), net.node("Transpose", a, perm=[1, 0]))
    z = net.node("Reshape", net.node("Cast", net.weight("z", 1, 16, 8, dtype=np.float64), to=1), net.ints(16, 8))
    model = net.model(net.node("MatMul", x, z))
    assert assert_unchanged(model) == {"a", "z"}


def test_initializers_that_are_also_graph_inputs_are_permuted():
    model = two_layers()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    assert assert_unchanged(model) == {"a", "a_bias", "z"}


def test_a_function_that_is_called_twice_has_its_weight_permuted_once():
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32), "inside")
    body = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["v"], ["r"]),
    ]
    body[1].input.append("w")
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Layer", ["v"], ["r"], body, opset)
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    x = net.node("Layer", net.node("Relu", net.node("Layer", x, domain="local")), domain="local")
    model = net.model(net.linear("z", x, 16, 8), functions=[function])
    _, names = shuffled(model)
    assert {"a", "a_bias", "z"} < names
    assert_unchanged(model)


def test_external_tensors_that_share_their_bytes_are_one(tmp_path):
    net = Net()
    x = net.linear("a", net.input("x", [4, 12]), 12, 16)
    x = net.node("Relu", net.node("MatMul", x, net.weight("b", 16, 16)))
    model = net.model(
        net.linear("z", net.node("MatMul", x, net.constant("c", np.zeros((16, 16), np.float32))), 16, 8)
    )
    path = save_external(model, tmp_path / "m.onnx", a="data", b="data", z="data")
    proto = onnx.load(path, load_external_data=False)
    by_name = {tensor.name: tensor for tensor in proto.graph.initializer}
    point_to(by_name["c"], **{e.key: e.value for e in by_name["b"].external_data})
    path.write_bytes(proto.SerializeToString())
    (stored,) = [s for s in layout_of(path).stored.values() if "b" in s.names]
    assert stored.names == ("b", "c")
    assert assert_unchanged(path) == {"a", "a_bias", "b", "c", "z"}


def test_bytes_that_two_tensors_share_in_part_stay(tmp_path):
    model = two_layers()
    path = save_external(model, tmp_path / "m.onnx", a="data", z="data")
    proto = onnx.load(path, load_external_data=False)
    by_name = {tensor.name: tensor for tensor in proto.graph.initializer}
    point_to(by_name["z"], location="data", offset=64, length=16 * 8 * 4)  # inside a
    path.write_bytes(proto.SerializeToString())
    assert left_alone(path)["z"] == "a and z share bytes of the same file"
    assert assert_unchanged(path) == set()


def test_the_same_bytes_in_two_shapes_stay(tmp_path):
    model = two_layers()
    path = save_external(model, tmp_path / "m.onnx", a="data", z="data")
    proto = onnx.load(path, load_external_data=False)
    a, _, z, _ = proto.graph.initializer
    point_to(z, location="data", offset=0, length=16 * 8 * 4)
    point_to(a, location="data", offset=0, length=12 * 16 * 4)
    path.write_bytes(proto.SerializeToString())
    assert left_alone(path)["z"] == "a and z are the same bytes with different shapes or types"


def test_elements_that_are_not_side_by_side_stay():
    """int32_data holds float16 as varints, of different lengths."""
    model = two_layers()
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "a_bias"]
    half = helper.make_tensor("a_bias", TensorProto.FLOAT16, [16], numpy_helper.to_array(bias).astype(np.float16))
    bias.CopyFrom(half)
    model.graph.node.insert(0, helper.make_node("Cast", ["a_bias"], ["wide"], to=1))
    add = next(node for node in model.graph.node if "a_bias" in node.input and node.op_type == "Add")
    add.input[:] = [name.replace("a_bias", "wide") for name in add.input]
    assert left_alone(model)["z"] == "the elements of a_bias cannot be exchanged in place"
    assert assert_unchanged(model) == set()


def test_float_data_is_permuted_in_place():
    model = two_layers()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1).tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, values))
        assert tensor.float_data
    assert assert_unchanged(model) == {"a", "a_bias", "z"}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_floats(dtype):
    net = Net()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = net.input("x", [4, 12], kind)
    x = net.node("Relu", net.node("Add", net.node("MatMul", x, net.weight("a", 12, 16, dtype=dtype)),
                                  net.weight("a_bias", 16, dtype=dtype)))  # fmt: skip
    net.output(net.node("MatMul", x, net.weight("z", 16, 8, dtype=dtype)), kind)
    model = net.model()
    copy, names = shuffled(model)
    assert names == {"a", "a_bias", "z"}
    assert check_unchanged(OnnxModel.open(model), copy).error < 1e-5
    assert [t.data_type for t in copy.load().graph.initializer] == [kind] * 3


@pytest.mark.parametrize("per_channel", [True, False])
def test_quantized_weights_are_permuted_with_their_scales(per_channel):
    net = Net(21)
    x = net.input("x", [2, 3, 6, 6])
    sizes = [(16, 3, 1), (8, 16, 0)]
    for name, (outputs, inputs, zero) in zip("az", sizes, strict=True):
        values = net.random.integers(-90, 90, (outputs, inputs, 3, 3)).astype(np.int8)
        count = outputs if per_channel else 1
        scale = net.random.random(count).astype(np.float32) * 0.02 + 0.001
        scale = net.constant(f"{name}_scale", scale if per_channel else scale[0])
        zeros = np.full(count, zero, np.int8)
        zero_point = net.constant(f"{name}_zero", zeros if per_channel else zeros[0])
        weight = net.node("DequantizeLinear", net.constant(name, values), scale, zero_point, axis=0)
        step, point = net.constant(f"{name}_step", np.float32(0.01)), net.constant(f"{name}_point", np.int8(0))
        x = net.node("DequantizeLinear", net.node("QuantizeLinear", x, step, point), step, point)
        x = net.node("Relu", net.node("Conv", x, weight, net.weight(f"{name}_bias", outputs)))
    model = net.model(x)
    # the zero points of a are equal: permuted, they are the same bytes
    expected = {"a", "a_bias", "z"} | ({"a_scale"} if per_channel else set())
    copy, names = shuffled(model)
    assert names - {"a_zero"} == expected
    assert check_unchanged(OnnxModel.open(model), copy).error < 1e-5
    assert_unchanged(model, tolerance=0.02)  # a rounding that goes the other way is one step of 256


def test_4_bit_weights_are_permuted_in_their_packed_bytes():
    net = Net(21)
    values = [net.random.integers(-8, 8, shape).astype(ml_dtypes.int4) for shape in ((12, 15), (15, 9))]
    x = net.input("x", [4, 12])
    for name, value in zip("az", values, strict=True):
        weight = net.node("DequantizeLinear", net.constant(name, value), net.constant(f"{name}_s", np.float32(0.1)))
        x = net.node("MatMul", x, weight)
    model = net.model(x)
    assert assert_unchanged(model) == {"a", "z"}


def test_scales_for_blocks_keep_the_order():
    net = Net(21)
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    values = net.random.integers(-90, 90, (16, 8)).astype(np.int8)
    scale = net.constant("scale", net.random.random((4, 8)).astype(np.float32))
    weight = net.node("DequantizeLinear", net.constant("z", values), scale, axis=0, block_size=4)
    model = net.model(net.node("MatMul", x, weight))
    assert assert_unchanged(model) == set()


def test_a_weight_that_is_used_along_two_axes_keeps_its_order():
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    tied = net.weight("tied", 16, 16)
    x = net.node("Relu", net.node("MatMul", x, tied))
    model = net.model(net.linear("z", net.node("Gemm", x, tied, transB=1), 16, 8))
    assert left_alone(model)["tied"] == "tied is used along two axes"
    assert_unchanged(model)


def test_reasons_for_weights_without_choice():
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 4))
    x = net.node("Relu", net.linear("b", x, 4, 16))
    x = net.node("Reshape", net.node("Concat", x, net.linear("c", x, 16, 12), axis=1), net.ints(4, 28))
    x = net.linear("d", x, 28, 6)
    x = net.node("Concat", x, net.linear("e", x, 6, 6), axis=1)
    model = net.model(net.linear("z", x, 12, 8))
    found = left_alone(model)
    assert found["a"] == "graph input 'x'"
    assert found["b"] == "it has one group of 4 channels only: no order is better"
    assert found["z"] == "its channels do not fill whole groups of 4"
    assert {piece.site.tensor for channels in layout_of(model).channels for piece in channels.pieces} == {"c", "d"}


def test_operators_that_onnx_does_not_infer_are_followed():
    net = Net()
    x = net.linear("a", net.input("x", [2, 5, 12]), 12, 16)
    y = net.node("FastGelu", x, net.weight("b", 16), domain="com.microsoft")
    y = net.node(
        "SkipLayerNormalization", x, y, net.weight("gain", 16), net.weight("shift", 16), domain="com.microsoft"
    )
    model = net.model(net.linear("z", net.node("QuickGelu", y, domain="com.microsoft"), 16, 8))
    assert assert_unchanged(model) == {"a", "a_bias", "b", "gain", "shift", "z"}


def test_a_weight_behind_a_flatten_with_odd_images_is_known_to_be_disturbed():
    net = Net()
    x = net.conv("a", net.input("x", [1, 3, 4, 3]), 3, 16)
    pooled = net.node("Flatten", net.node("ReduceMean", net.conv("b", x, 16, 8), axes=[2, 3]))
    flat = net.node("Gemm", net.node("Flatten", x), net.weight("z", 16 * 12, 8))
    odd = net.node("Flatten", net.node("MaxPool", x, kernel_shape=[2, 1]))
    odd = net.node("Gemm", odd, net.weight("y", 16 * 9, 8))
    model = net.model(net.node("Sum", pooled, flat, odd))
    assert assert_unchanged(model) >= {"a", "b", "z", "y"}
    (channels,) = [c for c in layout_of(model).channels if c.pieces[0].site.tensor == "b"]
    assert [site.tensor for site in channels.disturbed] == ["y"]
