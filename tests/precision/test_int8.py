import warnings

import numpy as np
import onnx
import pytest

from trtsparse.errors import ConfigError, DtypeError, FeedError, ModelError, PrecisionError, ShapeError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.converted import check_sparsity
from trtsparse.precision.feeds import RandomCalibrationWarning, random_feeds
from trtsparse.precision.int8 import to_int8
from trtsparse.sparsity.validate import validate


@pytest.fixture(scope="module")
def calibration(convnet):
    return random_feeds(convnet, shapes={"x": (2, 8, 8, 8)}, count=6)


def operators(converted):
    return [node.op_type for node in converted.model.proto.graph.node]


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_layer_is_quantized_and_parsed(convnet, calibration, tensorrt_parses, method):
    converted = to_int8(convnet, calibration=calibration, method=method)
    assert converted.precision == "int8"
    assert 0 < converted.error <= 0.15
    assert not converted.kept
    assert operators(converted).count("QuantizeLinear") == 4
    assert converted.open_layers == ("third", "dense")
    assert tensorrt_parses(converted.model) is True


def test_sparse_weights_stay_compliant_in_int8(convnet, calibration):
    sites = validate(to_int8(convnet, calibration=calibration).model).sites
    assert [(site.dtype, site.compliant, site.eligible) for site in sites] == [("int8", True, True)] * 4


def test_magika_is_quantized_within_the_default_limit(real, tensorrt_parses):
    path, feeds = real("magika", count=3)
    converted = to_int8(path, calibration=feeds)
    assert converted.error <= converted.limit
    assert operators(converted).count("QuantizeLinear") == 3
    assert tensorrt_parses(converted.model) is True


def test_a_layer_that_pushes_the_error_over_the_limit_stays_in_float32(build):
    random = np.random.default_rng(0)
    spread = np.ones(16, np.float32)
    spread[0] = 1e4  # one channel takes up the whole range of its tensor
    weights = {name: random.normal(0, 0.2, (16, 16)).astype(np.float32) for name in ("w1", "w2", "w3", "w4")}
    weights["w3"][0] = 0  # and does not matter
    model = build(
        [
            ("MatMul", "one", ["x", "w1"], ["a"], {}),
            ("MatMul", "two", ["a", "w2"], ["b"], {}),
            ("Mul", "outlier", ["b", "spread"], ["c"], {}),
            ("MatMul", "bad", ["c", "w3"], ["d"], {}),
            ("MatMul", "four", ["d", "w4"], ["y"], {}),
        ],
        inputs={"x": [8, 16]},
        outputs={"y": [8, 16]},
        weights={**weights, "spread": spread},
    )
    converted = to_int8(model, calibration=random_feeds(model, count=2), max_error=0.1)
    assert [(kept.node, kept.why) for kept in converted.kept] == [("bad", "error")]
    assert converted.error <= 0.1


def test_too_much_error_is_refused(convnet, calibration):
    with pytest.raises(PrecisionError) as caught:
        to_int8(convnet, calibration=calibration, max_error=1e-6)
    assert str(caught.value) == (
        "the int8 model is less accurate than asked\n"
        "  where: ModelProto\n"
        f"  got: {caught.value.error:.3g}\n"
        "  expected: at most 1e-06\n"
        "  to fix: raise max_error, calibrate with more real inputs or another method, or use fp16"
    )


def test_layers_asked_for_are_not_quantized(convnet, calibration):
    converted = to_int8(convnet, calibration=calibration, keep_fp32=["first"])
    assert [(kept.node, kept.why) for kept in converted.kept] == [("first", "asked")]
    types = {tensor.name: tensor.data_type for tensor in converted.model.proto.graph.initializer}
    assert types["w1"] == onnx.TensorProto.FLOAT
    assert types["w2_quantized"] == onnx.TensorProto.INT8


def test_outputs_are_quantized_when_asked_and_the_rest_is_told(convnet, calibration):
    assert to_int8(convnet, calibration=calibration).notes[1] == (
        "the output of 2 of 4 quantized layers is not quantized: "
        "sparse INT8 kernels were never seen chosen there (quantize_outputs=True changes it)"
    )
    converted = to_int8(convnet, calibration=calibration, quantize_outputs=True)
    assert operators(converted).count("QuantizeLinear") == 5
    assert converted.open_layers == ("dense",)


def test_the_rest_can_be_fp16(convnet, calibration, tensorrt_parses):
    converted = to_int8(convnet, calibration=calibration, rest="fp16", keep_fp32=["flatten"])
    assert [(kept.node, kept.why) for kept in converted.kept] == [("flatten", "asked")]
    assert converted.precision == "int8+fp16"
    assert converted.error <= converted.limit
    inferred = onnx.shape_inference.infer_shapes(converted.model.load())
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert types["p"] == onnx.TensorProto.FLOAT16  # the pooling
    assert types["a"] == types["b"] == onnx.TensorProto.FLOAT  # an INT8 layer and its activation
    scales = [t for t in converted.model.proto.graph.initializer if t.name.endswith("_scale")]
    assert {tensor.data_type for tensor in scales} == {onnx.TensorProto.FLOAT}
    assert tensorrt_parses(converted.model) is True


def test_the_error_with_an_fp16_rest_is_that_of_exact_arithmetic(perceptron):
    feeds = random_feeds(perceptron, count=4)
    alone, with_rest = (to_int8(perceptron, calibration=feeds, rest=rest) for rest in ("fp32", "fp16"))
    assert alone.error <= with_rest.error < 1.5 * alone.error


def test_a_batched_weight_can_have_an_fp16_rest(build):
    weight = np.random.default_rng(0).normal(size=(3, 16, 8)).astype(np.float32)
    model = build(
        [("MatMul", "m", ["x", "w"], ["a"], {}), ("Tanh", "t", ["a"], ["y"], {})],
        inputs={"x": [3, 4, 16]},
        outputs={"y": [3, 4, 8]},
        weights={"w": weight},
    )
    assert to_int8(model, calibration=random_feeds(model), rest="fp16").error < 0.1


def test_an_int8_layer_in_front_of_a_kept_recurrent_node_is_not_called_float32(build):
    random = np.random.default_rng(0)
    weights = {"w": (8, 8), "b": (8,), "W": (1, 32, 8), "R": (1, 32, 8)}
    model = build(
        [
            ("MatMul", "mm", ["x", "w"], ["a"], {}),
            ("Add", "bias", ["a", "b"], ["c"], {}),
            ("LSTM", "lstm", ["c", "W", "R"], ["d", "", ""], {"hidden_size": 8}),
            ("Relu", "relu", ["d"], ["y"], {}),
        ],
        inputs={"x": [5, 2, 8]},
        outputs={"y": [5, 1, 2, 8]},
        weights={name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in weights.items()},
    )
    feeds = random_feeds(model, count=4)
    converted = to_int8(model, calibration=feeds, rest="fp16", keep_fp32=["lstm"])
    assert [(kept.node, kept.why) for kept in converted.kept] == [("lstm", "asked")]
    assert converted.open_layers == ("mm",)
    asked = to_int8(model, calibration=feeds, keep_fp32=["relu"])
    again = to_int8(asked.model, rest="fp16", keep_fp32=["lstm"])
    assert "lstm" in {kept.node for kept in again.kept}
    assert not any(kept.node.startswith("mm") for kept in again.kept)


def test_open_layers_are_called_as_in_the_model(perceptron):
    feeds = random_feeds(perceptron)
    for rest in ("fp32", "fp16"):
        converted = to_int8(perceptron, calibration=feeds, rest=rest, keep_fp32=["fc1"])
        assert converted.open_layers == ("fc2",)
        assert [(kept.node, kept.why) for kept in converted.kept] == [("fc1", "asked"), ("fc1_bias", "asked")]
        assert {"w1", "w2_quantized"} <= {tensor.name for tensor in converted.model.proto.graph.initializer}


def test_outputs_that_are_not_tensors_are_refused_for_int8(parse):
    model = parse("g (float[2] x) => (seq(float[2]) s) { s = SequenceConstruct(x, x) }")
    with pytest.raises(ModelError, match="an output is not a tensor\n  where: output 's'"):
        to_int8(model, calibration=[{"x": np.ones(2, np.float32)}])


def test_a_quantized_model_passes_unchanged(convnet, calibration):
    quantized = to_int8(convnet, calibration=calibration).model
    again = to_int8(quantized)
    assert again.model is quantized
    assert again.error == 0
    assert again.notes == ("the model has Q/DQ already: its quantization was not changed",)
    assert to_int8(quantized, rest="fp16").precision == "int8+fp16"


def test_dynamic_quantization_is_refused(parse):
    model = parse("""g (float[1, 4] x) => (int32[1, 2] y) <int8[4, 2] w = {1, 0, 0, 0, 0, 1, 0, 0}> {
        q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w, z)
    }""")
    with pytest.raises(ModelError) as caught:
        to_int8(model, calibration="random")
    assert str(caught.value) == (
        "the model is quantized in a way that TensorRT refuses\n"
        "  where: ModelProto\n"
        "  got: DynamicQuantizeLinear, MatMulInteger\n"
        "  expected: a float32 model, or QuantizeLinear and DequantizeLinear with constant scales\n"
        "  to fix: quantize the float32 model that it was made from"
    )


def test_a_model_without_layers_is_refused(parse):
    with pytest.raises(ModelError) as caught:
        to_int8(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), calibration=[{"x": np.zeros(2, np.float32)}])
    assert str(caught.value) == (
        "the model has nothing to quantize\n"
        "  where: ModelProto\n"
        "  got: no Conv, Gemm or MatMul with a constant float32 weight"
    )


def test_missing_calibration_data_are_an_error(convnet):
    with pytest.raises(ConfigError) as caught:
        to_int8(convnet)
    assert str(caught.value) == (
        "INT8 needs calibration data\n"
        "  where: calibration, ModelProto\n"
        "  expected: a folder of .npz or .npy files, or an iterable of {input name: array}\n"
        '  to fix: give some hundred real inputs; calibration="random" is enough to measure time'
    )


def test_random_calibration_warns_loudly(convnet):
    with pytest.warns(RandomCalibrationWarning) as caught:
        to_int8(convnet, calibration="random", max_error=0.5)
    assert str(caught[0].message) == (
        "ModelProto is calibrated with random numbers: its INT8 accuracy on real inputs will be bad"
    )
    assert caught[0].filename == __file__


def test_real_calibration_does_not_warn(convnet, calibration):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_int8(convnet, calibration=calibration)


@pytest.mark.parametrize(
    ("array", "name", "error"),
    [
        (np.zeros((1, 8, 8, 8), np.float32), "z", FeedError),
        (np.zeros((1, 8, 8, 8), np.float64), "x", DtypeError),
        (np.zeros((1, 8, 8, 7), np.float32), "x", ShapeError),
    ],
)
def test_wrong_calibration_data_are_refused(convnet, array, name, error):
    with pytest.raises(error, match="feed 0"):
        to_int8(convnet, calibration=[{name: array}])


def test_calibration_data_may_be_a_folder(convnet, calibration, tmp_path):
    for i, feed in enumerate(calibration):
        np.save(tmp_path / f"{i}.npy", feed["x"])
    from_folder = to_int8(convnet, calibration=tmp_path)
    assert from_folder.model.files[""] == to_int8(convnet, calibration=iter(calibration)).model.files[""]


@pytest.mark.parametrize(("option", "value"), [("method", "max"), ("rest", "bf16")])
def test_unknown_options_are_refused(convnet, option, value):
    expected = {"method": "minmax, entropy, percentile", "rest": "'fp32', 'fp16'"}[option]
    what = {"method": "no such method", "rest": "no such precision"}[option]
    with pytest.raises(ConfigError) as caught:
        to_int8(convnet, calibration="random", **{option: value})
    assert str(caught.value) == f"{what}\n  where: {option}\n  got: {value!r}\n  expected: {expected}"


def test_a_conversion_that_breaks_the_pattern_is_refused(convnet):
    dense = onnx.ModelProto()
    dense.CopyFrom(convnet)
    tensor = next(tensor for tensor in dense.graph.initializer if tensor.name == "w3")
    tensor.raw_data = np.ones(tensor.dims, np.float32).tobytes()
    with pytest.raises(ModelError) as caught:
        check_sparsity(OnnxModel.open(convnet), OnnxModel.open(dense))
    assert str(caught.value) == (
        "the conversion broke the 2:4 pattern of a weight\n"
        "  where: third\n"
        "  got: not compliant\n"
        "  expected: compliant, as before\n"
        "  to fix: report this model: zeros must stay zeros"
    )
    check_sparsity(OnnxModel.open(dense), OnnxModel.open(dense))
