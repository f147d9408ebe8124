"""Which float32 values are computed in a type of 16 bits, and which are left as they are.

Positions, sizes and masks are made from integers, and bfloat16 holds those up to 256 only. What is computed from
integers and constants alone stays in float32 until it meets another value; `trtsparse.precision.typed` does the same.
So where values are lowered, one that is float32 on the device was made from integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.precision.typed import EXACT

__all__ = ["keeps_exact", "lowered"]

_MORE = {
    "Abs", "Cast", "Exp", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Log", "MatMul", "Mean", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Sign", "Sum",
}  # fmt: skip


def keeps_exact(op: str, computed: Iterable[Tensor]) -> bool:
    """Whether an operator is computed in float32: all floats that it reads, but for constants, were made so.

    Args:
        op: The operator.
        computed: What it reads that are no constants: tensors, or numpy arrays.
    """
    if op not in EXACT and op not in _MORE:
        return False
    kinds = [str(value.dtype).removeprefix("torch.") for value in computed]
    floats = [kind for kind in kinds if "float" in kind]
    return bool(floats) and all(kind == "float32" for kind in floats)


def lowered(value: Tensor, floating: Any) -> Tensor:
    """A float32 tensor in another type; a tensor of another type as it is.

    Finite numbers stay finite: what stands for minus infinity in a mask may be all that there is in a row.
    """
    import torch

    if floating is None or value.dtype != torch.float32:
        return value
    most = min(torch.finfo(kind).max for kind in (floating, torch.float32))
    return torch.where(value.isinf(), value, value.clamp(-most, most)).to(floating)
