"""The same `build` with every version, by its strict double."""

import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from onnx import numpy_helper

import trtsparse.builder
from tests.builder.conftest import two_of_four
from tests.builder.doubled import STRONG, TENSORRT, TYPED, WEAK, created_with, flags_set
from tests.doubles import VERSIONS, installed
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning, Profile, SparsityWarning
from trtsparse.errors import BuildError, ConfigError, DeviceError, OperatorError, UnsupportedOptionError

BATCH = Profile.parse("x:1x8x6x6:4x8x6x6:8x8x6x6")


SCHEMA = json.loads(Path(trtsparse.builder.__file__).with_name("build-report.schema.json").read_text())


def test_every_version_builds_and_says_so(trt, net):
    engine = build(net(), BuildConfig(profiles=(BATCH,)))
    flavour = "tensorrt_rtx" if trt.asked.startswith("rtx") else "tensorrt"
    assert engine.report.flavour == engine.header.flavour == flavour
    assert ".".join(map(str, engine.header.version)).startswith(trt.asked.removeprefix("rtx-"))
    assert engine.report.inputs == ({"name": "x", "dtype": "float32", "shape": [-1, 8, 6, 6]},)


@pytest.mark.filterwarnings("ignore::trtsparse.builder.config.BuildWarning")
@pytest.mark.parametrize("options", [{}, {"precision": "fp16", "sparsity": "force"}, {"sparsity": "enable"}])
def test_reports_keep_to_their_schema(trt, options, net, quantized):
    for model, profiles in ((net(sparse=False), (BATCH,)), (quantized, ())):
        report = build(model, BuildConfig(profiles=profiles, **options)).report
        jsonschema.validate(json.loads(json.dumps(report.to_dict(), allow_nan=False)), SCHEMA)
    assert trt.calls


def test_explicit_batch_is_set_exactly_where_it_exists(trt, relu):
    build(relu)
    assert ("EXPLICIT_BATCH" in created_with(trt)) == (
        "EXPLICIT_BATCH" in trt.NetworkDefinitionCreationFlag.__members__
    )


def test_fp32_switches_tf32_off_and_tf32_leaves_it_on(trt, relu):
    build(relu, BuildConfig(precision="fp32"))
    cleared = [str(call.args[0]) for call in trt.calls if call.method == "IBuilderConfig.clear_flag"]
    assert len(cleared) == 1
    assert "TF32" in cleared[0]
    trt.calls.clear()
    report = build(relu, BuildConfig(precision="tf32")).report
    assert not any(call.method == "IBuilderConfig.clear_flag" for call in trt.calls)
    assert report.precision.reached == "tf32"


@pytest.mark.parametrize("version", WEAK)
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"precision": "fp16"}, {"FP16"}),
        ({"precision": "bf16"}, {"BF16"}),
        ({"precision": "fp16", "typing": "weak"}, {"FP16"}),
        ({"precision": "best"}, {"FP16", "BF16", "TF32"}),
    ],
)
def test_up_to_10_a_precision_is_a_flag(version, options, flags, net):
    with installed(version) as trt:
        if version == "8.6.1":
            flags = flags - {"BF16"}
            if options["precision"] == "bf16":
                with pytest.raises(
                    UnsupportedOptionError, match=r"precision='bf16' is not available(.|\n)*TensorRT 10.0 to 10.16"
                ):
                    build(net(batch=2), BuildConfig(**options))
                return
        report = build(net(batch=2), BuildConfig(**options)).report
        assert flags_set(trt) == flags
        assert "STRONGLY_TYPED" not in created_with(trt)
        assert (report.precision.way, report.precision.typing) == ("flags", "weak")
        assert set(report.precision.flags) == flags


@pytest.mark.parametrize("version", TYPED)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_from_11_on_a_precision_is_a_converted_graph(version, precision, net):
    with installed(version) as trt:
        report = build(net(batch=2), BuildConfig(precision=precision)).report
        assert flags_set(trt) == set()
    assert (report.precision.reached, report.precision.way) == (precision, "converted graph")
    assert report.precision.error <= report.precision.limit


@pytest.mark.parametrize("version", STRONG)
def test_strong_typing_converts_wherever_it_exists(version, net):
    with installed(version) as trt:
        report = build(net(batch=2), BuildConfig(precision="fp16", typing="strong")).report
        assert "STRONGLY_TYPED" in created_with(trt)
        assert flags_set(trt) == set()
    assert (report.precision.way, report.precision.typing) == ("converted graph", "strong")


@pytest.mark.parametrize(
    ("version", "typing", "versions"),
    [
        ("8.6.1", "strong", "TensorRT 10.0 or later, TensorRT-RTX"),
        ("11.0.0", "weak", "TensorRT 8.6 to 10.16"),
        ("11.4.0", "weak", "TensorRT 8.6 to 10.16"),
    ],
)
def test_typing_that_the_version_lacks_is_refused(version, typing, versions, net):
    with installed(version) as trt, pytest.raises(UnsupportedOptionError) as error:
        build(net(batch=2), BuildConfig(precision="fp16", typing=typing))
    assert str(error.value) == (
        f"typing='{typing}' is not available in this version of TensorRT\n"
        f"  got: TensorRT {trt.__version__}\n"
        f"  expected: {versions}\n"
        "  to fix: leave the option out, or install a version that has it"
    )


@pytest.mark.parametrize("version", STRONG)
@pytest.mark.parametrize("options", [{"keep_fp32": ("conv",)}, {"max_error": 0.05}])
def test_what_only_a_converted_graph_can_do_converts_it(version, options, net):
    with installed(version) as trt:
        report = build(net(batch=2), BuildConfig(precision="fp16", sparsity="enable", **options)).report
        assert flags_set(trt) == {"SPARSE_WEIGHTS"}
    assert report.precision.way == "converted graph"
    if "keep_fp32" in options:
        assert report.precision.kept == ("conv",)
        assert (report.sites[0].eligible, report.sites[0].reason) == (False, "kept in FP32 by the conversion")
        assert report.sites[1].eligible
    else:
        assert report.precision.limit == 0.05


def test_it_is_refused_where_that_cannot_be(net):
    with installed("8.6.1"):
        with pytest.raises(UnsupportedOptionError, match=r"^max_error=0.05 is not available in this version"):
            build(net(batch=2), BuildConfig(precision="fp16", max_error=0.05))
        with pytest.raises(ConfigError) as error:
            build(net(batch=2), BuildConfig(precision="fp16", typing="weak", keep_fp32=("conv",)))
    assert str(error.value) == (
        "keep_fp32=('conv',) acts on converted graphs, and flags convert nothing\n"
        "  got: typing='weak'\n"
        "  expected: typing='auto' or 'strong'"
    )
    with installed("11.4.0"), pytest.raises(ConfigError) as error:
        build(net(batch=2, dtype=np.float16), BuildConfig(precision="fp16", keep_fp32=("conv",)))
    assert str(error.value) == (
        "keep_fp32=('conv',) is about conversions, and the model is not converted\n"
        "  got: precision='fp16' and a model stored in FP16\n"
        "  to fix: leave keep_fp32 out"
    )


def test_a_quantized_model_is_int8_everywhere(trt, quantized):
    report = build(quantized, BuildConfig(precision="int8")).report
    assert report.precision.reached == "int8"
    weak = trt.asked in WEAK
    assert flags_set(trt) == ({"INT8", "FP16"} if weak else set())
    assert report.precision.way == ("flags" if weak else "as is")


@pytest.mark.filterwarnings("ignore::trtsparse.builder.config.BuildWarning")
@pytest.mark.parametrize("rest", ["fp32", None])
def test_what_no_flag_makes_less_than_fp32_is_told_to_be_not_eligible(trt, quantized, rest):
    quantized.graph.node[3].input[0] = "x"  # the weight alone is quantized
    report = build(quantized, BuildConfig(precision="int8", int8_rest=rest, sparsity="enable")).report
    told = "sparsity is on, but no weight of the model is eligible: computed in FP32: not quantized"
    half = "FP16" in flags_set(trt)
    assert half == (rest is None and trt.asked in WEAK)
    assert (told in report.warnings) != half


def test_int8_of_a_float_model_is_calibrated_with_the_samples(trt, net):
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    options = BuildConfig(precision="int8", sparsity="enable", max_error=0.2)
    with pytest.warns(SparsityWarning) as caught:
        report = build(net(batch=2), options, samples=samples).report
    assert [str(w.message) for w in caught] == [
        "sparse INT8 kernels were only seen chosen where the output is INT8 too, and these outputs are not: gemm"
    ]
    assert ["its output stays floating point" in " ".join(row.warnings) for row in report.sites] == [False, True]
    assert report.precision.reached == "int8"
    weak = trt.asked in WEAK
    assert flags_set(trt) - {"SPARSE_WEIGHTS"} == ({"INT8", "FP16"} if weak else set())
    assert report.precision.way == ("converted graph and flags" if weak else "converted graph")
    assert 0 < report.precision.error <= report.precision.limit
    chosen = "decided at load" if trt.asked.startswith("rtx") else True
    assert next((r.node, r.compliant, r.eligible, r.chosen) for r in report.sites) == ("conv", True, True, chosen)


@pytest.mark.parametrize("version", TYPED)
def test_the_rest_of_an_int8_model_can_be_fp16(version, net):
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    options = BuildConfig(precision="int8", int8_rest="fp16", max_error=0.2)
    with installed(version):
        report = build(net(batch=2), options, samples=samples).report
    assert [step["precision"] for step in report.precision.conversion] == ["int8+fp16"]


@pytest.mark.parametrize("version", WEAK)
def test_a_quantized_model_gets_its_flag_whatever_is_asked(version, quantized):
    with installed(version) as trt:
        report = build(quantized, BuildConfig(precision="fp16")).report
        assert flags_set(trt) == {"FP16", "INT8"}
    assert report.precision.reached == "int8"


@pytest.mark.parametrize("version", WEAK)
def test_a_model_stored_in_fp16_gets_its_flag(version, net):
    with installed(version) as trt:
        with pytest.warns(BuildWarning, match="the model is stored in FP16 and stays so"):
            report = build(net(batch=2, dtype=np.float16), BuildConfig()).report
        assert flags_set(trt) == {"FP16"}
    assert report.precision.reached == "fp16"


@pytest.mark.parametrize("version", TENSORRT)
@pytest.mark.parametrize("precision", ["fp16", "best"])
def test_the_log_and_the_inspector_say_what_was_chosen(version, precision, net):
    with installed(version):
        report = build(net(batch=2), BuildConfig(precision=precision, sparsity="enable")).report
    assert [(r.node, r.compliant, r.eligible, r.found, r.chosen) for r in report.sites] == [
        ("conv", True, True, True, True),  # 64 output channels: the double's sparse kernel wins
        ("gemm", True, True, True, False),  # 12: it loses
    ]
    assert [row.node for row in report.chosen] == ["conv"]
    assert report.untraced == ()


@pytest.mark.parametrize("version", TENSORRT)
@pytest.mark.parametrize(
    ("dense", "sparse"), [("fc(1)", "big_fc(1)"), ("fc", "fc[1]"), ("fc, 1", "big fc, 1"), ("a + b", "c + a + b")]
)
@pytest.mark.parametrize("verbosity", ["none", "detailed"])
def test_names_with_brackets_and_commas_are_told_apart(version, dense, sparse, verbosity, text_model):
    rng = np.random.default_rng(0)
    weights = {"u": rng.standard_normal((64, 64)), "w": two_of_four(rng.standard_normal((64, 64)), 0)}
    model = text_model("g (float[4, 64] x) => (float[4, 64] y) { a = MatMul(x, u) b = Relu(a) y = MatMul(b, w) }")
    model.graph.initializer.extend(numpy_helper.from_array(w.astype("f4"), name) for name, w in weights.items())
    model.graph.node[0].name, model.graph.node[2].name = dense, sparse
    config = BuildConfig(precision="fp16", sparsity="enable", profiling_verbosity=verbosity)
    with installed(version), pytest.warns(SparsityWarning):
        report = build(model, config).report
    assert [(r.node, r.compliant, r.found, r.chosen) for r in report.sites] == [
        (dense, False, False, False),
        (sparse, True, True, True),
    ]
    assert report.untraced == ()


@pytest.mark.parametrize("version", TENSORRT)
def test_nodes_without_names_are_traced_too(version, net):
    with installed(version):
        report = build(net(batch=2, named=False), BuildConfig(precision="fp16", sparsity="enable")).report
    assert [(r.node, r.found, r.chosen) for r in report.sites] == [("Conv_0", True, True), ("Gemm_4", True, False)]


@pytest.mark.parametrize("version", TENSORRT)
def test_without_verbosity_the_log_alone_decides(version, net):
    options = BuildConfig(precision="fp16", sparsity="enable", profiling_verbosity="none")
    with installed(version):
        report = build(net(batch=2), options).report
    assert [r.chosen for r in report.sites] == [True, False]


@pytest.mark.parametrize("version", TENSORRT)
def test_an_fp32_build_finds_nothing_and_said_so_before(version, net):
    with installed(version), pytest.warns(SparsityWarning, match="everything is FP32"):
        report = build(net(batch=2), BuildConfig(sparsity="enable")).report
    assert [(r.eligible, r.found, r.chosen) for r in report.sites] == [(False, False, False)] * 2
    assert report.sites[0].reason == "FP32 build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"


def test_detailed_verbosity_comes_with_sparsity(trt, net):
    build(net(batch=2), BuildConfig(precision="fp16", sparsity="enable"))
    values = [str(call.args[0]) for call in trt.calls if call.method == "IBuilderConfig.profiling_verbosity="]
    assert len(values) == 1
    assert "DETAILED" in values[0]


def test_options_reach_the_configuration(trt, relu):
    build(
        relu,
        BuildConfig(
            memory_pools={"workspace": 1 << 28},
            optimization_level=2,
            max_aux_streams=3,
            builder_threads=4,
            refit="all",
            version_compatible=True,
            exclude_lean_runtime=True,
        ),
    )
    made = {call.method: call.args for call in trt.calls}
    assert made["IBuilderConfig.set_memory_pool_limit"][1] == 1 << 28
    assert made["IBuilderConfig.builder_optimization_level="] == (2,)
    assert made["IBuilderConfig.max_aux_streams="] == (3,)
    assert made["Builder.max_threads="] == (4,)
    assert flags_set(trt) == {"REFIT", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}


@pytest.mark.parametrize("version", TENSORRT)
def test_hardware_compatibility_is_set_on_tensorrt(version, relu):
    with installed(version) as trt:
        report = build(relu, BuildConfig(hardware_compatible="ampere_plus")).report
        made = [call for call in trt.calls if call.method == "IBuilderConfig.hardware_compatibility_level="]
    assert len(made) == 1
    assert report.library_warnings == ()


@pytest.mark.usefixtures("trt")
def test_every_version_lists_every_unknown_operator(text_model):
    with pytest.raises(OperatorError) as error:
        build(text_model("g (float[4] x) => (float[4] y) { a = Foo(x)  b = Bar(a)  y = Relu(b) }"))
    assert [node.split(":")[0] for node in error.value.nodes] == ["'Foo_0' (Foo)", "'Bar_1' (Bar)"]


def test_profiles_are_checked_before_any_version_is_asked(trt, net):
    with pytest.raises(ConfigError, match="the model has dynamic inputs"):
        build(net())
    assert not any(call.method.startswith("Builder.") for call in trt.calls)


@pytest.mark.usefixtures("trt")
def test_two_builds_in_a_row_do_not_share_messages(net, relu):
    first = build(net(batch=2), BuildConfig(precision="fp16", sparsity="enable")).report
    with pytest.warns(SparsityWarning):
        second = build(relu, BuildConfig(precision="fp16", sparsity="enable")).report
    assert len(first.sites) == 2
    assert second.sites == second.untraced == ()


def test_a_builder_that_cannot_be_made_means_no_gpu(monkeypatch, relu):
    with installed("10.13.3") as trt:

        def builder(logger):
            logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        monkeypatch.setattr(sys.modules["tensorrt"], "Builder", builder)
        with pytest.raises(DeviceError) as error:
            build(relu)
    assert str(error.value) == (
        "TensorRT 10.13.3.9 cannot make a builder\n"
        "  got: CUDA initialization failure with error: 35\n"
        "  expected: an NVIDIA GPU and a driver that fits this version\n"
        "  to fix: build on the machine with the GPU, or with TensorRT-RTX, which builds without one"
    )
    assert error.value.exit_code == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_no_plan_is_an_error_with_the_librarys_words(version, monkeypatch, net):
    with installed(version) as trt:
        real = trt.Builder

        class Builder(real):
            def build_serialized_network(self, _network, _config):
                self.logger.log(trt.ILogger.Severity.ERROR, "out of memory")

        monkeypatch.setattr(sys.modules[trt.__name__], "Builder", Builder)
        with pytest.raises(BuildError) as error:
            build(net(batch=2))
    lines = str(error.value).splitlines()
    assert lines[0].endswith(" built no plan")
    assert lines[1:4] == ["  where: ModelProto", "  got: ", "    out of memory"]


@pytest.mark.parametrize("version", TENSORRT)
def test_tensorrts_plugins_are_registered_only_when_a_model_needs_them(version, text_model, relu):
    with installed(version) as trt:
        called = []
        trt.init_libnvinfer_plugins = lambda *args: called.append(args)
        build(relu)
        assert called == []
        with pytest.raises(OperatorError):
            build(text_model("g (float[4] x) => (float[4] y) { y = EfficientNMS_TRT(x) }"))
    assert [args[1] for args in called] == [""]
