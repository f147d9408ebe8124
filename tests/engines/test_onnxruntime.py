import numpy as np
import onnx
import pytest
from onnx import parser

from trtsparse.engines.base import Engine, ProfilingEngine, TensorSpec
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine, _node_times
from trtsparse.errors import ConfigError, EngineError, ModelNotFoundError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]>'
    "g (float[n, 2] x) => (float[n, 2] y, float[n, 2] z) { y = Add(x, x) z = Neg(x) }"
)
X = np.float32([[1, 2]])


@pytest.fixture
def engine():
    found = OnnxRuntimeEngine(MODEL, threads=1)
    yield found
    found.close()


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)
    assert engine.name == "onnxruntime"
    assert engine.inputs == (TensorSpec("x", np.dtype("float32"), ("n", 2)),)
    assert [spec.name for spec in engine.outputs] == ["y", "z"]
    assert engine.description.startswith("ModelProto in ONNX Runtime 1.")
    assert engine.description.endswith("(CPUExecutionProvider)")


def test_it_runs(engine):
    found = engine.run({"x": X})
    assert found["y"].tolist() == [[2, 4]]
    assert found["z"].tolist() == [[-1, -2]]


def test_only_the_outputs_asked_for_are_returned(engine):
    assert engine.run({"x": X}, outputs=["z"]).keys() == {"z"}


@pytest.mark.parametrize("wrap", [lambda m: m, onnx.ModelProto.SerializeToString, OnnxModel.open])
def test_it_takes_protos_bytes_and_opened_models(wrap):
    assert OnnxRuntimeEngine(wrap(MODEL)).run({"x": X})["y"].tolist() == [[2, 4]]


def test_it_takes_a_path_with_external_data(tmp_path):
    weight = onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 16] x) => (float[1, 16] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    x = np.arange(16, dtype=np.float32)[None]
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        np.testing.assert_array_equal(OnnxRuntimeEngine(source).run({"x": x})["y"], x)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ModelNotFoundError):
        OnnxRuntimeEngine(tmp_path / "nowhere.onnx")


def test_a_failure_has_onnx_runtimes_words(engine):
    with pytest.raises(EngineError) as caught:
        engine.run({"x": np.zeros((1, 3), np.float32)})
    assert str(caught.value).startswith(
        "ONNX Runtime failed while running the model\n  where: ModelProto\n  got: [ONNXRuntimeError]"
    )


def test_closing_twice_is_harmless_and_running_afterwards_is_not():
    engine = OnnxRuntimeEngine(MODEL)
    engine.close()
    engine.close()
    with pytest.raises(EngineError) as caught:
        engine.run({"x": X})
    assert str(caught.value) == "the engine is closed\n  where: ModelProto"


def test_a_provider_that_is_not_there_is_refused():
    with pytest.raises(UnsupportedOptionError) as caught:
        OnnxRuntimeEngine(MODEL, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "the installed ONNX Runtime has no such execution provider",
        "  where: providers",
        "  got: NoSuchExecutionProvider",
    ]
    assert "CPUExecutionProvider" in lines[3]


@pytest.mark.parametrize("threads", [0, -1])
def test_a_wrong_number_of_threads_is_refused(threads):
    with pytest.raises(ConfigError) as caught:
        OnnxRuntimeEngine(MODEL, threads=threads)
    assert str(caught.value) == f"the number of threads must be positive\n  where: threads\n  got: {threads}"


def test_it_times_its_nodes(engine):
    assert isinstance(engine, ProfilingEngine)
    found = engine.profile({"x": X}, runs=4)
    assert len(found) == 4
    for run in found:
        assert sorted(name.split("_")[0] for name, _ in run) == ["Add", "Neg"]
        assert all(ms >= 0 for _, ms in run)
    assert engine.run({"x": X})["y"].tolist() == [[2, 4]]


@pytest.mark.parametrize("wrap", [lambda m: m, onnx.ModelProto.SerializeToString, OnnxModel.open])
def test_models_in_memory_are_timed_too(wrap):
    assert len(OnnxRuntimeEngine(wrap(MODEL)).profile({"x": X}, runs=1)) == 1


def test_a_model_on_disk_is_timed_from_there_and_nothing_is_left(tmp_path, monkeypatch):
    onnx.save(MODEL, tmp_path / "m.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    engine = OnnxRuntimeEngine(tmp_path / "m.onnx")
    assert len(engine.profile({"x": X}, runs=2)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "scratch"}
    assert not list(scratch.iterdir())


def test_bodies_of_control_flow_are_in_the_time_of_their_node():
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x, bool c) => (float[n, 2] y) {
        y = If (c) <then_branch = a () => (float[n, 2] z) { t = Add(x, x) z = Neg(t) },
                    else_branch = b () => (float[n, 2] z) { z = Identity(x) }>
    }"""
    found = OnnxRuntimeEngine(parser.parse_model(text)).profile({"x": X, "c": np.bool_([1]).reshape(())}, runs=3)
    assert [[name.split("_")[0] for name, _ in run] for run in found] == [["If"]] * 3


def test_nodes_that_take_no_time_are_kept_beside_those_that_do():
    def event(name, ts, dur, op):
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 2},
        event("a", 10, 0, "Add"), event("b", 10, 50, "Conv"), event("c", 60, 0, "Add"),
        event("in loop", 62, 3, "Add"), event("loop", 61, 9, "Loop"),
        {"cat": "Session", "name": "model_run", "ts": 9, "dur": 70},
        event("a", 100, 1, "Add"),
        {"cat": "Session", "name": "model_run", "ts": 99, "dur": 7},
    ]  # fmt: skip
    assert _node_times(events) == [(("a", 0.0), ("b", 0.05), ("c", 0.0), ("loop", 0.009)), (("a", 0.001),)]


def test_large_models_are_timed_in_fewer_runs(monkeypatch):
    monkeypatch.setattr("trtsparse.engines.onnxruntime._RECORDED", 24)
    engine = OnnxRuntimeEngine(MODEL)
    assert len(engine.profile({"x": X}, runs=100)) == 12
    assert len(engine.profile({"x": X}, runs=3)) == 3
    monkeypatch.setattr("trtsparse.engines.onnxruntime._RECORDED", 2)
    assert len(engine.profile({"x": X}, runs=100)) == 10


def test_a_failure_while_timing_has_onnx_runtimes_words(engine):
    with pytest.raises(EngineError) as caught:
        engine.profile({"x": np.zeros((1, 3), np.float32)}, runs=1)
    assert str(caught.value).startswith("ONNX Runtime failed while running the model\n  where: ModelProto\n  got: ")
    engine.close()
    with pytest.raises(EngineError) as caught:
        engine.profile({"x": X}, runs=1)
    assert str(caught.value) == "the engine is closed\n  where: ModelProto"
