import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models import _graph, mlp
from models._graph import Graph
from models._weights import Weight
from trtsparse.errors import ModelError, OutputError

RECIPE = mlp.MLP(widths=(300, 200, 7))


def test_a_written_file_is_the_model_in_memory(tiny, tmp_path):
    tiny.save(tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == tiny.model()


def test_large_models_keep_their_weights_in_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(_graph, "_ONE_FILE_NBYTES", 100_000)
    path = tmp_path / "deep" / "m.onnx"
    RECIPE.save(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 5000
    onnx.checker.check_model(path, full_check=True)
    bare = onnx.load(path, load_external_data=False)
    for tensor in bare.graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        assert facts["location"] == "m.onnx.data"
        assert int(facts["offset"]) % 4096 == 0
    for read, made in zip(onnx.load(path).graph.initializer, RECIPE.model().graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(read), onnx.numpy_helper.to_array(made))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(_graph, "_ONE_FILE_NBYTES", limit)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    np.savez(tmp_path / "w.npz", **{"layers.0.weight": np.ones((200, 300), np.float32)})
    with pytest.raises(ModelError, match="lacks a tensor"):
        mlp.MLP(widths=(300, 200, 7), weights=tmp_path / "w.npz").save(path)
    assert path.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "w.npz"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "m.onnx"
    with pytest.raises(OutputError) as caught:
        RECIPE.save(path)
    assert str(caught.value) == f"the model cannot be written\n  where: {path}\n  got: {caught.value.got}"
    assert caught.value.got in {"File exists", "Not a directory"}


def test_nodes_of_one_module_get_different_names():
    graph = Graph("g")
    x = graph.input("x", TensorProto.FLOAT, (1,))
    outputs = [graph.node("Relu", x, at="act") for _ in range(3)]
    assert outputs == ["act/Relu_output", "act/Relu_1_output", "act/Relu_2_output"]


def test_a_name_stands_for_one_value():
    graph = Graph("g")
    assert graph.constant("c", 1.0) == graph.constant("c", 1.0) == "c"
    with pytest.raises(ValueError, match="constant 'c' has two values"):
        graph.constant("c", 2.0)
    graph.weight(Weight("w", (1,), std=1))
    with pytest.raises(ValueError, match="weight 'w' is declared twice"):
        graph.weight(Weight("w", (2,), std=1))
