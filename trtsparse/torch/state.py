"""What `SparsePruner.sparse_state` reports: each weight, whether it is eligible and compliant, and why not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch.layers import LayerWeight
from trtsparse.torch.masks import is_compliant, nonzero
from trtsparse.torch.shards import whole

__all__ = ["SCHEMA", "SparseState", "WeightState", "judge"]

SCHEMA = "trtsparse.torch-state/1"


@dataclass(frozen=True)
class WeightState:
    """One weight of two or more dims.

    Attributes:
        name: As in ``named_parameters()``.
        tied: Other names of the same parameter.
        kind: The class of its layer.
        shape: Its dims.
        axes: The reduction axis, and with ``transposable`` also the axis of the outputs; empty if unknown.
        dtype: "float32", "bfloat16" ...
        parameters: Its elements.
        zeros: Elements that are zero.
        eligible: The structure allows a sparse kernel.
        masked: It has a mask.
        compliant: No group breaks the pattern; None where there are no groups.
        reason: Why it has no mask, in words; else "".
    """

    name: str
    tied: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str
    parameters: int
    zeros: int
    eligible: bool
    masked: bool
    compliant: bool | None
    reason: str


@dataclass(frozen=True)
class SparseState:
    """Every weight of a model; ``print`` shows it as a table.

    Attributes:
        pattern: "2:4".
        weights: In the order of the layers, a tied weight once.
    """

    pattern: str
    weights: tuple[WeightState, ...]

    @property
    def compliant(self) -> bool:
        """True when there are eligible weights and all of them are compliant."""
        eligible = [weight for weight in self.weights if weight.eligible]
        return bool(eligible) and all(weight.compliant for weight in eligible)

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON types."""
        weights = [dataclasses.asdict(weight) for weight in self.weights]
        return {
            "schema": SCHEMA,
            "pattern": self.pattern,
            "compliant": self.compliant,
            "weights": [{k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in weights],
        }

    def __str__(self) -> str:
        rows = [("weight", "layer", "shape", "zeros", "eligible", "compliant", "reason")]
        for w in self.weights:
            zeros = f"{w.zeros / w.parameters:.1%}" if w.parameters else ""
            compliant = "" if w.compliant is None else str(w.compliant)
            shape = "x".join(map(str, w.shape))
            rows.append((w.name, w.kind, shape, zeros, str(w.eligible), compliant, w.reason))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def judge(uses: tuple[LayerWeight, ...], *, pattern: Pattern, masked: bool, reason: str) -> WeightState:
    """Judge the values that a weight has now; ``uses`` are the names and layers of one tied weight."""
    weight = uses[0]
    with torch.no_grad():
        values = getattr(weight.module, weight.attribute)
    known = not (is_lazy(values) or values.is_meta)
    values = whole(values) if known else torch.empty(0)
    grouped = known and weight.axes and all(values.shape[axis] % pattern.m == 0 for axis in weight.axes)
    return WeightState(
        name=weight.name,
        tied=tuple(use.name for use in uses[1:]),
        kind=weight.kind,
        shape=weight.shape,
        axes=weight.axes,
        dtype=str(values.dtype).removeprefix("torch.") if known else weight.dtype,
        parameters=math.prod(weight.shape) if weight.shape else 0,
        zeros=values.numel() - int(nonzero(values).sum()),
        eligible=not weight.reason,
        masked=masked,
        compliant=all(is_compliant(values, axis=axis, pattern=pattern) for axis in weight.axes) if grouped else None,
        reason=reason,
    )
