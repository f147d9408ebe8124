"""Where the times of products come from: this GPU, a shipped table of another one, or an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError
from trtsparse.tune import shipped
from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import GPUS, Gpu, find_board, find_gpu
from trtsparse.tune.result import GemmResult
from trtsparse.tune.shipped import Table
from trtsparse.tune.tune import TuneResult, tune

__all__ = ["STAND_IN", "Times", "Timing", "find_times"]

STAND_IN = "h100"
"""The GPU whose figures are used where there is none and none is named."""


@dataclass(frozen=True)
class Timing:
    """Times of one product.

    Attributes:
        dense_ms: Of the best dense kernel.
        sparse_ms: Of the best sparse kernel; None where there is none.
        low: The least gain that was seen in a round; with estimates the gain itself.
        high: The largest.
        basis: "measured here", "measured on ...", "interpolated from ..." or "estimate".
        refusal: Why there is no sparse kernel; "" otherwise.
    """

    dense_ms: float
    sparse_ms: float | None
    low: float
    high: float
    basis: str
    refusal: str = ""

    @property
    def gain(self) -> float | None:
        """Dense over sparse time."""
        return None if self.sparse_ms is None else self.dense_ms / self.sparse_ms


@dataclass(frozen=True)
class Times:
    """Times of products on one GPU.

    Attributes:
        gpu: Its name.
        text: Where its times come from, a sentence.
        tuned: Measured here.
        table: Measured elsewhere.
        peaks: For estimates; None where they are not known.
    """

    gpu: str
    text: str
    tuned: TuneResult | None = None
    table: Table | None = None
    peaks: Gpu | None = None

    def find(self, gemm: Gemm) -> Timing | None:
        """Times of a product from the best source that has it; None where none has."""
        result = None
        if self.tuned is not None:
            result = self.tuned.find(gemm)
        elif self.table is not None:
            result = self.table.find(gemm)
        if result is not None and result.dense is not None:
            return _timing(result)
        return _estimate(gemm, self.peaks)


def find_times(
    gpu: str | None,
    gemms: Sequence[Gemm],
    *,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Times:
    """Decide where times come from, and measure if that is here.

    Args:
        gpu: The name of a GPU, or None for the one at hand.
        gemms: The products that will be asked for.
        cache: Where results of measuring are kept; default: in the user's cache folder.
        progress: Called with (products measured, in all).

    Raises:
        ConfigError: Nothing is known of a GPU of this name.
    """
    if gpu is not None:
        return _named(gpu)
    if not gemms:
        return Times("", "no times: no weight site of known size is eligible")
    try:
        tuned = tune(gemms, cache=cache, progress=progress)
    except (DeviceError, MissingDependencyError) as error:
        stand_in = _named(STAND_IN)
        text = f"nothing was measured here ({error.what}): {stand_in.text}"
        return Times(stand_in.gpu, text, table=stand_in.table, peaks=stand_in.peaks)
    name = tuned.facts.get("gpu", "this GPU")
    return Times(name, f"measured on the GPU at hand, {name}", tuned=tuned, peaks=find_board(name))


def _named(gpu: str) -> Times:
    name = gpu.lower()
    if name in shipped.names():
        table = shipped.load(name)
        peaks = find_board(table.facts["gpu"])
        libraries = ", ".join(f"{key} {table.facts[key]}" for key in ("cublaslt", "cusparselt", "driver"))
        text = f"times of the table that ships for {table.facts['gpu']}, measured {table.date} ({libraries})"
        more = "; products that it does not have are estimated from the GPU's peaks" if peaks else ""
        return Times(table.facts["gpu"], text + more, table=table, peaks=peaks)
    if name not in GPUS:
        known = sorted({*shipped.names(), *GPUS})
        raise ConfigError(
            "nothing is known of this GPU",
            where="gpu",
            got=gpu,
            expected=", ".join(known),
            fix="leave --gpu (gpu= in Python) out to measure here, or take one of these",
        )
    estimated = find_gpu(name)
    return Times(estimated.title, f"estimates from the peaks of {estimated.title}, not measured", peaks=estimated)


def _timing(result: GemmResult) -> Timing | None:
    dense, sparse = result.dense, result.sparse
    if dense is None:
        return None
    basis = "measured here" if result.source == "measured" else result.source
    if sparse is None or result.gain is None:
        refusal = str(result.facts.get("no_sparse", "no sparse kernel computed it rightly"))
        return Timing(dense.ms, None, 1.0, 1.0, basis, refusal)
    # the rounds' gain, in which both kernels ran in turn, says more than two medians
    return Timing(dense.ms, dense.ms / result.gain, min(result.gains), max(result.gains), basis)


def _estimate(gemm: Gemm, peaks: Gpu | None) -> Timing | None:
    dense_ms = peaks.dense_ms(gemm) if peaks else None
    sparse_ms = peaks.sparse_ms(gemm) if peaks else None
    if dense_ms is None or sparse_ms is None:
        return None
    step = gemm.input_type.alignment
    if gemm.n % step or gemm.k % step:
        return Timing(dense_ms, None, 1.0, 1.0, "estimate", f"N and K have to be multiples of {step}")
    gain = dense_ms / sparse_ms
    return Timing(dense_ms, sparse_ms, gain, gain, "estimate")
