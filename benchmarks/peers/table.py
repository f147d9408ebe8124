"""The README's table of whole models, from the rows of the result file: ``python benchmarks/peers/table.py``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["markdown"]

_BEST, _JOULES = (
    re.compile(r"best dense \((.+)\) / sparse engine"),
    "inferences per joule, sparse engine / best dense",
)
_OURS, _EXPECTED = "dense engine / sparse engine", "explain's expected gain"
_MISSING = re.compile(r"((?:torch\.compile|eager|dense engine)[^:]*): not run: .*")
_MEMORY = "peak device memory, sparse engine / dense engine"
_COLUMNS = (
    "model, BF16", "best dense peer", "gain", "inferences per joule", "gain over our dense engine",
    "`explain` expects", "peak memory",
)  # fmt: skip


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a line for each model whose sparse engine and a dense peer were measured.

    Example:
        >>> metrics = {"best dense (eager) / sparse engine": 1.234, "torch.compile default: not run: no time": 0.0}
        >>> rows = [{"case": "net (1 x 8)", "metric": name, "value": value} for name, value in metrics.items()]
        >>> print(markdown(rows).splitlines()[2])
        | net (1 x 8) | eager (not run: torch.compile default) | 1.23 | - | - | - | - |
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["metric"]] = row["value"]
    lines = [f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join('---' for _ in _COLUMNS)} |"]
    for case, values in found.items():
        best = next(filter(None, map(_BEST.fullmatch, values)), None)
        if best is not None:
            ours = best.group() if best.group(1) == "dense engine" else _OURS
            cells = [values.get(name) for name in (best.group(), _JOULES, ours, _EXPECTED, _MEMORY)]
            shown = ["-" if value is None else f"{value:.2f}" for value in cells]
            missing = ", ".join(name.group(1) for name in filter(None, map(_MISSING.fullmatch, values)))
            peer = f"{best.group(1)} (not run: {missing})" if missing else best.group(1)
            lines.append(f"| {case} | {peer} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from _readme import put, rows_of

    put("end to end", markdown(rows_of("gpu_end_to_end")))
