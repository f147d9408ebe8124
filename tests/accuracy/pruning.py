"""Models to prune with calibration data, and the data."""

import numpy as np
from onnx import helper

from tests.helpers import model, random, tensor
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner

METHODS = ("magnitude", "wanda", "sparsegpt")


def feeds(*shape, count=6, seed=0, name="x", dtype=np.float32):
    """Correlated inputs whose mean is not zero."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(shape[-1], shape[-1]))
    return [{name: (generator.normal(0.5, 1, shape) @ mix).astype(dtype)} for _ in range(count)]


def images(*shape, count=4, seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(0.3, 1, shape).cumsum(1).astype(np.float32)} for _ in range(count)]


def chain(*, bias=True, opset=17):
    """MatMul, Add, Relu, MatMul, Add: names w, b, v, c."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="first"),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["s"], name="second"),
        helper.make_node("Add", ["s", "c"], ["y"]) if bias else helper.make_node("Identity", ["s"], ["y"]),
    ]
    weights = {"w": random(16, 12), "b": random(12, seed=1), "v": random(12, 8, seed=2), "c": random(8, seed=3)}
    used = [tensor(name, value) for name, value in weights.items() if bias or name != "c"]
    return model(nodes, used, inputs={"x": ["n", 16]}, outputs={"y": ["n", 8]}, opset=opset)


def output_of(source, data):
    run = runner(OnnxModel.open(source), optimize=False)
    return np.concatenate([run(feed)["y"].reshape(-1) for feed in data])
