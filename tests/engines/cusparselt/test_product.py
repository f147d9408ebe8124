"""Products of floating values by PyTorch, and by kernels whose library is a double on PyTorch's CPU memory."""

import numpy as np
import pytest

from tests.engines.cusparselt.kernels import dense_kernel, sparse_kernel
from tests.helpers import random
from trtsparse.engines.cusparselt import products
from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.products import Products
from trtsparse.errors import EngineError
from trtsparse.tune.choose import NotTuned, question

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("libraries")
N, K = 48, 64
WAYS = {"pytorch": None, "sparse": lambda _gemm: sparse_kernel(), "dense": dense_kernel}
FORMS = [(7, N), (1, N), (N,), (1, 1), (3, 7, N), (2, 1, 7, N)]
"""Of what is added to 7 rows: the same, fewer, or sums of more."""


def weight():
    values = random(N, K, seed=3)
    values[:, 1::4] = values[:, 2::4] = 0
    return values


def opened(choose, *, adds=False, act="", biased=True, use_sparse=True):
    owner = Products(torch.device("cpu"), torch.bfloat16, choose, use_sparse=use_sparse)
    inputs = ["x", "w", "b" if biased else "", *(["c"] if adds else [])]
    node = Node("Linear", "fc", inputs, ["y"], {"act": act, "transposed": True})
    return owner(node, weight(), random(N, seed=4) if biased else None)


def chooser(way, *, unable=()):
    """Answers with one kind of kernels, for all epilogues but some."""
    make = WAYS[way]
    return lambda gemm, _fits: None if make is None or gemm.epilogue in unable else make(gemm)


def right(x, c=None, *, act="", biased=True):
    y = x.double() @ torch.from_numpy(weight()).bfloat16().double().T
    y = y + torch.from_numpy(random(N, seed=4)).bfloat16().double() * biased
    y = y if c is None else y + c.double()
    return {"": lambda v: v, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[act](y)


def check(found, wanted):
    assert found.dtype == torch.bfloat16
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())


def values(*shape, seed=0):
    return torch.from_numpy(random(*shape, seed=seed)).bfloat16()


@pytest.fixture
def pass_ms(monkeypatch):
    """How long each pass over results takes, and which were timed."""
    found, timed = {}, []

    def measure(work):
        work()
        timed.append(work)
        return found["ms"]

    monkeypatch.setattr(products, "_measure_ms", measure)
    found["timed"] = timed
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", ["", "relu"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_right_by_every_kernel(way, act, biased):
    product, x = opened(chooser(way), act=act, biased=biased), values(2, 7, K)
    check(product(x), right(x, act=act, biased=biased))
    (used,) = product.used
    assert (used.gemm.m, used.kernel and used.kernel.kind) == (14, None if way == "pytorch" else way)
    product._owner.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("act", ["", "relu"])
def test_what_is_added_may_have_every_shape(way, form, act, pass_ms):
    pass_ms["ms"] = 1.0
    product, x, c = opened(chooser(way), adds=True, act=act), values(7, K), values(*form, seed=9)
    check(product(x, c), right(x, c, act=act))
    (used,) = product.used
    assert used.gemm.epilogue == ("bias" if way == "pytorch" else "_".join(filter(None, ("bias_add", act))))
    product._owner.close()


def test_what_is_added_is_read_in_order_wherever_it_lies(pass_ms):
    pass_ms["ms"] = 1.0
    product, x = opened(chooser("sparse"), adds=True, act="relu"), values(7, K)
    c = values(N, 7, seed=9).T
    check(product(x, c), right(x, c, act="relu"))
    product._owner.close()


@pytest.mark.parametrize("way", ["sparse", "dense"])
def test_a_kernel_that_cannot_add_leaves_it_to_a_pass(way):
    product = opened(chooser(way, unable=["bias_add_relu"]), adds=True, act="relu")
    x, c = values(7, K), values(7, N, seed=9)
    check(product(x, c), right(x, c, act="relu"))
    assert [used.gemm.epilogue for used in product.used] == ["bias"]
    product._owner.close()


@pytest.mark.parametrize(("adding_ms", "epilogue"), [(1.4, "bias_add_relu"), (1.6, "bias")])
def test_a_kernel_adds_where_that_is_not_slower_than_a_pass(adding_ms, epilogue, pass_ms):
    pass_ms["ms"] = 0.5
    product = opened(lambda gemm, _fits: sparse_kernel(adding_ms if gemm.has_addend else 1.0), adds=True, act="relu")
    x, c = values(7, K), values(7, N, seed=9)
    for _ in range(2):
        check(product(x, c), right(x, c, act="relu"))
    assert [used.gemm.epilogue for used in product.used] == [epilogue]
    assert len(pass_ms["timed"]) == 1
    assert product._owner.passes == {"add 7x48 bf16": 0.5}
    product._owner.close()


@pytest.mark.parametrize(("whole_ms", "epilogue"), [(1.4, "bias_gelu"), (1.6, "bias")])
def test_a_gelu_is_in_the_kernel_where_that_is_not_slower_than_a_pass(whole_ms, epilogue, pass_ms):
    pass_ms["ms"] = 0.5
    product = opened(lambda gemm, _fits: dense_kernel(gemm, whole_ms if gemm.activation else 1.0), act="gelu")
    x = values(7, K)
    check(product(x), right(x, act="gelu"))
    assert [used.gemm.epilogue for used in product.used] == [epilogue]
    product._owner.close()


@pytest.mark.parametrize(("unable", "names"), [((), ["product"]), (["bias_add_relu"], ["product", "add", "relu"])])
def test_a_trace_has_what_a_kernel_leaves_as_pytorchs_operators(unable, names, pass_ms):
    """So that a compiler makes one pass of it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    pass_ms["ms"] = 1.0
    product = opened(chooser("sparse", unable=unable), adds=True, act="relu")
    x, c = values(7, K), values(7, N, seed=9)
    product(x, c)
    traced = make_fx(product)(x, c)
    called = [str(node.target).split(".")[1] for node in traced.graph.nodes if node.op == "call_function"]
    assert [name for name in called if name not in ("expand", "view")] == names
    with product._owner.opaques.current():
        check(traced(x, c), right(x, c, act="relu"))
    product._owner.close()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_added_may_be_a_number_of_another_type_on_the_host(way, pass_ms):
    """As a constant is that is an output too."""
    pass_ms["ms"] = 1.0
    product, x, c = opened(chooser(way), adds=True, act="relu"), values(7, K), torch.full((7, N), 0.75)
    check(product(x, c), right(x, c, act="relu"))
    product._owner.close()


def test_operands_that_are_parts_of_others_are_read_where_kernels_can(pass_ms):
    pass_ms["ms"] = 1.0
    product = opened(chooser("sparse"), adds=True, act="relu")
    x, c = values(7 * K + 1)[1:].reshape(7, K), values(7 * N + 3, seed=9)[3:].reshape(7, N)
    addresses = []
    launch = product._launching

    def launching(gemm, runner, *rest):
        enqueue = runner.enqueue
        runner.enqueue = lambda **given: (addresses.extend((given["x"], given["c"])), enqueue(**given))
        return launch(gemm, runner, *rest)

    product._launching = launching
    check(product(x, c), right(x, c, act="relu"))
    assert len(addresses) == 2
    assert not any(address % 16 for address in addresses)
    product._owner.close()


@pytest.mark.parametrize(
    ("before", "after", "epilogue", "got", "expected"),
    [
        ([], ["bias_add_relu"], "bias", "a kernel that adds nothing", "one that adds a matrix"),
        (["bias_add_relu"], [], "bias_add_relu", "a kernel that adds a matrix", "one that adds nothing"),
    ],
)
def test_compiled_code_for_another_kernel_is_refused(before, after, epilogue, got, expected, pass_ms):
    """It adds what a kernel would add too, or not at all."""
    from torch.fx.experimental.proxy_tensor import make_fx

    pass_ms["ms"], unable = 1.0, before
    product = opened(chooser("sparse", unable=unable), adds=True, act="relu")
    x, c = values(7, K), values(7, N, seed=9)
    product(x, c)
    traced = make_fx(product)(x, c)
    unable[:] = after
    product._ready.pop(7).undo.close()
    with product._owner.opaques.current(), pytest.raises(EngineError) as caught:
        traced(x, c)
    assert str(caught.value) == (
        "another kernel was chosen for a product than when its model was compiled\n"
        f"  where: fc: 7x48x64 bf16->bf16 {epilogue}\n  got: {got}\n  expected: {expected}\n"
        "  to fix: open the engine again"
    )
    product._owner.close()


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("use_sparse", [True, False])
def test_a_compliant_weight_has_a_dense_kernel_where_sparse_ones_are_not_wanted(use_sparse):
    product = opened(lambda gemm, fits: WAYS["sparse" if fits else "dense"](gemm), use_sparse=use_sparse)
    x = values(7, K)
    check(product(x), right(x))
    (used,) = product.used
    assert used.kernel.kind == ("sparse" if use_sparse else "dense")
    assert product._owner.chosen == {question(used.gemm, compliant=use_sparse): used.kernel}
    product._owner.close()


@pytest.mark.usefixtures("libraries")
def test_a_product_that_could_not_be_tuned_is_pytorchs_with_a_warning_and_not_remembered():
    """So that an engine that is loaded from the saved form has it tuned; in this one nothing changes meanwhile."""
    asked = []

    def choose(gemm, fits):
        asked.append((gemm, fits))
        raise NotTuned("out of memory")

    product, x = opened(choose), values(7, K)
    with pytest.warns(RuntimeWarning) as warned:
        check(product(x), right(x))
    (used,) = product.used
    assert [str(warning.message) for warning in warned] == [
        f"the product {used.gemm.key} could not be tuned, and PyTorch's own kernel may compute it: out of memory"
    ]
    assert used.kernel is None
    owner = product._owner
    assert owner.chosen == {}
    for compliant in (True, False):  # one measurement is for both, and is not tried again
        assert owner.choose(used.gemm, compliant) is None
    assert asked == [(used.gemm, True)]
    owner.close()


@pytest.mark.usefixtures("libraries")
def test_that_there_is_no_kernel_for_a_product_is_remembered():
    product = opened(chooser("pytorch"))
    product(values(7, K))
    (used,) = product.used
    assert product._owner.chosen == {question(used.gemm, compliant=True): None}
    product._owner.close()


@pytest.mark.parametrize("adds", [False, True])
def test_no_rows_have_no_kernel(adds):
    product = opened(lambda gemm, _fits: pytest.fail(f"{gemm.key} was asked for"), adds=adds, act="relu")
    found = product(values(2, 0, K), *([values(N)] if adds else []))
    assert (found.shape, found.dtype, product.used) == ((2, 0, N), torch.bfloat16, [])
    product._owner.close()


def test_float32_is_pytorchs_own():
    owner = Products(torch.device("cpu"), None, chooser("sparse"))
    product = owner(Node("Linear", "fc", ["x", "w", "", "c"], ["y"], {"act": "relu"}), weight(), None)
    x, c = torch.from_numpy(random(7, K)), torch.from_numpy(random(7, N, seed=9))
    wanted = np.maximum(x.numpy() @ weight().T + c.numpy(), 0)
    np.testing.assert_allclose(product(x, c).numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert product.used == []
    owner.close()
