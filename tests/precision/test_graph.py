import numpy as np
import onnx
from onnx import numpy_helper

from trtsparse.files.model import OnnxModel
from trtsparse.precision import graph as module
from trtsparse.precision.graph import graphs, load_tensors, name_nodes, pack, trim_opsets
from trtsparse.precision.ort import runner


def test_nodes_without_a_name_are_called_after_their_place(parse):
    model = parse("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) y = Abs(b) }")
    model.graph.node[1].name = "Relu_0"
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["Relu_0_2", "Relu_0", "Abs_2"]


def test_a_name_used_twice_is_made_unique(parse):
    model = parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Abs(a) }")
    for node in model.graph.node:
        node.name = "same"
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["same", "same_2"]


def test_graphs_inside_are_found_and_named(parse):
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] u) { u = Relu(x) },
            else_branch = e () => (float[2] v) { v = Abs(x) }
        >
    }"""
    model = parse(text)
    name_nodes(model)
    assert [graph.name for graph in graphs(model.graph)] == ["g", "t", "e"]
    assert {node.name for graph in graphs(model.graph) for node in graph.node} == {"If_0", "Relu_0", "Abs_0"}


def test_unused_opsets_are_dropped(parse):
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_import.add(domain="com.microsoft", version=1)
    trim_opsets(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_a_model_above_the_limit_keeps_its_weights_outside_and_runs(build, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PROTO", 2000)
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    model = build(
        [("MatMul", "m", ["x", "w"], ["y"], {})],
        inputs={"x": [1, 32]},
        outputs={"y": [1, 32]},
        weights={"w": weight},
    )
    packed = pack(model, name="large")
    assert set(packed.files) == {"", "weights.data"}
    assert len(packed.files[""]) < 1000
    x = np.ones((1, 32), np.float32)
    np.testing.assert_allclose(runner(packed)({"x": x})["y"], x @ weight, rtol=1e-5)


def test_initializers_that_nothing_reads_are_dropped(build):
    weight = np.ones((64, 64), np.float32)
    model = OnnxModel.open(
        build(
            [("MatMul", "m", ["x", "w"], ["y"], {})],
            inputs={"x": [1, 64]},
            outputs={"y": [1, 64]},
            weights={"w": weight, "unused": weight},
        )
    )
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.proto)
    load_tensors(model, skeleton.graph)
    (kept,) = skeleton.graph.initializer
    assert kept.name == "w"
    np.testing.assert_array_equal(numpy_helper.to_array(kept), weight)
