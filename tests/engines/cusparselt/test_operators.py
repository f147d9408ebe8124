"""Each operator by itself, against ONNX Runtime."""

import gc
import weakref

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from tests.engines.cusparselt.programs import check, execute, needs_new_onnx_runtime
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.operators import Picker
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import check_operators
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.errors import EngineError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds

torch = pytest.importorskip("torch")


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
    "clip nothing": node_model("Clip", [(2, 3)]),
    "clip above": node_model("Clip", [(2, 30)], constants=[None, np.float32(0.2)]),
    "clip before opset 11": node_model("Clip", [(2, 30)], opset=7, min=-0.5, max=0.2),
    "power": node_model("Pow", [(2, 3)], constants=[np.array([2, 3, 0], INT)]),
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
    "slice backwards from before the start": node_model(
        "Slice", [(4, 9)], constants=[np.array(v, INT) for v in ([-99], [-(2**62)], [1], [-1])]
    ),
    "expand": node_model("Expand", [(3, 1)], constants=[np.array([2, 1, 4], INT)]),
    "tile": node_model("Tile", [(2, 3)], constants=[np.array([2, 2], INT)]),
    "gather rows": node_model("Gather", [(5, 3)], constants=[np.array([[0, -1], [2, 2]], INT)], axis=1),
    "gather the last of all rows": node_model("Gather", [(5, 3)], constants=[np.array([[0, -1], [-5, 2]], np.int32)]),
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
    "layer norm by rows": node_model("LayerNormalization", [(2, 3, 4)], constants=[random(4), random(3, 1)], axis=1),
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


NEW = {"no sum", "layer norm by rows"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_new_onnx_runtime) if case in NEW else case for case in CASES]
)
def test_an_operator_gives_what_onnx_runtime_gives(case):
    check(CASES[case], tolerance=1e-5)


def test_integers_keep_their_type():
    """PyTorch sums int32 as int64, and raises integers to a float's power as floats."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT32),
        helper.make_node("ReduceSum", ["i"], ["s"], keepdims=0),
        helper.make_node("Pow", ["i", "two"], ["p"]),
        helper.make_node("Range", ["zero", "s", "one"], ["none"]),
        helper.make_node("Concat", ["none", "one_more"], ["y"], axis=0),
    ]
    constants = [
        tensor("two", np.float32(2)), tensor("zero", np.int32(0)), tensor("one", np.int32(1)),
        tensor("one_more", np.int32([7])),
    ]  # fmt: skip
    source = model(nodes, constants, outputs=dict.fromkeys("spy"))
    for output in source.graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.INT32
    feeds = {"x": -np.abs(random(2, 8)) * 5}
    found, _graph = execute(source, feeds)
    for name, right in OnnxRuntimeEngine(source).run(feeds).items():
        assert found[name].dtype == right.dtype == np.int32
        np.testing.assert_array_equal(found[name], right)


def it(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name="it", **attributes)


TO_FLOAT = helper.make_node("Cast", ["q"], ["y"], to=onnx.TensorProto.FLOAT)
TO_INT8 = helper.make_node("Cast", ["x"], ["q"], to=onnx.TensorProto.INT8)
REFUSED = {
    "Cast with to type 17": [it("Cast", ["c"], ["q"], to=onnx.TensorProto.FLOAT8E4M3FN), TO_FLOAT],
    "Cast with values of type float8_e4m3fn": [it("Cast", ["f8"], ["y"], to=onnx.TensorProto.FLOAT)],
    "Dropout with its mask": [it("Dropout", ["x"], ["y", "mask"])],
    "BatchNormalization with statistics of its own": [
        helper.make_node("Conv", ["x3", "k"], ["m"]),
        it("BatchNormalization", ["m", "c", "c", "c", "c"], ["y"], training_mode=1),
    ],
    "ArgMax with the last of equal values": [it("ArgMax", ["x"], ["y"], select_last_index=1)],
    "ConstantOfShape with values of type int4": [
        it("ConstantOfShape", ["n"], ["y"], value=tensor("v", np.array([1], ml_dtypes.int4)))
    ],
    "ai.onnx.Attention": [it("Attention", ["x", "x", "x"], ["y"])],
    "QuantizeLinear with to type 5": [
        it("QuantizeLinear", ["x", "s"], ["q"], output_dtype=onnx.TensorProto.INT16), TO_FLOAT
    ],
    "QuantizeLinear with scales of blocks": [
        it("QuantizeLinear", ["x", "ss", "zs"], ["q"], block_size=4, axis=1), TO_FLOAT
    ],
    "DequantizeLinear with scales of blocks": [
        TO_INT8, it("DequantizeLinear", ["q", "ss", "zs"], ["y"], block_size=4, axis=1)
    ],
    "MaxPool with its indices": [it("MaxPool", ["x3"], ["y", "indices"], kernel_shape=[2])],
    "AveragePool with dilations": [it("AveragePool", ["x3"], ["y"], kernel_shape=[2], dilations=[2])],
    "ConvTranspose with auto_pad and output_shape": [
        it("ConvTranspose", ["x3", "k"], ["y"], auto_pad="SAME_UPPER")
    ],
    "ConvTranspose with pads that differ at the two ends": [it("ConvTranspose", ["x3", "k"], ["y"], pads=[0, 1])],
    "Resize with mode 'nearest' with coordinates 'tf_crop_and_resize'": [
        it("Resize", ["x3", "", "twice"], ["y"], coordinate_transformation_mode="tf_crop_and_resize")
    ],
    "Resize with antialias": [it("Resize", ["x3", "", "twice"], ["y"], mode="linear", antialias=1)],
    "Resize with keep_aspect_ratio_policy 'not_larger'": [
        it("Resize", ["x3", "", "", "n"], ["y"], axes=[2], keep_aspect_ratio_policy="not_larger")
    ],
    "Resize with mode 'linear' with coordinates 'asymmetric'": [
        it("Resize", ["x3", "", "twice"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")
    ],
    "DequantizeLinear with a type of its result": [
        TO_INT8, it("DequantizeLinear", ["q", "s"], ["y"], output_dtype=onnx.TensorProto.FLOAT16)
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_variants_that_are_not_executed_are_named_before_anything_runs(what):
    constants = [
        tensor("c", random(8)), tensor("f8", random(2, 8).astype(ml_dtypes.float8_e4m3fn)),
        tensor("n", np.array([3], INT)), tensor("s", np.float32(0.5)), tensor("ss", random(2, 2)),
        tensor("zs", np.zeros((2, 2), np.int8)), tensor("k", random(8, 8, 1)),
        tensor("twice", np.float32([1, 1, 2])),
    ]  # fmt: skip
    outputs = {"y": None} | {name: None for name in ("mask", "indices") if name in what}
    source = model(REFUSED[what], constants, inputs={"x": [2, 8], "x3": [1, 8, 4]}, outputs=outputs, opset=23)
    with pytest.raises(ModelError) as caught:
        check_operators(fuse(read_graph(OnnxModel.open(source))))
    assert str(caught.value).splitlines()[2] == f"  got: {what} (1, first 'it')"


def test_resize_is_executed_from_opset_11_on():
    source = node_model("Resize", [(1, 2, 3, 4)], constants=[np.float32([1, 1, 2, 2])], opset=10)
    with pytest.raises(ModelError) as caught:
        check_operators(fuse(read_graph(OnnxModel.open(source))))
    got = "  got: Resize with the inputs that it has in opset 10 (1, first 'it')"
    assert str(caught.value).splitlines()[2] == got


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (
            node_model("AveragePool", [(1, 2, 4, 4)], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
            "average pooling with pads that differ at the two ends",
        ),
        (
            node_model("Resize", [(1, 2, 3, 4)], constants=[None, np.float32([1, 2, 2, 2])], mode="linear"),
            "mode 'linear' from [1, 2, 3, 4] to [1, 4, 6, 8]",
        ),
        (
            node_model(
                "Resize",
                [(1, 2, 3, 4)],
                constants=[None, np.float32([1, 1, 1, 0.25])],
                mode="linear",
                coordinate_transformation_mode="pytorch_half_pixel",
            ),
            "coordinates 'pytorch_half_pixel' to one pixel",
        ),
        (
            node_model("Dropout", [(2, 3)], constants=[np.float32(0.5), np.array(True)]),  # noqa: FBT003 - a value
            "training_mode",
        ),
    ],
)
def test_what_depends_on_shapes_is_refused_when_it_is_executed(source, got):
    with pytest.raises(EngineError) as caught:
        execute(source, random_feeds(source)[0])
    node = source.graph.node[0]
    assert str(caught.value) == (f"a step failed\n  where: ModelProto: node 'it' ({node.op_type})\n  got: {got}")


def test_places_stay_on_the_device_as_long_as_the_step():
    """Graphs that were captured read them, and run no Python that would make them again."""
    pick, x = Picker(), torch.arange(6.0)
    assert pick(x, 0, [4, 1]).tolist() == [4, 1]
    first = weakref.ref(next(iter(pick._places.values())))
    for n in range(2000):
        pick(x, 0, [n % 6] * (n // 6 + 1))
    gc.collect()
    assert first() is not None
    del pick
    gc.collect()
    assert first() is None
