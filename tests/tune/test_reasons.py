import dataclasses

import pytest

from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import GPUS
from trtsparse.tune.reasons import sentence
from trtsparse.tune.rows import SiteRow

LARGE, FEW_ROWS, NARROW = Gemm(4096, 4096, 4096), Gemm(64, 14336, 4096), Gemm(50176, 16, 64)
OPEN = (
    "its output stays floating point, and sparse INT8 kernels were only seen chosen by TensorRT where it is INT8 too"
)
AS_FAST = "a sparse kernel is as fast as a dense one here"
FASTER = "a sparse kernel is faster here"
ALTHOUGH = (
    "TensorRT took a dense kernel, although a sparse one should be faster: give the builder more workspace, a higher "
    "optimization level, or a fresh timing cache"
)


def row(gain=None, gemm=LARGE, **fields):
    times = {} if gain is None else {"dense_ms": gain, "sparse_ms": 1.0, "basis": "measured here"}
    made = SiteRow("n", "MatMul", "w", (8, 8), compliant=True, eligible=True, gemm=gemm)
    return dataclasses.replace(made, violation="3 of 9 groups have more than 2 non-zeros", **times | fields)


@pytest.mark.parametrize(
    ("made", "sparsity", "text"),
    [
        (
            row(1.4, eligible=False, reason="grouped convolution (group = 32): TensorRT never uses sparse kernels"),
            "",
            "grouped convolution (group = 32): TensorRT never uses sparse kernels",
        ),
        (row(1.4, compliant=None), "", "its values cannot be judged"),
        (
            row(1.4, compliant=False),
            "",
            "not compliant: 3 of 9 groups have more than 2 non-zeros: prune first (a sparse kernel is 1.40x as fast)",
        ),
        (
            row(0.9, compliant=False),
            "",
            "not compliant: 3 of 9 groups have more than 2 non-zeros: prune first (but no gain is expected: 0.90x)",
        ),
        (row(compliant=False), "", "not compliant: 3 of 9 groups have more than 2 non-zeros: prune first"),
        (row(1.42), "", "a sparse kernel is faster here (1.42x)"),
        (row(1.42, basis="estimate"), "", "a sparse kernel is faster here (1.42x, an estimate)"),
        (
            row(1.42, basis="interpolated from 16 and 64 rows", exact=False),
            "",
            "a sparse kernel is faster here (1.42x, interpolated, a convolution taken as a matrix product)",
        ),
        (row(0.9), "", "dense is faster here (0.90x)"),
        (row(1.01), "", "a sparse kernel is as fast as a dense one here (1.01x)"),
        (
            row(1.0, FEW_ROWS),
            "",
            f"64 rows: the time goes into reading the weight, not into computing: {AS_FAST} (1.00x)",
        ),
        (
            row(0.9, NARROW),
            "",
            "N = 16, K = 64: too few channels to fill a sparse kernel: dense is faster here (0.90x)",
        ),
        (
            row(0.9, Gemm(100352, 256, 256)),
            "",
            "the time goes into reading and writing, not into computing: dense is faster here (0.90x)",
        ),
        (row(gemm=None), "", "its size is dynamic: give --shapes"),
        (
            row(refusal="N and K have to be multiples of 16"),
            "",
            "no sparse kernel to compare with: N and K have to be multiples of 16",
        ),
        (row(), "", "no times are known"),
        (
            row(1.4),
            "disable",
            "built with sparsity off: build with sparsity='enable'; a sparse kernel is faster here (1.40x)",
        ),
        (row(1.4, chosen=True), "enable", "runs sparse; a sparse kernel is faster here (1.40x)"),
        (
            row(1.4, chosen="decided at load"),
            "enable",
            f"compliant: whether it runs sparse is decided where the engine is loaded; {FASTER} (1.40x)",
        ),
        (
            row(1.4, chosen=False),
            "enable",
            f"{ALTHOUGH}; {FASTER} (1.40x)",
        ),
        (row(0.8, chosen=False), "enable", "TensorRT took a dense kernel; dense is faster here (0.80x)"),
        (row(1.4, open_output=True), "", f"a sparse kernel is faster here (1.40x); {OPEN}"),
    ],
)
def test_each_case_has_its_sentence(made, sparsity, text):
    assert sentence(made, sparsity=sparsity, peaks=GPUS["h100"]) == text


def test_a_size_that_stays_unknown_is_not_asked_for_again():
    found = sentence(row(gemm=None), sparsity="", peaks=None, shapes=True)
    assert found == "its size does not follow from the shapes given"


def test_without_peaks_few_rows_are_reason_enough():
    assert sentence(row(1.0, FEW_ROWS), sparsity="", peaks=None).startswith("64 rows: the time goes into reading")
    assert sentence(row(1.0), sparsity="", peaks=None) == "a sparse kernel is as fast as a dense one here (1.00x)"
