"""Models with Q/DQ pairs executed step by step with PyTorch on the CPU, and compared with ONNX Runtime."""

import numpy as np
from onnx import helper

from tests.helpers import tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.program import Program, check_operators
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.ort import runner

X_SCALE = np.float32(0.031)


def rewritten(source):
    return fuse(read_graph(OnnxModel.open(source)))


def execute(graph, feeds):
    import torch

    owner = Products(torch.device("cpu"), None, lambda _gemm, _compliant: None)
    check_operators(graph)
    program = Program(graph, device="cpu", linear=owner)
    found = program([torch.from_numpy(feeds[name]) for name in graph.inputs])
    owner.close()
    return dict(zip(graph.outputs, (value.numpy() for value in found), strict=True))


def check(source, shapes=None, *, tolerance=1e-5, **counts):
    """Against Q/DQ in float32 as they are written; kernels of ONNX Runtime's own saturate on some CPUs."""
    graph = rewritten(source)
    assert {op: graph.counts()[op] for op in counts} == counts
    for feeds in random_feeds(source, shapes=shapes, count=2):
        found = execute(graph, feeds)
        for name, right in runner(OnnxModel.open(source), optimize=False)(feeds).items():
            assert found[name].shape == right.shape
            assert found[name].dtype == right.dtype
            assert np.abs(found[name] - right).max() <= tolerance * max(np.abs(right).max(), 1e-2), name
    return graph


def activation(source="x", *, kind=np.int8, zero=0, scale=X_SCALE, second_scale=None):
    """A Q/DQ pair behind a value, and its constants; gives ``{source}_dq``."""
    names = [f"{source}_q", f"{source}_s", f"{source}_z", f"{source}_t"]
    nodes = [
        helper.make_node("QuantizeLinear", [source, names[1], names[2]], [names[0]]),
        helper.make_node("DequantizeLinear", [names[0], names[3], names[2]], [f"{source}_dq"]),
    ]
    second = scale if second_scale is None else second_scale
    return nodes, [tensor(names[1], scale), tensor(names[2], kind(zero)), tensor(names[3], second)]
