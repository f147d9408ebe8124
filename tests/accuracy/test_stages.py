"""A model run in pieces gives the values of the whole, each node once; weights may change between the pieces."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.helpers import model, random, tensor
from trtsparse.accuracy import stages as module
from trtsparse.accuracy.located import located
from trtsparse.accuracy.stages import Graph, Stages, reads
from trtsparse.errors import EngineError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner


def graph_of(proto):
    return Graph(located(OnnxModel.open(proto)))


def branches():
    """x -> a -> b -> d, a -> c -> d, with a shortcut from a to the end; t is a constant chain."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Identity", ["v"], ["t"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "t"], ["c"]),
        helper.make_node("Neg", ["a"], ["unused"]),
        helper.make_node("MatMul", ["c", "t"], ["d"]),
        helper.make_node("Add", ["d", "a"], ["y"]),
    ]
    return model(nodes, [tensor("w", random(8, 8)), tensor("v", random(8, 8, seed=1))], inputs={"x": [3, 8]})


FEEDS = [{"x": random(3, 8, seed=seed)} for seed in range(4)]


def expected(proto, name, feeds=FEEDS):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    run = runner(OnnxModel.open(copy), optimize=False)
    return [run(feed)[name] for feed in feeds]


def passing(proto, targets, weights=None, feeds=FEEDS):
    return Stages(graph_of(proto), feeds, targets=targets, weights={} if weights is None else weights)


@pytest.mark.parametrize(
    "order", [["a"], ["a", "b", "c", "d"], ["b", "d"], ["d"], ["x", "c"], ["b", "y"], ["c", "a", "y"]]
)
def test_values_are_those_of_the_whole_model(order):
    run = passing(branches(), order)
    for name in order:
        found = [values[name] for values in run.advance([name])]
        wanted = [feed["x"] for feed in FEEDS] if name == "x" else expected(branches(), name)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_several_values_may_be_asked_for_at_once_and_again():
    run = passing(branches(), ["a", "b", "c"])
    first = [(values["a"], values["b"]) for values in run.advance(["a", "b"])]
    again = [values["c"] for values in run.advance(["c"])]
    np.testing.assert_allclose([b for _, b in first], expected(branches(), "b"), rtol=1e-5)
    np.testing.assert_allclose(again, expected(branches(), "c"), rtol=1e-5)


def test_no_node_runs_twice_and_none_without_need(monkeypatch):
    ran = []
    piece = Graph.piece

    def spied(self, positions, **options):
        ran.extend(i for i in positions if self.nodes[i].output[0] not in self.constant)
        return piece(self, positions, **options)

    monkeypatch.setattr(Graph, "piece", spied)
    run = passing(branches(), ["a", "b", "c", "d"])
    for name in "abcd":
        list(run.advance([name]))
    assert sorted(ran) == [0, 2, 3, 5]


def test_a_weight_changed_between_stages_counts_from_then_on():
    proto = branches()
    graph = graph_of(proto)
    weights = {}
    run = Stages(graph, FEEDS, targets=["c", "d"], weights=weights)
    before = [values["c"] for values in run.advance(["c"])]
    ref = graph.model.ref(next(t for t in graph.proto.graph.initializer if t.name == "v"))
    weights[ref.key] = np.zeros((8, 8), np.float32)
    after = [values["d"] for values in run.advance(["d"])]
    np.testing.assert_allclose(before, expected(proto, "c"), rtol=1e-5)
    assert not np.any(after)


def test_the_whole_model_takes_other_weights():
    graph = graph_of(branches())
    ref = graph.model.ref(next(t for t in graph.proto.graph.initializer if t.name == "w"))
    run = runner(graph.whole({ref.key: np.zeros((8, 8), np.float32)}))
    assert not run(FEEDS[0])["y"].any()
    np.testing.assert_allclose(
        runner(graph.whole({}))(FEEDS[0])["y"], expected(branches(), "d")[0] + expected(branches(), "a")[0], rtol=1e-4
    )


def test_values_that_no_stage_needs_any_more_are_dropped():
    run = passing(branches(), ["b", "d"])
    list(run.advance(["b"]))
    assert sorted(run._kept[0]._values) == ["b"]
    list(run.advance(["d"]))
    assert run._kept[0]._values == {}
    assert run._kept[0]._disk.in_memory == 0


def test_what_does_not_fit_into_memory_goes_to_files_that_vanish(monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY_NBYTES", 150)
    run = passing(branches(), ["b", "d"])
    list(run.advance(["b"]))
    disk = run._kept[0]._disk
    folder = disk._folder.name
    assert len(list(module.Path(folder).iterdir())) == 3
    found = [values["d"] for values in run.advance(["d"])]
    np.testing.assert_allclose(found, expected(branches(), "d"), rtol=1e-5)
    assert not list(module.Path(folder).iterdir())
    run.close()
    assert not module.Path(folder).exists()


def test_inputs_of_a_model_are_read_again_and_not_kept():
    run = passing(branches(), ["x", "b"])
    list(run.advance(["x"]))
    assert run._kept[0]._values == {}


def test_nodes_with_graphs_inside_read_what_these_take_from_outside():
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["sum"]), helper.make_node("Mul", ["sum", "own"], ["out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [tensor("own", np.float32([2]))],
    )  # fmt: skip
    node = helper.make_node("If", ["choice"], ["y"], then_branch=inner, else_branch=inner)
    assert set(reads(node)) == {"choice", "x", "one"}
    nodes = [helper.make_node("Greater", ["total", "one"], ["choice"]), node, helper.make_node("Relu", ["y"], ["z"])]
    nodes.insert(0, helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0))
    proto = model(nodes, [tensor("one", np.float32(1))], inputs={"x": [3, 8]}, outputs={"z": None}, opset=17)
    run = passing(proto, ["y", "z"])
    np.testing.assert_allclose([v["y"] for v in run.advance(["y"])], expected(proto, "y"), rtol=1e-5)
    np.testing.assert_allclose([v["z"] for v in run.advance(["z"])], expected(proto, "z"), rtol=1e-5)


def test_a_value_that_is_not_a_tensor_is_an_error():
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["list"]),
        helper.make_node("SequenceAt", ["list", "zero"], ["y"]),
    ]
    run = passing(model(nodes, [tensor("zero", np.int64(0))], inputs={"x": [3, 8]}), ["list"])
    with pytest.raises(ModelError) as caught:
        list(run.advance(["list"]))
    assert str(caught.value) == (
        "a value is not a tensor\n  where: 'list' in ModelProto\n  got: list\n  to fix: use method='magnitude'"
    )


def test_a_failing_node_is_an_engine_error():
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["h"])]
    run = passing(model(nodes, [tensor("shape", np.int64([5]))], inputs={"x": ["n", 8]}, outputs={"h": None}), ["h"])
    with pytest.raises(EngineError, match="ONNX Runtime failed while running the model"):
        list(run.advance(["h"]))
