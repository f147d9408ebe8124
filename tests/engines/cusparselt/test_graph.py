"""Models read as lists of nodes; what cannot be executed is refused while reading."""

import numpy as np
import pytest
from onnx import helper

from tests.helpers import matmul, model, random, tensor
from trtsparse.engines.cusparselt.graph import Node, read_graph
from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel


def read(nodes, initializers=(), **options):
    return read_graph(OnnxModel.open(model(nodes, initializers, **options)))


def constant(name="c", **attributes):
    return helper.make_node("Constant", [], ["c"], name=name, **attributes)


def test_weights_are_constants_and_no_inputs():
    weights = random(8, 4)
    graph = read_graph(OnnxModel.open(matmul(weights)))
    assert (graph.inputs, graph.outputs) == (["x"], ["y"])
    assert graph.nodes == [Node("MatMul", "matmul", ["x", "w"], ["y"], {}, 21)]
    np.testing.assert_array_equal(graph.constants["w"], weights)


@pytest.mark.parametrize(
    ("attributes", "dtype", "values"),
    [
        ({"value": tensor("t", np.float16([[1, 2]]))}, np.float16, [[1, 2]]),
        ({"value_int": 3}, np.int64, 3),
        ({"value_ints": [3, 4]}, np.int64, [3, 4]),
        ({"value_float": 0.5}, np.float32, 0.5),
        ({"value_floats": [0.5, 2]}, np.float32, [0.5, 2]),
    ],
)
def test_a_constant_node_is_a_constant(attributes, dtype, values):
    graph = read([constant(**attributes), helper.make_node("Add", ["x", "c"], ["y"])])
    assert [node.op for node in graph.nodes] == ["Add"]
    assert graph.constants["c"].dtype == dtype
    assert graph.constants["c"].tolist() == values


SPARSE = helper.make_sparse_tensor(tensor("v", np.float32([1])), tensor("i", np.int64([0])), [8])


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"value_string": "a"}, "value_string"),
        ({"value_strings": ["a", "b"]}, "value_strings"),
        ({"sparse_value": SPARSE}, "sparse_value"),
        ({}, "no value"),
    ],
)
def test_a_constant_that_is_not_executed_here_is_named(attributes, kind):
    with pytest.raises(ModelError) as caught:
        read([constant("odd", **attributes), helper.make_node("Add", ["x", "c"], ["y"])])
    assert str(caught.value) == (
        "a constant of a kind that is not executed here\n"
        "  where: ModelProto: node 'odd' (Constant)\n"
        f"  got: {kind}\n"
        "  expected: value, value_int, value_ints, value_float or value_floats\n"
        "  to fix: export it as a dense tensor of numbers, or run the model with engine='onnxruntime'"
    )


def test_a_model_of_constants_alone_is_refused():
    with pytest.raises(ModelError) as caught:
        read([constant(value_float=1.0)], outputs={"c": []})
    assert str(caught.value) == (
        "the model has no nodes but constants\n  where: ModelProto\n  to fix: run it with engine='onnxruntime'"
    )


def test_a_node_without_a_name_is_called_by_its_place():
    graph = read([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"], name="negate")])
    assert [node.name for node in graph.nodes] == ["Relu_0", "negate"]


def test_what_nothing_needs_is_dropped():
    weights = [tensor("w", np.float32([1])), tensor("unused", np.float32([2]))]
    graph = read([helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Relu", ["x"], ["z"])], weights)
    graph.prune()
    assert [node.op for node in graph.nodes] == ["Add"]
    assert list(graph.constants) == ["w"]


def test_a_fused_node_takes_the_place_of_the_last_one():
    steps = [("Relu", "x", "a"), ("Neg", "a", "b"), ("Abs", "x", "c"), ("Exp", "b", "y")]
    graph = read([helper.make_node(op, [source], [to]) for op, source, to in steps])
    relu, neg, _, _ = graph.nodes
    graph.replace([relu, neg], Node("Fused", "fused", ["x"], ["b"]))
    assert [node.op for node in graph.nodes] == ["Fused", "Abs", "Exp"]


def test_readers_and_outputs_follow_a_renamed_value():
    graph = read([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])])
    graph.rename("y", "x")
    assert graph.nodes[1].inputs == ["x"]
    assert graph.outputs == ["x"]
