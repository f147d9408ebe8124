"""Graphs rewritten and executed with PyTorch on the CPU, against ONNX Runtime."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.opaque import Opaque
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program, check_operators
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.errors import EngineError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds

torch = pytest.importorskip("torch")
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128}


def plain(node, weight, bias):
    """A product by PyTorch."""
    weight = torch.from_numpy(np.array(weight))
    bias = None if bias is None else torch.from_numpy(np.array(bias))
    act = {"": lambda y: y, "relu": torch.nn.functional.relu, "gelu": torch.nn.functional.gelu}[
        node.attributes["act"]
    ]
    return lambda x: act(torch.nn.functional.linear(x, weight, bias))


def execute(source, feeds):
    """The outputs, by name, and the rewritten graph."""
    graph = fuse(read_graph(OnnxModel.open(source)))
    check_operators(graph)
    program = Program(graph, device="cpu", linear=plain)
    found = program([torch.from_numpy(feeds[name]) for name in graph.inputs])
    return dict(zip(graph.outputs, (value.numpy() for value in found), strict=True)), graph


def check(source, shapes=None, *, tolerance=1e-4, seeds=2):
    for feeds in random_feeds(source, shapes=shapes, count=seeds):
        found, graph = execute(source, feeds)
        for name, right in OnnxRuntimeEngine(source).run(feeds).items():
            assert found[name].shape == right.shape
            assert found[name].dtype == right.dtype
            assert np.abs(found[name] - right).max() <= tolerance * max(np.abs(right).max(), 1e-2), name
    return graph.counts()


@pytest.mark.parametrize(
    ("name", "options", "shapes", "fused"),
    [
        ("mlp", {}, None, {"Linear": 3}),
        ("llm-block", {"hidden": 64, "intermediate": 96}, None, {"Linear": 2, "RmsNorm": 1, "Silu": 1}),
        ("bert-base", {**SMALL, "vocabulary": 99}, {"input_ids": (3, 20)}, {"Linear": 8, "Attention": 2, "Gelu": 0}),
        ("bert-base", {**SMALL, "vocabulary": 99, "mask": True}, None, {"Linear": 8, "Attention": 2}),
        ("vit-base", {**SMALL, "image_size": 32, "num_classes": 10}, None, {"Linear": 9, "Attention": 2}),
        (
            "resnext50",
            {"width": 8, "image_size": 64, "num_classes": 9},
            None,
            {"Linear": 34, "BatchNormalization": 0},
        ),
        ("magika", {}, {"bytes": (3, 2048)}, {"Linear": 2}),
        (
            "ppocr-rec",
            {},
            {"x": (1, 3, 48, 160)},
            {"Linear": 48, "Attention": 2, "LayerNormalization": 5, "Gelu": 0},
        ),
        ("ppocr-det", {}, {"x": (1, 3, 64, 96)}, {"Linear": 61, "Gelu": 0, "Identity": 0}),
    ],
)
def test_real_models_give_what_onnx_runtime_gives(name, options, shapes, fused):
    counts = check(models.get(name, **options), shapes)
    assert {op: counts[op] for op in fused} == fused


def node_model(op, shapes, *, constants=(), opset=17, outputs=1, **attributes):
    """One node over float inputs, with constants after them."""
    inputs = {f"x{i}": list(shape) for i, shape in enumerate(shapes)}
    named = [tensor(f"c{i}", value) for i, value in enumerate(constants) if value is not None]
    given = [f"c{i}" if value is not None else "" for i, value in enumerate(constants)]
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, [*inputs, *given], names, name="it", **attributes)
    return model([node], named, inputs=inputs, outputs=dict.fromkeys(names), opset=opset)


INT = np.int64
CASES = {
    "relu": node_model("Relu", [(2, 3)]),
    "leaky": node_model("LeakyRelu", [(2, 3)], alpha=0.3),
    "elu": node_model("Elu", [(2, 3)], alpha=0.5),
    "hard sigmoid": node_model("HardSigmoid", [(2, 30)], alpha=0.3),
    "hard swish": node_model("HardSwish", [(2, 30)]),
    "softplus": node_model("Softplus", [(2, 3)]),
    "gelu": node_model("Gelu", [(2, 9)], opset=20),
    "gelu tanh": node_model("Gelu", [(2, 9)], opset=20, approximate="tanh"),
    "clip": node_model("Clip", [(2, 30)], constants=[np.float32(-0.5), np.float32(0.2)]),
    "clip above": node_model("Clip", [(2, 30)], constants=[None, np.float32(0.2)]),
    "clip before opset 11": node_model("Clip", [(2, 30)], opset=7, min=-0.5, max=0.2),
    "prelu": node_model("PRelu", [(2, 3, 4)], constants=[random(3, 1)]),
    "divide": node_model("Div", [(2, 3), (3,)]),
    "largest of three": node_model("Max", [(2, 3), (3,), (2, 1)]),
    "mean of three": node_model("Mean", [(2, 3), (3,), (2, 1)]),
    "flatten": node_model("Flatten", [(2, 3, 4)], axis=-1),
    "transpose": node_model("Transpose", [(2, 3, 4)]),
    "reshape": node_model("Reshape", [(2, 3, 4)], constants=[np.array([0, -1], INT)]),
    "squeeze all": node_model("Squeeze", [(2, 1, 3, 1)]),
    "squeeze by attribute": node_model("Squeeze", [(2, 1, 3, 1)], opset=11, axes=[-1]),
    "unsqueeze": node_model("Unsqueeze", [(2, 3)], constants=[np.array([-1, 0], INT)]),
    "split": node_model("Split", [(2, 7)], constants=[np.array([3, 4], INT)], outputs=2, axis=1),
    "split evenly": node_model("Split", [(2, 8)], outputs=2, axis=-1),
    "slice": node_model("Slice", [(4, 9)], constants=[np.array(v, INT) for v in ([1, -5], [99, -1], [0, 1], [2, 3])]),
    "slice backwards": node_model(
        "Slice", [(4, 9)], constants=[np.array(v, INT) for v in ([-1], [-(2**62)], [1], [-2])]
    ),
    "slice by attributes": node_model("Slice", [(4, 9)], opset=9, starts=[1, 2], ends=[3, 2**62]),
    "expand": node_model("Expand", [(3, 1)], constants=[np.array([2, 1, 4], INT)]),
    "tile": node_model("Tile", [(2, 3)], constants=[np.array([2, 2], INT)]),
    "gather rows": node_model("Gather", [(5, 3)], constants=[np.array([[0, -1], [2, 2]], INT)], axis=1),
    "gather one": node_model("Gather", [(5, 3, 2)], constants=[np.array(-2, INT)], axis=1),
    "pad": node_model("Pad", [(2, 3)], constants=[np.array([0, 1, 2, 0], INT), np.float32(7)]),
    "pad by reflection": node_model(
        "Pad", [(1, 2, 5, 6)], constants=[np.array([0, 0, 1, 2, 0, 0, 3, 1], INT)], mode="reflect"
    ),
    "mean": node_model("ReduceMean", [(2, 3, 4)], axes=[-1, 1], keepdims=0),
    "sum": node_model("ReduceSum", [(2, 3, 4)], constants=[np.array([1], INT)]),
    "sum of all": node_model("ReduceSum", [(2, 3, 4)]),
    "no sum": node_model("ReduceSum", [(2, 3)], noop_with_empty_axes=1),
    "norm": node_model("ReduceL2", [(2, 3, 4)], axes=[2]),
    "softmax": node_model("Softmax", [(2, 3, 4)]),
    "softmax before opset 13": node_model("Softmax", [(2, 3, 4)], opset=11),
    "gemm": node_model("Gemm", [(4, 3)], constants=[random(4, 5), random(3, 5)], transA=1, alpha=0.5, beta=2.0),
    "layer norm": node_model("LayerNormalization", [(2, 3, 4)], constants=[random(3, 4), random(3, 4)], axis=1),
    "batch norm": node_model(
        "BatchNormalization", [(2, 3, 4)], constants=[*(random(3, seed=i) for i in range(3)), np.abs(random(3))]
    ),
    "conv 1d": node_model(
        "Conv", [(2, 4, 9)], constants=[random(6, 2, 3), random(6)], group=2, strides=[2], pads=[1, 1]
    ),
    "conv 2d": node_model(
        "Conv", [(1, 4, 9, 8)], constants=[random(6, 4, 3, 2)], dilations=[2, 1], pads=[2, 0, 1, 1]
    ),
    "conv same": node_model(
        "Conv", [(1, 4, 9, 8)], constants=[random(6, 4, 3, 2)], auto_pad="SAME_UPPER", strides=[2, 2]
    ),
    "conv same lower": node_model("Conv", [(1, 4, 9, 8)], constants=[random(6, 4, 3, 2)], auto_pad="SAME_LOWER"),
    "conv 3d": node_model("Conv", [(1, 2, 4, 5, 6)], constants=[random(3, 2, 2, 2, 2)]),
    "conv 1x1": node_model("Conv", [(2, 8, 3, 5)], constants=[random(4, 8, 1, 1), random(4)]),
    "deconv": node_model("ConvTranspose", [(1, 4, 5, 5)], constants=[random(4, 3, 2, 2), random(3)], strides=[2, 2]),
    "largest in a window": node_model(
        "MaxPool", [(1, 2, 9, 8)], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]
    ),
    "largest, rounded up": node_model("MaxPool", [(1, 2, 9, 8)], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "mean in a window": node_model("AveragePool", [(1, 2, 9, 8)], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "mean, pads counted": node_model("AveragePool", [(1, 2, 9)], kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    "mean of all": node_model("GlobalAveragePool", [(2, 3, 4, 5)]),
    "largest of all": node_model("GlobalMaxPool", [(2, 3, 4, 5)]),
    "nearest": node_model(
        "Resize",
        [(1, 2, 3, 4)],
        constants=[None, np.float32([1, 1, 2.5, 2])],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "nearest by default": node_model("Resize", [(1, 2, 3, 4)], constants=[None, np.float32([1, 1, 2, 3])]),
    "linear": node_model(
        "Resize", [(1, 2, 3, 4)], constants=[None, None, np.array([1, 2, 5, 7], INT)], mode="linear"
    ),
    "linear to the corners": node_model(
        "Resize",
        [(1, 2, 3, 4)],
        constants=[None, np.float32([1, 1, 2, 2])],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(case):
    check(CASES[case], tolerance=1e-5)


def test_values_that_describe_shapes_may_be_computed():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["ns"]),
        helper.make_node("Concat", ["ns", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Cast", ["n"], ["count"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["flat", "count"], ["y"]),
    ]
    constants = [
        tensor("first", np.array(0, INT)),
        tensor("zero", np.array([0], INT)),
        tensor("rest", np.array([-1], INT)),
    ]
    check(model(nodes, constants, inputs={"x": ["n", 3, 4]}), {"x": (5, 3, 4)})


def test_local_functions_and_constant_nodes_are_executed():
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=3.0),
        helper.make_node("Twice", ["x"], ["t"], domain="own"),
        helper.make_node("Mul", ["t", "c"], ["y"]),
    ]
    check(model(nodes, functions=[twice], opset=17))


def test_a_group_whose_inner_value_is_read_elsewhere_is_left_alone():
    """GELU's Erf, and a product's sum before its bias, are outputs too."""
    half, root = tensor("half", np.float32(0.5)), tensor("root", np.float32(2**0.5))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Div", ["s", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["p"]),
        helper.make_node("Mul", ["s", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["y"]),
    ]
    weights = [tensor("w", random(8, 4)), tensor("b", random(4)), tensor("one", np.float32(1)), half, root]
    assert check(model(nodes, weights))["Linear"] == 1
    counts = check(model(nodes, weights, outputs={"y": None, "e": None, "m": None}))
    assert counts["Erf"] == 1
    assert counts["Gelu"] == 0
    assert counts["Linear"] == 1


def test_all_operators_that_are_not_executed_are_named_at_once():
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Det", ["x"], ["e"], name="second"),
        helper.make_node("Resize", ["x", "", "s"], ["r"], name="third", mode="cubic"),
        helper.make_node("Mystery", ["r"], ["y"], name="fourth", domain="own"),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 2])],
            [helper.make_tensor_value_info(name, 1, None) for name in ("y", "d", "e")],
            [tensor("s", np.float32([1, 1]))],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    with pytest.raises(ModelError) as caught:
        check_operators(fuse(read_graph(OnnxModel.open(proto))))
    assert str(caught.value) == (
        "this engine does not execute some of the model's operators\n  where: ModelProto\n"
        "  got: Det (2, first 'first'); Resize with mode 'cubic' with coordinates 'half_pixel' (1, first 'third'); "
        "own.Mystery (1, first 'fourth')\n"
        "  to fix: build a TensorRT engine, or run the model with engine='onnxruntime'"
    )


def test_control_flow_is_refused():
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    proto = model(
        [helper.make_node("If", ["c"], ["y"], name="fork", then_branch=then, else_branch=then)],
        [tensor("c", np.bool_(1))],
    )
    with pytest.raises(ModelError) as caught:
        read_graph(OnnxModel.open(proto))
    assert str(caught.value) == (
        "this engine does not execute graphs inside of nodes\n  where: ModelProto: node 'fork' (If)\n"
        "  to fix: export the model without control flow, or run it with engine='onnxruntime'"
    )


def test_a_step_that_fails_is_named():
    graph = fuse(read_graph(OnnxModel.open(node_model("Add", [(2, 3), (3,)]))))
    with pytest.raises(EngineError) as caught:
        Program(graph, device="cpu", linear=plain)([torch.ones(2, 3), torch.ones(4)])
    assert str(caught.value).startswith(
        "a step failed\n  where: ModelProto: node 'it' (Add)\n  got: The size of tensor a (3)"
    )


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("bert-base", {**SMALL, "vocabulary": 99, "mask": True}, {"input_ids": (3, 20)}),
        ("vit-base", {**SMALL, "image_size": 32, "num_classes": 10}, None),
        ("resnext50", {"width": 8, "image_size": 64, "num_classes": 9}, None),
        ("magika", {}, {"bytes": (3, 2048)}),
        ("ppocr-det", {}, {"x": (1, 3, 64, 96)}),
    ],
)
def test_a_traced_graph_computes_the_same_from_other_values(name, options, shapes):
    source = models.get(name, **options)
    graph = fuse(read_graph(OnnxModel.open(source)))
    program = Program(graph, device="cpu", linear=opaque)
    first, second = (
        [torch.from_numpy(f[n]) for n in graph.inputs] for f in random_feeds(source, shapes=shapes, count=2)
    )
    with torch.inference_mode():
        traced = program.trace(first)
        for found, right in zip(traced(*second), program(second), strict=True):
            torch.testing.assert_close(found, right)
    assert "trtsparse.product" in traced.code


def opaque(node, weight, bias):
    compute = plain(node, weight, bias)
    return Opaque.enter(compute, columns=len(weight), dtype=torch.float32)


def test_a_traced_graph_compiles():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("PyTorch compiles with a C++ compiler on a CPU")
    source = models.get("llm-block", hidden=64, intermediate=96)
    graph = fuse(read_graph(OnnxModel.open(source)))
    program = Program(graph, device="cpu", linear=opaque)
    feeds = random_feeds(source)[0]
    with torch.inference_mode():
        inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
        compiled = torch.compile(program.trace(inputs), fullgraph=True, dynamic=False)
        torch.testing.assert_close(list(compiled(*inputs)), program(inputs))


def test_a_closed_product_is_forgotten():
    product = Opaque.enter(lambda x: 2 * x, columns=3, dtype=torch.float32)
    assert product(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2
    product.close()
    product.close()
    with pytest.raises(EngineError) as caught:
        product(torch.ones(2, 3))
    assert str(caught.value) == (
        "a product was executed after its engine was closed\n  to fix: open the engine again"
    )
