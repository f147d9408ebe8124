import json
from collections import Counter

import numpy as np
import onnx
import pytest

from models import packaged
from trtsparse.errors import ConfigError, DtypeError, ModelError, PrecisionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.half import to_half
from trtsparse.precision.int8 import to_int8
from trtsparse.precision.ort import runner
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def test_magika_keeps_what_overflows_and_answers_the_same(real, tensorrt_parses):
    path, feeds = real("magika")
    converted = to_half(path, feeds=feeds)
    assert converted.error < 2e-3
    assert Counter(kept.why for kept in converted.kept) == {"overflow": len(converted.kept)}
    assert any("LayerNorm_1/Sum_1" in kept.node for kept in converted.kept)  # the sum of squares
    answers = [runner(OnnxModel.open(model))(feeds[0])["target_label"].argmax(1) for model in (path, converted.model)]
    np.testing.assert_array_equal(*answers)
    assert tensorrt_parses(converted.model) is True


@pytest.mark.parametrize("name", ["ppocr-det", "ppocr-rec"])
def test_optical_character_recognition_stays_within_the_default_limit(real, tensorrt_parses, name):
    path, feeds = real(name)
    converted = to_half(path, feeds=feeds)
    assert 0 < converted.error <= converted.limit
    assert not converted.kept
    weights = {tensor.data_type for tensor in converted.model.proto.graph.initializer if len(tensor.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert tensorrt_parses(converted.model) is True


def test_a_converted_recogniser_reads_the_same_text(real):
    path, feeds = real("ppocr-rec", count=3)
    converted = to_half(path, feeds=feeds[:1]).model
    for feed in feeds:
        (before,), (after,) = (runner(model)(feed).values() for model in (OnnxModel.open(path), converted))
        assert packaged.ppocr_read(after) == packaged.ppocr_read(before)


def test_bf16_is_converted_and_parsed(real, tensorrt_parses):
    path, feeds = real("magika")
    converted = to_half(path, precision="bf16", feeds=feeds)
    assert converted.precision == "bf16"
    assert not converted.kept  # its range is float32's
    assert converted.notes == ("the error is an emulation's: ONNX Runtime cannot run BF16 on a CPU",)
    assert tensorrt_parses(converted.model) is True


def test_bf16_of_an_old_opset_gets_a_cast_that_knows_it(real, tensorrt_parses):
    path, feeds = real("ppocr-rec", count=1)
    converted = to_half(path, precision="bf16", feeds=feeds, max_error=0.9)
    assert converted.model.proto.opset_import[0].version == 17
    assert tensorrt_parses(converted.model) is True


def test_too_much_error_is_refused_with_both_numbers(convnet):
    with pytest.raises(PrecisionError) as caught:
        to_half(convnet, max_error=1e-5)
    error = caught.value
    assert error.limit == 1e-5
    assert error.error > 1e-5
    assert str(error) == (
        "the fp16 model is less accurate than asked\n"
        "  where: ModelProto\n"
        f"  got: {error.error:.3g}\n"
        "  expected: at most 1e-05\n"
        "  to fix: raise max_error, compare on real inputs (feeds), or try bf16, or tf32 which needs no conversion"
    )


def culprit(parse):
    """One difference of nearly equal numbers, which rounding destroys, among harmless nodes."""
    return parse("""g (float[n, 4] x) => (float[n, 4] y) <float offset = {1000.0}, float half = {0.5}> {
        [harmless] a = Mul(x, half) [up] b = Add(a, offset) [down] c = Sub(b, offset)
        [also] d = Tanh(c) [last] e = Relu(d) [more] f = Mul(e, half) [end] y = Abs(f)
    }""")


def test_nodes_that_push_the_error_over_the_limit_stay_in_float32(parse):
    converted = to_half(culprit(parse), max_error=0.01)
    assert {kept.node for kept in converted.kept} >= {"up", "down"}
    assert {kept.why for kept in converted.kept} == {"error"}
    assert len(converted.kept) <= 3
    assert converted.error <= 0.01


def test_nodes_asked_for_stay_in_float32(convnet):
    converted = to_half(convnet, keep_fp32=["dense", "*ond"])
    assert [(kept.node, kept.why) for kept in converted.kept] == [("second", "asked"), ("dense", "asked")]
    types = {tensor.name: tensor.data_type for tensor in converted.model.proto.graph.initializer}
    assert types == {"w1": 10, "b1": 10, "w2": 1, "w3": 10, "w4": 1}


def test_a_node_that_is_fused_is_found_by_what_it_makes(build):
    ones = np.ones(4, np.float32)
    model = build(
        [
            ("Conv", "conv", ["x", "w"], ["a"], {}),
            ("BatchNormalization", "norm", ["a", "s", "b", "m", "v"], ["c"], {}),
            ("Relu", "relu", ["c"], ["y"], {}),
        ],
        inputs={"x": [1, 4, 4, 4]},
        outputs={"y": [1, 4, 4, 4]},
        weights={"w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), **dict.fromkeys("sbmv", ones)},
    )
    assert [kept.node for kept in to_half(model, keep_fp32=["norm"]).kept] == ["conv"]


def test_a_node_inside_a_branch_can_be_named(parse):
    model = parse("""g (bool c, float[4] x) => (float[4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> {
        b = If (c) <
            then_branch = t () => (float[4] u) { [inside] u = Mul(x, w) },
            else_branch = e () => (float[4] v) { v = Neg(x) }
        >
        y = Abs(b)
    }""")
    assert [kept.node for kept in to_half(model, keep_fp32=["inside"]).kept] == ["inside"]


def test_an_unknown_node_is_refused(convnet):
    with pytest.raises(ConfigError) as caught:
        to_half(convnet, keep_fp32=["secnd"])
    assert str(caught.value) == (
        "the model has no such node\n"
        "  where: keep_fp32\n"
        "  got: 'secnd'\n"
        "  expected: one of 9 node names, or a pattern\n"
        "  to fix: did you mean 'second'?"
    )


def test_a_weight_above_the_range_keeps_its_node(build):
    model = build(
        [("Mul", "large", ["x", "w"], ["a"], {}), ("Mul", "small", ["a", "v"], ["y"], {})],
        inputs={"x": [2]},
        outputs={"y": [2]},
        weights={"w": np.float32([9.8e7, 1]), "v": np.float32([1e-7, 1])},
    )
    converted = to_half(model)
    assert [(kept.node, kept.why) for kept in converted.kept] == [("large", "overflow"), ("small", "overflow")]
    assert converted.error < 1e-3


def test_sparse_weights_stay_compliant(convnet):
    before = [site.compliant for site in validate(OnnxModel.open(convnet)).sites]
    for precision in ("fp16", "bf16"):
        after = [site.compliant for site in validate(to_half(convnet, precision=precision).model).sites]
        assert before == after == [True] * 4


def test_a_model_above_protobufs_limit_is_converted_with_its_weights_outside(convnet, monkeypatch, tmp_path):
    monkeypatch.setattr("trtsparse.precision.graph._LARGEST_PROTO", 3000)
    monkeypatch.setattr("trtsparse.precision.ort._LARGEST_PROTO", 3000)
    small, feeds = to_half(convnet), random_feeds(convnet)
    assert set(small.model.files) == {"", "weights.data"}
    saved = small.model.save(tmp_path / "m.onnx")
    assert compare_models(convnet, saved, feeds=feeds).error < 5e-3
    quantized = to_int8(convnet, calibration=feeds)
    assert compare_models(convnet, quantized.model.save(tmp_path / "q.onnx"), feeds=feeds).error < 0.2


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_pruned_real_model_stays_compliant(real, precision):
    path, feeds = real("magika")
    pruned = prune(path).model
    compliant = {site.node for site in validate(pruned).sites if site.compliant}
    assert compliant
    kwargs = {"calibration": feeds} if precision == "int8" else {"precision": precision, "feeds": feeds}
    converted = (to_int8 if precision == "int8" else to_half)(pruned, **kwargs)
    after = {site.node: site.compliant for site in validate(converted.model).sites}
    assert [node for node in compliant & after.keys() if not after[node]] == []
    assert sum(bool(value) for value in after.values()) >= len(compliant)


def test_random_inputs_are_mentioned_and_the_report_is_json(convnet):
    converted = to_half(convnet)
    assert "compared on random inputs" in converted.notes
    assert json.loads(json.dumps(converted.to_dict())) == {
        "precision": "fp16",
        "kept": [],
        "error": converted.error,
        "limit": 0.1,
        "notes": ["compared on random inputs"],
        "open_layers": [],
    }
    assert "model" not in repr(converted)


def test_the_error_is_that_of_the_graph_in_onnx_runtime_or_worse(convnet):
    feeds = random_feeds(convnet)
    converted = to_half(convnet, feeds=feeds)
    assert converted.error >= compare_models(convnet, converted.model, feeds=feeds).error


def test_wrong_feeds_are_refused(convnet):
    with pytest.raises(DtypeError, match="feed 0, input 'x'"):
        to_half(convnet, feeds=[{"x": np.zeros((1, 8, 8, 8))}])


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_an_impossible_limit_is_refused(convnet, limit):
    with pytest.raises(ConfigError) as caught:
        to_half(convnet, max_error=limit)
    assert str(caught.value) == f"the largest error must be positive\n  where: max_error\n  got: {limit}"


def test_an_unknown_precision_is_refused(convnet):
    with pytest.raises(ConfigError) as caught:
        to_half(convnet, precision="fp8")
    assert str(caught.value) == "no such precision\n  where: precision\n  got: 'fp8'\n  expected: 'fp16', 'bf16'"


W3 = np.random.default_rng(0).normal(0, 0.2, (1, 24, 8)).astype(np.float32)
UNSUPPORTED = {
    "ConvTranspose": (["a", "w"], {}, {"w": np.ones((4, 2, 2, 2), np.float32)}),
    "GlobalLpPool": (["a"], {}, {}),
    "LpNormalization": (["a"], {}, {}),
    "LpPool": (["a"], {"kernel_shape": [2, 2]}, {}),
    "Shrink": (["a"], {"bias": 0.25}, {}),
    "GRU": (["a", "w", "w"], {"hidden_size": 8}, {"w": W3}),
}


@pytest.mark.parametrize("operator", UNSUPPORTED)
def test_bf16_leaves_in_float32_what_tensorrt_has_no_kernel_for(build, operator, tensorrt_parses):
    inputs, attributes, weights = UNSUPPORTED[operator]
    shape = [4, 1, 8] if operator == "GRU" else [1, 4, 4, 4]
    model = build(
        [
            ("Exp", "exp", ["x"], ["s"], {}),
            ("Relu", "relu", ["s"], ["a"], {}),
            (operator, "op", inputs, ["y"], attributes),
        ],
        inputs={"x": shape},
        outputs={"y": ["i", "j", "k", "l"]},
        weights=weights,
    )
    converted = to_half(model, precision="bf16", max_error=0.9)
    expected = ["relu", "op"] if operator == "GRU" else ["op"]
    assert [(kept.node, kept.why) for kept in converted.kept] == [(node, "unsupported") for node in expected]
    assert tensorrt_parses(converted.model) is True
    assert not to_half(model, precision="fp16").kept


def test_with_a_recurrent_node_stays_what_makes_its_input(build):
    weight = np.random.default_rng(0).normal(0, 0.2, (1, 32, 8)).astype(np.float32)
    model = build(
        [
            ("Tanh", "first", ["x"], ["a"], {}),
            ("LSTM", "one", ["a", "w", "w"], ["b"], {"hidden_size": 8}),
            ("Relu", "second", ["b"], ["c"], {}),
            ("Squeeze", "squeeze", ["c", "one_"], ["d"], {}),
            ("LSTM", "two", ["d", "w", "w"], ["y"], {"hidden_size": 8}),
        ],
        inputs={"x": [4, 1, 8]},
        outputs={"y": [4, 1, 1, 8]},
        weights={"w": weight, "one_": np.int64([1])},
    )
    kept = [(node.node, node.why) for node in to_half(model, keep_fp32=["two"]).kept]
    assert kept == [("second", "asked"), ("squeeze", "asked"), ("two", "asked")]
    assert not to_half(model).kept


def test_nodes_that_are_fused_are_called_as_in_the_model(perceptron):
    large = onnx.ModelProto()
    large.CopyFrom(perceptron)
    weight = onnx.numpy_helper.to_array(large.graph.initializer[0]).copy()
    weight[0, 0] = 1e5
    large.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    kept = to_half(large, feeds=[{"x": np.zeros((4, 16), np.float32)}]).kept
    assert [(node.node, node.why) for node in kept] == [("fc1", "overflow"), ("fc1_bias", "overflow")]


@pytest.mark.parametrize("name", ["fc1", "fc1_bias", "fc1*"])
def test_a_product_with_a_bias_can_be_named_by_either_node(perceptron, name):
    converted = to_half(perceptron, keep_fp32=[name])
    assert [(node.node, node.why) for node in converted.kept] == [("fc1", "asked"), ("fc1_bias", "asked")]
    types = {tensor.name: tensor.data_type for tensor in converted.model.proto.graph.initializer}
    assert types == {"w1": 1, "b1": 1, "w2": 10, "b2": 10}


def test_outputs_that_are_not_tensors_are_refused(parse):
    with pytest.raises(ModelError, match="an output is not a tensor\n  where: output 's'"):
        to_half(parse("g (float[2] x) => (seq(float[2]) s) { s = SequenceConstruct(x, x) }"))
