import importlib
import sys

import pytest
from onnx import parser

from trtsparse import Session
from trtsparse.engines import engine_from
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError, ModelError, PlanError

MODEL = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Add(x, x) }')
PLANS = {
    "TensorRT-RTX 1.7.1.116": b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116]),
    "TensorRT 10.13.3.9": b"ftrt" + bytes(20) + bytes([10, 13, 3, 9]),
}


def test_an_onnx_model_goes_to_onnx_runtime(tmp_path):
    (tmp_path / "m.onnx").write_bytes(MODEL.SerializeToString())
    for source in (MODEL, MODEL.SerializeToString(), tmp_path / "m.onnx"):
        assert engine_from(source).name == "onnxruntime"
        assert engine_from(source, engine="onnxruntime", threads=1).name == "onnxruntime"


def test_a_plan_needs_a_gpu(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("trtsparse.engines.tensorrt.count_gpus", lambda: 0)
    installed = importlib.import_module("tensorrt_rtx").__version__
    path = tmp_path / "m.plan"
    numbers = [int(part) for part in installed.split(".")]
    path.write_bytes(b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes(numbers))
    with pytest.raises(DeviceError) as caught:
        engine_from(path)
    assert str(caught.value) == (
        "a plan is executed by the library that built it, on an NVIDIA GPU\n"
        f"  where: {path}\n"
        "  got: no GPU that CUDA can use\n"
        f"  expected: TensorRT-RTX {installed} and a GPU that the plan was built for\n"
        "  to fix: run the ONNX model that the plan was built from on the CPU"
    )
    assert caught.value.exit_code == 3


def test_a_plan_needs_the_library_that_built_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="TensorRT cannot be imported") as caught:
        engine_from(PLANS["TensorRT 10.13.3.9"])
    assert caught.value.extra == "tensorrt"


def test_tensorrt_cannot_execute_an_onnx_model():
    with pytest.raises(ConfigError) as caught:
        engine_from(MODEL, engine="tensorrt")
    assert str(caught.value) == (
        "TensorRT executes plans\n"
        "  where: engine\n"
        "  got: something that does not begin as a plan does\n"
        "  expected: a plan\n"
        "  to fix: build a plan of the model first"
    )


@pytest.mark.parametrize(("engine", "named"), [("onnxruntime", "ONNX Runtime"), ("cusparselt", "this engine")])
def test_a_plan_is_for_tensorrt_alone(engine, named):
    with pytest.raises(ConfigError) as caught:
        engine_from(PLANS["TensorRT-RTX 1.7.1.116"], engine=engine)
    assert str(caught.value) == (
        f"{named} cannot execute a plan\n"
        "  where: engine\n"
        "  got: a plan of TensorRT-RTX 1.7.1.116\n"
        "  expected: an ONNX model\n"
        "  to fix: give the ONNX model that the plan was built from"
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "cusparselt", "bogus"])
def test_an_engine_that_cannot_execute_a_plan_is_told_before_a_gpu_is_looked_for(engine):
    plan = PLANS["TensorRT-RTX 1.7.1.116"]
    with pytest.raises(ConfigError) as from_session:
        Session(plan, engine=engine)
    with pytest.raises(ConfigError) as from_engine:
        engine_from(plan, engine=engine)
    assert str(from_session.value) == str(from_engine.value)
    assert from_session.value.exit_code == 2


def test_a_truncated_plan_is_a_bad_plan():
    with pytest.raises(PlanError):
        engine_from(PLANS["TensorRT 10.13.3.9"][:12])


def test_garbage_is_no_model():
    with pytest.raises(ModelError):
        engine_from(b"garbage")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError) as caught:
        engine_from(MODEL, engine="tensorflow")
    assert str(caught.value) == (
        "no such engine\n  where: engine\n  got: 'tensorflow'\n  expected: auto, onnxruntime, tensorrt, cusparselt"
    )


def test_a_missing_onnx_runtime_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="trtsparse\\[cpu\\]"):
        engine_from(MODEL)
