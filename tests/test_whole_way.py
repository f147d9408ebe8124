"""From an ONNX model to numbers out of an engine, on every TensorRT: doubles here, the real one where there is one.

`pytest -m tensorrt` runs the same tests on a machine with TensorRT or TensorRT-RTX and a GPU that it supports.
"""

import contextlib
import importlib
import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.doubles import VERSIONS, installed
from tests.doubles.cuda import MemoryCuda
from trtsparse import BuildConfig, Profile, Session, build, prune
from trtsparse.builder.plan import read_header
from trtsparse.cuda.driver import count_gpus

PROFILE = Profile.parse("x:1x64x8x8:4x64x8x8:8x64x8x8")
REAL = [pytest.param(name, marks=pytest.mark.tensorrt) for name in ("tensorrt", "tensorrt_rtx")]


@pytest.fixture(params=[*VERSIONS, *REAL])
def library(request):
    """Gives the name of the flavour and a function that opens a session on a plan."""
    name = request.param
    if name in ("tensorrt", "tensorrt_rtx"):
        pytest.importorskip(name)
        if not count_gpus():
            pytest.skip("no GPU")
        yield name, Session
        return
    cuda = MemoryCuda()
    with installed(name) as trt:
        trt.submit = cuda.submit
        yield trt.__name__, lambda plan: Session(plan, cuda=cuda)


@pytest.fixture(scope="module")
def model():
    """Two convolutions and a fully connected layer, pruned 2:4."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (256, 64, 3, 3), "w2": (256, 256, 1, 1), "w3": (256, 64)}
    weights = {name: (rng.standard_normal(shape) / 24).astype("f4") for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2"),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    dense = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prune(dense).model.load()


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def feeds(batch):
    return {"x": np.random.default_rng(batch).standard_normal((batch, 64, 8, 8)).astype("f4")}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_an_engine_gives_the_numbers_of_the_model(library, model, precision, tolerance, tmp_path):
    flavour, open_session = library
    config = BuildConfig(precision=precision, sparsity="enable", profiles=(PROFILE,), flavour=flavour)
    with quiet():
        engine = build(model, config, samples=[feeds(4)])
    assert engine.report.precision.reached == precision
    plan = engine.save(tmp_path / "m.plan")
    assert read_header(plan).flavour == flavour
    with Session(model) as reference, open_session(plan) as session:
        for batch in (1, 4, 8):
            expected = reference.run(feeds(batch))["y"]
            got = session.run(feeds(batch))["y"]
            assert got.dtype == expected.dtype
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_sparse_kernels_are_found_eligible_and_the_report_says_what_was_chosen(library, model):
    flavour, _ = library
    config = BuildConfig(precision="fp16", sparsity="enable", profiles=(PROFILE,), flavour=flavour)
    with quiet():
        report = build(model, config, samples=[feeds(4)]).report
    rows = {row.node: row for row in report.sites}
    assert all(row.compliant and row.eligible for row in rows.values())
    for row in rows.values():
        if flavour == "tensorrt_rtx":
            assert row.chosen == "decided at load"
        else:  # which kernels win is the GPU's business; that TensorRT considered them is not
            assert row.found
            assert row.chosen in (True, False)


def test_the_importable_module_is_the_one_the_fixture_names(library):
    flavour, _ = library
    assert importlib.import_module(flavour).__name__.partition(".")[0] == flavour
