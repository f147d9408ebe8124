"""Products of one input that become one product."""

import numpy as np
import pytest
from onnx import helper

from tests.engines.cusparselt.programs import plain
from tests.helpers import model, random, sparse, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.files.model import OnnxModel

torch = pytest.importorskip("torch")


def products_of(source, columns=8):
    """Weight names and shapes of the products after fusion; values are compared with ONNX Runtime's."""
    graph = fuse(read_graph(OnnxModel.open(source)))
    feeds = {"x": random(2, columns)}
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
    weights = [tensor(name, random(8, rows, seed=rows)) for name, rows in (("a", 16), ("b", 48), ("c", 32))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a + b + c": (96, 8)}


def test_gemm_and_matmul_are_merged_whichever_way_their_weights_are_stored():
    nodes = [*matmuls("a"), helper.make_node("Gemm", ["x", "b"], ["yb"], transB=1)]
    weights = [tensor("a", random(8, 16)), tensor("b", random(32, 8, seed=1))]
    assert products_of(model(nodes, weights, outputs=outputs("a", "b"))) == {"a + b": (48, 8)}


def test_biases_are_merged_with_their_products():
    nodes = [
        node
        for name in "ab"
        for node in (
            helper.make_node("MatMul", ["x", name], [f"m{name}"], name=name),
            helper.make_node("Add", [f"m{name}", f"bias{name}"], [f"y{name}"]),
        )
    ]
    weights = [tensor(name, random(8, 16, seed=at)) for at, name in enumerate("ab")]
    biases = [tensor(f"bias{name}", random(16, seed=5 + at)) for at, name in enumerate("ab")]
    assert products_of(model(nodes, weights + biases, outputs=outputs("a", "b"))) == {"a + b": (32, 8)}


def test_compliant_weights_are_not_merged_with_others():
    compliant = [tensor(name, sparse(8, 16, axis=0, seed=at)) for at, name in enumerate("ac")]
    weights = [*compliant, tensor("b", random(8, 16, seed=1))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a + c": (32, 8), "b": (8, 16)}


def test_what_no_sparse_kernel_takes_is_not_merged_with_others():
    weights = [tensor(name, sparse(8, rows, axis=0, seed=rows)) for name, rows in (("a", 16), ("b", 4), ("c", 32))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a + c": (48, 8), "b": (8, 4)}


def test_large_products_stay_apart():
    weights = [tensor(name, random(8, rows, seed=rows)) for name, rows in (("a", 4096), ("b", 4096), ("c", 4080))]
    source = model(matmuls("a", "b", "c"), weights, outputs=outputs("a", "b", "c"))
    assert products_of(source) == {"a": (8, 4096), "b": (8, 4096), "c": (8, 4080)}


def test_products_with_an_activation_or_another_input_stay_as_they_are():
    nodes = [
        *matmuls("a", "b"),
        helper.make_node("Relu", ["yb"], ["rb"]),
        helper.make_node("MatMul", ["rb", "c"], ["yc"]),
    ]
    weights = [tensor("a", random(8, 16)), tensor("b", random(8, 16, seed=1)), tensor("c", random(16, 16, seed=2))]
    source = model(nodes, weights, outputs={"ya": None, "yc": None})
    assert products_of(source) == {"a": (8, 16), "b": (8, 16), "c": (16, 16)}


def test_two_groups_may_share_their_weights():
    """Tied weights, read one way by two products and the other way by two more."""
    nodes = [
        *matmuls("a", "b"),
        helper.make_node("Relu", ["x"], ["z"]),
        *(helper.make_node("Gemm", ["z", name], [f"z{name}"], transB=1) for name in "ab"),
    ]
    weights = [tensor(name, random(16, 16, seed=at)) for at, name in enumerate("ab")]
    source = model(nodes, weights, inputs={"x": [2, 16]}, outputs=dict.fromkeys(("ya", "yb", "za", "zb")))
    assert products_of(source, columns=16) == {"a + b": (32, 16), "a + b'": (32, 16)}
