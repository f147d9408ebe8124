"""Small models, real models with their real inputs, and a real parser where one is installed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import models
from models import packaged

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.fixture(scope="session")
def parse():
    """ONNX text to a ModelProto."""

    def make(text, *, opset=17, ir=8):
        return parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {text}')

    return make


@pytest.fixture(scope="session")
def build():
    """Nodes, inputs, outputs and weights to a ModelProto."""

    def make(nodes, *, inputs, outputs, weights=(), opset=17):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node(op, ins, outs, name=name, **attributes) for op, name, ins, outs, attributes in nodes],
            "g",
            [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    return make


@pytest.fixture(scope="session")
def convnet(build):
    """Two convolutions with 2:4 sparse weights, a residual block, a dense layer."""
    random = np.random.default_rng(0)

    def sparse(*shape):
        values = random.normal(0, 0.2, shape).astype(np.float32)
        values.reshape(shape[0], -1, *shape[2:])[:, ::2] = 0
        return values

    return build(
        [
            ("Conv", "first", ["x", "w1", "b1"], ["a"], {"pads": [1, 1, 1, 1]}),
            ("Relu", "relu1", ["a"], ["b"], {}),
            ("Conv", "second", ["b", "w2"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Add", "add", ["c", "b"], ["d"], {}),
            ("Relu", "relu2", ["d"], ["e"], {}),
            ("Conv", "third", ["e", "w3"], ["f"], {}),
            ("GlobalAveragePool", "pool", ["f"], ["p"], {}),
            ("Flatten", "flatten", ["p"], ["q"], {}),
            ("Gemm", "dense", ["q", "w4"], ["y"], {"transB": 1}),
        ],
        inputs={"x": ["n", 8, 8, 8]},
        outputs={"y": ["n", 8]},
        weights={
            "w1": sparse(16, 8, 3, 3),
            "b1": np.zeros(16, np.float32),
            "w2": sparse(16, 16, 3, 3),
            "w3": sparse(16, 16, 3, 3),
            "w4": sparse(8, 16),
        },
    )


@pytest.fixture(scope="session")
def perceptron(build):
    """Two MatMuls with 2:4 sparse weights and a bias each, which folding makes Gemms with other names."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.2, (16, 16)).astype(np.float32) for name in ("w1", "w2")}
    for weight in weights.values():
        weight.reshape(-1, 4, 16)[:, 2:] = 0
    return build(
        [
            ("MatMul", "fc1", ["x", "w1"], ["a"], {}),
            ("Add", "fc1_bias", ["a", "b1"], ["b"], {}),
            ("Relu", "relu", ["b"], ["c"], {}),
            ("MatMul", "fc2", ["c", "w2"], ["d"], {}),
            ("Add", "fc2_bias", ["d", "b2"], ["y"], {}),
        ],
        inputs={"x": [4, 16]},
        outputs={"y": [4, 16]},
        weights={**weights, **{name: random.normal(size=16).astype(np.float32) for name in ("b1", "b2")}},
    )


@pytest.fixture(scope="session")
def real():
    """A real model's path and real inputs, by name."""

    def find(name, *, count=2):
        if name == "magika":
            files = sorted(Path(__file__).parent.glob("test_*.py"))
            return models.get(name), [{"bytes": packaged.magika_features(files[i : i + 4])} for i in range(count)]
        return models.get(name), [{"x": packaged.ppocr_input(name[-3:], seed=i)} for i in range(count)]

    return find


@pytest.fixture(scope="session")
def tensorrt_parses():
    """True when TensorRT-RTX parses a model; its errors otherwise."""
    trt = pytest.importorskip("tensorrt_rtx")

    def parses(model):
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        found = trt.OnnxParser(network, logger)
        done = found.parse(model.files[""]) and network.num_outputs == len(model.proto.graph.output)
        return done or [found.get_error(i).desc() for i in range(found.num_errors)]

    return parses
