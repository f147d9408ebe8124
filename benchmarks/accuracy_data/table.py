"""The README's accuracy table, from the rows of the result file: ``python benchmarks/accuracy_data/table.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["markdown"]

_METHODS = {
    "dense": "dense",
    "magnitude one-shot": "magnitude",
    "wanda": "wanda",
    "sparsegpt": "sparsegpt",
    "magnitude + permutation": "permuted, magnitude",
    "sparsegpt + permutation": "permuted, sparsegpt",
    "retrained": "retrained",
    "FP16": "best, FP16",
    "INT8": "best, INT8",
}


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a line for each network and metric in percent, and a column for each method.

    Example:
        >>> rows = [{"case": "net, 3 files: dense", "metric": "right", "value": 99.5, "unit": "%"}]
        >>> print(markdown(rows).splitlines()[2])
        | net, 3 files | right | 99.5 | - | - | - | - | - | - | - | - |
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        network, _, method = row["case"].rpartition(": ")
        name = method.rpartition(", ")[2]
        if name in _METHODS and row["unit"] == "%" and not row["metric"].startswith(("of magnitude", "output error")):
            found.setdefault((network, row["metric"]), {})[name] = row["value"]
    lines = [
        f"| network, data | % | {' | '.join(_METHODS.values())} |",
        f"| --- | --- | {' | '.join('---' for _ in _METHODS)} |",
    ]
    for (network, metric), values in found.items():
        cells = [f"{values[name]:.1f}" if name in values else "-" for name in _METHODS]
        lines.append(f"| {network} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from _readme import put, rows_of

    put("accuracy", markdown(rows_of("accuracy")))
