import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trtsparse.files.model import OnnxModel
from trtsparse.precision.fold import fold
from trtsparse.precision.graph import pack
from trtsparse.precision.placement import candidates, find_layers, place
from trtsparse.precision.quantize import quantize, quantize_weight
from trtsparse.sparsity.pattern import count_groups

WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-1e3, 1e3, width=32)
)


@given(WEIGHTS, st.integers(0, 1))
def test_every_weight_is_at_most_half_a_step_off_and_zeros_stay_zeros(values, axis):
    integers, scales = quantize_weight(values, axis=axis)
    assert scales.shape == (values.shape[axis],)
    laid_out = scales.reshape([-1 if i == axis else 1 for i in range(2)])
    assert (np.abs(integers * laid_out - values) <= laid_out * 0.5001 + 1e-30).all()
    assert not integers[values == 0].any()
    assert np.abs(integers.astype(int)).max() <= 127


def test_a_channel_of_zeros_has_scale_one():
    integers, scales = quantize_weight(np.zeros((2, 3), np.float32), axis=0)
    assert scales.tolist() == [1, 1]
    assert not integers.any()


def test_the_pattern_survives(convnet):
    model, placed = placed_of(convnet)
    proto = quantize(model, placed, dict.fromkeys(candidates(model, find_layers(model)), 1.0))
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("_quantized")
    }
    assert sorted(weights) == ["w1_quantized", "w2_quantized", "w3_quantized", "w4_quantized"]
    for values in weights.values():
        assert values.dtype == np.int8
        assert values.any()
        assert count_groups(values, axis=1).violating == 0


def placed_of(proto, **options):
    model = fold(OnnxModel.open(proto), opset=13)
    return model, place(model, find_layers(model), **options)


def test_layers_are_found_with_their_output_axis(convnet):
    model, _ = placed_of(convnet)
    layers = find_layers(model)
    assert [(layer.node, layer.source, layer.axis) for layer in layers] == [
        ("first", "x", 0),
        ("second", "b", 0),
        ("third", "e", 0),
        ("dense", "q", 0),
    ]


def test_pairs_stand_before_layers_and_at_the_residual_summand(convnet):
    _, placed = placed_of(convnet)
    assert placed.reads == {("first", 0), ("second", 0), ("third", 0), ("dense", 0), ("add", 1)}
    assert placed.outputs == frozenset()
    assert placed.open_layers == ("third", "dense")  # a pooling and the model's output follow


def test_outputs_are_quantized_when_asked(convnet):
    _, placed = placed_of(convnet, quantize_outputs=True)
    assert placed.outputs == {"f"}
    assert placed.open_layers == ("dense",)


def test_a_layer_that_stays_in_float32_opens_the_one_before(convnet):
    _, placed = placed_of(convnet, keep=["third"])
    assert placed.reads == {("first", 0), ("second", 0), ("dense", 0)}
    assert placed.open_layers == ("second", "dense")


@pytest.fixture(scope="module")
def two_branches(build):
    """A residual block whose short cut has a convolution of its own, and a layer behind it."""
    weight = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    return build(
        [
            ("Conv", "main", ["x", "w1"], ["m"], {}),
            ("Conv", "short", ["x", "w2"], ["s"], {}),
            ("Add", "add", ["m", "s"], ["a"], {}),
            ("Relu", "relu", ["a"], ["r"], {}),
            ("Conv", "after", ["r", "w3"], ["y"], {}),
        ],
        inputs={"x": [1, 4, 3, 3]},
        outputs={"y": [1, 4, 3, 3]},
        weights=dict.fromkeys(("w1", "w2", "w3"), weight),
    )


def test_of_two_layers_that_are_added_the_later_one_takes_the_addition(two_branches):
    _, placed = placed_of(two_branches)
    assert placed.reads == {("main", 0), ("short", 0), ("after", 0), ("add", 0)}
    assert placed.open_layers == ("after",)


def test_readers_share_one_pair_and_the_order_stays_topological(two_branches):
    model, placed = placed_of(two_branches)
    proto = quantize(model, placed, dict.fromkeys(candidates(model, find_layers(model)), 1.0))
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) == 3  # x, m, r
    assert sum(node.op_type == "DequantizeLinear" for node in proto.graph.node) == 6  # and three weights


def test_every_placement_only_needs_candidates(two_branches):
    model = fold(OnnxModel.open(two_branches), opset=13)
    layers = find_layers(model)
    ranges = dict.fromkeys(candidates(model, layers), 1.0)
    for kept in ([], ["main"], ["short"], ["after"], ["main", "short"]):
        for outputs in (False, True):
            placed = place(model, layers, keep=kept, quantize_outputs=outputs)
            onnx.checker.check_model(quantize(model, placed, ranges))


def test_a_bias_is_part_of_its_layer(parse):
    model = parse("""g (float[1, 4] x) => (float[1, 4] y) <
        float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float[1, 1, 4] b = {1, 2, 3, 4}> {
        [one] m = MatMul(x, w) [bias] a = Add(m, b) [act] r = Relu(a) [two] n = MatMul(r, w) y = Squeeze(n)
    }""")
    proto, placed = placed_of(model)
    assert {name for name, _ in placed.reads} == {"one", "two"}
    assert placed.open_layers == ("two",)
    quantized = quantize(proto, placed, {"x": 1.0, "r": 1.0})
    names = [tensor.name for tensor in quantized.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert names.count("w_quantized") == 1  # a tied weight is stored once


def test_a_weight_that_another_node_reads_stays_there_in_float32_too(build):
    weight = np.eye(4, dtype=np.float32)
    model = build(
        [("MatMul", "m", ["x", "w"], ["a"], {}), ("Mul", "other", ["a", "w"], ["y"], {})],
        inputs={"x": [4, 4]},
        outputs={"y": [4, 4]},
        weights={"w": weight},
    )
    proto, placed = placed_of(model)
    quantized = quantize(proto, placed, {"x": 1.0, "a": 1.0})
    assert {"w", "w_quantized"} <= {tensor.name for tensor in quantized.graph.initializer}
    pack(quantized, name="m")


def test_a_value_that_is_always_zero_gets_scale_one(two_branches):
    model, placed = placed_of(two_branches)
    proto = quantize(model, placed, dict.fromkeys(candidates(model, find_layers(model)), 0.0))
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "x_scale"}
    assert scales["x_scale"] == 1


def test_weights_along_other_axes(build):
    random = np.random.default_rng(0)
    model = build(
        [
            ("Gemm", "g", ["x", "w1", "b"], ["a"], {}),
            ("Gemm", "t", ["a", "w2"], ["c"], {"transB": 1}),
            ("MatMul", "m", ["c", "w3"], ["y"], {}),
        ],
        inputs={"x": [1, 4]},
        outputs={"y": [1, 5]},
        weights={
            "w1": random.normal(size=(4, 8)).astype(np.float32),
            "b": np.zeros(8, np.float32),
            "w2": random.normal(size=(6, 8)).astype(np.float32),
            "w3": random.normal(size=(6, 5)).astype(np.float32),
        },
    )
    proto, placed = placed_of(model)
    quantized = quantize(proto, placed, {"x": 1.0, "a": 1.0, "c": 1.0})
    shapes = {t.name: tuple(t.dims) for t in quantized.graph.initializer if t.name.endswith("_scale")}
    assert {name: shape for name, shape in shapes.items() if name.startswith("w")} == {
        "w1_scale": (8,),
        "w2_scale": (6,),
        "w3_scale": (5,),
    }
    onnx.checker.check_model(quantized, full_check=True)
