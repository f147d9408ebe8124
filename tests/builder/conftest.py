"""Small models and real ones for the build tests."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tests.doubles import VERSIONS, installed

HEADER = '<ir_version: 8, opset_import: ["": 17]> '


def two_of_four(weights, axis):
    """The weights with the second half of every group of four along an axis set to zero."""
    moved = np.moveaxis(weights, axis, -1).copy()
    groups = moved.reshape(-1, 4)
    groups[:, 2:] = 0
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def make_net(*, batch="N", sparse=True, channels=64, group=1, named=True, dtype=np.float32):
    """Conv (8 to channels), Relu, GlobalAveragePool, Flatten, Gemm (to 12)."""
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((channels, 8 // group, 3, 3)).astype(dtype)
    gemm = rng.standard_normal((channels, 12)).astype(dtype)
    if sparse:
        conv, gemm = two_of_four(conv, 1), two_of_four(gemm, 0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["conv", "relu", "pool", "flat", "gemm"] if named else [""] * 5
    nodes = [
        helper.make_node("Conv", ["x", "conv.w"], ["c"], names[0], pads=[1, 1, 1, 1], group=group),
        helper.make_node("Relu", ["c"], ["r"], names[1]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], names[2]),
        helper.make_node("Flatten", ["p"], ["f"], names[3]),
        helper.make_node("Gemm", ["f", "gemm.w", "gemm.b"], ["y"], names[4]),
    ]
    weights = {"conv.w": conv, "gemm.w": gemm, "gemm.b": np.zeros(12, dtype)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [batch, 8, 6, 6])],
        [helper.make_tensor_value_info("y", kind, [batch, 12])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_twins(first, second):
    """Two independent Relus, x to y and z to v, with the given dims."""
    pairs = [("x", "y", first), ("z", "v", second)]
    inputs = [helper.make_tensor_value_info(i, TensorProto.FLOAT, dims) for i, _, dims in pairs]
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, dims) for _, o, dims in pairs]
    nodes = [helper.make_node("Relu", [i], [o]) for i, o, _ in pairs]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def net():
    return make_net


@pytest.fixture
def twins():
    return make_twins


@pytest.fixture
def text_model():
    """Make a model from onnx.parser's text of a graph."""
    return lambda text: parser.parse_model(HEADER + text)


@pytest.fixture
def relu(text_model):
    return text_model("g (float[4] x) => (float[4] y) { y = Relu(x) }")


@pytest.fixture(params=VERSIONS)
def trt(request):
    with installed(request.param) as module:
        module.asked = request.param
        yield module


@pytest.fixture(scope="session")
def rtx():
    """The real TensorRT-RTX; it builds without a GPU."""
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="session")
def magika():
    pytest.importorskip("magika", reason="the package brings the model")
    from models.packaged import magika_model

    return magika_model()


@pytest.fixture(scope="session")
def ppocr_det():
    from models.packaged import ppocr_det_model

    pytest.importorskip("onnxruntime")
    try:
        return ppocr_det_model()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def quantized():
    """A model whose MatMul is quantized already: DequantizeLinear behind an int8 weight."""
    weight = two_of_four(np.arange(1, 32 * 64 + 1).reshape(32, 64) % 100, 0).astype(np.int8)
    scale, zero = np.float32(0.1), np.int8(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "wd"),
        helper.make_node("MatMul", ["d", "wd"], ["y"], "mm"),
    ]
    weights = {"w": weight, "s": scale, "z": zero}
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def external(tmp_path, net):
    """A model on disk whose weights are in a file beside it."""
    path = tmp_path / "external.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="external.data", size_threshold=0)
    return path
