"""Quantized products by PyTorch, and by kernels whose library is a double on PyTorch's CPU memory."""

import numpy as np
import pytest

from tests.engines.cusparselt.kernels import dense_kernel, sparse_kernel
from tests.helpers import random
from trtsparse.engines.cusparselt import products
from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.products import Products
from trtsparse.engines.cusparselt.quantized_product import QuantizedProduct
from trtsparse.errors import EngineError
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

torch = pytest.importorskip("torch")
N, K, X_SCALE = 48, 64, 0.02
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCES = {"bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-5}


def integers(*, n=N, k=K, compliant=True):
    values = np.rint(random(n, k, seed=3) * 127).astype(np.int8)
    if compliant:
        values[:, 1::4] = values[:, 2::4] = 0
    return values


def opened(choose, *, act="", bias=None, weight=None, stored=None, owner=None, **more):
    weight = integers() if weight is None else weight
    scales = np.linspace(0.001, 0.01, len(weight), dtype=np.float32)
    attributes = {"act": act, "x_scale": X_SCALE, "w_scale": scales, **more}
    node = Node("QuantizedLinear", "node", ["x", "w"], ["y"], attributes)
    owner = owner or Products(torch.device("cpu"), None, choose, compressed=stored)
    return QuantizedProduct(owner, node, weight, bias)


def right(x, act, bias, weight):
    steps = np.clip(np.rint(x.float().numpy() / np.float32(X_SCALE)), -128, 127).astype(np.float64)
    y = steps @ weight.T.astype(np.float64) * X_SCALE * np.linspace(0.001, 0.01, len(weight), dtype=np.float32)
    y = torch.from_numpy(y if bias is None else y + bias)
    return {"": lambda v: v, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[act](y).numpy()


def check(product, rows, dtype, act, bias, weight, *, tolerance=None):
    x = torch.from_numpy(random(rows, weight.shape[1], seed=rows) * 3).to(TYPES[dtype])
    found = product(x)
    assert (found.dtype, tuple(found.shape)) == (TYPES[dtype], (rows, len(weight)))
    wanted = right(x, act, bias, weight)
    error = np.abs(found.double().numpy() - wanted).max()
    assert error <= (tolerance or TOLERANCES[dtype]) * np.abs(wanted).max()


class Chooser:
    """Kernels with given times, and the questions that were asked."""

    def __init__(self, *, whole=None, sparse=None, dense=None, steps=None):
        self.whole, self.sparse, self.dense, self.steps = whole, sparse, dense, steps
        self.asked = []

    def __call__(self, gemm, compliant):
        self.asked.append((gemm, compliant))
        if gemm.out_dtype == "int8":
            return sparse_kernel(self.steps) if compliant and self.steps is not None else None
        if gemm.out_dtype == "int32":
            if compliant and self.sparse is not None:
                return sparse_kernel(self.sparse)
            return None if self.dense is None else dense_kernel(gemm, self.dense)
        return sparse_kernel(self.whole) if compliant and self.whole is not None else None


WAYS = {
    "pytorch": {},
    "floating values from a sparse kernel": {"whole": 1.0},
    "integers from a sparse kernel": {"sparse": 1.0},
    "integers from a dense kernel": {"dense": 1.0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("act", "biased"), [("", False), ("", True), ("relu", True), ("relu", False), ("gelu", True)]
)
@pytest.mark.usefixtures("libraries")
def test_every_way_gives_the_same(way, dtype, act, biased):
    bias, weight = random(N, seed=7) / 10 if biased else None, integers()
    product = opened(Chooser(**WAYS[way]), act=act, bias=bias)
    for rows in (1, 16, 33, 1):
        check(product, rows, dtype, act, bias, weight)
    assert [used.gemm.m for used in product.used] == [1, 16, 33]
    product.close()
    product.close()


@pytest.mark.parametrize(("more", "dtype"), [({}, torch.float16), ({"y_scale": 0.5}, torch.int8)])
def test_no_rows_have_no_kernel(more, dtype):
    product = opened(lambda gemm, _fits: pytest.fail(f"{gemm.key} was asked for"), act="gelu", **more)
    found = product(torch.zeros((2, 0, K), dtype=torch.float16))
    assert (found.shape, found.dtype, product.used) == ((2, 0, N), dtype, [])
    product.close()


STEPS = {**WAYS, "integers for the next product from a sparse kernel": {"steps": 1.0}}


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("act", "biased"), [("", False), ("", True), ("relu", True), ("gelu", False), ("gelu", True)]
)
@pytest.mark.usefixtures("libraries")
def test_every_way_gives_the_next_product_the_same_integers(way, dtype, act, biased):
    bias, weight, y_scale = random(N, seed=7) / 10 if biased else None, integers(), 0.004
    product = opened(
        Chooser(**STEPS[way]), act=act, bias=bias, y_scale=y_scale, to={"fp32": 1, "fp16": 10, "bf16": 16}[dtype]
    )
    for rows in (1, 16, 33, 1):
        x = torch.from_numpy(random(rows, K, seed=rows) * 3).to(TYPES[dtype])
        found = product(x)
        wanted = np.clip(np.rint(right(x, act, bias, weight) / y_scale), -128, 127)
        off = np.abs(found.numpy().astype(np.float64) - wanted)
        assert found.dtype == torch.int8
        assert off.max() <= 1  # at ties, and where 16 bits were between
        assert off.mean() < 0.06
        steps = torch.clamp(torch.round(x.float() / X_SCALE), -128, 127).to(torch.int8)
        assert torch.equal(product(steps), found)  # as the product before it gives it
    assert len(product._held) <= 2  # for any number of rows
    if way not in WAYS:
        assert {used.gemm.types for used in product.used} == {"int8->int8"}
    product.close()


@pytest.mark.parametrize(
    ("steps", "whole", "dense", "act", "chosen"),
    [
        (1.0, 0.8, None, "", "int8->int8"),  # the other has a pass to come
        (1.0, 0.8, None, "relu", "int8->int8"),
        (1.0, 0.6, None, "", "int8->bf16"),
        (1.0, 0.8, 0.9, "gelu", "int8->int8"),
        (1.0, 0.8, 0.6, "gelu", "int8->int32"),
        (None, 1.0, 0.6, "", "int8->int32"),  # both have a pass to come
    ],
)
@pytest.mark.usefixtures("libraries")
def test_integers_for_the_next_product_are_worth_their_time(monkeypatch, steps, whole, dense, act, chosen):
    monkeypatch.setattr(products, "_measure_ms", lambda _work: 0.3)
    product = opened(Chooser(steps=steps, whole=whole, dense=dense), act=act, y_scale=0.01, to=16)
    product(torch.from_numpy(random(16, K)).bfloat16())
    assert product.used[0].gemm.types == chosen
    product.close()


def test_the_kernels_that_were_chosen_run(libraries):
    cublaslt, _ = libraries
    dense, whole, sums = (opened(Chooser(**WAYS[way]), act="relu") for way in list(WAYS)[3:0:-1])
    used, has_dense = [], []
    for product in (dense, whole, sums):
        check(product, 20, "bf16", "relu", None, integers())
        used += product.used
        has_dense.append(product.compressed is None)
        product.close()
    assert cublaslt.launched == [1]
    assert [one.kernel.kind for one in used] == ["dense", "sparse", "sparse"]
    assert has_dense == [True, False, False]
    assert sorted(one.gemm.types for one in used) == ["int8->bf16", "int8->int32", "int8->int32"]


@pytest.mark.parametrize(
    ("shape", "compliant", "asked"),
    [((48, 64), True, True), ((48, 64), False, False), ((40, 64), True, False), ((48, 72), True, False)],
)
@pytest.mark.usefixtures("libraries")
def test_sparse_kernels_are_asked_for_where_the_weight_fits(shape, compliant, asked):
    choose, weight = Chooser(), integers(n=shape[0], k=shape[1], compliant=compliant)
    product = opened(choose, weight=weight, act="relu", bias=np.zeros(shape[0], np.float32))
    check(product, 5, "fp16", "relu", None, weight)
    assert product.compliant is compliant
    gemms = [Gemm(5, *shape, "int8", "int32"), Gemm(5, *shape, "int8", "fp16", "bias_relu")]
    assert choose.asked == [(gemm, asked) for gemm in (gemms if asked else gemms[:1])]
    product.close()


@pytest.mark.parametrize(("n", "k"), [(5, 7), (8, 12), (12, 8)])
def test_dims_that_integer_products_do_not_take_are_computed_in_float32(n, k):
    weight = integers(n=n, k=k, compliant=False)
    product = opened(Chooser(), weight=weight)
    check(product, 3, "fp32", "", None, weight)
    product.close()


@pytest.mark.parametrize(
    ("whole", "dense", "act", "chosen"),
    [
        (1.0, 1.2, "", "int8->bf16"),  # the other has a pass to come
        (1.0, 0.8, "", "int8->bf16"),  # which makes it slower in all
        (1.0, 0.6, "", "int8->int32"),
        (1.0, 0.8, "gelu", "int8->int32"),  # both have a pass to come
        (1.0, 1.1, "gelu", "int8->bf16"),
        (None, 9.0, "", "int8->int32"),
        (9.0, None, "", "int8->bf16"),
    ],
)
@pytest.mark.usefixtures("libraries")
def test_the_faster_way_in_all_is_taken(monkeypatch, whole, dense, act, chosen):
    """A pass over the result takes 0.3 ms here."""

    def measured(work):
        work()
        return 0.3

    monkeypatch.setattr(products, "_measure_ms", measured)
    product = opened(Chooser(whole=whole, dense=dense), act=act)
    check(product, 16, "bf16", act, None, integers())
    assert product.used[0].gemm.types == chosen
    product.close()


@pytest.mark.usefixtures("libraries")
def test_a_dense_kernel_for_floating_values_only_gave_its_time():
    """cuBLASLt has none: what is called so was timed with INT8 results."""
    product = opened(lambda gemm, _compliant: dense_kernel(gemm))
    check(product, 16, "bf16", "", None, integers())
    assert product.used[0].gemm.out_dtype == "int32"
    product.close()


def test_a_stored_weight_is_not_compressed_again(libraries, monkeypatch):
    first = opened(Chooser(whole=1.0))
    check(first, 16, "bf16", "", None, integers())
    stored = bytes(first.compressed.numpy())
    monkeypatch.setattr(libraries[1], "sp_mma_compress2", None)  # it cannot be called
    again = opened(Chooser(whole=1.0), stored={"y": stored})
    again._for_rows(16, lambda undo: again._prepare(16, torch.bfloat16, undo))
    assert bytes(again.compressed.numpy()) == stored
    first.close()
    again.close()


@pytest.mark.usefixtures("libraries")
def test_a_kernel_that_does_not_exist_is_an_error():
    def choose(gemm, _compliant):
        return Kernel("sparse", "config 99", {"config": 99}, 1, 1, 1, 0, 0) if gemm.out_dtype == "fp16" else None

    product = opened(choose)
    with pytest.raises(EngineError) as caught:
        product(torch.zeros(16, K, dtype=torch.float16))
    assert str(caught.value) == (
        "a chosen kernel does not exist\n  where: node: 16x48x64 int8->fp16\n"
        "  got: sparse kernel config 99: cuSPARSELt: invalid value\n"
        "  to fix: delete the cache of tuning, or make the saved engine again, "
        "on this machine"
    )
    product.close()


@pytest.mark.usefixtures("libraries")
def test_kernels_are_traced_as_one_operator_and_what_surrounds_them_as_pytorchs():
    from torch.fx.experimental.proxy_tensor import make_fx

    product = opened(Chooser(dense=1.0), act="gelu")
    x = torch.from_numpy(random(20, K)).bfloat16()
    eager = product(x)
    traced = make_fx(product)(x)
    names = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert sum("trtsparse.product" in name for name in names) == 1
    assert any("aten.round" in name for name in names)
    assert any("aten.gelu" in name for name in names)
    with product._owner.opaques.current():
        assert torch.equal(traced(x), eager)
    product.close()


@pytest.mark.usefixtures("libraries")
def test_compiled_code_outlives_the_plans_that_it_was_made_with():
    from torch.fx.experimental.proxy_tensor import make_fx

    product = opened(Chooser(whole=1.0))
    x = torch.from_numpy(random(20, K)).bfloat16()
    eager = product(x)
    traced = make_fx(product)(x)
    for rows in range(100, 170):
        product(torch.from_numpy(random(rows, K)).bfloat16())
    assert 20 not in [used.gemm.m for used in product.used]
    with product._owner.opaques.current():
        assert torch.equal(traced(x), eager)
    assert product.used[-1].gemm.m == 20
    product.close()


def test_products_of_one_quantized_value_share_its_scale():
    """So that a compiler quantizes it once."""
    owner = Products(torch.device("cpu"), None, Chooser())
    first, second = (opened(Chooser(), owner=owner) for _ in range(2))
    assert first._x_scale is second._x_scale
