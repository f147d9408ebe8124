"""Whole command lines that build and execute plans: the real TensorRT-RTX, and doubles where a GPU is needed."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from tests.doubles import installed
from tests.doubles.cuda import MemoryCuda
from tests.helpers import matmul, random
from tests.trtexec.running import ON_CPU, QUICK, failed, log
from trtsparse.builder import build as builder
from trtsparse.errors import ConfigError, DeviceError
from trtsparse.trtexec import infer
from trtsparse.trtexec.run import trtexec

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
    error = failed(trtexec(f"--onnx={model} --timeDeserialize {ON_CPU}"), ConfigError)
    assert str(error) == (
        "only plans are deserialized\n  where: --timeDeserialize\n  got: --engine=onnxruntime\n"
        "  to fix: leave --engine out, or --timeDeserialize"
    )


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
        "shape_value": 1,
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


def test_the_build_is_the_packages_own(model, cuda, monkeypatch):
    calls = []
    real = builder.build
    monkeypatch.setattr("trtsparse.trtexec.build.build", lambda *args: calls.append(args) or real(*args))
    trtexec(f"--onnx={model} --skipInference", cuda=cuda)
    assert len(calls) == 1
