import ctypes

import numpy as np
import pytest

from tests.doubles.cuda import current
from tests.tune.nvmath_double import CublasLt, CusparseLt, at, installed_nvmath
from trtsparse.errors import DeviceError, MissingDependencyError
from trtsparse.tune import sparse
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.sparse import SEGMENT_K, Configuration, Sparse

pytestmark = pytest.mark.usefixtures("cusparselt")
GEMM = Gemm(16, 32, 64, "fp16")


@pytest.fixture
def cuda():
    with current("late", strict=False) as made:
        yield made


@pytest.fixture
def cusparselt(cuda):
    library = CusparseLt(cuda)
    with installed_nvmath(CublasLt(cuda), library):
        yield library
    assert not library._handles.alive


def sparse_weight():
    values = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float16)
    values[:, 1::4] = values[:, 2::4] = 0
    return values


class Place:
    def __init__(self, cuda):
        self.cuda, self.stream = cuda, cuda.create_stream()
        self.hosts = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float16), sparse_weight()
        self.x, self.w = (self.put(array) for array in self.hosts)
        self.y, self.scratch = cuda.allocate(16 * 32 * 2), cuda.allocate(4096)

    def put(self, array):
        address = self.cuda.allocate(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address

    def compressed(self, problem):
        nbytes, scratch = problem.compressed_nbytes()
        address = self.cuda.allocate(nbytes)
        working = self.cuda.allocate(scratch)
        problem.compress(w=self.w, compressed=address, scratch=working, stream=self.stream)
        return address

    def run(self, plan, packed):
        plan.enqueue(x=self.x, w=packed, y=self.y, workspace=self.scratch, stream=self.stream)
        self.cuda.synchronize(self.stream)
        return at(self.y, np.dtype(np.float16), 16, 32).copy()


def test_one_compressed_weight_serves_every_configuration(cuda):
    place, problem = Place(cuda), Sparse(GEMM)
    packed = place.compressed(problem)
    x, w = (array.astype(np.float64) for array in place.hosts)
    default, every = problem.configurations()
    assert default == Configuration(3)
    assert every == [Configuration(number) for number in range(4)]
    for configuration in (*every, Configuration(1, SEGMENT_K), Configuration(0, 2, "one_kernel")):
        plan = problem.runner(configuration)
        np.testing.assert_allclose(place.run(plan, packed), x @ w.T, rtol=1e-2, atol=1e-2)
        plan.close()
    problem.close()


def test_a_weight_with_another_pattern_gives_something_else(cuda):
    """No error comes from the library: the check against float64 has to find it."""
    place, problem = Place(cuda), Sparse(GEMM)
    place.w = place.put(np.ones((32, 64), np.float16))
    plan = problem.runner(Configuration(0))
    got = place.run(plan, place.compressed(problem))
    assert not np.allclose(got, place.hosts[0].astype(np.float64) @ np.ones((64, 32)), rtol=0.1)
    plan.close()
    problem.close()


@pytest.mark.parametrize("out", ["fp16", "bf16", "int8", "int32"])
def test_int8_products_are_scaled_by_channel_before_bias_and_activation(cuda, out):
    place, rng = Place(cuda), np.random.default_rng(2)
    gemm = Gemm(16, 32, 64, "int8", out, "bias_relu")
    x, w = rng.integers(-9, 9, (16, 64), dtype=np.int8), rng.integers(-9, 9, (32, 64), dtype=np.int8)
    w[:, 1::4] = w[:, 2::4] = 0
    scales = (2.0 ** -rng.integers(3, 9, 32)).astype(np.float32)
    bias = rng.standard_normal(32).astype(gemm.bias_type.numpy)
    place.x, place.w = place.put(x), place.put(w)
    problem = Sparse(gemm, bias=place.put(bias), alphas=place.put(scales))
    plan = problem.runner(Configuration(2))
    place.y = cuda.allocate(16 * 32 * gemm.output_type.nbytes)
    place.run(plan, place.compressed(problem))
    found = at(place.y, gemm.output_type.numpy, 16, 32).astype(np.float64)
    right = np.maximum(scales * (x.astype(np.float64) @ w.T.astype(np.float64)) + bias, 0)
    np.testing.assert_allclose(found, right, rtol=1e-2, atol=0.51 if gemm.output_type.exact else 1e-2)
    plan.close()
    problem.close()


def test_a_gelu_of_int8_results_is_scaled_after_it(cuda):
    place, rng = Place(cuda), np.random.default_rng(2)
    x, w = rng.integers(-9, 9, (16, 64), dtype=np.int8), rng.integers(-9, 9, (32, 64), dtype=np.int8)
    w[:, 1::4] = w[:, 2::4] = 0
    place.x, place.w = place.put(x), place.put(w)
    problem = Sparse(Gemm(16, 32, 64, "int8", "int8", "gelu"), alpha=2**-8, gelu_scale=50.0)
    plan = problem.runner(Configuration(2))
    place.run(plan, place.compressed(problem))
    found = at(place.y, np.dtype(np.int8), 16, 32).astype(np.float64)
    values = 2**-8 * (x.astype(np.float64) @ w.T.astype(np.float64))
    values = 25 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
    assert np.abs(found - np.clip(np.rint(values), -128, 127)).max() <= 1
    assert found.max() > 50
    plan.close()
    problem.close()


def test_plans_that_scale_by_channel_live_beside_each_other(cuda):
    place = Place(cuda)
    problem = Sparse(Gemm(16, 32, 64, "int8", "fp16"), alphas=place.put(np.full(32, 2**-8, np.float32)))
    packed = place.compressed(problem)
    plans = [problem.runner(Configuration(number)) for number in range(3)]
    first, *others = [place.run(plan, packed) for plan in plans]
    for other in others:
        np.testing.assert_array_equal(other, first)
    for plan in plans:
        plan.close()
    problem.close()


def test_factors_of_channels_are_on_the_device(cuda):
    place, host = Place(cuda), np.ones(32, np.float32)
    problem = Sparse(Gemm(16, 32, 64, "int8", "fp16"), alphas=host.ctypes.data)
    plan = problem.runner(Configuration(0))
    with pytest.raises(AssertionError, match="is not device memory that is alive"):
        place.run(plan, place.compressed(problem))
    plan.close()
    problem.close()


def test_rows_are_padded(cusparselt):
    problem = Sparse(Gemm(13, 32, 64, "fp16"))
    assert cusparselt._handles[cusparselt._handles[problem._matmul].x].rows == 16
    problem.close()


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        (Configuration(99), "cuSPARSELt: invalid value"),
        (Configuration(0, 1, "stream_k"), "cuSPARSELt: invalid value"),
    ],
)
def test_a_configuration_that_the_library_does_not_have_is_refused(configuration, why):
    problem = Sparse(GEMM)
    with pytest.raises(Refused) as caught:
        problem.runner(configuration)
    assert str(caught.value) == why
    problem.close()


@pytest.mark.parametrize(
    ("gemm", "why"),
    [
        (Gemm(16, 30, 64, "fp16"), "cuSPARSELt: operation not supported"),
        (Gemm(16, 32, 60, "fp16"), "cuSPARSELt: operation not supported"),
        (Gemm(16, 32, 64, "fp16", "", "gelu"), "cuSPARSELt: invalid value"),
        (Gemm(16, 32, 64, "int8", "fp16", "gelu"), "cuSPARSELt: invalid value"),
    ],
)
def test_a_product_that_the_library_does_not_take_is_refused(gemm, why):
    with pytest.raises(Refused) as caught:
        Sparse(gemm)
    assert str(caught.value) == why


def test_only_int8_products_are_scaled_by_channel(cuda):
    with pytest.raises(Refused, match="cuSPARSELt: invalid value"):
        Sparse(GEMM, alphas=cuda.allocate(128))


@pytest.mark.parametrize(
    ("configuration", "name", "form"),
    [
        (Configuration(7), "config 7", ""),
        (Configuration(7, SEGMENT_K), "config 7 segment_k", "segment_k"),
        (Configuration(7, 4, "two_kernels"), "config 7 split 4 two_kernels", "split 4 two_kernels"),
        (Configuration(7, 1, "stream_k"), "config 7 stream_k", "stream_k"),
    ],
)
def test_a_configuration_has_a_name_and_a_form(configuration, name, form):
    assert (configuration.name, configuration.form) == (name, form)


def test_short_reductions_are_not_split():
    assert {one.split_k for one in Configuration(0).variants(512)} == {SEGMENT_K, 1}
    assert {one.split_k for one in Configuration(0).variants(2048)} == {SEGMENT_K, 1, 2, 4}
    assert Configuration(0) not in list(Configuration(0).variants(1 << 20))


def test_the_version_is_that_of_the_library():
    assert sparse.version() == "0.8.0"


def test_a_missing_binding_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nvmath.bindings", None)
    sparse._library.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        sparse.version()
    assert str(caught.value) == "cuSPARSELt is used through nvmath-python\n  to fix: pip install 'trtsparse[cuda]'"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("cusparselt", DeviceError, "cuSPARSELt does not take this GPU\n  got: cuSPARSELtError (8)"),
        (
            "runtime",
            MissingDependencyError,
            "cuSPARSELt cannot be loaded\n  where: no libcusparseLt.so.0\n  to fix: pip install 'trtsparse[cuda]'",
        ),
    ],
)
def test_a_library_that_cannot_start_is_told(cusparselt, monkeypatch, error, kind, message):
    def fail():
        raise cusparselt.cuSPARSELtError(8) if error == "cusparselt" else RuntimeError("no libcusparseLt.so.0")

    monkeypatch.setattr(cusparselt, "init", fail)
    with pytest.raises(kind) as caught:
        Sparse(GEMM)
    assert str(caught.value) == message
