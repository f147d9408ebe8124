"""Whole command lines with --engine=cusparselt: on the in-memory CUDA, and what machines without a GPU are told."""

import importlib.util
import json
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.doubles.cuda import MemoryCuda
from tests.doubles.device_engine import kernel
from tests.helpers import matmul, random
from tests.trtexec.on_memory import HERE, Machine, texts, warnings_of
from tests.trtexec.running import QUICK, failed, log
from trtsparse import Session
from trtsparse.cli.main import main
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError, ModelError, ShapeError
from trtsparse.sparsity.validate import validate
from trtsparse.trtexec import cusparselt
from trtsparse.trtexec.layers import layer_names
from trtsparse.trtexec.run import trtexec
from trtsparse.tune.cache import SCHEMA, Cache
from trtsparse.tune.gemm import Gemm

QDQ = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 8] x) => (float[n, 4] y)
<float[8, 4] w = {1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0, 2},
 float s = {0.5}, int8 z = {0}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    y = MatMul(d, w)
}"""


@pytest.fixture
def gpu(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save(matmul(random(64, 128)), path)
    return path


# the report


def test_a_model_is_measured_and_reported_as_a_plan_is(gpu, model):
    result = gpu.run(f"--onnx={model} {HERE} --bf16 --like=10 {QUICK}")
    assert result.passed, log(result)
    said = "\n".join(texts(result))
    for part in (
        "Timing trace has ", "Throughput: ", "Latency: min = ", "Enqueue Time: ", "H2D Latency: ",
        "GPU Compute Time: ", "D2H Latency: ", "Total Host Walltime: ", "Total GPU Compute Time: ",
        "percentile(99%) = ",
    ):  # fmt: skip
        assert part in said, part
    measured = result.measurement
    assert (measured.place, measured.engine) == ("gpu", "cusparselt")
    assert all(query.compute_ms > 0 and query.h2d_ms > 0 for query in measured.queries)
    assert result.lines[-1].startswith("&&&& PASSED TensorRT.trtexec ")
    assert warnings_of(result) == []


def test_the_log_tells_how_the_engine_came_to_be(gpu, model):
    result = gpu.run(f"--onnx={model} {HERE} --fp16 --like=10 {QUICK}")
    said = texts(result)
    for line in (
        "[I] Precision: FP32 values are computed in FP16, except where that would overflow",
        "[I] Choosing kernels: those that were not timed on such a GPU before are timed now",
        "[I] Sparsity: 1 products with weights, 1 of these chosen to run sparse",
        f"[I] Loaded {model} in fp16 on memory, 1 of 1 products sparse",
        "[I] === Build Options ===",
        "[I] Precision: FP32+FP16",
        "[I] Sparsity: Enabled",
        "[I] CUDA Graph: Enabled",
    ):
        assert line in said, line
    assert [line for line in said if re.fullmatch(r"\[I\] Engine built in \S+ sec\.", line)]
    policy = next(line for line in said if line.startswith("[I] Measured like trtexec 10 (--like=10): "))
    assert "CUDA graph on (the engine's own), data transfers on, spin wait off" in policy
    assert not [line for line in warnings_of(result) if "graph" in line]


def test_versions_of_the_libraries_are_told(gpu, model, monkeypatch):
    monkeypatch.setattr(cusparselt.metadata, "version", lambda name: {"torch": "2.11"}[name])
    monkeypatch.setattr(cusparselt.sparse, "version", lambda _device: "0.8.0")

    def missing(_device):
        raise MissingDependencyError("nvmath-python is not installed", extra="cuda")

    monkeypatch.setattr(cusparselt.dense, "version", missing)
    said = texts(gpu.run(f"--onnx={model} {HERE} {QUICK}"))
    at = said.index("[I] PyTorch version: 2.11")
    assert said[at + 1 : at + 3] == ["[I] cuSPARSELt version: 0.8.0", "[I] cuBLASLt version: not installed"]


@pytest.mark.parametrize("suffix", ["bin", "npy"])
def test_loaded_inputs_give_the_exported_outputs_that_session_run_gives(gpu, model, tmp_path, suffix):
    x = np.random.default_rng(0).standard_normal((2, 64)).astype("f4")
    file, exported = tmp_path / f"x.{suffix}", tmp_path / "y.json"
    np.save(file, x) if suffix == "npy" else file.write_bytes(x.tobytes())
    result = gpu.run(f"--onnx={model} {HERE} --loadInputs=x:{file} --exportOutput={exported} --dumpOutput {QUICK}")
    assert result.passed, log(result)
    with Session(model) as session:
        expected = session.run({"x": x})["y"]
    (found,) = json.loads(exported.read_text())
    assert np.array_equal(np.array(found["values"], "f4").reshape(2, 128), expected)
    assert np.array_equal(result.outputs["y"], expected)
    assert "[I] y: (2x128)" in texts(result)


def test_times_profile_and_layers_can_be_had(gpu, model, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("Times", "Profile", "LayerInfo")}
    flags = " ".join(f"--export{name}={path}" for name, path in files.items())
    result = gpu.run(f"--onnx={model} {HERE} --bf16 --dumpProfile --dumpLayerInfo {flags} {QUICK}")
    assert result.passed, log(result)
    assert set(result.files) == set(files.values())
    assert len(json.loads(files["Times"].read_text())) == len(result.measurement.queries)
    assert [row["name"] for row in json.loads(files["Profile"].read_text())[1:]] == ["matmul"]
    assert layer_names(result.layers) == ["matmul"]
    told = json.loads(files["LayerInfo"].read_text())
    assert told["Bindings"] == ["x", "y"]
    assert told["Layers"] == [{
        "Name": "matmul",
        "LayerType": "MatrixMultiply",
        "Inputs": [{
            "Name": "matmul.x", "Dimensions": [2, 64], "Format/Datatype": "Row major linear BFLOAT16",
        }],
        "Outputs": [{
            "Name": "matmul.y", "Dimensions": [2, 128], "Format/Datatype": "Row major linear BFLOAT16",
        }],
        "Weights": {"Type": "bfloat16", "Count": 8192},
        "WeightName": "w",
        "Epilogue": "none",
        "TacticName": "sparse kernel sparse 1, 0.25 ms",
        "Sparse": True,
    }]  # fmt: skip
    assert "[I] matmul: 2x128x64 bf16->bf16: sparse kernel sparse 1, 0.25 ms" in texts(result)
    assert f"=== Profile ({result.measurement.profile_queries} iterations ) ===" in log(result)


def test_the_flags_of_the_run_reach_the_measurement(gpu, dynamic):
    flags = (
        "--shapes=x:5x8 --iterations=7 --duration=0.01 --warmUp=3 --infStreams=2 --threads --exposeDMA --idleTime=1 "
        "--sleepTime=2 --percentile=50 --useSpinWait --includeDataTransfers --like=8"
    )
    result = gpu.run(f"--onnx={dynamic} {HERE} {flags}")
    assert result.passed, log(result)
    options = result.measurement.options
    assert (options.iterations, options.duration_s, options.warm_up_ms, options.streams) == (7, 0.01, 3.0, 2)
    assert (options.threads, options.expose_dma, options.idle_ms, options.sleep_ms) == (True, True, 1.0, 2.0)
    assert (options.percentiles, options.spin_wait, options.transfers) == ((50.0,), True, True)
    assert result.measurement.shapes == {"x": (5, 8)}
    assert {query.stream for query in result.measurement.queries} == {0, 1}


def test_transfers_can_be_left_out(gpu, model):
    queries = gpu.run(f"--onnx={model} {HERE} --like=8 --noDataTransfers {QUICK}").measurement.queries
    assert {query.h2d_ms for query in queries} == {0.0}


def test_outputs_are_compared_with_references(gpu, model, tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 64)).astype("f4")
    with Session(model) as session:
        y = session.run({"x": x})["y"]
    x.tofile(tmp_path / "x.bin")
    y.tofile(tmp_path / "good.bin")
    (-y).tofile(tmp_path / "bad.bin")
    flags = f"--onnx={model} {HERE} --loadInputs=x:{tmp_path}/x.bin --accuracyThreshold=0.001 {QUICK}"
    assert gpu.run(f"{flags} --loadRefOutputs=y:{tmp_path}/good.bin").passed
    result = gpu.run(f"{flags} --loadRefOutputs=y:{tmp_path}/bad.bin")
    assert (result.exit_code, result.error) == (1, None)


def test_random_tokens_are_ones_that_the_model_knows(gpu, tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[1, 500] ids) => (float[1, 500, 2] y)
    <float[3, 2] table = {1, 2, 3, 4, 5, 6}> { y = Gather(table, ids) }"""
    path = tmp_path / "tokens.onnx"
    onnx.save(parser.parse_model(text), path)
    result = gpu.run(f"--onnx={path} {HERE} {QUICK}")
    assert set(result.outputs["y"].ravel().tolist()) == {1, 2, 3, 4, 5, 6}


# precision


@pytest.mark.parametrize(
    ("flag", "asked"), [("--fp16", "fp16"), ("--bf16", "bf16"), ("--stronglyTyped", "typed"), ("", None)]
)
def test_the_engine_computes_in_what_the_flag_says(gpu, model, flag, asked):
    result = gpu.run(f"--onnx={model} {HERE} {flag} {QUICK}")
    assert result.passed, log(result)
    assert gpu.engine.asked_precision == asked


@pytest.mark.parametrize(("level", "compiled"), [("", False), ("3", False), ("4", True), ("5", True)])
def test_a_high_optimization_level_compiles_what_surrounds_the_products(gpu, model, level, compiled):
    result = gpu.run(f"--onnx={model} {HERE} {level and '--builderOptimizationLevel=' + level} {QUICK}")
    assert result.passed, log(result)
    assert gpu.engine.compiled is compiled
    said = "[I] Compiling what surrounds the products when a shape is first executed"
    assert (said in texts(result)) is compiled


@pytest.mark.parametrize("like", [8, 10, 11])
def test_what_nobody_asked_for_is_warned_of(gpu, model, like):
    warned = (
        "[W] Precision: none is asked for, and this engine computes FP32 values in BF16 then; --fp16 is the other "
        "choice, and --stronglyTyped leaves the model's own types"
    )
    assert warned in texts(gpu.run(f"--onnx={model} {HERE} --like={like} {QUICK}"))
    for flag in ("--fp16", "--bf16", "--stronglyTyped"):
        assert warned not in texts(gpu.run(f"--onnx={model} {HERE} --like={like} {flag} {QUICK}"))


def test_a_model_in_half_precision_stays_so_without_a_warning(gpu, tmp_path):
    path = tmp_path / "h.onnx"
    proto = matmul(random(16, 8, dtype=np.float16))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)
    said = texts(gpu.run(f"--onnx={path} {HERE} {QUICK}"))
    assert "[I] Precision: as the model is stored; what it has in FP32 is computed in BF16" in said


def test_int8_is_for_models_that_are_quantized(gpu, model, tmp_path):
    error = failed(gpu.run(f"--onnx={model} {HERE} --int8 {QUICK}"), ConfigError)
    assert str(error) == (
        "--int8 is refused: this engine takes INT8 from the model's Q/DQ nodes, and it has none\n"
        f"  where: {model}\n"
        "  to fix: quantize the model first, such as with trtsparse.precision.int8.to_int8; or leave --int8 out"
    )
    assert not gpu.engines.made
    path = tmp_path / "q.onnx"
    onnx.save(parser.parse_model(QDQ), path)
    for flags, rest in (("--int8", None), ("--int8 --fp16", "fp16"), ("--int8 --bf16", "bf16")):
        result = gpu.run(f"--onnx={path} {HERE} {flags} --shapes=x:3x8 {QUICK}")
        assert result.passed, log(result)
        assert gpu.engine.asked_precision == rest


# sparsity


@pytest.mark.parametrize("flag", ["", "--sparsity=enable"])
def test_compliant_weights_may_run_sparse(gpu, model, flag):
    result = gpu.run(f"--onnx={model} {HERE} --bf16 {flag} {QUICK}")
    assert [compliant for _, compliant in gpu.questions] == [True]
    assert "[I] Sparsity: 1 products with weights, 1 of these chosen to run sparse" in texts(result)
    assert warnings_of(result) == []


def test_sparsity_can_be_switched_off(gpu, model):
    result = gpu.run(f"--onnx={model} {HERE} --bf16 --sparsity=disable {QUICK}")
    assert [compliant for _, compliant in gpu.questions] == [False]
    assert "[I] Sparsity: 1 products with weights, 0 of these chosen to run sparse" in texts(result)
    assert "[I] Sparsity: Disabled" in texts(result)
    assert warnings_of(result) == []


def test_force_prunes_first_with_the_warnings_that_a_build_gives(gpu, dense):
    result = gpu.run(f"--onnx={dense} {HERE} --bf16 --sparsity=force --like=11 {QUICK}")
    assert result.passed, log(result)
    assert validate(gpu.engine.model).compliant
    assert not validate(dense).compliant
    said = texts(result)
    assert "[I] Pruned 1 weights to 2:4: 4096 values became zero" in said
    assert (
        "[W] --sparsity=force has been deprecated. Please use <polygraphy surgeon prune> to rewrite the weights to a "
        "sparsity pattern and then run with --sparsity=enable" in said
    )
    assert (
        "[I] --sparsity=force keeps the two largest of every four weights; trtexec keeps the first two, whatever "
        "they are. Both cost accuracy unless the model is fine-tuned" in said
    )
    assert "[I] Sparsity: 1 products with weights, 1 of these chosen to run sparse" in said


def test_a_model_in_which_nothing_can_run_sparse_is_warned_of(gpu, dense):
    warned = (
        "[W] sparsity is on, but no product has a weight that is eligible and compliant: nothing can run sparse; "
        "prune the model first, or add --sparsity=force"
    )
    assert warned in texts(gpu.run(f"--onnx={dense} {HERE} --bf16 {QUICK}"))
    assert warned not in texts(gpu.run(f"--onnx={dense} {HERE} --bf16 --sparsity=disable {QUICK}"))


def test_without_products_in_few_bits_nothing_can_run_sparse(gpu, model):
    result = gpu.run(f"--onnx={model} {HERE} --stronglyTyped {QUICK}")
    assert (
        "[W] sparsity is on, but no product with a weight is in FP16, BF16 or INT8: nothing can run sparse; leave "
        "--stronglyTyped out" in texts(result)
    )


# shapes and timings


def test_kernels_are_chosen_before_the_run_in_each_shape_that_is_named(gpu, dynamic):
    flags = (
        "--profile=0 --minShapes=x:1x8 --optShapes=x:2x8 --maxShapes=x:9x8 "
        "--profile=1 --minShapes=x:9x8 --optShapes=x:16x8 --maxShapes=x:64x8 --useProfile=1"
    )
    result = gpu.run(f"--onnx={dynamic} {HERE} --bf16 {flags} {QUICK}")
    assert result.passed, log(result)
    assert [gemm.m for gemm, _ in gpu.questions] == [16, 2]
    assert result.measurement.shapes == {"x": (16, 8)}
    assert "[I] kernels are chosen for --optShapes and --shapes; other shapes are executed all the same" in texts(
        result
    )


def test_a_shape_from_an_input_file_is_the_one_that_kernels_are_chosen_for(gpu, dynamic, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((6, 8), "f4"))
    result = gpu.run(f"--onnx={dynamic} {HERE} --loadInputs=x:{tmp_path}/x.npy {QUICK}")
    assert result.measurement.shapes == {"x": (6, 8)}
    assert [gemm.m for gemm, _ in gpu.questions] == [6]


def test_a_shape_that_is_not_given_is_made_up_and_said_once(gpu, dynamic):
    result = gpu.run(f"--onnx={dynamic} {HERE} {QUICK}")
    told = "[W] Shape missing for input with dynamic shape: x. Automatically setting shape to: 1x8"
    assert texts(result).count(told) == 1


def test_a_shape_that_does_not_fit_is_refused(gpu, model):
    error = failed(gpu.run(f"--onnx={model} {HERE} --shapes=x:2x65 {QUICK}"), ShapeError)
    assert "expected: (2, 64)" in str(error)


def test_timings_are_kept_where_the_command_line_says(gpu, model, tmp_path):
    gpu.run(f"--onnx={model} {HERE} --timingCacheFile={tmp_path}/t.json {QUICK}")
    gpu.run(f"--onnx={model} {HERE} {QUICK}")
    assert gpu.caches == [tmp_path / "t.json", Cache().path]


def test_a_timing_cache_of_tensorrt_is_not_overwritten(gpu, model, tmp_path):
    path = tmp_path / "t.cache"
    path.write_bytes(bytes(range(200)))
    error = failed(gpu.run(f"--onnx={model} {HERE} --timingCacheFile={path} {QUICK}"), ConfigError)
    assert str(error) == (
        "this is no file of this engine's timings\n"
        f"  where: --timingCacheFile={path}\n"
        "  to fix: name another file; TensorRT's own timing caches are for TensorRT"
    )
    assert not gpu.caches
    for content in (b"", f'{{"schema": "{SCHEMA}", "devices": []}}'.encode()):
        path.write_bytes(content)
        assert gpu.run(f"--onnx={model} {HERE} --timingCacheFile={path} {QUICK}").passed


def test_the_tuner_is_the_packages_own_with_its_file(tmp_path, monkeypatch):
    row = SimpleNamespace(facts={})
    answers = SimpleNamespace(rows=[row], kernel=lambda _gemm, compliant: kernel("sparse" if compliant else "dense"))
    asked = []

    def tune(gemms, **options):
        asked.append((gemms, options["cache"].path))
        return answers

    monkeypatch.setattr("trtsparse.tune.choose.tune", tune)
    for compliant, kind in ((True, "sparse"), (False, "dense")):
        chooser = cusparselt.Asked(str(tmp_path / "t.json"), device=0)
        assert chooser(Gemm(8, 16, 32), compliant).kind == kind
        assert chooser.eligible is compliant
    assert asked == [([Gemm(8, 16, 32)], tmp_path / "t.json")] * 2


# what a machine lacks


@pytest.mark.usefixtures("without_gpu")
def test_without_a_gpu_it_is_exit_code_3_at_once(model, capsys, monkeypatch):
    monkeypatch.setattr(cusparselt, "CusparseltEngine", lambda *_args, **_options: pytest.fail("an engine was made"))
    assert main(["trtexec", f"--onnx={model}", HERE]) == 3
    captured = capsys.readouterr()
    said = [line[26:] for line in captured.err.splitlines() if line[21:].startswith(" [E] ")]
    assert said == [
        "there is no GPU to run the engine on",
        "  got: no GPU that CUDA can use",
        "  expected: an NVIDIA GPU of compute capability 8.0 (Ampere) or newer",
        "  to fix: --onnx=<file> --engine=onnxruntime runs the model on the CPU",
    ]
    assert captured.out.splitlines()[-1].startswith("&&&& FAILED TensorRT.trtexec ")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            "--shapes=input:2x64",
            (
                'Cannot find input tensor with name "input" in the engine bindings!\n  where: --shapes\n'
                "  expected: 'x'\n  to fix: Please make sure the input tensor names are correct."
            ),
        ),
        (
            "--shapes=x:2x65",
            "an array has the wrong shape\n  where: input 'x', dim 1\n  got: (2, 65)\n  expected: (2, 64)",
        ),
        (
            "--optShapes=x:2x64x1",
            "an array has the wrong number of dims\n  where: input 'x'\n  got: (2, 64, 1)\n  expected: (2, 64)",
        ),
        (
            "--loadInputs=x:nofile.bin",
            "the input file cannot be read\n  where: --loadInputs=x:nofile.bin\n  got: No such file or directory",
        ),
        (
            "--int8",
            (
                "--int8 is refused: this engine takes INT8 from the model's Q/DQ nodes, and it has none\n"
                "  where: {model}\n"
                "  to fix: quantize the model first, such as with trtsparse.precision.int8.to_int8; or leave --int8 "
                "out"
            ),
        ),
        (
            "--timeDeserialize",
            (
                "only saved engines are deserialized\n  where: --timeDeserialize\n"
                "  to fix: --saveEngine=<file>, then --loadEngine=<file> --timeDeserialize"
            ),
        ),
    ],
)
@pytest.mark.usefixtures("without_gpu")
def test_what_is_wrong_with_the_inputs_is_said_before_the_gpu_is_looked_for(model, flags, text):
    result = trtexec(f"--onnx={model} {HERE} {flags}")
    assert result.exit_code == 1
    assert str(result.error) == text.format(model=model)
    assert "Device Information" not in log(result)


@pytest.mark.usefixtures("without_gpu")
def test_dims_of_the_same_name_are_compared_before_the_gpu_is_looked_for(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] a, float[n, 4] b) => (float[n, 4] y) {
        y = Add(a, b)
    }"""
    path = tmp_path / "two.onnx"
    onnx.save(parser.parse_model(text), path)
    result = trtexec(f"--onnx={path} {HERE} --shapes=a:2x4,b:3x4")
    assert result.exit_code == 1
    assert str(result.error) == (
        "two dims of the same name have different sizes\n  where: input 'b', dim 0 ('n')\n  got: 3\n"
        "  expected: 2, as in input 'a', dim 0"
    )


@pytest.mark.parametrize("content", [None, b"no model"])
@pytest.mark.usefixtures("without_gpu")
def test_a_model_that_is_missing_or_damaged_is_said_before_the_gpu_is_looked_for(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    result = trtexec(f"--onnx={path} {HERE}")
    assert result.exit_code == 1
    assert isinstance(result.error, ModelError)
    assert str(path) in str(result.error)


@pytest.mark.parametrize("sparsity", ["enable", "force"])
@pytest.mark.usefixtures("without_gpu")
def test_what_the_engine_itself_lacks_is_exit_code_3_before_anything_is_pruned(model, sparsity, monkeypatch):
    monkeypatch.setattr(cusparselt, "prune", lambda *_args, **_options: pytest.fail("pruned before it was checked"))
    result = trtexec(f"--onnx={model} {HERE} --sparsity={sparsity} {QUICK}", cuda=MemoryCuda())
    assert result.exit_code == 3
    if importlib.util.find_spec("torch") is None:
        assert isinstance(result.error, MissingDependencyError)
        assert result.error.what == "PyTorch is not installed"
        assert "pip install 'trtsparse[torch]'" in log(result)
    else:
        assert isinstance(result.error, DeviceError)
        assert result.error.what == "there is no such GPU for PyTorch"
