"""What GPUs can do at most, and from that an estimate of a product's time where nothing was measured.

Peaks are NVIDIA's data sheets' (without sparsity, with FP32 accumulation, in TFLOP/s or TOP/s; bandwidth in GB/s):
A10, A30, A100 80 GB SXM, H100 SXM and PCIe, H200, HGX B200, L4, L40S, and the white paper of Ada for the RTX 4090.
Sparse peaks are twice as high. The shares of a peak that kernels reach are those of the table that ships for an H100,
cuBLASLt 13.1 and cuSPARSELt 0.8.1 (4096 x 4096 x 4096, and 64 x 14336 x 4096 for the bandwidth); tf32's are guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtsparse.errors import ConfigError
from trtsparse.tune.gemm import Gemm

__all__ = ["GPUS", "Gpu", "find_board", "find_gpu"]

_DENSE_SHARE = {"fp16": 0.77, "bf16": 0.69, "int8": 0.78, "fp8_e4m3": 0.68, "tf32": 0.7}
_SPARSE_SHARE = {"fp16": 0.54, "bf16": 0.48, "int8": 0.48, "fp8_e4m3": 0.43, "tf32": 0.5}
_BANDWIDTH_SHARE = 0.8
_SPARSE_BANDWIDTH_SHARE = {"fp16": 0.8, "bf16": 0.47, "int8": 0.76, "fp8_e4m3": 0.77, "tf32": 0.47}
"""Of kernels with few rows: they read compressed weights more slowly."""
LAUNCH_MS = 0.002
"""What a kernel takes that does next to nothing, in a CUDA graph."""


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU.

    Attributes:
        name: As people say it: "h100".
        title: Its full name.
        board: What its driver calls it, without the maker; a board of another name has other peaks.
        tflops: Dense peaks by type, in TFLOP/s or TOP/s; types that its Tensor Cores lack are missing.
        bandwidth_gbs: Of its memory.
    """

    name: str
    title: str
    board: str
    tflops: Mapping[str, float]
    bandwidth_gbs: float

    def dense_ms(self, gemm: Gemm) -> float | None:
        """An estimate of a dense product's milliseconds; None for a type that the GPU lacks."""
        peak = self.tflops.get(gemm.dtype)
        if peak is None:
            return None
        weight = gemm.n * gemm.k * gemm.input_type.nbytes
        computing = gemm.flops / (peak * 1e9 * _DENSE_SHARE[gemm.dtype])
        return max(computing, self.copy_ms(_activations(gemm) + weight)) + LAUNCH_MS

    def sparse_ms(self, gemm: Gemm) -> float | None:
        """The same for a sparse product."""
        peak = self.tflops.get(gemm.dtype)
        if peak is None:
            return None
        size = gemm.input_type.nbytes
        weight = gemm.n * gemm.k * (size / 2 + 1 / 8)  # values, and two bits for each
        share = _SPARSE_BANDWIDTH_SHARE[gemm.dtype] / _BANDWIDTH_SHARE
        reading = self.copy_ms(_activations(gemm)) + self.copy_ms(weight) / share
        return max(gemm.flops / (2 * peak * 1e9 * _SPARSE_SHARE[gemm.dtype]), reading) + LAUNCH_MS

    def copy_ms(self, nbytes: float) -> float:
        """Milliseconds of so many bytes, read or written."""
        return nbytes / (self.bandwidth_gbs * 1e6 * _BANDWIDTH_SHARE)

    def memory_bound(self, gemm: Gemm) -> bool:
        """Whether a dense product takes longer to read than to compute."""
        peak = self.tflops.get(gemm.dtype, 0.0)
        nbytes = _activations(gemm) + gemm.n * gemm.k * gemm.input_type.nbytes
        return bool(peak) and nbytes / self.bandwidth_gbs > gemm.flops / (peak * 1e3)


def _activations(gemm: Gemm) -> int:
    """Bytes of ``x`` and ``y``."""
    return gemm.m * (gemm.k * gemm.input_type.nbytes + gemm.n * gemm.output_type.nbytes)


def _gpu(
    name: str, title: str, board: str, fp16: float, int8: float, fp8: float, tf32: float, bandwidth: float
) -> Gpu:
    peaks = {"fp16": fp16, "bf16": fp16, "int8": int8, "fp8_e4m3": fp8, "tf32": tf32}
    return Gpu(name, title, board, {dtype: peak for dtype, peak in peaks.items() if peak}, bandwidth)


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("a10", "NVIDIA A10", "A10", 125, 250, 0, 62.5, 600),
        _gpu("a30", "NVIDIA A30", "A30", 165, 330, 0, 82, 933),
        _gpu("a100", "NVIDIA A100 SXM 80 GB", "A100-SXM4-80GB", 312, 624, 0, 156, 2039),
        _gpu("b200", "NVIDIA B200 (HGX)", "B200", 2250, 4500, 4500, 1100, 7700),
        _gpu("h100", "NVIDIA H100 SXM", "H100 80GB HBM3", 989.4, 1978.9, 1978.9, 494.7, 3350),
        _gpu("h100-pcie", "NVIDIA H100 PCIe", "H100 PCIe", 756, 1513, 1513, 378, 2000),
        _gpu("h200", "NVIDIA H200 SXM", "H200", 989.4, 1978.9, 1978.9, 494.7, 4800),
        _gpu("l4", "NVIDIA L4", "L4", 121, 242, 242, 60, 300),
        _gpu("l40s", "NVIDIA L40S", "L40S", 362, 733, 733, 183, 864),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", "GeForce RTX 4090", 165.2, 660.6, 330.3, 82.6, 1008),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of a name.

    Raises:
        ConfigError: Its peaks are not known here.

    Example:
        >>> gpu = find_gpu("H100")
        >>> product = Gemm(4096, 4096, 4096, "bf16")
        >>> round(gpu.dense_ms(product) / gpu.sparse_ms(product), 2), gpu.memory_bound(product)
        (1.39, False)
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise ConfigError("the peaks of this GPU are not known here", where="gpu", got=name, expected=", ".join(GPUS))
    return found


def find_board(name: str) -> Gpu | None:
    """The GPU that a driver calls so; None where the peaks of this very board are not known here.

    Example:
        >>> find_board("NVIDIA H100 PCIe").name, find_board("NVIDIA A100-PCIE-40GB")
        ('h100-pcie', None)
    """
    board = name.removeprefix("NVIDIA ")
    return next((gpu for gpu in GPUS.values() if gpu.board == board), None)
