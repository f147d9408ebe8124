"""The README's table of whole models, from the rows of the result file: ``python -m benchmarks.peers.table``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import DENSE, DENSE_8, SPARSE, SPARSE_8

__all__ = ["markdown"]

_COLUMNS = (
    "model", "values", "best dense peer", "gain", "inferences per joule", "gain over our dense engine",
    "`explain` expects", "peak memory",
)  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """One type of values, and what its rows are called."""

    values: str
    best: str
    sparse: str
    dense: str
    peers: str
    expected: str = ""

    def line(self, case: str, found: Mapping[str, float]) -> str | None:
        """The case's line; None without a measured gain."""
        pattern = re.compile(rf"{self.best} \((.+)\) / {self.sparse}")
        best = next(filter(None, map(pattern.fullmatch, found)), None)
        if best is None:
            return None
        names = (
            best.group(), f"inferences per joule, {self.sparse} / {self.best}",
            best.group() if best.group(1) == self.dense else f"{self.dense} / {self.sparse}",
            self.expected, f"peak device memory, {self.sparse} / {self.dense}",
        )  # fmt: skip
        cells = ["-" if found.get(name) is None else f"{found[name]:.2f}" for name in names]
        pattern = re.compile(rf"((?:{self.peers}|{self.dense})[^:]*): not run: .*")
        missing = ", ".join(name.group(1) for name in filter(None, map(pattern.fullmatch, found)))
        peer = f"{best.group(1)} (not run: {missing})" if missing else best.group(1)
        return f"| {case} | {self.values} | {peer} | {' | '.join(cells)} |"


_KINDS = (
    _Kind("BF16", "best dense", SPARSE, DENSE, r"torch\.compile|eager", "explain's expected gain"),
    _Kind("INT8", "best 8-bit dense", SPARSE_8, DENSE_8, "FP8,|INT8,"),
)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a line for each model and type whose sparse engine and a dense peer were measured.

    Example:
        >>> metrics = {"best dense (eager) / sparse engine": 1.234, "torch.compile default: not run: no time": 0.0}
        >>> rows = [{"case": "net (1 x 8)", "metric": name, "value": value} for name, value in metrics.items()]
        >>> print(markdown(rows).splitlines()[2])
        | net (1 x 8) | BF16 | eager (not run: torch.compile default) | 1.23 | - | - | - | - |
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["metric"]] = row["value"]
    lines = [kind.line(case, values) for case, values in found.items() for kind in _KINDS]
    head = [f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join('---' for _ in _COLUMNS)} |"]
    return "\n".join([*head, *filter(None, lines)])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from _readme import put, rows_of

    put("end to end", markdown(rows_of("gpu_end_to_end")))
