"""The README's tables of results, each between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["put", "rows_of", "shown"]

_ROOT = Path(__file__).parents[1]
_README = _ROOT / "README.md"


def rows_of(result: str) -> list[dict[str, Any]]:
    """The rows of ``results/<result>.json``."""
    rows: list[dict[str, Any]] = json.loads((_ROOT / "benchmarks" / "results" / f"{result}.json").read_text())["rows"]
    return rows


def shown(name: str) -> str:
    """The table that stands in the README."""
    return _cut(name)[1].strip()


def put(name: str, table: str) -> None:
    """Write a table into the README."""
    before, _, after = _cut(name)
    _README.write_text(f"{before}\n{table}\n{after}", encoding="utf-8")


def _cut(name: str) -> tuple[str, str, str]:
    """What is before the table with its mark, the table, and what is after it with its mark."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = _README.read_text(encoding="utf-8").partition(begin)
    table, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"README.md has no {begin} ... {end}")
    return before + begin, table, end + after
