"""What channels cannot move through: the order is kept, the outputs never change, and the reason is told."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.accuracy.permuting import Net, assert_unchanged, image_net, layout_of, left_alone, token_net


def test_every_other_channel_is_no_part():
    def between(net, x):
        return net.node("Slice", x, net.ints(0), net.ints(16), net.ints(1), net.ints(2))

    model = image_net(between, reads=8)
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == "Slice 'Slice1' takes a range that is not known, or not every element of it"


def test_tied_weights_whose_uses_disagree_are_left_alone():
    net = Net()
    tied = net.weight("tied", 16, 16)
    x = net.node("MatMul", net.input("x", [4, 16]), tied)
    model = net.model(net.node("MatMul", net.node("Relu", x), tied))
    assert assert_unchanged(model) == set()
    assert left_alone(model) == {"tied": "graph input 'x'"}


def padded(net, x):
    x = net.node("Pad", x, net.ints(0, 4, 0, 0, 0, 0, 0, 0))
    return net.node("Slice", x, net.ints(0), net.ints(16), net.ints(1))


ENDS = {
    "Softmax": (lambda net, x: net.node("Softmax", x, axis=1), "Softmax 'Softmax1' is over this axis"),
    "CumSum": (lambda net, x: net.node("CumSum", x, net.ints(1)), "CumSum 'CumSum1' is not followed"),
    "LRN": (lambda net, x: net.node("LRN", x, size=3), "LRN 'LRN1' is not followed"),
    "Gather": (
        lambda net, x: net.node("Gather", x, net.ints(*range(15, -1, -1)), axis=1),
        "Gather 'Gather1' takes elements by their number",
    ),
    "Pad": (padded, "Pad 'Pad1' pads this axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_an_operator_that_depends_on_the_order_keeps_it(name):
    between, reason = ENDS[name]
    model = image_net(between)
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == reason


def test_a_reshape_that_cuts_across_channels_keeps_them():
    model = image_net(lambda net, x: net.node("Reshape", x, net.ints(2, 16, 6, 8)), channels=12, reads=16)
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == "Reshape 'Reshape1' does not keep this axis"


def test_softmax_of_old_opsets_is_over_all_later_axes():
    model = token_net(lambda net, x: net.node("Softmax", x, axis=1), opset=11)
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == "Softmax 'Softmax2' is over this axis"


def test_graph_inputs_and_outputs_keep_their_order():
    net = Net()
    x = net.conv("b", net.conv("a", net.input("x", [1, 8, 4, 4]), 8, 16), 16, 12)
    model = net.model(x, "conv0")
    assert assert_unchanged(model) == set()
    assert left_alone(model) == {"a": "graph input 'x'", "b": "graph output 'conv0'"}


def test_broadcasts_of_old_opsets_end_the_group():
    net = Net(6)
    x = net.node("Gemm", net.input("x", [16, 12]), net.weight("a", 12, 16), net.weight("a_bias", 16), broadcast=1)
    x = net.node("Add", x, net.weight("b", 16), broadcast=1, axis=0)
    model = net.model(net.node("MatMul", x, net.weight("z", 16, 8)))
    assert dict(layout_of(model).left_alone)["z"] == "Add 'Add1' broadcasts in the way of opsets before 7"


def test_a_dim_of_unknown_size_ends_the_group():
    net = Net()
    x = net.linear("a", net.input("x", [4, 12]), 12, 16)
    model = net.model(net.linear("z", net.node("Add", x, net.input("y", [4, "?"])), 16, 8))
    feeds = [{"x": np.ones((4, 12), np.float32), "y": np.arange(64, dtype=np.float32).reshape(4, 16)}]
    assert assert_unchanged(model, feeds=feeds) == set()
    assert left_alone(model)["z"] == "Add 'Add2' has a dim whose size is not known"


def test_max_pool_indices_end_the_group():
    def between(net, x):
        y, index = net.node("MaxPool", x, outputs=2, kernel_shape=[1, 1])
        return net.node("Add", y, net.node("Cast", index, to=1))

    model = image_net(between)
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == "MaxPool 'MaxPool1' gives indices that depend on the order"


def test_what_a_subgraph_reads_keeps_its_order():
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    branches = []
    for name in ("then", "else"):
        inner = Net()
        product = name == "then"
        inner.node("MatMul" if product else "Add", x, inner.weight("then_w", 16, 16) if product else x)
        inner.nodes[0].output[0] = name
        output = helper.make_tensor_value_info(inner.nodes[0].output[0], TensorProto.FLOAT, [4, 16])
        branches.append(helper.make_graph(inner.nodes, name, [], [output], inner.weights))
    net.input("which", [], TensorProto.BOOL)
    y = net.node("If", "which", then_branch=branches[0], else_branch=branches[1])
    model = net.model(net.linear("z", net.node("Add", x, y), 16, 8))
    assert assert_unchanged(model) == set()
    assert left_alone(model)["z"] == "read inside the subgraphs of If 'If3'"
    assert left_alone(model)["then_w"] == "it is inside a subgraph (If, Loop or Scan)"


def test_an_excluded_tensor_stays_as_it_is():
    def between(net, x):
        return net.node("Relu", net.conv("b", net.node("Relu", x), 16, 8))

    model = image_net(between, reads=8)
    layout = layout_of(model, excluded=["b"])
    assert layout.channels == []
    assert dict(layout.left_alone) == {"b": "b is excluded", "z": "b is excluded"}
