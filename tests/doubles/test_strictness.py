"""The double has what its version has and nothing else, and fails as the real library fails."""

import gc
import importlib
import sys

import pytest

from tests.doubles import VERSIONS, installed, make, samples
from tests.doubles.schema import description

OLD = [v for v in VERSIONS if not v.startswith(("11", "rtx"))]
NEW = [v for v in VERSIONS if v.startswith(("11", "rtx"))]
TENSORRT = [v for v in VERSIONS if not v.startswith("rtx")]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_described_name_exists_and_no_other_public_name_does(version):
    trt = make(version)
    for name, described in description(version)["classes"].items():
        made = getattr(trt, name)
        if "enum" in described:
            assert sorted(made.__members__) == sorted(described["enum"])
            continue
        inherited = {"Severity", *trt.ILogger.Severity.__members__} if issubclass(made, trt.ILogger) else set()
        public = {
            key for cls in made.__mro__ if "_native" in vars(cls) for key in vars(cls) if not key.startswith("_")
        }
        assert public - inherited == set(described["members"]) - {"__init__"} - inherited, name


@pytest.mark.parametrize("version", NEW)
@pytest.mark.parametrize("flag", ["FP16", "INT8", "BF16"])
def test_precision_flags_are_gone_from_11_on(version, flag):
    trt = make(version)
    full = f"{trt.__name__}_bindings.{trt.__name__}.BuilderFlag"
    with pytest.raises(AttributeError, match=f"^type object '{full}' has no attribute '{flag}'$"):
        getattr(trt.BuilderFlag, flag)


@pytest.mark.parametrize("version", NEW)
def test_explicit_batch_is_gone_from_11_on(version):
    with pytest.raises(AttributeError, match="has no attribute 'EXPLICIT_BATCH'"):
        _ = make(version).NetworkDefinitionCreationFlag.EXPLICIT_BATCH


def test_strongly_typed_is_missing_from_8_6():
    with pytest.raises(AttributeError, match="has no attribute 'STRONGLY_TYPED'"):
        _ = make("8.6.1").NetworkDefinitionCreationFlag.STRONGLY_TYPED


@pytest.mark.parametrize(
    ("version", "there"), [("8.6.1", True), ("10.13.3", True), ("11.0.0", False), ("rtx-1.7.1", False)]
)
def test_fast_precision_queries_and_device_memory_size_follow_the_version(version, there):
    trt = make(version)
    assert hasattr(trt.Builder, "platform_has_fast_fp16") is there
    assert hasattr(trt.ICudaEngine, "device_memory_size") is there


def test_enum_numbers_differ_between_versions():
    numbers = {version: int(make(version).BuilderFlag.SPARSE_WEIGHTS) for version in VERSIONS}
    assert len(set(numbers.values())) > 3, numbers


def test_enums_behave_like_pybind_enums():
    flag = make("10.13.3").BuilderFlag
    assert repr(flag.TF32) == f"<BuilderFlag.TF32: {int(flag.TF32)}>"
    assert (flag.TF32.name, flag.TF32.value, str(flag.TF32)) == ("TF32", int(flag.TF32), "BuilderFlag.TF32")
    assert flag(int(flag.TF32)) == flag.TF32 != int(flag.TF32)
    assert {flag.TF32: 1}[flag.TF32] == 1
    assert flag(300).name == "???"
    with pytest.raises(TypeError, match="matching type"):
        _ = flag.TF32 < make("10.13.3").DataType.HALF
    with pytest.raises(AttributeError):
        flag.TF32.extra = 1
    with pytest.raises(TypeError):
        _ = 1 << flag.TF32


@pytest.mark.parametrize("version", VERSIONS)
def test_unknown_attributes_can_be_neither_read_nor_set(version):
    trt = make(version)
    config = samples.Build(trt).config
    for name in ("fp16", "int8_mode", "compute_capability"):
        with pytest.raises(AttributeError, match=f"IBuilderConfig' object has no attribute '{name}'"):
            setattr(config, name, 1)
        with pytest.raises(AttributeError, match=f"IBuilderConfig' object has no attribute '{name}'"):
            getattr(config, name)
    with pytest.raises(AttributeError, match="has no setter"):
        config.num_optimization_profiles = 2
    with pytest.raises(AttributeError, match="read-only"):
        config.set_flag = print


@pytest.mark.parametrize("version", ["10.0.1", "10.3.0", "11.4.0", "rtx-1.7.1"])
def test_max_workspace_size_left_after_8_6(version):
    with pytest.raises(AttributeError, match="has no attribute 'max_workspace_size'"):
        samples.Build(make(version)).config.max_workspace_size = 1


@pytest.mark.parametrize("version", VERSIONS)
def test_arguments_that_do_not_fit_raise_a_type_error_in_pybind_style(version):
    trt = make(version)
    build = samples.Build(trt)
    wrong = [
        trt.Builder,
        lambda: trt.Builder(None),
        lambda: trt.Logger(1),
        lambda: trt.Logger(severity=trt.Logger.INFO),
        lambda: build.builder.create_network("explicit"),
        lambda: build.builder.create_network(1.0),
        lambda: build.builder.create_network(-1),
        lambda: build.builder.create_network(flag=1),
        lambda: build.config.set_flag(7),
        lambda: build.config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda: build.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5),
        lambda: build.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, -1),
        lambda: build.builder.build_serialized_network(build.network),
        lambda: build.builder.build_serialized_network(build.network, None),
        lambda: build.parser.parse("model.onnx"),
        lambda: build.parser.parse_from_file(b""[0:0].__class__),
        lambda: build.builder.create_optimization_profile().set_shape("x", 1, 2, 3),
        lambda: trt.Runtime(build.logger).deserialize_cuda_engine(None),
        lambda: setattr(build.config, "profiling_verbosity", 2),
    ]
    for call in wrong:
        with pytest.raises(TypeError, match=r"incompatible (function|constructor) arguments. The following argument"):
            call()
    for made_by_the_library in ("IBuilderConfig", "INetworkDefinition", "IHostMemory", "ICudaEngine"):
        with pytest.raises(TypeError, match="No constructor defined"):
            getattr(trt, made_by_the_library)()


def test_a_user_class_must_call_the_base_constructor():
    trt = make("10.9.0")

    class Forgets(trt.ILogger):
        def __init__(self):
            self.lines = []

    with pytest.raises(TypeError, match=r"ILogger.__init__\(\) must be called when overriding __init__"):
        Forgets()


def test_what_has_no_behaviour_says_so_when_called():
    trt = make("11.4.0")
    build = samples.Build(trt)
    with pytest.raises(NotImplementedError, match=r"double: INetworkDefinition\.add_loop has no behaviour yet"):
        build.network.add_loop()


@pytest.mark.parametrize("version", VERSIONS)
def test_garbage_parses_and_only_the_build_fails(version):
    for data in (b"", b"hello world", bytes(100), b"\x00\xff garbage"):
        build = samples.Build(make(version))
        assert build.parser.parse(data) is True
        assert (build.parser.num_errors, build.network.num_outputs) == (0, 0)
        assert build.run() is None
        assert any("Network must have at least one output." in text for text in build.logger.errors())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_profile_gives_no_plan_and_says_why(version):
    build = samples.Build(make(version))
    assert build.parser.parse(samples.tiny(batch="N").SerializeToString())
    assert build.run() is None
    text = "Network has dynamic or shape inputs, but no optimization profile has been defined."
    (said,) = build.logger.errors()
    assert text in said
    assert said.startswith(
        "4: [network.cpp::validate::4023] Error Code 4" if version == "8.6.1" else "IBuilder::build"
    )


def test_8_6_needs_the_explicit_batch_flag_to_parse():
    build = samples.Build(make("8.6.1"), flags=0)
    assert build.parser.parse(samples.tiny().SerializeToString()) is False
    error = build.parser.get_error(0)
    assert error.code().name == "INVALID_VALUE"
    assert "!_importer_ctx.network()->hasImplicitBatchDimension()" in error.desc()
    assert not hasattr(error, "node_name")  # 10.0 brought it


@pytest.mark.parametrize("version", [v for v in OLD if v != "8.6.1"])
def test_a_precision_flag_on_a_strongly_typed_network_is_refused(version):
    trt = make(version)
    build = samples.Build(trt, flags=1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    build.parser.parse(samples.tiny().SerializeToString())
    build.config.set_flag(trt.BuilderFlag.FP16)
    assert build.run() is None
    assert "condition: !config.getFlag(BuilderFlag::kFP16)" in build.logger.errors()[-1]


@pytest.mark.parametrize("version", OLD)
def test_quantized_graphs_need_the_int8_flag_on_weakly_typed_networks(version):
    trt = make(version)
    build = samples.Build(trt)
    assert build.parser.parse(samples.quantized().SerializeToString()), build.logger.lines
    assert build.run() is None
    assert "int8 is not configured in the builder" in build.logger.errors()[-1]
    build.config.set_flag(trt.BuilderFlag.INT8)
    assert build.run() is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_collected_network_is_an_error_instead_of_a_crash(version):
    trt = make(version)
    logger = samples.recorder(trt)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(samples.explicit(trt)), logger)
    gc.collect()
    with pytest.raises(RuntimeError, match="network was collected"):
        parser.parse(b"")


@pytest.mark.parametrize("version", VERSIONS)
def test_installing_a_double_hides_the_other_flavour_and_is_undone(version):
    before = {name: sys.modules.get(name) for name in ("tensorrt", "tensorrt_rtx")}
    with installed(version) as trt:
        assert importlib.import_module(trt.__name__) is trt
        other = "tensorrt" if trt.__name__ == "tensorrt_rtx" else "tensorrt_rtx"
        with pytest.raises(ImportError):
            importlib.import_module(other)
    assert {name: sys.modules.get(name) for name in before} == before


def test_calls_are_logged_in_order():
    trt = make("11.0.0")
    build = samples.Build(trt)
    build.config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    build.config.builder_optimization_level = 2
    names = [call.method for call in trt.calls]
    assert names.index("Builder.create_network") < names.index("IBuilderConfig.set_flag")
    assert trt.calls[-2].args == (trt.BuilderFlag.SPARSE_WEIGHTS,)
    assert trt.calls[-1][1:] == ("IBuilderConfig.builder_optimization_level=", (2,))
    assert trt.calls[-1].object() is build.config


def test_a_version_without_a_description_is_refused():
    with pytest.raises(ValueError, match=r"no description of '9\.0\.0'; there are 8.6.1, "):
        make("9.0.0")
