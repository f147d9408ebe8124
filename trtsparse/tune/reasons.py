"""One sentence for each weight site: why it is, is not, or should not be sparse."""

from __future__ import annotations

from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import Gpu
from trtsparse.tune.rows import SiteRow

__all__ = ["FASTER", "sentence"]

FASTER = 1.03
"""Below this gain two kernels count as equally fast."""
_FEW_CHANNELS, _FEW_ROWS = 256, 512
_OPEN = (
    "its output stays floating point, and sparse INT8 kernels were only seen chosen by TensorRT where it is INT8 too"
)


def sentence(row: SiteRow, *, sparsity: str, peaks: Gpu | None, shapes: bool = False) -> str:
    """Explain a row.

    Args:
        row: Complete but for this sentence.
        sparsity: Of the build that was reported: "disable", "enable" or "force"; "" without a report.
        peaks: Of the GPU, to tell what bounds a product.
        shapes: Shapes of inputs were given.
    """
    if not row.eligible:
        return row.reason
    if row.compliant is None:
        return "its values cannot be judged"
    if not row.compliant:
        return f"not compliant: {row.violation}: prune first{_prospect(row)}"
    if row.gemm is None:
        speed = "its size does not follow from the shapes given" if shapes else "its size is dynamic: give --shapes"
    else:
        speed = _speed(row, row.gemm, peaks)
    parts = [_chosen(row, sparsity), speed]
    if row.open_output:
        parts.append(_OPEN)
    return "; ".join(part for part in parts if part)


def _prospect(row: SiteRow) -> str:
    """What pruning would bring."""
    if row.gain is None:
        return ""
    if row.gain > FASTER:
        return f" (a sparse kernel is {row.gain:.2f}x as fast{_of_estimates(row)})"
    return f" (but no gain is expected: {row.gain:.2f}x{_of_estimates(row)})"


def _chosen(row: SiteRow, sparsity: str) -> str:
    """What the build did, where a report tells."""
    if sparsity == "disable":
        return "built with sparsity off: build with sparsity='enable'"
    if row.chosen is True:
        return "runs sparse"
    if row.chosen == "decided at load":
        return "compliant: whether it runs sparse is decided where the engine is loaded"
    if row.chosen is not False:
        return ""
    if row.gain is not None and row.gain > FASTER:
        return (
            "TensorRT took a dense kernel, although a sparse one should be faster: give the builder more workspace, "
            "a higher optimization level, or a fresh timing cache"
        )
    return "TensorRT took a dense kernel"


def _speed(row: SiteRow, gemm: Gemm, peaks: Gpu | None) -> str:
    """What the times say, and where they come from if that is not a measurement of this very product."""
    if row.gain is None:
        return f"no sparse kernel to compare with: {row.refusal}" if row.refusal else "no times are known"
    said = f"{row.gain:.2f}x{_of_estimates(row)}"
    if row.gain > FASTER:
        return f"a sparse kernel is faster here ({said})"
    cause = _cause(gemm, peaks)
    what = "dense is faster here" if row.gain < 1 / FASTER else "a sparse kernel is as fast as a dense one here"
    return f"{cause}: {what} ({said})" if cause else f"{what} ({said})"


def _cause(gemm: Gemm, peaks: Gpu | None) -> str:
    """Why sparsity does not help a product."""
    if min(gemm.n, gemm.k) < _FEW_CHANNELS:
        return f"N = {gemm.n}, K = {gemm.k}: too few channels to fill a sparse kernel"
    if gemm.m < _FEW_ROWS and (peaks is None or peaks.memory_bound(gemm)):
        return f"{gemm.m} rows: the time goes into reading the weight, not into computing"
    if peaks is not None and peaks.memory_bound(gemm):
        return "the time goes into reading and writing, not into computing"
    return ""


def _of_estimates(row: SiteRow) -> str:
    """A word on how sure the figure is."""
    words = []
    if row.basis == "estimate":
        words.append("an estimate")
    elif row.basis.startswith("interpolated"):
        words.append("interpolated")
    if not row.exact:
        words.append("a convolution taken as a matrix product")
    return f", {', '.join(words)}" if words else ""
