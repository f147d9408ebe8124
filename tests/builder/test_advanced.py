"""Settings by name, on every version by its strict double, and on the real TensorRT-RTX."""

import sys
from types import SimpleNamespace

import pytest

from tests.doubles import VERSIONS, installed
from trtsparse.builder.advanced import Advanced, apply_types
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig
from trtsparse.errors import ConfigError, UnsupportedOptionError

WEAK = [version for version in VERSIONS if version.startswith(("8", "10"))]


@pytest.fixture
def seen(monkeypatch):
    """Gives a function that builds with a version and tells the configuration, input and parser that were used."""

    def run(version, model, advanced, **options):
        with installed(version) as trt:
            found = {}
            module = sys.modules[trt.__name__]
            real = trt.Builder

            class Builder(real):
                def build_serialized_network(self, network, config):
                    found.update(input=network.get_input(0).dtype, config=config)
                    return super().build_serialized_network(network, config)

            parser = trt.OnnxParser

            def parse(*args):
                found["parser"] = parser(*args)
                return found["parser"]

            monkeypatch.setattr(module, "Builder", Builder)
            monkeypatch.setattr(module, "OnnxParser", parse)
            engine = build(model, BuildConfig(advanced=advanced, **options))
            return trt, found, engine

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_flags_are_set_and_cleared(seen, relu, version):
    advanced = Advanced(flags={"DIRECT_IO": True, "TF32": False})
    trt, found, _ = seen(version, relu, advanced, precision="tf32")
    assert found["config"].get_flag(trt.BuilderFlag.DIRECT_IO)
    assert not found["config"].get_flag(trt.BuilderFlag.TF32)


@pytest.mark.parametrize("version", VERSIONS)
def test_attributes_and_tactic_sources_are_set(seen, relu, version):
    advanced = Advanced(attributes={"avg_timing_iterations": 3}, tactic_sources={"JIT_CONVOLUTIONS": False})
    trt, found, _ = seen(version, relu, advanced)
    config = found["config"]
    assert config.avg_timing_iterations == 3
    assert not config.get_tactic_sources() >> int(trt.TacticSource.JIT_CONVOLUTIONS) & 1
    assert config.get_tactic_sources() >> int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) & 1


def test_an_attribute_that_is_an_enumeration_takes_a_members_name(seen, relu):
    trt, found, _ = seen("10.13.3", relu, Advanced(attributes={"runtime_platform": "WINDOWS_AMD64"}))
    assert found["config"].runtime_platform == trt.RuntimePlatform.WINDOWS_AMD64


def test_preview_features_are_switched(seen, relu):
    trt, found, _ = seen("10.13.3", relu, Advanced(preview_features={"ALIASED_PLUGIN_IO_10_03": True}))
    assert found["config"].get_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03)


@pytest.mark.parametrize("version", VERSIONS)
def test_flags_of_the_parser_are_cleared_before_it_parses(seen, relu, version):
    trt, found, _ = seen(version, relu, Advanced(parser_flags={"NATIVE_INSTANCENORM": False}))
    assert not found["parser"].get_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)


@pytest.mark.parametrize("version", WEAK)
def test_inputs_and_outputs_get_their_types(seen, relu, version):
    advanced = Advanced(input_types=("fp16",), output_types=("fp16",))
    trt, found, engine = seen(version, relu, advanced, precision="fp16")
    assert found["input"] == trt.DataType.HALF
    assert (engine.report.inputs[0]["dtype"], engine.report.outputs[0]["dtype"]) == ("float16", "float16")


def test_inputs_and_outputs_are_laid_out_as_arrays():
    trt = SimpleNamespace(
        TensorFormat=SimpleNamespace(LINEAR=0), DataType=SimpleNamespace(__members__={"HALF": "half"})
    )
    x, y = SimpleNamespace(name="x", dtype="float"), SimpleNamespace(name="y", dtype="float")
    network = SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda _: x, get_output=lambda _: y)
    apply_types(trt, network, Advanced(input_types=("fp16",), output_types=(None,)), strong=False, version="TensorRT")
    assert (x.dtype, x.allowed_formats) == ("half", 1)
    assert (y.dtype, y.allowed_formats) == ("float", 1)


def test_the_types_that_are_there_already_may_be_named_where_typing_is_strong(seen, relu):
    _, _, engine = seen("11.4.0", relu, Advanced(input_types=("fp32",), output_types=(None,)))
    assert engine.report.inputs[0]["dtype"] == "float32"


def test_settings_are_part_of_the_report(seen, relu):
    _, _, engine = seen("10.13.3", relu, Advanced(flags={"DIRECT_IO": True}))
    assert engine.report.to_dict()["config"]["advanced"]["flags"] == {"DIRECT_IO": True}


@pytest.mark.parametrize(
    ("version", "advanced", "message"),
    [
        (
            "8.6.1",
            Advanced(preview_features={"ALIASED_PLUGIN_IO_10_03": True}),
            (
                "PreviewFeature has no ALIASED_PLUGIN_IO_10_03 in this version\n"
                "  got: TensorRT 8.6.1\n"
                "  expected: DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, FASTER_DYNAMIC_SHAPES_0805, "
                "PROFILE_SHARING_0806\n"
                "  to fix: leave the option out, or install a version that has it"
            ),
        ),
        (
            "10.0.1",
            Advanced(attributes={"tiling_optimization_level": "FAST"}),
            (
                "IBuilderConfig has no tiling_optimization_level in this version\n"
                "  got: TensorRT 10.0.1\n"
                "  to fix: leave the option out, or install a version that has it"
            ),
        ),
        (
            "10.13.3",
            Advanced(attributes={"tiling_optimization_level": "FASTEST"}),
            (
                "tiling_optimization_level has no FASTEST in this version\n"
                "  got: TensorRT 10.13.3.9\n"
                "  expected: FAST, FULL, MODERATE, NONE"
            ),
        ),
        (
            "11.4.0",
            Advanced(input_types=("fp16",)),
            (
                "the inputs of a strongly typed network have the types of the model\n"
                "  where: input 'x', TensorRT 11.4.0.106\n"
                "  got: fp16\n"
                "  expected: FLOAT\n"
                "  to fix: leave the type out, or change the input's type in the model"
            ),
        ),
    ],
)
def test_names_that_a_version_lacks_are_refused(seen, relu, version, advanced, message):
    with pytest.raises(UnsupportedOptionError) as error:
        seen(version, relu, advanced)
    assert str(error.value) == message


def test_types_for_some_of_the_inputs_are_refused(seen, twins):
    with pytest.raises(ConfigError) as error:
        seen("10.13.3", twins([2], [2]), Advanced(input_types=("fp16", "fp16", "fp32")))
    assert str(error.value) == (
        "types are given for some of the inputs\n  got: 3 types\n  expected: 1 type for all, or 2: 'x', 'z'"
    )


def test_a_value_that_tensorrt_refuses_is_an_error(seen, relu):
    with pytest.raises(ConfigError) as error:
        seen("10.13.3", relu, Advanced(attributes={"avg_timing_iterations": "many"}))
    assert error.value.what == "TensorRT refuses avg_timing_iterations"
    assert (error.value.where, error.value.got) == ("TensorRT 10.13.3.9", "'many'")


def test_tactic_sources_that_tensorrt_refuses_are_named(monkeypatch, relu):
    advanced = Advanced(tactic_sources={"JIT_CONVOLUTIONS": False})
    with installed("10.13.3") as trt:
        monkeypatch.setattr(trt.IBuilderConfig, "set_tactic_sources", lambda _self, _sources: False)
        with pytest.raises(ConfigError) as error:
            build(relu, BuildConfig(advanced=advanced))
    assert str(error.value) == (
        "TensorRT refuses the tactic sources\n  where: TensorRT 10.13.3.9\n  got: {'JIT_CONVOLUTIONS': False}"
    )


def test_the_real_library_takes_settings_by_name(rtx, relu):
    advanced = Advanced(
        flags={"TF32": False}, attributes={"avg_timing_iterations": 2}, parser_flags={"NATIVE_INSTANCENORM": True}
    )
    engine = build(relu, BuildConfig(flavour="tensorrt_rtx", precision="tf32", advanced=advanced))
    assert engine.header.version[:3] == tuple(int(part) for part in rtx.__version__.split(".")[:3])
    with pytest.raises(UnsupportedOptionError, match="BuilderFlag has no FP16 in this version"):
        build(relu, BuildConfig(flavour="tensorrt_rtx", advanced=Advanced(flags={"FP16": True})))
