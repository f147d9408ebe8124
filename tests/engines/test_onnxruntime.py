import ml_dtypes
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


def test_asked_for_no_outputs_it_returns_none(engine):
    assert engine.run({"x": X}, outputs=[]) == {}
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        engine.run({"x": np.zeros((1, 3), np.float32)}, outputs=[])


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


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5])
def test_a_wrong_number_of_threads_is_refused(threads):
    with pytest.raises(ConfigError) as caught:
        OnnxRuntimeEngine(MODEL, threads=threads)
    assert str(caught.value) == f"the number of threads must be positive\n  where: threads\n  got: {threads!r}"


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


def passing_through(kind, *, cast=False):
    """A model whose output ``y`` is its input ``x``, beside ``g``, which is ``f``."""
    make = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Cast" if cast else "Identity", ["x"], ["y"], **({"to": 1} if cast else {}))
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("Identity", ["f"], ["g"])],
        "g",
        [make("x", kind, ["n", "m"]), make("f", 1, [])],
        [make("y", 1 if cast else kind, ["n", "m"]), make("g", 1, [])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)


BEYOND_NUMPY = ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"]


@pytest.mark.parametrize("name", BEYOND_NUMPY)
def test_data_types_that_numpy_lacks_go_in_and_out(name):
    kind = onnx.TensorProto.DataType.Value(name)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    engine = OnnxRuntimeEngine(passing_through(kind), threads=1)
    assert [spec.dtype for spec in engine.outputs] == [dtype, np.float32]
    wide = np.arange(12).reshape(4, 3).astype(dtype)
    f = np.array(2, np.float32)
    for x in (wide, wide.T, wide[::2], wide[:0], np.broadcast_to(wide[0], (2, 3))):
        found = engine.run({"x": x, "f": f})
        assert (found["y"].dtype, found["y"].shape, found["g"].tolist()) == (dtype, x.shape, 2)
        assert found["y"].astype(np.float32).tolist() == x.astype(np.float32).tolist()
    assert list(engine.run({"x": wide, "f": f}, outputs=["g"])) == ["g"]
    assert engine.run({"x": wide, "f": f}, outputs=[]) == {}
    assert len(engine.profile({"x": wide, "f": f}, runs=2)) == 2
    engine.close()


def test_values_of_a_type_that_numpy_lacks_are_read_right():
    engine = OnnxRuntimeEngine(passing_through(onnx.TensorProto.BFLOAT16, cast=True), threads=1)
    x = np.array([[1.5, -2, 0.1]], ml_dtypes.bfloat16)
    assert engine.run({"x": x, "f": np.array(2, np.float32)})["y"].tolist() == x.astype(np.float32).tolist()


def test_outputs_of_a_type_that_numpy_lacks_belong_to_the_caller():
    engine = OnnxRuntimeEngine(passing_through(onnx.TensorProto.BFLOAT16), threads=1)
    first, f = np.full((64, 64), 3, ml_dtypes.bfloat16), np.array(2, np.float32)
    found = engine.run({"x": first, "f": f})["y"]
    engine.run({"x": first * ml_dtypes.bfloat16(2), "f": f})
    engine.close()
    first[:] = 0
    assert (found == ml_dtypes.bfloat16(3)).all()


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_data_types_smaller_than_a_byte_are_refused_when_the_model_is_loaded(name):
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g ({name}[2] x) => (float[2] y)'
        "{ s = Constant<value = float {1.0}>() y = DequantizeLinear(x, s) }"
    )
    with pytest.raises(EngineError) as caught:
        OnnxRuntimeEngine(model)
    assert str(caught.value) == (
        "ONNX Runtime takes and gives no arrays of this data type in Python\n"
        "  where: 'x'\n"
        f"  got: {name}\n"
        "  expected: a type of numpy, or bfloat16, float8_e4m3fn, float8_e4m3fnuz, float8_e5m2, float8_e5m2fnuz, "
        "float8_e8m0fnu\n"
        "  to fix: have the model cast it"
    )
