"""What every conversion returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trtsparse.errors import ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.validate import validate

__all__ = ["Converted", "KeptNode", "check_sparsity"]


@dataclass(frozen=True)
class KeptNode:
    """A node that a conversion left in float32.

    Attributes:
        node: Its name in the model that was converted, or "<op>_<position>" where it has none.
        why: "asked"; "overflow": a weight or a value exceeds the range; "error": the output was too far off without;
            "unsupported": TensorRT has no kernel for it in the type. What makes the input of a recurrent node that
            was left in float32 has the reason of that.
    """

    node: str
    why: Literal["asked", "overflow", "error", "unsupported"]


@dataclass(frozen=True)
class Converted:
    """A converted model and how far its outputs are from the original's.

    Attributes:
        model: In memory. Inputs and outputs have the original's names and types.
        precision: "fp16", "bf16", "int8", or "int8" with what the rest has: "int8+fp16".
        kept: Nodes left in float32, in the order of the graph.
        error: As `trtsparse.precision.compare.Comparison` defines it.
        limit: What was asked for.
        notes: What a report should say besides: what was compared, what was not possible.
        open_layers: Quantized layers, by their names in the model that was converted, whose output is not quantized;
            sparse INT8 kernels were never seen chosen there.
    """

    model: OnnxModel = field(repr=False)
    precision: str
    kept: tuple[KeptNode, ...]
    error: float
    limit: float
    notes: tuple[str, ...] = ()
    open_layers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields but the model, as JSON types."""
        return {
            "precision": self.precision,
            "kept": [{"node": kept.node, "why": kept.why} for kept in self.kept],
            "error": self.error if math.isfinite(self.error) else "inf",
            "limit": self.limit,
            "notes": list(self.notes),
            "open_layers": list(self.open_layers),
        }


def check_sparsity(before: OnnxModel, after: OnnxModel) -> None:
    """Refuse a conversion that made a compliant weight non-compliant.

    A weight is known again by its node's or its tensor's name.

    Raises:
        ModelError: A weight was compliant before, and is not after.
    """
    old, new = validate(before).sites, validate(after).sites
    names = {name for site in old for name in (site.node, site.tensor)}
    broken = {name for site in old if not site.compliant for name in (site.node, site.tensor)}
    compliant = names - broken
    lost = [
        site.node for site in new if site.compliant is False and not compliant.isdisjoint((site.node, site.tensor))
    ]
    if lost:
        raise ModelError(
            "the conversion broke the 2:4 pattern of a weight",
            where=", ".join(lost),
            got="not compliant",
            expected="compliant, as before",
            fix="report this model: zeros must stay zeros",
        )
