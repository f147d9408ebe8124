"""Models executed step by step with PyTorch on the CPU, and compared with ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest

from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program, check_operators
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.ort import runner

OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)
"""The last for Python 3.10: it quantizes float16 wrongly, and lacks forms of some operators."""
needs_new_onnx_runtime = pytest.mark.skipif(OLD, reason=f"ONNX Runtime {onnxruntime.__version__} cannot do this")


def plain(node, weight, bias):
    """A product by PyTorch."""
    import torch

    weight = torch.from_numpy(np.array(weight))
    bias = None if bias is None else torch.from_numpy(np.array(bias))
    act = {"": lambda y: y, "relu": torch.nn.functional.relu, "gelu": torch.nn.functional.gelu}[
        node.attributes["act"]
    ]
    return lambda x, *added: act(sum(added, torch.nn.functional.linear(x, weight, bias)))


def execute(source, feeds):
    """The outputs, by name, and the rewritten graph."""
    import torch

    graph = fuse(read_graph(OnnxModel.open(source)))
    check_operators(graph)
    program = Program(graph, device="cpu", linear=plain)
    found = program([torch.from_numpy(feeds[name]) for name in graph.inputs])
    return dict(zip(graph.outputs, (value.numpy() for value in found), strict=True)), graph


def check(source, shapes=None, *, tolerance=1e-4, seeds=2):
    """Compare a model's outputs for some random inputs; returns how often each operator is in the rewritten graph.

    ONNX Runtime computes the nodes as they are written: its rewriting fails for some of the shapes in these tests.
    """
    for feeds in random_feeds(source, shapes=shapes, count=seeds):
        found, graph = execute(source, feeds)
        for name, right in runner(OnnxModel.open(source), optimize=False)(feeds).items():
            assert found[name].shape == right.shape
            assert found[name].dtype == right.dtype
            assert np.abs(found[name] - right).max() <= tolerance * max(np.abs(right).max(), 1e-2), name
    return graph.counts()
