"""Builds that TensorRT-RTX or the options do not allow say what is wrong and what to do."""

import numpy as np
import pytest

from tests.builder.options import BATCH, config
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig
from trtsparse.errors import (
    BuildError,
    ConfigError,
    ExternalDataError,
    ModelError,
    OperatorError,
    ShapeError,
    UnsupportedOptionError,
)


def test_every_unknown_operator_is_listed(text_model):
    model = text_model("g (float[4] x) => (float[4] y) { a = Foo(x)  b = com.acme.Bar(a)  y = Relu(b) }")
    model.graph.node[0].name = "/head/foo"
    with pytest.raises(OperatorError) as error:
        build(model, config())
    assert str(error.value) == (
        "TensorRT-RTX refuses 2 operators of the model\n"
        "  where: ModelProto\n"
        "  got: \n"
        "    '/head/foo' (Foo): unknown operator, and no plugin of this name is registered\n"
        "    'Bar_1' (Bar): unknown operator, and no plugin of this name is registered\n"
        "  to fix: replace them, export with another opset, or give the plugin library that has them (plugins)"
    )
    assert len(error.value.nodes) == 2


def test_what_is_no_configuration_is_named(net):
    for given in ({"precision": "fp16"}, {}, "fp16"):
        with pytest.raises(ConfigError) as error:
            build(net(), given)
        assert (
            str(error.value) == f"not a configuration\n  where: config\n  got: {given!r}\n  expected: a BuildConfig"
        )


def test_a_known_operator_without_support_is_listed(text_model):
    with pytest.raises(OperatorError) as error:
        build(text_model("g (float[4,4] x) => (float y) { y = Det(x) }"), config())
    assert error.value.nodes == ("'Det_0' (Det): not supported",)
    assert error.value.what == "TensorRT-RTX refuses an operator of the model"


def test_missing_external_data_is_named(external):
    (external.parent / "external.data").unlink()
    with pytest.raises(ExternalDataError, match="an external data file is missing"):
        build(external, config(profiles=(BATCH,)))


@pytest.mark.parametrize("damage", [b"", b"garbage" * 9, "half"])
def test_a_damaged_file_is_a_model_error(tmp_path, net, damage):
    path = tmp_path / "damaged.onnx"
    whole = net().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with pytest.raises(ModelError, match=r"damaged\.onnx"):
        build(path, config(profiles=(BATCH,)))


def test_a_graph_without_outputs_is_a_model_error(text_model):
    with pytest.raises(ModelError) as error:
        build(text_model("g (float[4] x) => () { y = Relu(x) }"), config())
    assert str(error.value) == (
        "TensorRT-RTX finds no outputs in the model\n"
        "  where: ModelProto\n"
        "  to fix: check that the file is the exported model"
    )


def test_a_dynamic_model_needs_a_profile(net):
    with pytest.raises(ConfigError, match="the model has dynamic inputs and no profile says how large they are"):
        build(net(), config())


def test_what_tensorrt_says_is_in_the_error(text_model):
    model = text_model("g (float[4,8] x, float[8,4] w) => (float[4,4] y) { y = MatMul(x, w) }")
    with pytest.raises(BuildError) as error:
        build(model, config(compute_capabilities=("7.5",)))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("TensorRT-RTX 1.")
    assert lines[0].endswith(" built no plan")
    assert any(
        "Cannot compile operation 'node_of_y' for Turing (SM75): FP32 GEMM is not supported" in line for line in lines
    )


def test_options_that_need_a_gpu_are_named_when_the_build_fails(relu):
    with pytest.raises(BuildError) as error:
        build(relu, config(compute_capabilities=("current",)))
    assert "to fix: leave out compute_capabilities=('current',): TensorRT-RTX" in str(error.value)


def test_weak_typing_is_gone(relu, rtx):
    with pytest.raises(UnsupportedOptionError) as error:
        build(relu, config(typing="weak"))
    assert str(error.value) == (
        "typing='weak' is not available in this version of TensorRT-RTX\n"
        f"  got: TensorRT-RTX {rtx.__version__}\n"
        "  expected: TensorRT 8.6 to 10.16\n"
        "  to fix: leave the option out, or install a version that has it"
    )


def test_int8_without_samples_says_what_is_missing(net):
    with pytest.raises(ConfigError) as error:
        build(net(batch=2), config(precision="int8"))
    assert str(error.value) == (
        "INT8 needs sample inputs to calibrate with\n"
        "  where: precision='int8', ModelProto\n"
        "  expected: build(..., samples=[{input: array}, ...]), or a model that is quantized already (Q/DQ)\n"
        "  to fix: random_calibration=True is enough to measure time"
    )


def test_a_plugin_that_does_not_load_is_named_with_the_reason(relu, tmp_path):
    library = tmp_path / "plugin.so"
    library.write_bytes(b"no library")
    with pytest.raises(ConfigError) as error:
        build(relu, config(plugins=(library,)))
    lines = str(error.value).splitlines()
    assert lines[:2] == ["a plugin library does not load", f"  where: {library}"]
    assert "file too short" in lines[2]
    assert lines[3] == "  expected: a shared library with getCreators or getPluginCreators"
    with pytest.raises(ConfigError) as error:
        build(relu, config(plugins=(tmp_path / "none.so",)))
    assert str(error.value) == f"there is no such plugin library\n  where: {tmp_path / 'none.so'}"


@pytest.mark.usefixtures("rtx")
def test_samples_of_a_wrong_shape_in_a_folder_are_named(net, tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((2, 8, 6, 7), "f4"))
    with pytest.raises(ShapeError) as refused:
        build(net(batch=2), BuildConfig(precision="fp16", flavour="tensorrt_rtx"), samples=tmp_path)
    assert str(refused.value) == (
        "an array has the wrong shape\n  where: feed 0, input 'x', dim 3\n  got: (2, 8, 6, 7)\n"
        "  expected: (2, 8, 6, 6)"
    )
