import json

import pytest

from tests.doubles.cuda import MemoryCuda
from tests.tune.nvmath_double import CublasLt, CusparseLt, installed_nvmath
from trtsparse.errors import CudaError
from trtsparse.tune import worker
from trtsparse.tune.cuda_library import CudaLibrary
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.library import Candidate

FACTS = {"gpu": "double", "compute_capability": "9.0", "driver": "1", "l2_nbytes": 1 << 10}


@pytest.fixture
def cuda():
    return MemoryCuda(order="late", log=False)


@pytest.fixture
def library(cuda):
    cublaslt, cusparselt = CublasLt(cuda), CusparseLt(cuda)
    with installed_nvmath(cublaslt, cusparselt):
        made = CudaLibrary(cuda, facts=FACTS)
        made.cublaslt, made.cusparselt = cublaslt, cusparselt
        yield made
        assert not cublaslt._handles.alive
        assert not cusparselt._handles.alive


@pytest.fixture
def problem(library, cuda):
    made = library.open(Gemm(16, 32, 128, "fp16"))
    yield made
    made.close()
    assert cuda.alive["allocations"] == 0


def dense(number):
    return Candidate("dense", str(number))


def test_the_facts_tell_what_times_depend_on(library):
    assert library.facts() == {
        "gpu": "double", "compute_capability": "9.0", "driver": "1", "cublaslt": "13.1.0", "cusparselt": "0.8.0",
    }  # fmt: skip
    assert library.l2_nbytes == 1 << 10


def test_candidates_are_every_algorithm_and_every_configuration_the_defaults_first(problem):
    names = [candidate.key for candidate in problem.candidates()]
    assert names == [
        "dense 0", "dense 1", "dense 2", "sparse config 3", "sparse config 0", "sparse config 1", "sparse config 2",
    ]  # fmt: skip


def test_fp8_is_tried_with_fast_accumulation_too(library):
    problem = library.open(Gemm(16, 32, 128, "fp8_e4m3"))
    names = [candidate.name for candidate in problem.candidates() if candidate.kind == "dense"]
    assert names == ["0", "1", "2", "0 fast accumulation", "1 fast accumulation", "2 fast accumulation"]
    problem.close()


def test_times_and_checks_are_those_of_the_candidate(problem):
    by_key = {candidate.key: candidate for candidate in problem.candidates()}
    assert problem.screen(by_key["dense 1"]) == pytest.approx(0.6, rel=0.02)
    assert problem.screen(by_key["sparse config 2"]) == pytest.approx(0.4, rel=0.02)
    assert problem.check(by_key["dense 1"]).passed
    assert problem.check(by_key["sparse config 2"]).passed
    finalists, ran = [by_key["dense 1"], by_key["sparse config 2"]], []
    times = problem.race(finalists, 3, ran.append)
    assert ran == 5 * finalists  # a look, a warm-up, three rounds
    assert times == [pytest.approx([0.6] * 3, rel=0.02), pytest.approx([0.4] * 3, rel=0.02)]
    assert problem.facts() == {"dense_nbytes": 32 * 128 * 2, "compressed_nbytes": 32 * 128 * 2 * 9 // 16}


def test_a_kernel_that_computes_something_else_does_not_pass(library, problem):
    library.cublaslt.wrong.add(1)
    by_key = {candidate.key: candidate for candidate in problem.candidates()}
    assert not problem.check(by_key["dense 1"]).passed
    assert problem.check(by_key["dense 0"]).passed


def test_data_of_another_pattern_than_the_kernels_does_not_pass(library, monkeypatch):
    """2:4 data for the kernels of TF32, which take 1:2: wrong, and no error of the library."""
    from trtsparse.tune import gemm as module

    wrong = {**module.DTYPES, "tf32": module.DataType(module.DTYPES["tf32"].numpy, 0, ("fp32",), (2, 4), 2e-3)}
    monkeypatch.setattr(module, "DTYPES", wrong)
    problem = library.open(Gemm(16, 32, 128, "tf32"))
    sparse = [candidate for candidate in problem.candidates() if candidate.kind == "sparse"]
    assert sparse
    assert not any(problem.check(candidate).passed for candidate in sparse)
    problem.close()


@pytest.mark.parametrize(
    ("gemm", "facts"),
    [
        (Gemm(16, 30, 128, "fp16"), {"no_sparse": "cuSPARSELt: operation not supported"}),
        (Gemm(16, 32, 128, "bf16", "", "gelu"), {"no_sparse": "cuSPARSELt: invalid value"}),
        (Gemm(16, 32, 128, "int8", "fp16"), {"dense_output": "int8"}),
    ],
)
def test_what_a_library_does_not_have_is_in_the_facts(library, gemm, facts):
    problem = library.open(gemm)
    problem.candidates()
    assert facts.items() <= problem.facts().items()
    problem.close()


@pytest.mark.parametrize(
    "gemm",
    [
        Gemm(28, 32, 512, "bf16"), Gemm(28, 32, 512, "fp16", "", "bias_relu"), Gemm(7, 32, 512, "int8", "", "bias"),
        Gemm(28, 32, 512, "int8", "", "gelu"), Gemm(28, 32, 512, "int8", "int32"), Gemm(7, 32, 512, "fp8_e4m3"),
        Gemm(28, 32, 512, "tf32", "", "bias_gelu"), Gemm(28, 32, 512, "fp16", "", "bias_add_relu"),
        Gemm(28, 32, 512, "bf16", "", "add"),
    ],
    ids=lambda gemm: gemm.key,
)  # fmt: skip
def test_the_worker_finds_the_fastest_kernels_of_every_type(library, cuda, gemm):
    events = []
    job = {
        "gemm": gemm.to_dict(), "screened": {}, "skip": [], "refused": [], "give_up": [], "finalists": 2, "rounds": 2,
        "screen_s": 60.0,
    }  # fmt: skip
    assert worker.serve(library, [json.dumps(job)], events.append) == 0
    times = next(event["times"] for event in events if event["event"] == "raced")
    best = {kind: min((t[0], key) for key, t in times.items() if key.startswith(kind)) for kind in ("dense", "sparse")
            if any(key.startswith(kind) for key in times)}  # fmt: skip
    assert best["dense"][1].startswith("dense 1")
    if "gelu" not in gemm.epilogue or gemm.dtype == "int8":
        assert best["sparse"][1] == "sparse config 2"
    assert cuda.alive["allocations"] == 0


def test_a_broken_device_is_noticed(library, cuda):
    assert library.healthy()
    cuda.fail("synchronize_device", code=715, name="cudaErrorIllegalInstruction")
    assert not library.healthy()


def test_too_little_memory_is_an_error_and_leaves_nothing(library, cuda):
    cuda.fail("copy_in", code=2, name="cudaErrorMemoryAllocation")
    with pytest.raises(CudaError):
        library.open(Gemm(16, 32, 128))
    assert cuda.alive["allocations"] == 0
