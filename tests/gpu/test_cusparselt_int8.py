"""INT8 models on the cusparselt engine on a real GPU: every way to compute a product, against exact arithmetic."""

import dataclasses
import functools

import numpy as np
import pytest
from onnx import helper

import models
from tests.gpu.conftest import gpu_world
from tests.helpers import model as make_model
from tests.helpers import tensor
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.quantized_product import QuantizedProduct
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.int8 import to_int8
from trtsparse.precision.ort import runner
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session
from trtsparse.sparsity.prune import prune
from trtsparse.tune.dense import Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Configuration, Sparse

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu
SMALL = {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 512, "vocabulary": 99}
CASES = {
    "mlp": ({"widths": (256, 512, 64)}, {"input": (24, 256)}),
    "bert-base": (SMALL, {"input_ids": (8, 32)}),
    "resnext50": ({"width": 16, "image_size": 64, "num_classes": 16}, None),
}
TOLERANCES = {"typed": 0.02, "fp16": 0.05, "bf16": 0.1}
_DEEP = {"resnext50": 4}  # rounding in 50 layers becomes some steps of 1/127
_WORKSPACE_NBYTES = 64 << 20


@pytest.fixture(autouse=True)
def _gpu():
    """Skips where there is none."""
    gpu_world("cuda-python")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch was built without CUDA")


def sparse_kernel(gemm: Gemm, fits: bool):  # noqa: FBT001 - as the engine calls it
    """The library's first configuration, whether it is fast or not; it has none for the smallest products."""
    possible = fits and gemm.m >= 16 and gemm.k >= 32
    return Kernel("sparse", "config 0", {"config": 0}, 1, 1, 1, 0, 0) if possible else None


def sparse_integers(gemm: Gemm, fits: bool):  # noqa: FBT001
    """The same, and what follows it by PyTorch."""
    return sparse_kernel(gemm, fits) if gemm.out_dtype == "int32" else None


@functools.cache
def _dense(gemm: Gemm):
    problem = Dense(dense_form(gemm))
    try:
        algorithms = problem.algorithms(workspace_nbytes=_WORKSPACE_NBYTES)
    except Refused:
        algorithms = []
    finally:
        problem.close()
    return Kernel("dense", "0", dataclasses.asdict(algorithms[0]), 1, 1, 1, 0, 0) if algorithms else None


def dense_kernel(gemm: Gemm, _fits: bool):  # noqa: FBT001
    """The algorithm that cuBLASLt would take."""
    return _dense(gemm)


def no_kernel(_gemm: Gemm, _fits: bool):  # noqa: FBT001
    """PyTorch's."""


CHOOSERS = [sparse_kernel, sparse_integers, dense_kernel, no_kernel]


def session(engine, **options):
    return Session(engine, cuda=gpu_world("cuda-python").cuda, options=SessionOptions(**options))


@functools.cache
def converted(name):
    """A pruned model in INT8, inputs, and what exact Q/DQ arithmetic makes of them."""
    options, shapes = CASES[name]
    pruned = prune(models.get(name, **options)).model
    feeds = list(random_feeds(pruned, shapes=shapes, count=4))
    model = to_int8(pruned, calibration=feeds, max_error=0.5).model
    run = runner(model, optimize=False)
    return model, [(feed, run(feed)) for feed in feeds[:2]]


def check(engine, pairs, tolerance):
    with session(engine) as opened:
        for feeds, right in pairs:
            for _ in range(2):
                found = opened.run(feeds)
                for output, values in right.items():
                    scale = max(float(np.abs(values).max()), 1e-2)
                    assert float(np.abs(found[output] - values).max()) <= tolerance * scale
        return engine.used


@pytest.mark.parametrize("choose", CHOOSERS)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_models_give_what_exact_arithmetic_gives(name, precision, choose):
    model, pairs = converted(name)
    tolerance = TOLERANCES[precision] * _DEEP.get(name, 1)
    used = check(CusparseltEngine(model, precision=precision, choose=choose), pairs, tolerance)
    integers = [one for one in used if one.gemm.dtype == "int8"]
    assert integers
    kinds = {one.kernel.kind for one in integers if one.kernel is not None}
    assert kinds == {sparse_kernel: {"sparse"}, sparse_integers: {"sparse"}, dense_kernel: {"dense"}}.get(
        choose, set()
    )


@pytest.mark.parametrize("choose", [sparse_kernel, dense_kernel])
def test_compiled_models_give_the_same(choose):
    model, pairs = converted("bert-base")
    check(CusparseltEngine(model, compiled=True, choose=choose), pairs, 0.1)


def test_a_saved_engine_gives_the_same(tmp_path):
    model, pairs = converted("bert-base")
    engine = CusparseltEngine(model, choose=sparse_kernel)
    with session(engine) as opened:
        before = opened.run(pairs[0][0])
        engine.save(tmp_path / "int8.trtsparse")
    with session(CusparseltEngine(tmp_path / "int8.trtsparse")) as opened:
        for name, values in opened.run(pairs[0][0]).items():
            np.testing.assert_array_equal(values, before[name])


@functools.cache
def _large():
    """A pruned product whose scales are powers of two, an input of multiples of one, and the exact result."""
    m = n = k = 4096
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (k, n), dtype=np.int8)
    w[1::4] = w[2::4] = 0
    constants = [
        tensor("s", np.float32(2**-7)), tensor("z", np.int8(0)), tensor("w_q", w),
        tensor("w_s", (2.0 ** -rng.integers(7, 12, n)).astype(np.float32)), tensor("w_z", np.zeros(n, np.int8)),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_dq"], axis=1),
        helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="large"),
    ]
    source = make_model(nodes, constants, inputs={"x": [m, k]}, opset=21)
    feeds = {"x": rng.integers(-127, 128, (m, k)).astype(np.float32) * np.float32(2**-7)}
    return source, feeds, runner(OnnxModel.open(source), optimize=False)(feeds)["y"]


@pytest.mark.parametrize("choose", CHOOSERS)
@pytest.mark.parametrize(("precision", "rounding"), [("bf16", 2**-8), ("fp16", 2**-10)])
def test_a_large_product_is_right_to_the_last_bit_of_its_type(precision, rounding, choose):
    source, feeds, right = _large()
    with session(CusparseltEngine(source, precision=precision, choose=choose)) as opened:
        found = opened.run(feeds)["y"]
    np.testing.assert_allclose(found, right, rtol=rounding, atol=1e-5 * float(np.abs(right).max()))


@pytest.mark.parametrize("choose", CHOOSERS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("act", ["", "relu", "gelu"])
@pytest.mark.parametrize("biased", [False, True])
def test_bias_and_activation_follow_the_scales(choose, dtype, act, biased):
    n, k, x_scale = 384, 512, 2.0**-6
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, (n, k), dtype=np.int8)
    w[:, 1::4] = w[:, 3::4] = 0
    scales = (rng.uniform(0.5, 2, n) * 2e-5).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if biased else None
    node = Node("QuantizedLinear", "it", ["x", "w"], ["y"], {"act": act, "x_scale": x_scale, "w_scale": scales})
    product = QuantizedProduct(Products(torch.device("cuda"), None, choose), node, w, bias)
    for rows in (1, 17, 64, 300):
        steps = rng.integers(-128, 128, (rows, k))
        right = steps @ w.T.astype(np.float64) * scales * x_scale + (0 if bias is None else bias)
        right = {"": lambda y: y, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[act](torch.from_numpy(right))
        found = product(torch.from_numpy(steps * x_scale).to("cuda", kind))
        assert (found.dtype, tuple(found.shape)) == (kind, (rows, n))
        error = (found.double().cpu() - right).abs().max() / right.abs().max()
        assert float(error) <= {"bf16": 0.008, "fp16": 0.001, "fp32": 1e-5}[dtype]
    product.close()


@pytest.mark.parametrize("act", ["", "relu", "gelu"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("biased", [False, True])
def test_integers_for_the_next_product_are_those_of_exact_arithmetic(dtype, act, biased):
    """GELU by tanh, and its factor, are the library's."""
    n, k, x_scale, y_scale = 384, 512, 2.0**-6, 0.02
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, (n, k), dtype=np.int8)
    w[:, 1::4] = w[:, 3::4] = 0
    scales = (rng.uniform(0.5, 2, n) * 2e-5).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if biased else None
    attributes = {"act": act, "x_scale": x_scale, "w_scale": scales, "y_scale": y_scale, "to": 1}
    node = Node("QuantizedLinear", "it", ["x", "w"], ["y"], attributes)

    def integers(gemm, fits):
        return sparse_kernel(gemm, fits) if gemm.out_dtype == "int8" else None

    product = QuantizedProduct(Products(torch.device("cuda"), kind, integers), node, w, bias)
    for rows in (64, 300):
        steps = rng.integers(-128, 128, (rows, k))
        right = steps @ w.T.astype(np.float64) * scales * x_scale + (0 if bias is None else bias)
        right = {"": lambda y: y, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[act](torch.from_numpy(right))
        right = torch.clamp(torch.round(right / y_scale), -128, 127)
        found = product(torch.from_numpy(steps * x_scale).to("cuda", kind))
        off = (found.double().cpu() - right).abs()
        assert found.dtype == torch.int8
        assert float(off.max()) <= 1
        assert float(off.mean()) < 0.05
        assert torch.equal(product(torch.from_numpy(steps.astype(np.int8)).cuda()), found)
    assert {used.gemm.types for used in product.used} == {"int8->int8"}
    product.close()


@pytest.mark.parametrize("gemm", [Gemm(512, 1024, 2048, "int8", out, "bias") for out in ("bf16", "fp16")], ids=str)
def test_every_configuration_also_scales_by_channel(gemm):
    """So that what was tuned with one factor runs with many."""
    vector = torch.ones(gemm.n, dtype=torch.float32, device="cuda")

    def planned(**options):
        problem = Sparse(gemm, bias=vector.data_ptr(), **options)
        found = []
        for configuration in problem.configurations()[1]:
            try:
                problem.runner(configuration).close()
            except Refused:
                continue
            found.append(configuration)
        problem.close()
        return found

    plain = planned()
    assert plain
    assert planned(alphas=vector.data_ptr()) == plain


def test_plans_that_scale_by_channel_live_beside_each_other():
    """cuSPARSELt breaks the older one of two plans that share descriptors."""
    gemm, to = Gemm(512, 1024, 2048, "int8", "bf16", "bias"), {"device": "cuda"}
    scales = torch.full((gemm.n,), 2.0**-10, dtype=torch.float32, **to)
    bias = torch.ones(gemm.n, dtype=torch.bfloat16, **to)
    x = torch.randint(-127, 128, (gemm.m, gemm.k), dtype=torch.int8, **to)
    w = torch.randint(-127, 128, (gemm.n, gemm.k), dtype=torch.int8, **to)
    w[:, 1::4] = w[:, 3::4] = 0
    problem = Sparse(gemm, bias=bias.data_ptr(), alphas=scales.data_ptr())
    packed, scratch = (torch.empty(size, dtype=torch.uint8, **to) for size in problem.compressed_nbytes())
    stream = torch.cuda.current_stream().cuda_stream
    problem.compress(w=w.data_ptr(), compressed=packed.data_ptr(), scratch=scratch.data_ptr(), stream=stream)
    plans = [problem.runner(configuration) for configuration in problem.configurations()[1]]
    right = (x.double() @ w.double().T) * 2.0**-10 + 1
    for plan in (*plans, *plans):
        y = torch.full((gemm.m, gemm.n), float("nan"), dtype=torch.bfloat16, **to)
        workspace = torch.empty(plan.workspace_nbytes + 1, dtype=torch.uint8, **to)
        plan.enqueue(
            x=x.data_ptr(), w=packed.data_ptr(), y=y.data_ptr(), workspace=workspace.data_ptr(), stream=stream
        )
        assert float((y.double() - right).abs().max() / right.abs().max()) < 0.008
    for plan in plans:
        plan.close()
    problem.close()


@pytest.mark.parametrize("out", ["bf16", "fp16"])
def test_gelu_is_refused_for_floating_values(out):
    """So it is computed after the kernel."""
    with pytest.raises(Refused):
        Sparse(Gemm(64, 128, 256, "int8", out, "gelu")).runner(Configuration(0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kernels_are_chosen_by_measurement(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pruned = prune(models.get("mlp", widths=(1024, 2048, 1024))).model
    feeds = list(random_feeds(pruned, shapes={"input": (4096, 1024)}, count=1))
    model = to_int8(pruned, calibration=feeds, max_error=0.5).model
    right = runner(model, optimize=False)(feeds[0])
    engine = CusparseltEngine(model, precision=precision)
    used = check(engine, [(feeds[0], right)], 0.1)
    assert all(one.kernel is not None for one in used)
