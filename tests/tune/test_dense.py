import ctypes

import numpy as np
import pytest

from tests.doubles.cuda import current
from tests.tune.nvmath_double import CublasLt, CusparseLt, at, installed_nvmath
from trtsparse.errors import DeviceError, MissingDependencyError
from trtsparse.tune import dense
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused

GEMM = Gemm(16, 32, 64, "fp16")
pytestmark = pytest.mark.usefixtures("cublaslt")
MOST = 64 << 20


@pytest.fixture
def cuda():
    with current("late", strict=False) as made:
        yield made


@pytest.fixture
def cublaslt(cuda):
    library = CublasLt(cuda)
    with installed_nvmath(library, CusparseLt(cuda)):
        yield library
    assert not library._handles.alive


class Place:
    """Operands on the device, and what they give."""

    def __init__(self, cuda):
        self.cuda, self.stream = cuda, cuda.create_stream()
        generator = np.random.default_rng(0)
        self.host = [generator.standard_normal(shape).astype(np.float16) for shape in ((16, 64), (32, 64))]
        self.x, self.w = (self.put(array) for array in self.host)
        self.y = cuda.allocate(16 * 32 * 2)
        self.scratch = cuda.allocate(4096)

    def put(self, array):
        address = self.cuda.allocate(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address

    def run(self, runner):
        runner.enqueue(x=self.x, w=self.w, y=self.y, workspace=self.scratch, stream=self.stream)
        self.cuda.synchronize(self.stream)
        return at(self.y, np.dtype(np.float16), 16, 32).copy()


def test_every_algorithm_of_the_heuristics_computes_the_product(cuda):
    place, problem = Place(cuda), Dense(GEMM)
    wanted = place.host[0].astype(np.float64) @ place.host[1].astype(np.float64).T
    algorithms = problem.algorithms(workspace_nbytes=MOST)
    assert len(algorithms) == 3
    for algorithm in algorithms:
        np.testing.assert_allclose(place.run(problem.runner(algorithm)), wanted, rtol=1e-2, atol=1e-2)
    problem.close()


def test_an_algorithm_is_kept_whole_and_makes_the_same_kernel_again(cuda, cublaslt):
    first = Dense(GEMM)
    kept = first.algorithms(workspace_nbytes=MOST)[2]
    first.close()
    assert len(bytes.fromhex(kept.data)) == 64
    again, place, launched = Dense(GEMM), Place(cuda), []
    cublaslt.launched = launched
    place.run(again.runner(Algorithm(kept.data, kept.fast_accumulation, kept.workspace_nbytes)))
    assert launched == [2]
    again.close()


@pytest.mark.parametrize("damage", ["", "zz", "00" * 16, "00" * 64, "00" * 65])
def test_data_that_is_no_algorithm_is_refused(damage):
    problem = Dense(GEMM)
    with pytest.raises(Refused, match=r"not an algorithm of cuBLASLt|does not take the algorithm"):
        problem.runner(Algorithm(damage, fast_accumulation=False, workspace_nbytes=0))
    problem.close()


def test_one_wrong_byte_is_seen():
    problem = Dense(GEMM)
    data = problem.algorithms(workspace_nbytes=MOST)[0].data
    other = data[:-2] + ("00" if data[-2:] != "00" else "01")
    with pytest.raises(Refused) as caught:
        problem.runner(Algorithm(other, fast_accumulation=False, workspace_nbytes=0))
    assert str(caught.value).startswith("cuBLASLt does not take the algorithm: ")
    problem.close()


def test_a_product_that_cublaslt_does_not_have_is_refused():
    problem = Dense(Gemm(16, 32, 64, "int8", "fp16"))
    with pytest.raises(Refused, match="cuBLASLt offers no algorithm: not supported"):
        problem.algorithms(workspace_nbytes=MOST)
    problem.close()


@pytest.mark.parametrize(
    ("gemm", "form"),
    [
        (Gemm(7, 32, 64, "int8", "fp16", "bias"), Gemm(16, 32, 64, "int8", "int8", "bias")),
        (Gemm(7, 32, 64, "int8", "int32"), Gemm(16, 32, 64, "int8", "int32")),
        (Gemm(7, 32, 64, "fp8_e4m3"), Gemm(16, 32, 64, "fp8_e4m3")),
        (Gemm(7, 32, 64, "bf16"), Gemm(7, 32, 64, "bf16")),
    ],
)
def test_the_nearest_product_that_cublaslt_has(gemm, form):
    assert dense_form(gemm) == form


def test_the_version_is_that_of_the_library():
    assert dense.version() == "13.1.0"


def test_a_missing_binding_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nvmath.bindings", None)
    dense._library.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        dense.version()
    assert str(caught.value) == "cuBLASLt is used through nvmath-python\n  to fix: pip install 'trtsparse[cuda]'"


def test_a_device_that_cublaslt_does_not_take_is_told(cublaslt, monkeypatch):
    def refuse():
        raise cublaslt.cuBLASLtError("the device is too old (CUBLAS_STATUS_ARCH_MISMATCH).")

    monkeypatch.setattr(cublaslt, "create", refuse)
    with pytest.raises(DeviceError) as caught:
        Dense(GEMM)
    assert str(caught.value) == (
        "cuBLASLt does not take this GPU\n  got: the device is too old (CUBLAS_STATUS_ARCH_MISMATCH)."
    )


def test_a_library_that_cannot_be_loaded_is_a_missing_dependency(cublaslt, monkeypatch):
    def fail():
        raise RuntimeError("libcublasLt.so.13 not found")

    monkeypatch.setattr(cublaslt, "create", fail)
    with pytest.raises(MissingDependencyError) as caught:
        Dense(GEMM)
    assert str(caught.value) == (
        "cuBLASLt cannot be loaded\n  where: libcublasLt.so.13 not found\n  to fix: pip install 'trtsparse[cuda]'"
    )
