"""Whole command lines: on the CPU, with the real TensorRT-RTX, and with doubles where a GPU is needed."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.doubles import installed
from tests.doubles.cuda import MemoryCuda
from tests.helpers import matmul, random, sparse
from trtsparse import Session
from trtsparse.builder import build as builder
from trtsparse.cuda.driver import count_gpus
from trtsparse.errors import ConfigError, DeviceError, FeedError, MissingDependencyError
from trtsparse.trtexec import infer
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.run import trtexec
from trtsparse.trtexec.words import in_flags

QUICK = "--duration=0 --iterations=5 --warmUp=0"
ON_CPU = f"--engine=onnxruntime {QUICK}"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(sparse(64, 128, axis=0)), path)
    return path


@pytest.fixture
def dynamic(tmp_path):
    path = tmp_path / "d.onnx"
    onnx.save(matmul(random(8, 4), rows="n"), path)
    return path


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def without_gpu():
    if count_gpus():
        pytest.skip("there is a GPU")


@pytest.fixture
def cuda():
    provider = MemoryCuda()
    with installed("10.13.3") as trt:
        trt.submit = provider.submit
        provider.trt = trt
        yield provider


def log(result):
    return "\n".join(result.lines)


def failed(result, kind):
    """The error of a run that ended as trtexec ends."""
    assert result.exit_code == 1
    assert not result.passed
    assert result.lines[0].startswith("&&&& RUNNING TensorRT.trtexec ")
    assert result.lines[-1].startswith("&&&& FAILED TensorRT.trtexec ")
    assert isinstance(result.error, kind), result.error
    said = [line[26:] for line in result.lines if line[21:].startswith(" [E] ")]
    assert said == in_flags(str(result.error)).splitlines()
    return result.error


# on the CPU


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
    error = failed(trtexec("--onnx=m.onnx --engine=cusparselt"), ConfigError)
    assert error.what == "models for cuSPARSELt are not measured here"


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


# with the real TensorRT-RTX, which builds without a GPU


@pytest.mark.usefixtures("rtx", "without_gpu")
def test_rtx_builds_and_says_what_running_lacks(model, tmp_path):
    plan = tmp_path / "m.plan"
    result = trtexec(f"--onnx={model} --saveEngine={plan} --fp16 --sparsity=enable")
    error = failed(result, DeviceError)
    assert error.what == "there is no GPU to run the engine on"
    assert error.fix == (
        "--skipInference stops after the build; --onnx=<file> --engine=onnxruntime runs the model on the CPU"
    )
    assert result.plan == plan.read_bytes()
    assert result.plan_path == plan
    assert result.build.precision.reached == "fp16"
    assert "[I] Precision: fp16 asked, fp16 reached by converting the graph" in log(result)
    assert "1 eligible, 1 of these compliant, which run sparse is decided when the engine is loaded" in log(result)


def test_rtx_builds_and_stops_when_asked(rtx, model, tmp_path):
    plan = tmp_path / "m.plan"
    result = trtexec(f"--onnx={model} --saveEngine={plan} --skipInference")
    assert result.passed, log(result)
    assert result.lines[-2].endswith("[I] Skipped inference phase since --skipInference is added.")
    assert set(result.files) == {plan, tmp_path / "m.plan.json"}
    again = trtexec(f"--loadEngine={plan} --getPlanVersionOnly")
    assert again.lines[1].endswith(f"[I] Plan was created with TensorRT-RTX version {rtx.__version__}")
    assert again.passed
    assert len(again.lines) == 3


@pytest.mark.usefixtures("rtx")
def test_a_plan_is_built_and_the_model_runs_on_the_cpu(model, tmp_path):
    plan = tmp_path / "m.plan"
    result = trtexec(f"--onnx={model} --saveEngine={plan} {ON_CPU}")
    assert result.passed, log(result)
    assert plan.stat().st_size == len(result.plan)
    assert result.measurement.engine == "onnxruntime"


@pytest.mark.parametrize("flag", ["--bf16", "--best", "--int8", "--noTF32", "--stronglyTyped"])
@pytest.mark.usefixtures("rtx")
def test_precisions_of_older_versions_are_reached_by_conversion(model, flag):
    result = trtexec(f"--onnx={model} {flag} --skipInference")
    assert result.passed, log(result)
    reached = {"--bf16": "bf16", "--best": "fp16", "--int8": "int8", "--noTF32": "fp32", "--stronglyTyped": "tf32"}
    assert result.build.precision.reached == reached[flag]
    said = "is calibrated with random numbers: its INT8 accuracy on real inputs will be bad" in log(result)
    assert said == (flag == "--int8")


@pytest.mark.usefixtures("rtx")
def test_a_model_in_half_precision_keeps_its_types(tmp_path):
    path = tmp_path / "h.onnx"
    proto = matmul(random(16, 8, dtype=np.float16))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)
    result = trtexec(f"--onnx={path} --skipInference")
    assert result.build.precision.reached == "fp16"
    assert not [line for line in result.lines if "was asked for" in line]


@pytest.mark.usefixtures("rtx")
def test_force_prunes_and_the_report_has_it(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save(matmul(random(64, 128)), path)
    result = trtexec(f"--onnx={path} --sparsity=force --fp16 --skipInference")
    assert result.passed, log(result)
    assert result.build.pruning["zeroed"] == 64 * 128 // 2


@pytest.mark.usefixtures("rtx")
def test_a_sparse_build_without_compliant_weights_names_the_flag_that_helps(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save(matmul(random(64, 128)), path)
    result = trtexec(f"--onnx={path} --sparsity=enable --fp16 --skipInference")
    assert "prune the model first, or build with --sparsity=force" in log(result)


@pytest.mark.usefixtures("rtx")
def test_dynamic_inputs_without_shapes_are_built_for_ones(dynamic):
    result = trtexec(f"--onnx={dynamic} --skipInference")
    assert result.build.profiles == ({"x": {"min": [1, 8], "opt": [1, 8], "max": [1, 8]}},)
    assert "[W] Dynamic dimensions required for input: x, but no shapes were provided." in log(result)


@pytest.mark.usefixtures("rtx")
def test_a_pattern_gives_the_shapes_of_all_inputs_that_it_fits(dynamic):
    result = trtexec(f"--onnx={dynamic} --minShapes=*:1x8 --optShapes=*:2x8 --maxShapes=*:4x8 --skipInference")
    assert result.build.profiles == ({"x": {"min": [1, 8], "opt": [2, 8], "max": [4, 8]}},)


@pytest.mark.usefixtures("rtx")
def test_shapes_for_a_static_model_are_refused_in_trtexecs_words(model):
    error = failed(trtexec(f"--onnx={model} --shapes=x:2x64"), ConfigError)
    assert error.what == (
        "Static model does not take explicit shapes since the shape of inference tensors will be determined by the "
        "model itself"
    )


@pytest.mark.usefixtures("rtx")
def test_an_unknown_input_of_a_build_is_named(dynamic):
    error = failed(trtexec(f"--onnx={dynamic} --shapes=X:2x8"), ConfigError)
    assert error.what == 'Cannot find input tensor with name "X" in the network inputs!'


@pytest.mark.usefixtures("rtx")
def test_verbose_prints_what_tensorrt_says_in_detail(model):
    assert [ln for ln in trtexec(f"--onnx={model} --verbose --skipInference").lines if "[V] [TRT] " in ln]
    quiet = trtexec(f"--onnx={model} --skipInference").lines
    assert not [ln for ln in quiet if "[V]" in ln]
    assert [ln for ln in quiet if "[I] [TRT] " in ln]


@pytest.mark.usefixtures("rtx")
def test_options_that_the_version_lacks_are_refused_by_name(model):
    error = failed(trtexec(f"--onnx={model} --hardwareCompatibilityLevel=ampere+"), ConfigError)
    assert error.what == ("hardware_compatible='ampere_plus' is not available in this version of TensorRT-RTX")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "not a TensorRT plan"), (b"vtrt" + bytes(8), "the plan is truncated"), (None, "there is no such plan")],
)
def test_what_is_no_plan_is_explained(tmp_path, content, what):
    path = tmp_path / "m.plan"
    if content is not None:
        path.write_bytes(content)
    assert failed(trtexec(f"--loadEngine={path}"), ValueError).what == what


@pytest.mark.usefixtures("rtx", "without_gpu")
def test_layers_cannot_be_told_without_a_gpu(model, tmp_path):
    result = trtexec(f"--onnx={model} --skipInference --exportLayerInfo={tmp_path}/l.json")
    failed(result, DeviceError)
    assert not (tmp_path / "l.json").exists()


@pytest.mark.usefixtures("rtx")
def test_a_real_model_is_built(tmp_path):
    pytest.importorskip("magika", reason="the package brings the model")
    from models.packaged import magika_model

    ranges = "--minShapes=bytes:1x2048 --optShapes=bytes:8x2048 --maxShapes=bytes:32x2048"
    result = trtexec(
        f"--onnx={magika_model()} --saveEngine={tmp_path}/m.plan --sparsity=force {ranges} --skipInference"
    )
    assert result.passed, log(result)
    assert len(result.build.sites) == 3


# with a double


def test_a_provider_without_graphs_falls_back_and_says_so(model):
    provider = MemoryCuda(graphs=False)
    with installed("10.13.3") as trt:
        trt.submit = provider.submit
        result = trtexec(f"--onnx={model} --useCudaGraph {QUICK}", cuda=provider)
    assert result.passed, log(result)
    assert not result.measurement.graphs
    assert "[W] The specified --useCudaGraph flag has been ignored." in log(result)


def test_another_gpu_is_used_when_named(model):
    provider = MemoryCuda(device=1)
    with installed("10.13.3") as trt:
        trt.submit = provider.submit
        result = trtexec(f"--onnx={model} --device=1 {QUICK}", cuda=provider)
        assert result.passed, log(result)
        wrong = trtexec(f"--onnx={model} --device=2 {QUICK}", cuda=provider)
    assert failed(wrong, ConfigError).what == "the CUDA provider is for another device"


def test_transfers_overlap_unless_exposed(model, cuda):
    result = trtexec(f"--onnx={model} --exposeDMA {QUICK}", cuda=cuda)
    assert result.measurement.options.depth == 1
    assert trtexec(f"--onnx={model} {QUICK}", cuda=cuda).measurement.options.depth == 2


def test_loading_is_timed_when_asked(model, cuda):
    result = trtexec(f"--onnx={model} --timeDeserialize {QUICK}", cuda=cuda)
    assert result.passed, log(result)
    assert result.measurement is None
    assert "[I] First deserialization time = " in log(result)
    assert " in 20 iterations, average time = " in log(result)
    assert cuda.alive["allocations"] == 0


def test_a_model_in_onnx_runtime_is_not_deserialized(model):
    failed(trtexec(f"--onnx={model} --timeDeserialize {ON_CPU}"), ConfigError)


def test_plugins_are_registered_before_a_plan_is_loaded(model, cuda, tmp_path, monkeypatch):
    plan = tmp_path / "m.plan"
    assert trtexec(f"--onnx={model} --saveEngine={plan} --skipInference", cuda=cuda).passed
    loaded, standard = [], []
    monkeypatch.setattr(infer, "load_plugins", lambda _trt, plugins, _messages: loaded.extend(plugins))
    cuda.trt.init_libnvinfer_plugins = lambda _logger, namespace: standard.append(namespace)
    result = trtexec(f"--loadEngine={plan} --staticPlugins=a.so --dynamicPlugins=b.so {QUICK}", cuda=cuda)
    assert result.passed, log(result)
    assert (loaded, standard) == (["a.so", "b.so"], [""])


def test_a_plugin_library_that_is_missing_is_said(model, cuda, tmp_path):
    plan = tmp_path / "m.plan"
    assert trtexec(f"--onnx={model} --saveEngine={plan} --skipInference", cuda=cuda).passed
    error = failed(trtexec(f"--loadEngine={plan} --staticPlugins=none.so {QUICK}", cuda=cuda), ConfigError)
    assert error.what == "there is no such plugin library"


def test_what_can_be_refitted_is_listed(model, cuda):
    class Refitter:
        def __init__(self, engine, logger):
            pass

        def get_all(self):
            return ["conv", "gemm"], [SimpleNamespace(name="KERNEL"), SimpleNamespace(name="BIAS")]

    cuda.trt.Refitter = Refitter
    result = trtexec(f"--onnx={model} --refit --dumpRefit {QUICK}", cuda=cuda)
    assert result.passed, log(result)
    assert {"[I] conv KERNEL", "[I] gemm BIAS"} <= {line[22:] for line in result.lines}
    error = failed(trtexec(f"--onnx={model} --dumpRefit {QUICK}", cuda=cuda), ConfigError)
    assert (error.what, error.fix) == ("the engine cannot be refitted", "build it with --refit")


def test_a_profile_that_the_engine_lacks_is_refused(model, cuda, tmp_path):
    plan = tmp_path / "m.plan"
    assert trtexec(f"--onnx={model} --saveEngine={plan} --skipInference", cuda=cuda).passed
    error = failed(trtexec(f"--loadEngine={plan} --useProfile=2 {QUICK}", cuda=cuda), ConfigError)
    assert str(error) == (
        "Selected profile index exceeds the number of profiles that the engine holds.\n"
        "  where: --useProfile\n"
        "  got: 2\n"
        "  expected: 0 to 0"
    )
    assert cuda.alive == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}


def test_settings_of_the_builder_reach_tensorrt(model, cuda):
    flags = (
        "--avgTiming=3 --maxTactics=7 --tilingOptimizationLevel=2 --preview=+aliasedPluginIO1003 --directIO "
        "--tacticSources=-JIT_CONVOLUTIONS --pluginInstanceNorm --noTF32 --fp16"
    )
    result = trtexec(f"--onnx={model} {flags} --skipInference", cuda=cuda)
    assert result.passed, log(result)
    assert result.build.config["advanced"] == {
        "flags": {"DIRECT_IO": True, "TF32": False},
        "attributes": {
            "avg_timing_iterations": 3, "max_num_tactics": 7, "tiling_optimization_level": "MODERATE",
        },
        "parser_flags": {"NATIVE_INSTANCENORM": False},
        "tactic_sources": {"JIT_CONVOLUTIONS": False},
        "preview_features": {"ALIASED_PLUGIN_IO_10_03": True},
        "input_types": [],
        "output_types": [],
    }  # fmt: skip


def test_kernels_are_timed_eight_times_as_trtexec_does(model, cuda):
    result = trtexec(f"--onnx={model} --skipInference", cuda=cuda)
    assert result.build.config["advanced"]["attributes"] == {"avg_timing_iterations": 8}


def test_types_of_inputs_and_outputs_can_be_chosen_where_types_are_weak(model, cuda):
    result = trtexec(f"--onnx={model} --fp16 --inputIOFormats=fp16:chw --outputIOFormats=fp16:chw {QUICK}", cuda=cuda)
    assert result.passed, log(result)
    assert result.build.inputs[0]["dtype"] == result.build.outputs[0]["dtype"] == "float16"


def test_layers_to_keep_are_found_by_pattern(model, cuda):
    flags = "--fp16 --precisionConstraints=obey --layerPrecisions=mat*:fp32"
    result = trtexec(f"--onnx={model} {flags} --skipInference", cuda=cuda)
    assert result.build.precision.kept == ("matmul",)


# how an engine is loaded


def runtime(**more):
    return SimpleNamespace(
        engine_host_code_allowed=False, temporary_directory=None, tempfile_control_flags=3,
        load_runtime=lambda path: SimpleNamespace(path=path), **more,
    )  # fmt: skip


def prepared(*words):
    trt = SimpleNamespace(
        TempfileControlFlag=SimpleNamespace(__members__={"ALLOW_IN_MEMORY_FILES": 0, "ALLOW_TEMPORARY_FILES": 1})
    )
    made = runtime()
    return made, infer._prepare(parse(["--loadEngine=m.plan", *words]), trt, made)


def test_a_version_compatible_plan_may_bring_code_only_when_asked():
    assert prepared("--versionCompatible")[0].engine_host_code_allowed
    assert not prepared()[0].engine_host_code_allowed


def test_temporary_files_are_controlled():
    made, used = prepared("--tempdir=here", "--tempfileControls=in_memory:deny,temporary:allow")
    assert (made.temporary_directory, made.tempfile_control_flags) == ("here", 2)
    assert used is made


def test_a_lean_runtime_loads_the_plan():
    made, used = prepared("--leanDLLPath=lean.so")
    assert used.path == "lean.so"
    assert used is not made


def test_a_lean_runtime_that_does_not_load_is_an_error():
    made = runtime()
    made.load_runtime = lambda _path: None
    with pytest.raises(ConfigError) as error:
        infer._prepare(parse(["--loadEngine=m.plan", "--leanDLLPath=lean.so"]), None, made)
    assert str(error.value) == "the lean runtime does not load\n  where: --leanDLLPath\n  got: lean.so"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("50%", 500), ("20B", 20), ("-1", 123), (None, 1000)],
)
def test_the_budget_of_weights_is_set(flag, expected):
    words = ["--onnx=m.onnx", "--allowWeightStreaming", *([f"--weightStreamingBudget={flag}"] if flag else [])]
    asked = []
    engine = SimpleNamespace(
        raw=SimpleNamespace(streamable_weights_size=1000, get_weight_streaming_automatic_budget=lambda: 123),
        set_weights_budget=asked.append,
    )
    infer._stream_weights(engine, parse(words).inference, infer.Printer())
    assert asked == [expected]


def test_the_build_is_the_packages_own(model, cuda, monkeypatch):
    calls = []
    real = builder.build
    monkeypatch.setattr("trtsparse.trtexec.build.build", lambda *args: calls.append(args) or real(*args))
    trtexec(f"--onnx={model} --skipInference", cuda=cuda)
    assert len(calls) == 1
