"""Results of tuning that were measured on a GPU with a name: read-only, for machines without that GPU."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtsparse.errors import ConfigError, TrtSparseError
from trtsparse.files import atomic
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import GemmResult, Kernel

__all__ = ["SCHEMA", "Table", "load", "make", "names", "short_name", "write"]

SCHEMA = "trtsparse.tune-table/1"
_FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of the GPU, as people say it: "h100".
        date: When it was measured.
        facts: Names and versions that the times depend on.
        results: By product.
    """

    name: str
    date: str
    facts: Mapping[str, str]
    results: Mapping[Gemm, GemmResult]

    def find(self, gemm: Gemm) -> GemmResult | None:
        """The result for a product, or None.

        An epilogue that was not measured counts as none. Times for a number of rows that was not measured are
        interpolated between those of fewer and more rows; ``source`` says so, and the kernels' parameters are empty.
        """
        return self._exact(gemm) or self._exact(_plain(gemm)) or self._between(_plain(gemm))

    def _exact(self, gemm: Gemm) -> GemmResult | None:
        found = self.results.get(gemm)
        return found if found is None else dataclasses.replace(found, source=f"measured on {self.facts['gpu']}")

    def _between(self, gemm: Gemm) -> GemmResult | None:
        alike = {
            other.m: result
            for other, result in self.results.items()
            if dataclasses.replace(other, m=gemm.m) == gemm and result.dense and result.sparse
        }
        fewer = max((m for m in alike if m < gemm.m), default=0)
        more = min((m for m in alike if m > gemm.m), default=0)
        if not fewer or not more:
            return None
        at = math.log(gemm.m / fewer) / math.log(more / fewer)
        dense = _interpolated(alike[fewer].dense, alike[more].dense, at)
        sparse = _interpolated(alike[fewer].sparse, alike[more].sparse, at)
        source = f"interpolated from {fewer} and {more} rows on {self.facts['gpu']}"
        return GemmResult(gemm, dense, sparse, gains=(dense.ms / sparse.ms,), source=source)


def names() -> tuple[str, ...]:
    """The tables that ship with this package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def short_name(gpu: str) -> str:
    """What people call a GPU, by the name that its driver tells.

    Example:
        >>> short_name("NVIDIA A100-SXM4-40GB"), short_name("NVIDIA GeForce RTX 4090")
        ('a100', 'rtx4090')
    """
    found = re.search(r"\b([A-Z]+ ?\d+\w*)\b", gpu)
    return (found[1] if found else gpu).replace(" ", "").lower()


def load(name: str | os.PathLike[str]) -> Table:
    """Read a table.

    Args:
        name: One of `names`, or the path of a file that `write` wrote.

    Raises:
        ConfigError: There is no such table, or the file is not one.
    """
    path = _FOLDER / f"{name}.json" if isinstance(name, str) and name in names() else Path(name)
    try:
        return _read(json.loads(path.read_bytes()))
    except OSError as error:
        expected = ", ".join(names()) or None
        raise ConfigError(
            "no such table of tuned kernels", where=name, got=error.strerror, expected=expected
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, TrtSparseError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError("not a table of tuned kernels", where=path, got=what) from error


def _read(document: Mapping[str, Any]) -> Table:
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}")
    results = [GemmResult.from_dict(fields) for fields in document["results"]]
    facts = {str(key): str(value) for key, value in document["facts"].items()}
    return Table(str(document["name"]), str(document["date"]), facts, {one.gemm: one for one in results})


def write(path: str | os.PathLike[str], table: Table) -> None:
    """Write a table, one product a line, without what only matters to who tuned.

    Raises:
        OutputError: The file cannot be written.
    """
    head = {"schema": SCHEMA, "name": table.name, "date": table.date, "facts": dict(table.facts)}
    lines = (json.dumps(_short(table.results[gemm]).to_dict()) for gemm in sorted(table.results))
    atomic.write(path, json.dumps(head)[:-1] + ', "results": [\n' + ",\n".join(lines) + "\n]}\n")


def make(name: str, date: str, facts: Mapping[str, str], results: Iterable[GemmResult]) -> Table:
    """A table of results that have both kernels."""
    kept = {result.gemm: result for result in results if result.dense and result.sparse}
    return Table(name, date, dict(facts), kept)


def _plain(gemm: Gemm) -> Gemm:
    return dataclasses.replace(gemm, epilogue="none")


def _interpolated(fewer: Kernel | None, more: Kernel | None, at: float) -> Kernel:
    """A kernel whose times lie between those of two, ``at`` from 0 to 1 on a logarithmic scale."""
    if fewer is None or more is None:
        raise ValueError("nothing to interpolate")

    def between(a: float, b: float) -> float:
        return math.exp((1 - at) * math.log(a) + at * math.log(b))

    return Kernel(
        fewer.kind, "interpolated", {}, between(fewer.ms, more.ms), between(fewer.low, more.low),
        between(fewer.high, more.high), max(fewer.error, more.error), max(fewer.bound, more.bound),
    )  # fmt: skip


def _short(result: GemmResult) -> GemmResult:
    gains = result.gains
    return dataclasses.replace(
        result,
        gains=(min(gains), statistics.median(gains), max(gains)) if gains else (),
        skipped=(),
        refused={},
        restarts=0,
    )
