import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import parser

import models
from trtsparse.errors import EngineError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.fold import OPSET, fold
from trtsparse.precision.origins import Origins
from trtsparse.precision.ort import runner
from trtsparse.sparsity.weights import find_sites


def conv_and_norm(build, *, variance=1.0):
    ones = np.ones(8, np.float32)
    return build(
        [
            ("Conv", "", ["x", "w"], ["a"], {}),
            ("BatchNormalization", "", ["a", "s", "b", "m", "v"], ["y"], {}),
        ],
        inputs={"x": [1, 4, 5, 5]},
        outputs={"y": [1, 8, 5, 5]},
        weights={
            "w": np.random.default_rng(0).normal(size=(8, 4, 1, 1)).astype(np.float32),
            **dict.fromkeys("sbm", ones),
            "v": ones * np.float32(variance),
        },
    )


def test_normalization_is_fused_and_the_outputs_stay_the_same(build):
    model = conv_and_norm(build, variance=9.8e7)
    folded = fold(OnnxModel.open(model))
    assert [(node.op_type, node.name) for node in folded.proto.graph.node] == [("Conv", "Conv_0")]
    assert compare_models(model, folded, feeds=random_feeds(model)).error < 1e-5


def test_only_the_opsets_in_use_are_imported(build):
    folded = fold(OnnxModel.open(conv_and_norm(build)))
    assert [(opset.domain, opset.version) for opset in folded.proto.opset_import] == [("", 17)]


def test_weights_that_are_inputs_become_constants(build):
    model = conv_and_norm(build)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    folded = fold(OnnxModel.open(model))
    assert [value.name for value in folded.proto.graph.input] == ["x"]
    assert len(folded.proto.graph.node) == 1


def test_functions_are_inlined():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[2] x) => (float[2] y) { y = local.twice(x) }
        <opset_import: ["": 17], domain: "local"> twice (a) => (b) { b = Add(a, a) }
    """)
    folded = fold(OnnxModel.open(model))
    assert [node.op_type for node in folded.proto.graph.node] == ["Add"]


def test_nodes_of_functions_are_called_as_in_reports():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[2, 8] x) => (float[2, 8] y)
        { a = local.twice(x) y = MatMul(a, w) }
        <opset_import: ["": 17], domain: "local"> twice (a) => (b) { c = Abs(a) b = Exp(c) }
    """)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    (site,) = find_sites(OnnxModel.open(model))
    folded = fold(OnnxModel.open(model))
    assert folded.proto.graph.node[-1].name == site.node == "MatMul_2"


def test_default_attributes_of_functions_are_written_into_their_nodes():
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["": 17, "local": 1]> g (float[2] x) => (float[2] y) { y = local.leaky(x) }
        <opset_import: ["": 17], domain: "local"> leaky <slope: float = 0.5> (a) => (b) {
            b = LeakyRelu <alpha: float = @slope> (a)
        }
    """)
    run = runner(fold(OnnxModel.open(model)))
    np.testing.assert_array_equal(run({"x": np.float32([-2, 2])})["y"], [-1, 2])


def test_an_old_opset_is_converted_when_a_newer_one_is_needed():
    path = models.get("ppocr-rec")
    folded = fold(OnnxModel.open(path), opset=13)
    assert [opset.version for opset in folded.proto.opset_import] == [OPSET]
    assert compare_models(path, folded, feeds=random_feeds(path)).error < 1e-4


@pytest.mark.parametrize(
    ("operator", "opset", "mode", "scale"),
    [
        ("Upsample", 9, "linear", 2.0),
        ("Resize", 10, "linear", 2.0),
        ("Resize", 10, "linear", 0.5),
        ("Upsample", 9, "nearest", 1.5),
        ("Resize", 10, "nearest", 3.5),
        ("Resize", 10, "nearest", 0.6),
    ],
)
def test_resizing_of_an_old_opset_keeps_its_sampling(build, operator, opset, mode, scale):
    size = int(8 * scale)
    model = build(
        [("Relu", "r", ["x"], ["a"], {}), (operator, "up", ["a", "s"], ["y"], {"mode": mode})],
        inputs={"x": [1, 2, 8, 8]},
        outputs={"y": [1, 2, size, size]},
        weights={"s": np.float32([1, 1, scale, scale])},
        opset=opset,
    )
    feeds = random_feeds(model)
    assert compare_models(model, fold(OnnxModel.open(model), opset=13), feeds=feeds).error < 1e-6


@given(
    dims=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([1 / 3, 0.5, 0.6, 0.75, 1.0, 1.1, 1.5, 2.0, 2.6, 3.0])),
        min_size=1,
        max_size=3,
    ),
    mode=st.sampled_from(["nearest", "linear"]),
)
@settings(max_examples=60, deadline=None)
def test_resizing_of_opset_10_decides_for_each_dim(build, dims, mode):
    sizes, scales = [1, 2, *(size for size, _ in dims)], np.float32([1, 1, *(scale for _, scale in dims)])
    result = [int(size) for size in np.float32(sizes) * scales]
    assume(mode == "nearest" or len(dims) == 2)
    assume(all(result))
    # ONNX Runtime copies where no size changes, even if the scales would move elements.
    assume(all(scale <= 1 or after > before for before, scale, after in zip(sizes, scales, result, strict=True)))
    model = build(
        [("Resize", "up", ["x", "s"], ["y"], {"mode": mode})],
        inputs={"x": sizes},
        outputs={"y": result},
        weights={"s": scales},
        opset=10,
    )
    feeds = random_feeds(model)
    assert compare_models(model, fold(OnnxModel.open(model), opset=13), feeds=feeds).error < 1e-6


def test_resizing_that_shrinks_and_grows_is_found_by_its_name(build):
    model = build(
        [("Resize", "both", ["x", "s"], ["a"], {}), ("Relu", "relu", ["a"], ["y"], {})],
        inputs={"x": [1, 2, 6, 6]},
        outputs={"y": [1, 2, 9, 3]},
        weights={"s": np.float32([1, 1, 1.5, 0.5])},
        opset=10,
    )
    folded = fold(OnnxModel.open(model), opset=13)
    first, second, last = (node.name for node in folded.proto.graph.node)
    assert (second, last) == ("both", "relu")
    assert Origins(OnnxModel.open(model), folded).matching(["both"]) == [first, "both"]


def test_resizing_of_a_newer_opset_is_left_alone(build):
    model = build(
        [("Resize", "up", ["x", "roi", "s"], ["y"], {"mode": "linear"})],
        inputs={"x": [1, 2, 8, 8]},
        outputs={"y": [1, 2, 16, 16]},
        weights={"roi": np.zeros(0, np.float32), "s": np.float32([1, 1, 2, 2])},
        opset=11,
    )
    feeds = random_feeds(model)
    assert compare_models(model, fold(OnnxModel.open(model), opset=13), feeds=feeds).error < 1e-6


def test_an_opset_that_cannot_be_converted_is_told(parse, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuse)
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=7)
    with pytest.raises(ModelError) as caught:
        fold(OnnxModel.open(model), opset=13)
    assert str(caught.value) == (
        "the model cannot be converted to opset 17\n"
        "  where: ModelProto\n"
        "  got: no adapter\n"
        "  to fix: export it with opset 17"
    )


def test_a_model_with_qdq_is_left_as_it_is(parse):
    model = parse("""g (float[4] x) => (float[4] y) <float s = {0.1}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) i = Identity(d) y = Relu(i)
    }""")
    folded = fold(OnnxModel.open(model))
    assert [node.name for node in folded.proto.graph.node] == [
        "QuantizeLinear_0",
        "DequantizeLinear_1",
        "Identity_2",
        "Relu_3",
    ]


def test_what_onnx_runtime_cannot_load_is_told_in_its_words(parse):
    model = parse("g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }")
    with pytest.raises(EngineError) as caught:
        fold(OnnxModel.open(model))
    assert str(caught.value).startswith(
        "ONNX Runtime does not load the model\n  where: ModelProto\n  got: [ONNXRuntime"
    )
    assert "NoSuchOperator" in str(caught.value)
