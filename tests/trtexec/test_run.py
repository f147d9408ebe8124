"""Whole command lines: what they say and give, with models that run on the CPU."""

import importlib
import json
import sys

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.helpers import matmul, sparse
from tests.trtexec.running import ON_CPU, failed, log
from trtsparse import Session
from trtsparse.errors import ConfigError, FeedError, MissingDependencyError
from trtsparse.trtexec.run import trtexec


def test_an_onnx_model_runs_on_the_cpu(model):
    result = trtexec(f"--onnx={model} {ON_CPU}")
    assert (result.exit_code, result.passed, result.error) == (0, True, None)
    assert result.lines[-1].startswith("&&&& PASSED TensorRT.trtexec ")
    assert result.measurement.place == "cpu"
    assert result.plan is None
    assert "Measured on the CPU: CUDA graph, data transfers and spin wait are about GPUs" in log(result)
    assert "No plan is built" in log(result)
    assert "=== Build Options ===" not in log(result)


def test_what_acts_on_plans_only_is_said_to(model):
    said = "[W] ONNX Runtime executes the model as it is stored: precision and sparsity act on plans only"
    assert said in log(trtexec(f"--onnx={model} --fp16 {ON_CPU}"))
    assert said in log(trtexec(f"--onnx={model} --sparsity=enable {ON_CPU}"))
    assert said not in log(trtexec(f"--onnx={model} {ON_CPU}"))


@pytest.mark.parametrize("suffix", ["bin", "npy"])
def test_loaded_inputs_give_the_exported_outputs_that_session_run_gives(model, tmp_path, suffix):
    x = np.random.default_rng(0).standard_normal((2, 64)).astype("f4")
    file, exported = tmp_path / f"x.{suffix}", tmp_path / "y.json"
    np.save(file, x) if suffix == "npy" else file.write_bytes(x.tobytes())
    result = trtexec(f"--onnx={model} --loadInputs=x:{file} --exportOutput={exported} {ON_CPU}")
    assert result.passed, log(result)
    with Session(model) as session:
        expected = session.run({"x": x})["y"]
    (found,) = json.loads(exported.read_text())
    assert (found["name"], found["dimensions"]) == ("y", "2x128")
    assert np.array_equal(np.array(found["values"], "f4").reshape(2, 128), expected)
    assert np.array_equal(result.outputs["y"], expected)
    assert result.files == (exported,)


def test_every_file_and_table_can_be_had_on_the_cpu(model, tmp_path):
    names = ("times", "profile", "output", "layerInfo")
    files = {name: tmp_path / f"{name}.json" for name in names}
    flags = " ".join(f"--export{name[0].upper()}{name[1:]}={path}" for name, path in files.items())
    result = trtexec(f"--onnx={model} --dumpProfile --dumpOutput --dumpLayerInfo {flags} {ON_CPU}")
    assert result.passed, log(result)
    assert set(result.files) == set(files.values())
    assert len(json.loads(files["times"].read_text())) == len(result.measurement.queries)
    layers = [layer["Name"] for layer in json.loads(files["layerInfo"].read_text())["Layers"]]
    assert [row["name"] for row in json.loads(files["profile"].read_text())[1:]] == layers
    assert {"[I] Output Tensors:", "[I] y: (2x128)", "[I] Layer Information:"} <= {ln[22:] for ln in result.lines}
    assert f"=== Profile ({result.measurement.profile_queries} iterations ) ===" in log(result)
    assert result.layers == files["layerInfo"].read_text()


def test_a_shape_that_is_not_given_is_made_up_and_said(dynamic):
    result = trtexec(f"--onnx={dynamic} {ON_CPU}")
    assert result.measurement.shapes == {"x": (1, 8)}
    assert "[W] Shape missing for input with dynamic shape: x. Automatically setting shape to: 1x8" in log(result)
    assert trtexec(f"--onnx={dynamic} --shapes=x:5x8 {ON_CPU}").measurement.shapes == {"x": (5, 8)}


def test_random_tokens_are_ones_that_the_model_knows(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[1, 500] ids) => (float[1, 500, 2] y)
    <float[3, 2] table = {1, 2, 3, 4, 5, 6}> { y = Gather(table, ids) }"""
    path = tmp_path / "tokens.onnx"
    onnx.save(parser.parse_model(text), path)
    result = trtexec(f"--onnx={path} {ON_CPU}")
    assert set(result.outputs["y"].ravel().tolist()) == {1, 2, 3, 4, 5, 6}


def test_several_streams_run_on_the_cpu(model):
    result = trtexec(f"--onnx={model} --infStreams=2 {ON_CPU}")
    assert {query.stream for query in result.measurement.queries} == {0, 1}
    assert "Multiple inference streams are used" in log(result)


def test_raw_files_of_inputs_and_outputs_can_be_fed_again(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = trtexec(f"--onnx={model} --dumpRawBindingsToFile {ON_CPU}")
    assert [path.name for path in first.files] == ["x.input.2.64.fp32.raw", "y.output.2.128.fp32.raw"]
    again = trtexec(f"--onnx={model} --loadInputs=x:x.input.2.64.fp32.raw {ON_CPU}")
    assert np.array_equal(again.outputs["y"], first.outputs["y"])
    assert np.fromfile("y.output.2.128.fp32.raw", "f4").tobytes() == again.outputs["y"].tobytes()


@pytest.mark.parametrize("algorithm", ["l0", "l1", "l2", "lInf", "cos"])
def test_outputs_are_compared_with_references(model, tmp_path, algorithm):
    x = np.random.default_rng(0).standard_normal((2, 64)).astype("f4")
    with Session(model) as session:
        y = session.run({"x": x})["y"]
    x.tofile(tmp_path / "x.bin")
    y.tofile(tmp_path / "good.bin")
    (-y).tofile(tmp_path / "bad.bin")
    flags = (
        f"--onnx={model} --loadInputs=x:{tmp_path}/x.bin --accuracyAlgorithm={algorithm} --accuracyThreshold=0.001"
    )
    assert trtexec(f"{flags} --loadRefOutputs=y:{tmp_path}/good.bin {ON_CPU}").passed
    result = trtexec(f"{flags} --loadRefOutputs=y:{tmp_path}/bad.bin {ON_CPU}")
    assert (result.exit_code, result.error) == (1, None)
    assert "[E] Accuracy validation FAILED: one or more tensors exceeded the threshold." in log(result)
    assert "[FAIL: >= threshold 0.001]" in log(result)
    assert result.measurement is not None


def test_several_pairs_of_dynamic_shapes_are_compared(dynamic, tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype("f4")
    with Session(dynamic) as session:
        for i in range(2):
            x[i].tofile(tmp_path / f"x{i}.bin")
            session.run({"x": x[i]})["y"].tofile(tmp_path / f"y{i}.bin")
    pairs = " ".join(
        f"--refPair={i} --loadInputs=x:{tmp_path}/x{i}.bin --loadRefOutputs=y:{tmp_path}/y{i}.bin" for i in range(2)
    )
    result = trtexec(f"--onnx={dynamic} --shapes=x:3x8 {pairs} --accuracyThreshold=0.001 {ON_CPU}")
    assert result.passed, log(result)
    assert sum("[I] Accuracy loss for tensor y (L0): 0.000000" in line for line in result.lines) == 2


def test_a_reference_needs_all_inputs(tmp_path):
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] a, float[2] b) => (float[2] y) { y = Add(a, b) }'
    path = tmp_path / "two.onnx"
    onnx.save(parser.parse_model(text), path)
    for name in "ay":
        np.zeros(2, "f4").tofile(tmp_path / f"{name}.bin")
    flags = f"--loadInputs=a:{tmp_path}/a.bin --loadRefOutputs=y:{tmp_path}/y.bin --accuracyThreshold=1"
    error = failed(trtexec(f"--onnx={path} {flags} {ON_CPU}"), FeedError)
    assert str(error) == (
        "a reference needs the files of all inputs\n  where: --loadInputs\n  got: a\n  expected: b:file"
    )


def test_a_reference_that_is_not_a_number_fails(model, tmp_path):
    np.zeros((2, 64), "f4").tofile(tmp_path / "x.bin")
    np.full((2, 128), np.nan, "f4").tofile(tmp_path / "nan.bin")
    result = trtexec(
        f"--onnx={model} --loadInputs=x:{tmp_path}/x.bin --loadRefOutputs=y:{tmp_path}/nan.bin "
        f"--accuracyAlgorithm=l1 --accuracyThreshold=1 {ON_CPU}"
    )
    assert result.exit_code == 1


# inputs that do not fit


def test_a_raw_file_of_the_wrong_size_is_explained(model, tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(100))
    error = failed(trtexec(f"--onnx={model} --loadInputs=x:{tmp_path}/x.bin {ON_CPU}"), FeedError)
    assert str(error) == (
        "an input file has the wrong size\n"
        f"  where: --loadInputs=x:{tmp_path}/x.bin\n"
        "  got: 100 bytes\n"
        "  expected: 512 bytes: 2x64 of float32"
    )


def test_a_raw_file_for_a_dynamic_input_needs_a_shape(dynamic, tmp_path):
    np.zeros((3, 8), "f4").tofile(tmp_path / "x.bin")
    error = failed(trtexec(f"--onnx={dynamic} --loadInputs=x:{tmp_path}/x.bin {ON_CPU}"), FeedError)
    assert str(error) == (
        "the shape of a raw input file is not known\n"
        f"  where: --loadInputs=x:{tmp_path}/x.bin\n"
        "  got: 'x' float32 (n, 8)\n"
        "  to fix: give it: --shapes=x:1x8"
    )
    with_shape = trtexec(f"--onnx={dynamic} --loadInputs=x:{tmp_path}/x.bin --shapes=x:3x8 {ON_CPU}")
    assert with_shape.measurement.shapes == {"x": (3, 8)}


def test_a_missing_input_file_is_explained(model):
    error = failed(trtexec(f"--onnx={model} --loadInputs=x:none.bin {ON_CPU}"), FeedError)
    assert str(error) == (
        "the input file cannot be read\n  where: --loadInputs=x:none.bin\n  got: No such file or directory"
    )


def test_a_damaged_npy_file_is_explained(model, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    error = failed(trtexec(f"--onnx={model} --loadInputs=x:{tmp_path}/x.npy {ON_CPU}"), FeedError)
    assert error.what == "the input file is not a whole .npy file"


@pytest.mark.parametrize("flag", ["--shapes=ids:1x8", "--loadInputs=ids:x.bin"])
def test_an_unknown_input_is_named(dynamic, flag):
    error = failed(trtexec(f"--onnx={dynamic} {flag} {ON_CPU}"), ConfigError)
    assert str(error) == (
        'Cannot find input tensor with name "ids" in the engine bindings!\n'
        f"  where: {flag.partition('=')[0]}\n"
        "  expected: 'x'\n"
        "  to fix: Please make sure the input tensor names are correct."
    )


# the command line


def test_a_typo_is_answered_with_what_was_meant():
    error = failed(trtexec("--onnx=m.onnx --sparsty=enable"), ConfigError)
    assert str(error) == "Unknown option: --sparsty enable\n  to fix: did you mean --sparsity?"


def test_a_refused_flag_ends_with_its_reason():
    error = failed(trtexec("--onnx=m.onnx --useDLACore=0"), ConfigError)
    assert error.what == "--useDLACore is refused: trtsparse builds for GPUs, not for DLA"


def test_help_begins_with_the_banner_and_ends_with_the_help():
    result = trtexec(["--help"])
    assert result.exit_code == 0
    assert result.lines[0].startswith("&&&& RUNNING TensorRT.trtexec ")
    assert result.lines[1].startswith("trtsparse trtexec takes the command line of NVIDIA's trtexec")
    assert not [line for line in result.lines if line.startswith("&&&& PASSED")]


def test_engines_exclude_what_they_cannot_execute(tmp_path):
    plan = tmp_path / "m.plan"
    error = failed(trtexec(f"--loadEngine={plan} --engine=onnxruntime"), ConfigError)
    assert error.what == "ONNX Runtime cannot execute a plan"


def test_lines_are_given_out_as_they_come(model):
    written = []
    result = trtexec(f"--onnx={model} {ON_CPU}", write=lambda _stream, line: written.append(line))
    assert tuple(written) == result.lines


def test_a_missing_model_is_said(tmp_path):
    result = trtexec(f"--onnx={tmp_path}/none.onnx {ON_CPU}")
    assert "there is no such" in failed(result, FileNotFoundError).what


def test_an_output_that_cannot_be_written_is_refused_before_the_run(model, tmp_path):
    result = trtexec(f"--onnx={model} --exportTimes={tmp_path}/none/t.json {ON_CPU}")
    assert failed(result, OSError).what == "cannot write the file"
    assert "Starting inference" not in log(result)


FILES = [
    "--saveEngine={}",
    "--exportTimes={}",
    "--timingCacheFile={}",
    "--engine=onnxruntime --exportOutput={}",
    "--engine=cusparselt --saveEngine={}",
]


@pytest.mark.parametrize("flags", FILES)
@pytest.mark.parametrize("name", ["m.onnx", "m.data"])
def test_the_model_is_not_replaced(tmp_path, flags, name):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(sparse(64, 128, axis=0)), path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    error = failed(trtexec(f"--onnx={path} {flags.format(tmp_path / name)}"), ConfigError)
    whole = "the model" if name == "m.onnx" else f"a data file of the model {path}"
    assert str(error) == (
        f"the output would replace {whole}\n  where: {tmp_path / name}\n  to fix: name another file"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_report_does_not_replace_the_model_either(tmp_path):
    path = tmp_path / "m.plan.json"
    path.write_bytes(matmul(sparse(64, 128, axis=0)).SerializeToString())
    error = failed(trtexec(f"--onnx={path} --saveEngine={tmp_path / 'm.plan'}"), ConfigError)
    assert error.what == "the output would replace the model"


@pytest.mark.parametrize(("end", "why"), [("'x:1x3", "no closing quotation"), ("x:1x3\\", "no escaped character")])
def test_a_command_line_that_cannot_be_split_is_an_error_like_others(end, why):
    line = f"--onnx=m.onnx --shapes={end}"
    result = trtexec(line)
    assert str(failed(result, ConfigError)) == (
        "the command line cannot be split into words\n"
        f"  got: {line}: {why}\n"
        "  to fix: close what is open, or give the words in a list"
    )
    assert result.options is None
    assert line in result.lines[0]


def test_ctrl_c_ends_the_log_and_reaches_the_caller(model, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    written = []
    monkeypatch.setattr("trtsparse.trtexec.infer.make_feeds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trtexec(f"--onnx={model} {ON_CPU}", write=lambda stream, line: written.append((stream, line)))
    assert written[-2][0] == "err"
    assert written[-2][1].endswith("[E] Interrupted")
    assert written[-1][1].startswith("&&&& FAILED TensorRT.trtexec ")


def test_an_unexpected_error_fails_the_run_and_asks_for_a_report(model, monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError("by zero")

    monkeypatch.delenv("TRTSPARSE_DEBUG", raising=False)
    monkeypatch.setattr("trtsparse.trtexec.infer.make_feeds", broken)
    result = trtexec(f"--onnx={model} {ON_CPU}")
    assert result.exit_code == 1
    assert "[E] Uncaught exception detected: ZeroDivisionError: by zero" in log(result)
    monkeypatch.setenv("TRTSPARSE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        trtexec(f"--onnx={model} {ON_CPU}")


def test_without_any_tensorrt_the_package_to_install_is_named(model, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tensorrt", "tensorrt_rtx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = trtexec(f"--onnx={model}")
    assert "pip install 'trtsparse[rtx]'" in str(failed(result, MissingDependencyError))
    assert "[no TensorRT]" in result.lines[0]
    assert trtexec(f"--onnx={model} {ON_CPU}").passed


def test_the_package_can_be_called_whatever_was_imported_before(model):
    package = importlib.import_module("trtsparse.trtexec")
    importlib.import_module("trtsparse.trtexec.run")
    assert package(f"--onnx={model} {ON_CPU}").passed
    assert package("--help", write=None).exit_code == 0
