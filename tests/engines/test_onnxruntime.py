import numpy as np
import onnx
import pytest
from onnx import parser

from trtsparse.engines.base import Engine, TensorSpec
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
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
