"""Plans, sparsity lines and inspection, on every version."""

import json
import struct

import numpy as np
import onnx
import pytest

from tests.doubles import VERSIONS, make, samples, sparsity

HALF = onnx.TensorProto.FLOAT16
OLD = [v for v in VERSIONS if not v.startswith(("11", "rtx"))]


def sparsity_lines(build):
    return [text for severity, text in build.logger.lines if severity == "INFO" and text.startswith("(Sparsity)")]


def sparse_build(version, model, *flags):
    trt = make(version)
    build = samples.Build(trt)
    assert build.parse(model)
    for flag in flags:
        build.config.set_flag(getattr(trt.BuilderFlag, flag))
    assert build.run() is not None
    return sparsity_lines(build)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_carries_its_flavour_size_and_version(version):
    trt = make(version)
    plan = bytes(samples.plan(trt, samples.tiny()))
    assert plan[:4] == (b"vtrt" if trt.__name__ == "tensorrt_rtx" else b"ftrt")
    assert struct.unpack_from("<I", plan, 4) == (0,)
    assert struct.unpack_from("<Q", plan, 16) == (len(plan),)
    numbers = [int(part) for part in trt.__version__.split(".")]
    assert list(plan[24 : 24 + len(numbers)]) == numbers


def test_equal_builds_give_equal_bytes_and_other_weights_others():
    trt = make("10.13.3")
    first, second = (bytes(samples.plan(trt, samples.tiny(sparse=True))) for _ in range(2))
    assert first == second != bytes(samples.plan(trt, samples.tiny()))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_is_a_buffer_and_nothing_else(version):
    plan = samples.plan(make(version), samples.tiny())
    data = bytes(plan)
    assert plan.nbytes == len(data) == memoryview(plan).nbytes
    assert np.frombuffer(plan, np.uint8).tobytes() == data
    for use in (lambda: len(plan), lambda: plan[0]):
        with pytest.raises(TypeError):
            use()
    with pytest.raises(AttributeError):
        plan.decode()


def test_8_6_lists_eligible_and_picked_layers():
    lines = sparse_build("8.6.1", samples.tiny(sparse=True), "SPARSE_WEIGHTS", "FP16")
    assert lines == [
        "(Sparsity) Layers eligible for sparse math: conv + relu, gemm",
        "(Sparsity) TRT inference plan picked sparse implementation for layers: conv + relu",
    ]


@pytest.mark.parametrize("version", [v for v in OLD if v != "8.6.1"])
def test_10_counts_found_and_chosen_layers(version):
    lines = sparse_build(version, samples.tiny(sparse=True), "SPARSE_WEIGHTS", "FP16")
    assert lines == [
        "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv + relu, gemm",
        "(Sparsity) Chose 1 layer(s) using sparse tactics: conv + relu",
    ]


@pytest.mark.parametrize("version", ["11.0.0", "11.4.0"])
def test_11_finds_layers_in_a_typed_half_graph(version):
    lines = sparse_build(version, samples.tiny(dtype=HALF, sparse=True), "SPARSE_WEIGHTS")
    assert lines[0] == "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv + relu, gemm"
    lines = sparse_build(version, samples.tiny(sparse=True), "SPARSE_WEIGHTS")
    assert lines[0] == "(Sparsity) Found 0 layer(s) eligible to use sparse tactics"


@pytest.mark.parametrize("version", OLD)
def test_an_fp32_build_finds_nothing(version):
    lines = sparse_build(version, samples.tiny(sparse=True), "SPARSE_WEIGHTS")
    assert lines[0].removesuffix(": ") in (
        "(Sparsity) Layers eligible for sparse math",
        "(Sparsity) Found 0 layer(s) eligible to use sparse tactics",
    )


def test_dense_weights_are_not_eligible_and_without_the_flag_nothing_is_said():
    assert "Found 0 layer(s)" in sparse_build("10.9.0", samples.tiny(), "SPARSE_WEIGHTS", "FP16")[0]
    assert sparse_build("10.9.0", samples.tiny(sparse=True), "FP16") == []


def test_tensorrt_rtx_says_nothing_about_sparsity():
    assert sparse_build("rtx-1.7.1", samples.tiny(dtype=HALF, sparse=True), "SPARSE_WEIGHTS") == []


def test_quantized_weights_are_named_with_their_quantizer():
    lines = sparse_build("11.4.0", samples.quantized(), "SPARSE_WEIGHTS")
    assert lines[1] == "(Sparsity) Chose 1 layer(s) using sparse tactics: w + w_q + mm"


def test_a_quantized_layer_runs_sparse_only_if_its_output_is_quantized():
    lines = sparse_build("11.4.0", samples.quantized(output=False), "SPARSE_WEIGHTS")
    assert lines == [
        "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: w + w_q + mm",
        "(Sparsity) Chose 0 layer(s) using sparse tactics",
    ]


def test_groups_of_four_run_along_the_reduction():
    weight = np.ones((8, 8), np.float32)
    weight[2:4], weight[6:] = 0, -0.0
    assert sparsity.two_of_four(weight, 0)
    assert not sparsity.two_of_four(weight, 1)
    assert not sparsity.two_of_four(weight[:6], 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_inspector_tells_what_the_build_asked_for(version):
    trt = make(version)
    verbosity = trt.ProfilingVerbosity
    model = samples.tiny(dtype=HALF, sparse=True)
    flags = ("SPARSE_WEIGHTS", "FP16") if version in OLD else ("SPARSE_WEIGHTS",)
    told = {}
    for name, value in verbosity.__members__.items():
        plan = samples.plan(trt, model, flags=flags, profiling_verbosity=value)
        engine = trt.Runtime(samples.recorder(trt)).deserialize_cuda_engine(plan)
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        told[name] = json.loads(text)["Layers"]
    assert told["NONE"] == []
    if version.startswith("rtx"):
        assert "TacticName" not in told["DETAILED"][0]
        return
    assert told["LAYER_NAMES_ONLY"][0] == "conv + relu"
    detail = {layer["Name"]: layer for layer in told["DETAILED"]}
    assert detail["conv + relu"]["HasSparseWeights"] == detail["gemm"]["HasSparseWeights"] == 1
    assert "sparse" in detail["conv + relu"]["TacticName"]
    assert "sparse" not in detail["gemm"]["TacticName"]


def test_8_6_narrows_64_bit_integers_and_10_keeps_them():
    nodes = [onnx.helper.make_node("Add", ["x", "x"], ["y"], name="add")]
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [4]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "ints", info[:1], info[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    for version, dtype in (("8.6.1", "INT32"), ("10.0.1", "INT64")):
        build = samples.Build(make(version))
        assert build.parse(model)
        assert build.network.get_input(0).dtype.name == dtype


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_may_be_written_to_a_stream_where_the_version_can(version):
    trt = make(version)
    build = samples.Build(trt)
    assert build.parse(samples.tiny())
    if not hasattr(trt, "IStreamWriter"):
        assert not hasattr(build.builder, "build_serialized_network_to_stream")
        return

    class Writer(trt.IStreamWriter):
        def __init__(self):
            trt.IStreamWriter.__init__(self)
            self.data = b""

        def write(self, data, size):
            self.data += data
            return size

    writer = Writer()
    assert build.builder.build_serialized_network_to_stream(build.network, build.config, writer)
    assert writer.data == bytes(build.run())
