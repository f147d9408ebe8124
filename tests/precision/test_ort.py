import sys

import numpy as np
import pytest

from trtsparse.errors import EngineError, MissingDependencyError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.graph import pack
from trtsparse.precision.ort import library, open_session, runner


def test_a_missing_onnx_runtime_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError) as caught:
        library()
    assert str(caught.value) == "ONNX Runtime is not installed\n  to fix: pip install 'trtsparse[cpu]'"


def test_an_onnx_runtime_that_is_broken_says_why(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        library()
    assert str(caught.value) == (
        "ONNX Runtime cannot be imported\n  where: libgomp.so.1: cannot open shared object file\n"
        "  to fix: pip install 'trtsparse[cpu]'"
    )
    assert caught.value.exit_code == 3


def test_a_failing_run_has_onnx_runtimes_words(parse):
    run = runner(pack(parse("g (float[n] x, float[m] z) => (float[n] y) { y = Add(x, z) }"), name="sum"))
    with pytest.raises(EngineError) as caught:
        run({"x": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)})
    assert str(caught.value).startswith("ONNX Runtime failed while running the model\n  where: sum\n  got: [ONNX")
    assert caught.value.__cause__ is not None


def test_a_model_on_disk_is_loaded_from_there_with_its_external_data(build, tmp_path):
    import onnx

    proto = build(
        [("MatMul", "m", ["x", "w"], ["y"], {})],
        inputs={"x": [1, 32]},
        outputs={"y": [1, 32]},
        weights={"w": np.ones((32, 32), np.float32)},
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = runner(OnnxModel.open(tmp_path / "m.onnx"))({"x": np.ones((1, 32), np.float32)})
    assert found["y"][0, 0] == 32


def test_large_weights_of_an_optimized_model_are_written_beside_it(build, tmp_path, monkeypatch):
    monkeypatch.setattr("trtsparse.precision.ort._LARGEST_PROTO", 2000)
    proto = build(
        [("MatMul", "m", ["x", "w"], ["y"], {})],
        inputs={"x": [1, 32]},
        outputs={"y": [1, 32]},
        weights={"w": np.ones((32, 32), np.float32)},
    )
    open_session(OnnxModel.open(proto), optimized=tmp_path / "o.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.onnx", "o.onnx.data"]
    assert (tmp_path / "o.onnx").stat().st_size < 1500


def test_nothing_is_printed(parse, capfd):
    model = parse("g (float[4] x) => (float[4] y) <float[4] unused = {1, 2, 3, 4}> { y = Relu(x) }")
    runner(pack(model, name="m"))
    with pytest.raises(EngineError):
        open_session(OnnxModel.open(parse("g (float[4] x) => (float[4] y) { y = NoSuchOperator(x) }")))
    assert capfd.readouterr() == ("", "")


def test_a_model_with_qdq_runs_in_exact_arithmetic(build):
    weights = np.full((3, 4, 2), 127, np.int8)  # of a product for each batch, which fused kernels do not take
    model = build(
        [
            ("QuantizeLinear", "q", ["x", "s", "z"], ["xq"], {}),
            ("DequantizeLinear", "dx", ["xq", "s", "z"], ["xd"], {}),
            ("DequantizeLinear", "dw", ["w", "s", "z"], ["wd"], {}),
            ("MatMul", "m", ["xd", "wd"], ["y"], {}),
        ],
        inputs={"x": [3, 1, 4]},
        outputs={"y": [3, 1, 2]},
        weights={"w": weights, "s": np.float32(0.5), "z": np.int8(0)},
    )
    model.graph.initializer[1].ClearField("dims")
    model.graph.initializer[2].ClearField("dims")
    found = runner(OnnxModel.open(model))({"x": np.full((3, 1, 4), 63.5, np.float32)})["y"]
    np.testing.assert_array_equal(found, np.full((3, 1, 2), 4 * 63.5 * 63.5, np.float32))
