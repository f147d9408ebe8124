"""Products of one input that become one product."""

import numpy as np
import pytest
from onnx import helper

from tests.helpers import model, random, sparse, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.files.model import OnnxModel

torch = pytest.importorskip("torch")


def plain(node, weight, bias):
    weight = torch.from_numpy(np.array(weight))
    bias = None if bias is None else torch.from_numpy(np.array(bias))
    act = torch.relu if node.attributes["act"] else lambda y: y
    return lambda x: act(torch.nn.functional.linear(x, weight, bias))


def products_of(source):
    """Weight names and shapes of the products after fusion; values are compared with ONNX Runtime's."""
    graph = fuse(read_graph(OnnxModel.open(source)))
    feeds = {"x": random(2, 8)}
    found = Program(graph, device="cpu", linear=plain)([torch.from_numpy(feeds["x"])])
    right = OnnxRuntimeEngine(source).run(feeds)
    for name, values in zip(graph.outputs, found, strict=True):
        np.testing.assert_allclose(values.numpy(), right[name], rtol=1e-5, atol=1e-5)
    return {node.inputs[1]: graph.constants[node.inputs[1]].shape for node in graph.nodes if node.op == "Linear"}


def matmuls(*weights):
    return [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=name) for name in weights]


def outputs(*weights):
    return {f"y{name}": None for name in weights}


def test_products_of_one_input_become_one():
    weights = [tensor(name, random(8, rows, seed=rows)) for name, rows in (("a", 4), ("b", 12), ("c", 4))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a + b + c": (20, 8)}


def test_gemm_and_matmul_are_merged_whichever_way_their_weights_are_stored():
    nodes = [*matmuls("a"), helper.make_node("Gemm", ["x", "b"], ["yb"], transB=1)]
    weights = [tensor("a", random(8, 4)), tensor("b", random(6, 8, seed=1))]
    assert products_of(model(nodes, weights, outputs=outputs("a", "b"))) == {"a + b": (10, 8)}


def test_biases_are_merged_with_their_products():
    nodes = [
        node
        for name in "ab"
        for node in (
            helper.make_node("MatMul", ["x", name], [f"m{name}"], name=name),
            helper.make_node("Add", [f"m{name}", f"bias{name}"], [f"y{name}"]),
        )
    ]
    weights = [tensor(name, random(8, 4, seed=at)) for at, name in enumerate("ab")]
    biases = [tensor(f"bias{name}", random(4, seed=5 + at)) for at, name in enumerate("ab")]
    assert products_of(model(nodes, weights + biases, outputs=outputs("a", "b"))) == {"a + b": (8, 8)}


def test_compliant_weights_are_not_merged_with_others():
    compliant = [tensor(name, sparse(8, 4, axis=0, seed=at)) for at, name in enumerate("ac")]
    weights = [*compliant, tensor("b", random(8, 4, seed=1))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a + c": (8, 8), "b": (8, 4)}


def test_products_with_an_activation_or_another_input_stay_as_they_are():
    nodes = [
        *matmuls("a", "b"),
        helper.make_node("Relu", ["yb"], ["rb"]),
        helper.make_node("MatMul", ["rb", "c"], ["yc"]),
    ]
    weights = [tensor("a", random(8, 4)), tensor("b", random(8, 8, seed=1)), tensor("c", random(8, 4, seed=2))]
    source = model(nodes, weights, outputs={"ya": None, "yc": None})
    assert products_of(source) == {"a": (8, 4), "b": (8, 8), "c": (8, 4)}
