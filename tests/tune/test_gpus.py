import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.errors import ConfigError
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import GPUS, find_board, find_gpu

DIMS = st.integers(1, 256).map(lambda number: 16 * number)


def products(dtype):
    return st.builds(Gemm, DIMS, DIMS, DIMS, st.just(dtype))


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_ordered_as_the_types_are_wide(name):
    gpu = GPUS[name]
    peaks = gpu.tflops
    assert peaks["tf32"] < peaks["fp16"] == peaks["bf16"] < peaks["int8"]
    assert ("fp8_e4m3" in peaks) == (name not in ("a10", "a30", "a100"))
    assert 100 < gpu.bandwidth_gbs < 10_000


@given(st.sampled_from(sorted(GPUS)), st.sampled_from(["fp16", "int8", "tf32"]).flatmap(products))
def test_estimates_are_never_under_the_peaks_and_never_twice_as_fast(name, gemm):
    gpu = GPUS[name]
    dense, sparse = gpu.dense_ms(gemm), gpu.sparse_ms(gemm)
    assert dense > gemm.flops / (gpu.tflops[gemm.dtype] * 1e9)
    assert sparse > gemm.flops / (2 * gpu.tflops[gemm.dtype] * 1e9)
    assert 0.5 < dense / sparse < 2


@given(products("fp16"), st.integers(2, 8))
def test_more_rows_take_longer(gemm, times):
    gpu = GPUS["h100"]
    more = Gemm(gemm.m * times, gemm.n, gemm.k, gemm.dtype)
    assert gpu.dense_ms(more) > gpu.dense_ms(gemm)
    assert gpu.sparse_ms(more) > gpu.sparse_ms(gemm)


def test_a_type_that_a_gpu_lacks_has_no_estimate():
    product = Gemm(64, 64, 64, "fp8_e4m3")
    assert (GPUS["a100"].dense_ms(product), GPUS["a100"].sparse_ms(product)) == (None, None)
    assert not GPUS["a100"].memory_bound(product)


def test_few_rows_are_memory_bound_and_many_are_not():
    gpu = GPUS["h100"]
    assert gpu.memory_bound(Gemm(64, 14336, 4096))
    assert not gpu.memory_bound(Gemm(4096, 4096, 4096))


@pytest.mark.parametrize(
    ("gemm", "dense_ms", "sparse_ms"),
    [
        (Gemm(4096, 4096, 4096, "bf16"), 0.182, 0.126),
        (Gemm(8192, 8192, 8192, "bf16"), 1.441, 0.967),
        (Gemm(2048, 4096, 14336, "bf16"), 0.317, 0.212),
        (Gemm(12288, 1024, 4096, "bf16"), 0.136, 0.098),
        (Gemm(64, 14336, 4096, "bf16"), 0.046, 0.046),
        (Gemm(4096, 4096, 4096, "fp8_e4m3"), 0.097, 0.076),
    ],
)
def test_estimates_for_an_h100_are_near_what_was_measured_there(gemm, dense_ms, sparse_ms):
    """Medians of one H100, cuBLASLt through PyTorch 2.11 and cuSPARSELt 0.8.0."""
    gpu = GPUS["h100"]
    assert gpu.dense_ms(gemm) == pytest.approx(dense_ms, rel=0.25)
    assert gpu.sparse_ms(gemm) == pytest.approx(sparse_ms, rel=0.25)
    assert gpu.dense_ms(gemm) / gpu.sparse_ms(gemm) == pytest.approx(dense_ms / sparse_ms, rel=0.15)


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        find_gpu("v100")
    assert str(caught.value) == (
        f"the peaks of this GPU are not known here\n  where: gpu\n  got: v100\n  expected: {', '.join(GPUS)}"
    )


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"), ("A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("NVIDIA A10", "a10"), ("NVIDIA B200", "b200"),
    ],
)  # fmt: skip
def test_a_board_is_known_by_the_name_that_its_driver_tells(driver, name):
    assert find_board(driver) is GPUS[name]


@pytest.mark.parametrize(
    "driver",
    [
        "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe", "NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "",
    ],
)  # fmt: skip
def test_a_board_with_other_peaks_is_not_taken_for_its_kin(driver):
    assert find_board(driver) is None
