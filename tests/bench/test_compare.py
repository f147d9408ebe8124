"""Dense against sparse: measured in turn, and a verdict that noise does not make."""

import itertools
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

import models
from tests.doubles import installed
from tests.doubles.bindings import installed_bindings, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.device_engine import engine_on_memory, kernel
from tests.helpers import matmul, random
from trtsparse.bench import compare as module
from trtsparse.bench.compare import Comparison, Side, compare, compare_engines
from trtsparse.bench.options import BenchOptions
from trtsparse.builder.config import BuildConfig, SparsityWarning
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.errors import ConfigError, MissingDependencyError, ModelError, ShapeError
from trtsparse.sparsity.prune import prune

QUICK = BenchOptions(iterations=5, duration_s=0.0, warm_up_ms=1.0)
SIDE = Side("an engine", 1.0, 0.9, 1.1, None)


def comparison(*gains, joules=(None, None), **facts):
    sides = [Side("an engine", 1.0, 0.9, 1.1, joule) for joule in joules]
    return Comparison(*sides, gains=gains, output_error=0.0, worst_output="y", **facts)


def network(text):
    """A model that takes x, (1, 8), or what the text says."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')


def test_the_cpu_runs_both_and_tells_how_far_their_outputs_are_apart():
    model = models.get("mlp", widths=(64, 128, 16))
    found = compare(model, engine="onnxruntime", shapes={"input": (2, 64)}, rounds=3, options=QUICK)
    assert len(found.gains) == 3
    assert found.random == ("input",)
    assert found.worst_output
    assert 0.01 < found.output_error < 10
    assert found.dense.low_ms <= found.dense.latency_ms <= found.dense.high_ms
    assert found.energy_gain is None
    assert found.to_dict()["schema"] == "trtsparse.compare/1"


def test_an_engine_without_sparse_kernels_never_ships_sparse(monkeypatch):
    """However the times came out."""
    monkeypatch.setattr(module, "compare_engines", lambda *_, **__: comparison(1.2, 1.3, 1.1))
    found = compare(models.get("mlp", widths=(64, 128, 16)), engine="onnxruntime", shapes={"input": (2, 64)})
    assert (found.gain, found.runs_sparse, found.ships_sparse) == (1.2, False, False)
    assert found.to_dict()["runs_sparse"] is False


def test_a_model_that_is_sparse_already_is_compared_as_it_is():
    model = prune(models.get("mlp", widths=(64, 128, 16))).model
    feeds = {"input": np.ones((3, 64), np.float32)}
    found = compare(model, sparse=model, engine="onnxruntime", feeds=feeds, rounds=3, options=QUICK)
    assert found.output_error == 0
    assert found.random == ()


def test_the_first_engine_changes_from_round_to_round(monkeypatch):
    order = []
    engines = [OnnxRuntimeEngine(models.get("mlp", widths=(8, 16, 4))) for _ in range(2)]
    original = module.measure

    def noting(engine, feeds, **options):
        order.append(engines.index(engine))
        return original(engine, feeds, **options)

    monkeypatch.setattr(module, "measure", noting)
    steps = []
    compare_engines(
        *engines, {"input": np.ones((1, 8), np.float32)}, rounds=4, options=QUICK,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert order == [0, 1, 1, 0, 0, 1, 1, 0]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("gains", "ships", "verdict"),
    [
        ((1.2, 1.3, 1.25, 1.1), True, "ship the sparse engine: 1.23 x as fast (1.1 to 1.3 in 4 rounds)"),
        ((1.2, 1.3, 1.25, 0.9), True, "ship the sparse engine: 1.23 x as fast (0.9 to 1.3 in 4 rounds)"),
        (
            (1.2, 1.3, 0.9, 0.8, 1.1),
            False,
            "ship the dense engine: the sparse one is not faster reliably (1.1 x, 0.8 to 1.3 in 5 rounds)",
        ),
        ((0.8, 0.9, 1.1), False, "ship the dense engine: the sparse one is 0.9 x as fast (0.8 to 1.1 in 3 rounds)"),
        ((1.0, 1.0, 1.0), False, "ship the dense engine: the sparse one is 1 x as fast (1 to 1 in 3 rounds)"),
    ],
)
def test_sparse_ships_only_where_it_wins_in_the_median_and_in_most_rounds(gains, ships, verdict):
    found = comparison(*gains)
    assert found.ships_sparse is ships
    assert found.verdict == verdict


def test_an_engine_that_runs_no_sparse_kernels_is_not_the_one_to_ship():
    found = comparison(1.2, 1.3, 1.1, runs_sparse=False)
    assert not found.ships_sparse
    assert found.verdict == (
        "ship the dense engine: the sparse one runs no sparse kernels (1.2 x, 1.1 to 1.3 in 3 rounds)"
    )


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=15))
def test_swapping_the_engines_never_ships_both(gains):
    there, back = comparison(*gains), comparison(*(1 / gain for gain in gains))
    assert not (there.ships_sparse and back.ships_sparse)


def test_energy_is_compared_where_both_were_measured():
    assert comparison(1.1, 1.1, 1.1, joules=(0.3, 0.2)).energy_gain == pytest.approx(1.5)
    assert comparison(1.1, 1.1, 1.1, joules=(0.3, None)).energy_gain is None


def test_wrong_questions_are_refused():
    model = models.get("mlp", widths=(8, 16, 4))
    with pytest.raises(ConfigError) as caught:
        compare(model, engine="onnx")
    assert (
        str(caught.value)
        == "no such engine\n  where: engine\n  got: 'onnx'\n  expected: 'tensorrt', 'cusparselt', 'onnxruntime'"
    )
    with pytest.raises(ConfigError) as caught:
        compare(model, engine="onnxruntime", rounds=2)
    assert str(caught.value) == (
        "too few rounds to tell a difference from noise\n  where: rounds\n  got: 2\n  expected: at least 3"
    )
    with pytest.raises(ConfigError, match="did you mean 'input'"):
        compare(model, engine="onnxruntime", feeds={"inptu": np.ones((1, 8), np.float32)}, rounds=3, options=QUICK)


OTHERS = {
    "inputs": (
        "(float[1, 8] z) => (float[1, 8] y) { y = Relu(z) }",
        ModelError,
        "the models have different inputs\n  where: ModelProto\n  got: 'z'\n  expected: 'x'",
    ),
    "outputs": (
        "(float[1, 8] x) => (float[1, 8] z) { z = Relu(x) }",
        ModelError,
        "the models have different outputs\n  where: ModelProto\n  got: 'z'\n  expected: 'y'",
    ),
    "shapes": (
        "(float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }",
        ShapeError,
        "an array has the wrong shape\n  where: input 'x', dim 1\n  got: (1, 8)\n  expected: (1, 4)",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_models_that_cannot_be_compared_are_refused_before_they_are_built(engine, other, monkeypatch):
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("it was loaded"))
    text, error, message = OTHERS[other]
    dense = network("(float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }")
    with pytest.raises(error) as caught:
        compare(dense, sparse=network(text), engine=engine, rounds=3, options=QUICK)
    assert str(caught.value) == message


def test_engines_with_different_outputs_are_refused_before_they_run(monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("it was measured"))
    texts = (f"(float[1, 8] x) => (float[1, 8] {y}) {{ {y} = Relu(x) }}" for y in "yz")
    dense, sparse = (OnnxRuntimeEngine(network(text)) for text in texts)
    with pytest.raises(ModelError) as caught:
        compare_engines(dense, sparse, {"x": np.ones((1, 8), np.float32)}, rounds=3, options=QUICK)
    assert str(caught.value) == (
        f"the models have different outputs\n  where: {sparse.description}\n  got: 'z'\n  expected: 'y'"
    )


@pytest.mark.parametrize("sparsity", ["compliant", "dense", "not eligible"])
def test_whether_a_plan_runs_sparse_is_read_from_its_report(sparsity):
    """A copy of the dense model, and one without weights, are no faster but for noise."""
    weights = random(64, 128)
    if sparsity == "compliant":
        weights[::4] = weights[1::4] = 0
    model = network("(float[2, 64] x) => (float[2, 64] y) { y = Relu(x) }")
    model = model if sparsity == "not eligible" else matmul(weights)
    cuda = MemoryCuda(log=False)
    with installed("10.13.3") as trt, installed_bindings(runtime=make_runtime(cuda)):
        trt.submit = cuda.submit
        warned = nullcontext() if sparsity == "compliant" else pytest.warns(SparsityWarning)
        with warned:
            found = compare(model, sparse=model, rounds=3, options=replace(QUICK, energy=False))
    assert found.runs_sparse is (sparsity == "compliant")
    assert set(cuda.alive.values()) == {0}


SITE = SimpleNamespace(eligible=True, compliant=True, chosen=True)


@pytest.mark.parametrize(
    ("site", "untraced", "runs"),
    [
        ({}, (), True),
        ({"chosen": "decided at load"}, (), True),
        ({"chosen": None}, (), True),
        ({"chosen": False}, (), False),
        ({"chosen": False}, ("fused layer",), True),
        ({"chosen": None, "compliant": False}, (), False),
        ({"chosen": None, "eligible": False}, (), False),
    ],
)
def test_a_plan_that_does_not_tell_may_run_sparse_where_it_could(site, untraced, runs):
    report = SimpleNamespace(sites=[SimpleNamespace(**{**vars(SITE), **site})], untraced=untraced)
    assert module._has_sparse(report) is runs


def test_a_plan_of_each_is_built_with_the_same_settings(monkeypatch):
    """With TensorRT: everything but the sparsity flag is equal, and the profile comes from the inputs."""
    import trtsparse.builder.build as builder
    from trtsparse.errors import BuildError

    asked = []

    def noting(_source, config, *, samples):
        asked.append((config, samples))
        raise BuildError("stop here")

    monkeypatch.setattr(builder, "build", noting)
    with pytest.raises(BuildError, match="stop here"):
        compare(models.get("mlp", widths=(8, 16, 4)), config=BuildConfig(precision="bf16"), shapes={"input": (3, 8)})
    (config, samples), *_ = itertools.chain(asked)
    assert (config.precision, config.sparsity) == ("bf16", "disable")
    assert samples[0]["input"].shape == (3, 8)


def test_the_cusparselt_engine_is_asked_for_what_it_has_before_anything_is_read():
    with pytest.raises(ConfigError) as caught:
        compare("none.onnx", engine="cusparselt", config=BuildConfig(precision="int8"))
    assert str(caught.value) == (
        "the cusparselt engine does not compare in this precision\n"
        "  where: precision\n"
        "  got: 'int8'\n"
        "  expected: 'fp16' or 'bf16'\n"
        "  to fix: take one of these; a model with Q/DQ nodes is computed in INT8 in either"
    )
    with pytest.raises(ConfigError) as caught:
        compare("none.onnx", engine="cusparselt", config=BuildConfig(precision="tf32"))
    assert caught.value.fix == "take one of these"


@pytest.mark.parametrize(("level", "compiled"), [(None, False), (3, False), (4, True), (5, True)])
def test_of_a_model_that_is_sparse_already_the_dense_engine_runs_no_sparse_kernels(monkeypatch, level, compiled):
    asked = []

    def engine(model, **options):
        asked.append(options)
        made = OnnxRuntimeEngine(model, threads=1)
        made.used = ()
        return made

    monkeypatch.setattr("trtsparse.engines.cusparselt.engine.CusparseltEngine", engine)
    model = prune(models.get("mlp", widths=(64, 128, 16))).model
    config = BuildConfig(precision="bf16", optimization_level=level)
    found = compare(model, engine="cusparselt", config=config, shapes={"input": (2, 64)}, rounds=3, options=QUICK)
    assert found.output_error == 0
    both = {"precision": "bf16", "compiled": compiled}
    assert asked == [{**both, "use_sparse": False}, {**both, "use_sparse": True}]


@pytest.mark.parametrize("chosen", ["sparse", "dense", None])
def test_the_cusparselt_engine_runs_sparse_where_such_a_kernel_was_chosen(monkeypatch, chosen):
    """What was chosen is known once it has run."""
    cuda = MemoryCuda(log=False)
    engines = partial(engine_on_memory(cuda), choose=lambda _gemm, _fits: chosen and kernel(chosen))
    monkeypatch.setattr("trtsparse.engines.cusparselt.engine.CusparseltEngine", engines)
    with installed_bindings(runtime=make_runtime(cuda)):
        options = replace(QUICK, energy=False)
        found = compare(matmul(random(64, 128)), engine="cusparselt", rounds=3, options=options)
    assert found.runs_sparse is (chosen == "sparse")


def test_what_the_cusparselt_engine_lacks_is_said_as_sessions_say_it(monkeypatch):
    monkeypatch.setattr("trtsparse.engines.count_gpus", lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError) as caught:
        compare(models.get("mlp", widths=(8, 16, 4)), engine="cusparselt", shapes={"input": (1, 8)})
    assert str(caught.value) == (
        "the cusparselt engine needs PyTorch and Python's packages for CUDA\n"
        "  where: PyTorch is not installed\n"
        "  to fix: pip install 'trtsparse[cuda,torch]'"
    )
