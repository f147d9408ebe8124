"""The console table of tuned products."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.report.console import print_rows
from trtsparse.tune.result import GemmResult, Kernel
from trtsparse.tune.tune import TuneResult

__all__ = ["tune_table"]

_FEW = 3


def tune_table(result: TuneResult, *, out: Console) -> None:
    """Print the best kernels of each product, what was left out and why, and the sum over a model.

    Args:
        result: From `trtsparse.tune.tune.tune`.
        out: Where to print.
    """
    if result.facts:
        out.print(escape(", ".join(f"{name} {value}" for name, value in result.facts.items())))
    uses = Counter[str]()
    for site in result.sites:
        uses[site.gemm.key] += site.count
    table = Table(title=escape(result.model) or None, title_justify="left")
    table.add_column("product (M x N x K)", overflow="fold", min_width=20)
    for column in ("uses", "dense ms", "sparse ms", "gain", "low", "high", "over default"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sparse kernel", overflow="fold", min_width=12)
    for row in result.rows:
        table.add_row(row.gemm.key.replace("->", " to "), str(uses[row.gemm.key] or "-"), *_cells(row))
    print_rows(table, out=out)
    for line in _notes(result):
        out.print(escape(line))


def _cells(row: GemmResult) -> tuple[str, ...]:
    gain = "[dim]-[/]"
    if row.gain is not None:
        colour = "green" if row.gain > 1 else "red"
        gain = f"[{colour}]{row.gain:.2f}x[/]"
    low, high = (f"{edge(row.gains):.2f}x" if row.gains else "-" for edge in (min, max))
    default = row.defaults.get("sparse")
    over = f"{default / row.sparse.ms:.2f}x" if default and row.sparse else "-"
    return _ms(row.dense), _ms(row.sparse), gain, low, high, over, row.sparse.name if row.sparse else "-"


def _ms(kernel: Kernel | None) -> str:
    return "-" if kernel is None else f"{kernel.ms:.4f}"


def _notes(result: TuneResult) -> list[str]:
    lines = []
    for row in result.rows:
        lines += [f"{row.gemm.key}: {line}" for line in _about(row)]
    if result.missing:
        names = ", ".join(gemm.key for gemm in result.missing[:_FEW])
        lines.append(f"no time was left for {names}{_more(result.missing)}")
    if result.unknown:
        lines.append(f"of unknown size, not tuned: {', '.join(result.unknown[:_FEW])}" + _more(result.unknown))
    totals = result.totals
    if totals is not None:
        dense, best = totals
        lines.append(
            f"all weight products: {dense:.4g} ms dense, {best:.4g} ms with sparse kernels where they are faster "
            f"({dense / best:.2f}x)"
        )
    lines.append(f"{len(result.rows)} products in {result.seconds:.1f} s, {result.cached} of them known before")
    return lines


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - _FEW} more" if len(found) > _FEW else ""


def _about(row: GemmResult) -> list[str]:
    """What else happened with a product, in few lines."""
    lines = [str(why) for name, why in row.facts.items() if name in ("failed", "no_dense", "no_sparse")]
    if row.restarts:
        lines.append(f"kernels killed the tuning process {row.restarts} times")
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for key, why in row.skipped:
        reasons[why.partition(" (with ")[0]].append(key)
    for why, keys in reasons.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        lines.append(f"left out: {keys[0]}{more}: {why}")
    return lines
