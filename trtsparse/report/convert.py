"""What a conversion did, for people."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trtsparse.precision.converted import Converted

__all__ = ["converted_lines"]

_FEW = 8
_WHY = {
    "asked": "as asked",
    "overflow": "a value is too large for the type",
    "error": "the outputs were too far off without",
    "unsupported": "TensorRT has no kernels for it in the type",
}


def converted_lines(converted: Converted, output: str | os.PathLike[str]) -> str:
    """The error, what stayed in float32 and why, and what else to know, a line each.

    Args:
        converted: From `trtsparse.precision.half.to_half` or `trtsparse.precision.int8.to_int8`.
        output: Where the model was written.
    """
    error = f"largest difference of an output: {converted.error:.3g} of its range (at most {converted.limit:.3g})"
    lines = [f"wrote {os.fspath(output)} in {converted.precision.upper()}; {error}"]
    for why, text in _WHY.items():
        names = [kept.node for kept in converted.kept if kept.why == why]
        if names:
            lines.append(f"in FP32, {text}: {_listed(names)}")
    if converted.open_layers:
        open_layers = _listed(converted.open_layers)
        lines.append(f"output not quantized, where no sparse INT8 kernels were seen chosen: {open_layers}")
    return "\n".join([*lines, *(f"note: {note}" for note in converted.notes)])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")
