"""One weight site of a model, with all that is known of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from trtsparse.tune.gemm import Gemm

__all__ = ["UNKNOWN", "SiteRow"]

UNKNOWN = "unknown"


@dataclass(frozen=True)
class SiteRow:
    """One weight site.

    Attributes:
        node: The node's name.
        op: Its operator.
        tensor: The weight's name.
        shape: The weight's dims as stored.
        compliant: Every group has at most 2 non-zeros; None where that cannot be judged.
        eligible: Structure and precision allow a sparse kernel.
        chosen: The built engine runs a sparse kernel, by its report: True, False or "decided at load"; "unknown"
            without a report, or where it does not tell.
        gemm: The product that it is; None where its size is not known.
        count: How many such products.
        exact: False for a convolution over several pixels, taken as a matrix product.
        dense_ms: Of all its products by the best dense kernel; None where not known.
        sparse_ms: By the best sparse kernel; None where not known, or where there is none.
        low: Least gain seen.
        high: Largest gain seen.
        basis: Where the times come from.
        refusal: Why there is no sparse kernel.
        reason: Why it is not eligible; "" if it is.
        violation: How many groups are not compliant, in words.
        open_output: An INT8 product whose output is not INT8.
        bodies: The subgraphs that the node is in, as in `trtsparse.sparsity.weights.WeightSite`.
        why: All this in a sentence.
    """

    node: str
    op: str
    tensor: str
    shape: tuple[int, ...]
    compliant: bool | None
    eligible: bool
    chosen: bool | str = UNKNOWN
    gemm: Gemm | None = None
    count: int = 1
    exact: bool = True
    dense_ms: float | None = None
    sparse_ms: float | None = None
    low: float = 1.0
    high: float = 1.0
    basis: str = ""
    refusal: str = ""
    reason: str = ""
    violation: str = ""
    open_output: bool = False
    bodies: tuple[str, ...] = ()
    why: str = ""

    @property
    def gain(self) -> float | None:
        """Dense over sparse time."""
        return self.dense_ms / self.sparse_ms if self.dense_ms and self.sparse_ms else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        gemm = None if self.gemm is None else self.gemm.to_dict()
        lists = {"shape": list(self.shape), "bodies": list(self.bodies)}
        return {**fields, **lists, "gemm": gemm, "gain": self.gain}
