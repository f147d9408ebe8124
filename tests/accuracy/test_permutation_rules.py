"""Operators, one pattern after another: channels move where they may, and the outputs never change."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.accuracy.permuting import IMAGE, Net, assert_unchanged, image_net, layout_of, shuffled, token_net

POINTWISE = ["Relu", "Sigmoid", "HardSwish", "Erf", "Tanh", "Softplus", "Abs", "Identity", "Neg"]


@pytest.mark.parametrize("op", POINTWISE)
def test_activations_carry_channels(op):
    model = image_net(lambda net, x: net.node(op, x))
    assert assert_unchanged(model) == {"a", "a_bias", "z"}


def test_a_bias_is_permuted_with_its_producer_and_inputs_and_outputs_stay():
    model = image_net(lambda net, x: net.node("Relu", x))
    copy, _ = shuffled(model)
    before, after = ({t.name: t for t in m.graph.initializer} for m in (model, copy.load()))
    a, b = (np.frombuffer(m["a"].raw_data, np.float32).reshape(16, 3, 3, 3) for m in (before, after))
    order = [int(np.flatnonzero((a == row).all(axis=(1, 2, 3)))[0]) for row in b]
    assert sorted(order) == list(range(16)) != order
    bias, moved = (np.frombuffer(m["a_bias"].raw_data, np.float32) for m in (before, after))
    assert moved.tolist() == bias[order].tolist()
    z, moved = (np.frombuffer(m["z"].raw_data, np.float32).reshape(8, 16) for m in (before, after))
    assert moved.tolist() == z[:, order].tolist()
    assert before["z_bias"] == after["z_bias"]


def channel_vectors(net, x, op):
    vectors = [net.weight(f"{op}{i}", 16, positive=True) for i in range(4 if op == "BatchNormalization" else 2)]
    return net.node(op, x, *vectors)


@pytest.mark.parametrize("op", ["BatchNormalization", "InstanceNormalization"])
def test_normalizations_per_channel_have_their_vectors_permuted(op):
    model = image_net(lambda net, x: channel_vectors(net, x, op))
    names = {f"{op}{i}" for i in range(4 if op == "BatchNormalization" else 2)}
    assert assert_unchanged(model) == {"a", "a_bias", "z"} | names


def test_prelu_and_arithmetic_with_constants_per_channel():
    def between(net, x):
        x = net.node("PRelu", x, net.weight("slope", 16, 1, 1))
        x = net.node("Add", net.weight("shift", 1, 16, 1, 1), x)
        x = net.node("Mul", x, net.constant("half", np.float32(0.5)))
        return net.node("Sub", x, net.weight("less", 16, 1, 1))

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "z", "slope", "shift", "less"}


def test_a_constant_for_every_pixel_is_permuted_along_its_channels_only():
    model = image_net(lambda net, x: net.node("Add", x, net.weight("map", 16, 8, 8)))
    copy, names = shuffled(model)
    assert "map" in names
    before, after = ({t.name: t.raw_data for t in m.graph.initializer} for m in (model, copy.load()))
    a, b = (np.frombuffer(m["map"], np.float32).reshape(16, 64) for m in (before, after))
    assert sorted(map(tuple, a.tolist())) == sorted(map(tuple, b.tolist()))
    assert_unchanged(model)


def test_a_residual_sum_joins_all_that_makes_it_and_reads_it():
    def between(net, x):
        branch = net.node("Relu", net.conv("b", x, 16, 16, kernel=3))
        return net.node("Add", x, net.conv("c", branch, 16, 16))

    model = image_net(between)
    assert assert_unchanged(model) == {"a", "a_bias", "b", "b_bias", "c", "c_bias", "z"}
    (stream,) = [c for c in layout_of(model).channels if len(c.pieces) == 2]
    assert {piece.site.tensor for piece in stream.pieces} == {"b", "z"}
    assert {name for stored in stream.stored for name in stored.names} == {"a", "a_bias", "b", "c", "c_bias", "z"}


def test_squeeze_and_excitation():
    def between(net, x):
        gate = net.node("Relu", net.conv("b", net.node("GlobalAveragePool", x), 16, 8))
        return net.node("Mul", x, net.node("Sigmoid", net.conv("c", gate, 8, 16)))

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "b", "b_bias", "c", "c_bias", "z"}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_is_permuted_along(multiplier):
    def between(net, x):
        return net.conv("b", x, 16, 16 * multiplier, kernel=3, groups=16)

    model = image_net(between, reads=16 * multiplier)
    assert assert_unchanged(model) == {"a", "a_bias", "b", "b_bias", "z"}


def test_channels_stay_in_their_group_of_a_grouped_convolution():
    def between(net, x):
        return net.node("Relu", net.conv("b", x, 16, 32, kernel=3, groups=4))

    model = image_net(between, reads=32)
    assert assert_unchanged(model) == {"a", "a_bias", "b", "b_bias", "z"}
    copy, _ = shuffled(model)
    (before,), (after,) = ([t for t in m.graph.initializer if t.name == "b_bias"] for m in (model, copy.load()))
    a, b = (np.frombuffer(t.raw_data, np.float32).reshape(4, 8) for t in (before, after))
    assert [sorted(row) for row in a.tolist()] == [sorted(row) for row in b.tolist()]
    assert a.tolist() != b.tolist()


def test_two_grouped_convolutions_after_each_other():
    def between(net, x):
        return net.conv("c", net.node("Relu", net.conv("b", x, 16, 16, groups=4)), 16, 16, groups=4)

    assert assert_unchanged(image_net(between)) >= {"a", "b", "c", "z"}


def test_a_channel_shuffle_is_followed():
    def between(net, x):
        x = net.conv("b", x, 16, 16, groups=4)
        x = net.node("Reshape", x, net.ints(0, 4, 4, 8, 8))
        x = net.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return net.conv("c", net.node("Reshape", x, net.ints(0, 16, 8, 8)), 16, 16, groups=4)

    assert {"a", "z"} <= assert_unchanged(image_net(between))


def test_parts_of_a_concatenation_are_permuted_each_within_itself():
    def between(net, x):
        return net.node("Concat", x, net.node("Relu", net.conv("b", x, 16, 8)), x, axis=1)

    model = image_net(between, reads=40)
    assert assert_unchanged(model) == {"a", "a_bias", "b", "b_bias", "z"}
    found = {
        piece.starts.size: piece for c in layout_of(model).channels for piece in c.pieces if piece.site.tensor == "z"
    }
    assert (found[2].starts.tolist(), found[1].starts.tolist()) == ([0, 24], [16])


def test_a_sum_behind_a_concatenation_cuts_its_producer_too():
    def between(net, x):
        both = net.node("Concat", x, net.conv("b", x, 16, 8), axis=1)
        return net.node("Add", both, net.conv("c", x, 16, 24))

    assert assert_unchanged(image_net(between, reads=24)) >= {"a", "b", "c", "c_bias", "z"}


@pytest.mark.parametrize("cut", ["Split", "Slice"])
def test_split_and_slice_permute_each_part_within_itself(cut):
    def between(net, x):
        if cut == "Split":
            first, second = net.node("Split", x, net.ints(4, 12), outputs=2, axis=1)
        else:
            first = net.node("Slice", x, net.ints(0), net.ints(4), net.ints(1))
            second = net.node("Slice", x, net.ints(4), net.ints(2**62), net.ints(1), net.ints(1))
        return net.node("Concat", net.conv("b", second, 12, 8), first, axis=1)

    assert assert_unchanged(image_net(between, reads=12)) == {"a", "a_bias", "b", "b_bias", "z"}


@pytest.mark.parametrize("flat", ["Flatten", "Reshape"])
def test_a_flattened_image_is_permuted_in_blocks(flat):
    net = Net()
    x = net.node("Relu", net.conv("a", net.input("x", IMAGE), 3, 16))
    x = net.node("Flatten", x) if flat == "Flatten" else net.node("Reshape", x, net.ints(0, -1))
    x = net.node("Gemm", x, net.weight("b", 12, 16 * 64), net.weight("b_bias", 12), transB=1)
    x = net.node("Gemm", net.node("Relu", x), net.weight("z", 12, 5), alpha=0.5)
    model = net.model(x)
    assert assert_unchanged(model) == {"a", "a_bias", "b", "b_bias", "z"}


def test_channels_last():
    def between(net, x):
        x = net.node("Transpose", x, perm=[0, 2, 3, 1])
        x = net.linear("b", net.node("Reshape", x, net.ints(2, 64, 16)), 16, 8)
        return net.node("Transpose", net.node("Reshape", x, net.ints(2, 8, 8, 8)), perm=[0, 3, 1, 2])

    assert assert_unchanged(image_net(between, reads=8)) == {"a", "a_bias", "b", "b_bias", "z"}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalMaxPool", {}),
        ("ReduceMean", {"axes": [2, 3]}),
        ("ReduceMax", {"axes": [-1], "keepdims": 1}),
        ("Pad", {"mode": "edge"}),
    ],
)
def test_what_works_on_every_channel_by_itself_carries_it(op, attributes):
    def between(net, x):
        return net.node(op, x, *([net.ints(0, 0, 1, 1, 0, 0, 1, 1)] if op == "Pad" else []), **attributes)

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "z"}


def test_resize_over_space_and_transposed_convolution():
    def between(net, x):
        scales = net.constant("scales", np.float32([1, 1, 2, 2]))
        x = net.node("Resize", x, "", scales, mode="linear")
        return net.node("ConvTranspose", x, net.weight("b", 16, 12, 2, 2), net.weight("b_bias", 12), strides=[2, 2])

    assert assert_unchanged(image_net(between, reads=12)) == {"a", "a_bias", "b", "b_bias", "z"}


def test_resize_to_given_sizes():
    def between(net, x):
        return net.node("Resize", x, "", "", net.ints(2, 16, 4, 4), mode="nearest")

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "z"}


def test_squeezed_and_added_axes():
    def between(net, x):
        x = net.node("ReduceMean", x, axes=[2, 3], keepdims=0)
        x = net.node("Unsqueeze", x, net.ints(0, 3))
        x = net.node("Squeeze", x, net.ints(0))
        return net.node("Unsqueeze", x, net.ints(-1))

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "z"}


def test_where_expand_and_comparisons():
    def between(net, x):
        vector = net.node("Expand", net.weight("v", 16, 1, 1), net.ints(2, 16, 8, 8))
        return net.node("Where", net.node("Greater", x, vector), x, net.node("Mul", vector, x))

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "v", "z"}


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_permutes_within_groups(opset):
    vectors = 16 if opset == 21 else 4

    def between(net, x):
        return net.node(
            "GroupNormalization", x, net.weight("gain", vectors), net.weight("shift", vectors), num_groups=4
        )

    names = assert_unchanged(image_net(between, opset=opset))
    assert names == {"a", "a_bias", "z"} | ({"gain", "shift"} if opset == 21 else set())


# transformers


@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization_over_channels(outputs):
    def between(net, x):
        found = net.node("LayerNormalization", x, net.weight("gain", 16), net.weight("shift", 16), outputs=outputs)
        if outputs == 1:
            return found
        y, mean, deviation = found
        return net.node("Add", net.node("Mul", y, deviation), mean)

    assert assert_unchanged(token_net(between)) == {"a", "a_bias", "gain", "shift", "z"}


def test_layer_normalization_in_single_steps():
    def between(net, x):
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[-1]))
        square = net.node("Pow", centred, net.constant("two", np.float32(2)))
        root = net.node("Sqrt", net.node("ReduceMean", square, axes=[-1]))
        return net.node("Mul", net.node("Div", centred, root), net.weight("gain", 16))

    assert assert_unchanged(token_net(between)) == {"a", "a_bias", "gain", "z"}


def test_gelu_and_gates():
    def between(net, x):
        erf = net.node("Erf", net.node("Div", x, net.constant("root", np.float32(1.4))))
        gelu = net.node("Mul", x, net.node("Add", erf, net.constant("one", np.float32(1))))
        gate = net.linear("b", x, 16, 16)
        return net.node("Mul", gelu, net.node("Mul", gate, net.node("Sigmoid", gate)))

    assert assert_unchanged(token_net(between)) == {"a", "a_bias", "b", "b_bias", "z"}


def attend(net, query, key, value, *, heads, size):
    split, joined = net.ints(0, 0, heads, size), net.ints(0, 0, heads * size)

    def by_head(x, perm):
        return net.node("Transpose", net.node("Reshape", x, split), perm=perm)

    query, key, value = by_head(query, [0, 2, 1, 3]), by_head(key, [0, 2, 3, 1]), by_head(value, [0, 2, 1, 3])
    mixed = net.node("MatMul", net.node("Softmax", net.node("MatMul", query, key), axis=-1), value)
    return net.node("Reshape", net.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)


@pytest.mark.parametrize("packed", [False, True])
def test_channels_of_attention_move_within_heads(packed):
    def between(net, x):
        if packed:
            query, key, value = net.node("Split", net.linear("qkv", x, 16, 48), outputs=3, axis=-1)
        else:
            query, key, value = (net.linear(name, x, 16, 16) for name in ("q", "k", "v"))
        return net.linear("out", attend(net, query, key, value, heads=2, size=8), 16, 16)

    model = token_net(between)
    names = {"qkv", "qkv_bias"} if packed else {"q", "q_bias", "k", "k_bias", "v", "v_bias"}
    assert assert_unchanged(model) == {"a", "a_bias", "out", "out_bias", "z"} | names
    (mixed,) = [c for c in layout_of(model).channels if c.pieces[0].site.tensor == "out"]
    assert (mixed.axis.size, mixed.pieces[0].starts.tolist()) == (8, [0, 8])


def test_an_embedding_that_is_tied_to_the_last_product_is_permuted_once():
    net = Net()
    ids = net.input("ids", ["N", "S"], TensorProto.INT64)
    x = net.node("Gather", net.weight("table", 20, 16), ids)
    x = net.node("Add", x, net.linear("a", net.node("Relu", x), 16, 16))
    model = net.model(net.node("MatMul", x, net.node("Transpose", "table", perm=[1, 0])))
    assert assert_unchanged(model) == {"table", "a", "a_bias"}


def test_tied_weights_whose_uses_agree_are_permuted():
    def between(net, x):
        net.weight("tied", 16, 16)
        return net.node("Relu", net.node("MatMul", net.node("MatMul", x, "tied"), "tied"))

    model = token_net(between)
    assert assert_unchanged(model) == {"a", "a_bias", "tied", "z"}


def test_a_reshape_that_moves_whole_factors_of_an_axis_is_followed():
    """Of 16 channels as 8 x 2, height and width, the 2 and the height become channels."""

    def between(net, x):
        return net.node("Transpose", net.node("Reshape", x, net.ints(2, 8, 16, 8)), perm=[0, 2, 1, 3])

    assert assert_unchanged(image_net(between)) == {"a", "a_bias", "z"}


@pytest.mark.parametrize("first", [True, False])
def test_products_with_a_vector(first):
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [12, 12]), 12, 16))
    x = net.node("Transpose", x) if first else x
    x = net.node("MatMul", net.weight("v", 16), x) if first else net.node("MatMul", x, net.weight("v", 16))
    assert assert_unchanged(net.model(x)) == {"a", "a_bias", "v"}
