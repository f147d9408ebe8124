"""Which way a build goes to its precision, and what it refuses on the way."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.builder.doubled import STRONG, WEAK, created_with, flags_set
from tests.doubles import installed
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning, SparsityWarning
from trtsparse.builder.precision import convert, stored_precision
from trtsparse.errors import ConfigError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel


def with_constants(model):
    """The model with Constant nodes instead of initializers."""
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def in_function(model):
    """The model whose nodes are a function's."""
    graph = model.graph
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    function = helper.make_function("own", "f", inputs, outputs, graph.node, model.opset_import)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    del graph.node[:]
    graph.node.append(helper.make_node("f", inputs, outputs, domain="own"))
    return model


def in_branches(model):
    """The model whose nodes and initializers are those of both branches of an If."""
    graph = model.graph
    branch = helper.make_graph(graph.node, "branch", [], graph.output, graph.initializer)
    del graph.node[:], graph.initializer[:]
    graph.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    graph.node.append(helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch))
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "place",
    [lambda model: model, with_constants, in_branches, lambda model: in_branches(with_constants(model)),
     lambda model: in_function(with_constants(model))],
    ids=["initializers", "Constant nodes", "branches", "Constant nodes in branches", "Constant nodes in a function"],
)  # fmt: skip
def test_weights_count_wherever_they_are(dtype, place, net):
    model = place(net(dtype=np.dtype(dtype)))
    for value in model.graph.input:
        if value.type.tensor_type.elem_type != TensorProto.BOOL:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16  # not what is looked at
    assert stored_precision(OnnxModel.open(model)) == {"float32": "fp32", "float16": "fp16"}[dtype]


def test_a_dequantizer_counts_wherever_it_is(quantized):
    assert stored_precision(OnnxModel.open(in_branches(quantized))) == "int8"


def test_a_model_without_weights_goes_by_its_inputs(text_model):
    model = text_model("g (float16[4] x) => (float16[4] y) { y = Relu(x) }")
    assert stored_precision(OnnxModel.open(model)) == "fp16"


def test_fp16_weights_in_constant_nodes_run_in_fp16_and_are_said_to(trt, net):
    with pytest.warns(BuildWarning, match="the model is stored in FP16 and stays so"):
        report = build(with_constants(net(batch=2, dtype=np.float16)), BuildConfig(sparsity="enable")).report
    assert trt.calls
    assert report.precision.reached == report.precision.stored == "fp16"
    assert [(row.compliant, row.eligible) for row in report.sites] == [(True, True)] * 2


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "int8"])
@pytest.mark.parametrize(("name", "value"), [("keep_fp32", ("nonsense",)), ("max_error", 1e-9)])
def test_options_of_conversions_are_refused_where_nothing_is_converted(precision, name, value, net, quantized):
    model = quantized if precision == "int8" else net(batch=2)
    stored = "INT8" if precision == "int8" else "FP32"
    with pytest.raises(ConfigError) as error:
        build(model, BuildConfig(precision=precision, **{name: value}))
    assert str(error.value) == (
        f"{name}={value!r} is about conversions, and the model is not converted\n"
        f"  got: precision={precision!r} and a model stored in {stored}\n"
        f"  to fix: leave {name} out"
    )


def calibrated(model, **options):
    """The report of an INT8 build with samples for `net`."""
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    config = BuildConfig(precision="int8", sparsity="enable", **options)
    with pytest.warns(SparsityWarning):  # the last output is the model's own, and floating point
        return build(model, config, samples=samples).report


def test_a_node_kept_out_of_int8_is_computed_in_fp32(trt, net):
    report = calibrated(net(batch=2), keep_fp32=("conv",))
    assert not flags_set(trt) & {"FP16", "BF16"}
    assert report.precision.kept == ("conv",)
    row = report.sites[0]
    assert (row.eligible, row.chosen, row.reason) == (False, False, "kept in FP32 by the conversion")


@pytest.mark.parametrize("version", STRONG)
def test_what_is_kept_stays_fp32_where_the_rest_is_fp16(version, net):
    with installed(version) as trt:
        report = calibrated(net(batch=2), keep_fp32=("conv",), int8_rest="fp16")
        assert "STRONGLY_TYPED" in created_with(trt)
        assert not flags_set(trt) & {"FP16", "INT8"}
    assert report.precision.kept == ("conv",)
    assert not report.sites[0].eligible
    assert not report.sites[0].chosen


def test_flags_cannot_keep_a_node_in_fp32_where_the_rest_is_fp16(net):
    options = {"precision": "int8", "int8_rest": "fp16", "keep_fp32": ("conv",), "random_calibration": True}
    with installed("8.6.1"), pytest.raises(UnsupportedOptionError) as error:
        build(net(batch=2), BuildConfig(**options))
    assert str(error.value) == (
        "keep_fp32=('conv',) with int8_rest='fp16' is not available in this version of TensorRT\n"
        "  got: TensorRT 8.6.1\n"
        "  expected: TensorRT 10.0 or later, TensorRT-RTX\n"
        "  to fix: leave the option out, or install a version that has it"
    )
    with installed("10.13.3"), pytest.raises(ConfigError) as error:
        build(net(batch=2), BuildConfig(**options, typing="weak"))
    assert str(error.value).startswith("keep_fp32=('conv',) with int8_rest='fp16' acts on converted graphs")


@pytest.mark.parametrize("version", WEAK)
def test_what_is_only_not_quantized_may_run_in_fp16_and_says_so(version, monkeypatch, net):
    def leaving_one(*args, **options):
        return dataclasses.replace(convert(*args, **options), kept=("conv",))

    monkeypatch.setattr("trtsparse.builder.build.convert", leaving_one)
    with installed(version) as trt:
        report = calibrated(net(batch=2))
        assert flags_set(trt) >= {"INT8", "FP16"}
    assert report.precision.kept == ()
    assert (report.sites[0].eligible, report.sites[0].reason) == (True, "")
