"""How benchmarks measure, print and keep what they found."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One figure: ``value`` is a median; ``low`` and ``high`` are the extremes of the runs."""

    case: str
    metric: str
    value: float
    unit: str
    target: float | None = None
    met: bool | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Benchmark:
    """Collects rows; `finish` prints the table and writes ``results/<name>.json``."""

    name: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        case: str,
        metric: str,
        values: list[float] | float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> float:
        """Add a figure, with a target where there is one, and return it."""
        runs = values if isinstance(values, list) else [values]
        value = statistics.median(runs)
        target = at_least if at_least is not None else at_most
        met = None if target is None else (value >= target if at_least is not None else value <= target)
        self.rows.append(Row(case, metric, value, unit, target, met, min(runs), max(runs)))
        print(f"{case}: {metric} {value:.4g} {unit}", file=sys.stderr, flush=True)
        return value

    def finish(self, packages: tuple[str, ...] = ()) -> None:
        """Write the file (into the folder that OUT names, if it is set), print the table last."""
        document = {
            "name": self.name,
            **call(),
            "machine": machine(packages),
            "rows": [asdict(row) for row in self.rows],
        }
        folder = Path(os.environ.get("OUT") or RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")
        self._print()

    def _print(self) -> None:
        columns = ("case", "metric", "median", "low", "high", "unit", "target", "met")
        lines = []
        for row in self.rows:
            numbers = [f"{number:.4g}" for number in (row.value, row.low, row.high) if number is not None]
            met = "-" if row.met is None else "yes" if row.met else "no"
            target = "-" if row.target is None else f"{row.target:g}"
            lines.append((row.case, row.metric, *numbers, row.unit, target, met))
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:  # a machine with a GPU and little else
            widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
            for line in (columns, *lines):
                print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
            return
        table = Table(title=self.name, title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column in ("case", "metric", "unit") else "right")
        for line in lines:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def call() -> dict[str, str]:
    """When, with which code, and by which command."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], RESULTS.parent.parent), *sys.argv[1:]]),
    }


def machine(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """The processor, GPU and versions that the figures belong to."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_gpu(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "onnx", *packages)},
    }


def _gpu() -> dict[str, str | None]:
    """Name and driver of the first GPU, None where there is none."""
    asked = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0")
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
        name, driver = done.stdout.strip().rsplit(", ", 1)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {"gpu": None, "driver": None}
    return {"gpu": name, "driver": driver}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(a: Callable[[], object], b: Callable[[], object], runs: int) -> tuple[list[float], list[float]]:
    """Time two things in turn, after one warm-up of each: the machine's mood is the same for both."""
    a()
    b()
    pairs = [(seconds(a), seconds(b)) for _ in range(runs)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Pair by pair."""
    return [n / d for n, d in zip(numerator, denominator, strict=True)]


def _commit() -> str:
    """Of this checkout, "-dirty" with other changes; for files that were copied elsewhere, what COMMIT says."""
    named = os.environ.get("COMMIT")
    if named:
        return named
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            cwd=RESULTS.parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
