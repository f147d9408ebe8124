"""The console table of an explanation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.report.console import mark, print_rows
from trtsparse.tune.bounds import Gain, Totals
from trtsparse.tune.explain import Explanation
from trtsparse.tune.rows import SiteRow

__all__ = ["explain_table"]


def explain_table(explanation: Explanation, *, out: Console) -> None:
    """Print the three columns, the times and the reason of every weight site, then what the model gains.

    Args:
        explanation: From `trtsparse.tune.explain.explain`.
        out: Where to print.
    """
    out.print(escape(explanation.times))
    if explanation.report:
        out.print(f"chosen: by the report of {escape(explanation.report)}")
    table = Table(title=escape(explanation.model), title_justify="left")
    table.add_column("node", overflow="fold", min_width=12)
    for column in ("op", "compliant", "eligible", "chosen"):
        table.add_column(column, no_wrap=True)
    for column in ("M x N x K", "dense ms", "sparse ms", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=24)
    for row in explanation.sites:
        table.add_row(escape(row.node), row.op, *_cells(row), escape(row.why))
    print_rows(table, out=out)
    if explanation.totals is not None:
        for line in _totals(explanation.totals):
            out.print(escape(line))
    for note in explanation.notes:
        out.print(f"[yellow]note[/]: {escape(note)}")


def _cells(row: SiteRow) -> tuple[str, ...]:
    gemm = row.gemm
    size = "-" if gemm is None else f"{gemm.m}x{gemm.n}x{gemm.k} {gemm.dtype}"
    stack = f" ({row.count} times)" if row.count > 1 else ""
    gain = "[dim]-[/]"
    if row.gain is not None:
        gain = f"[{'green' if row.gain > 1 else 'red'}]{row.gain:.2f}x[/]"
    return (
        mark(row.compliant), mark(row.eligible), mark(row.chosen), size + stack, _ms(row.dense_ms),
        _ms(row.sparse_ms), gain,
    )  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _totals(found: Totals) -> list[str]:
    sums = f"{found.now_ms:.4g} ms with the sparse kernels that can be used now"
    after = f"{found.pruned_ms:.4g} ms if all eligible weights were compliant"
    lines = [f"weight products: {found.dense_ms:.4g} ms dense, {sums}, {after}"]
    if found.total_ms is not None:
        lines.append(f"they are {found.share:.0%} of the {found.total_ms:.4g} ms that were measured")
    elif found.rest_ms is not None:
        lines.append(
            f"everything else: about {found.rest_ms:.4g} ms, {found.rest_most_ms:.4g} ms if nothing is fused "
            f"(estimates); weight products are about {found.share:.0%} of the whole"
        )
    lines.append(f"expected gain of the model as it is: {_gain(found.now)}")
    if found.pruned != found.now:
        lines.append(f"expected gain with all eligible weights pruned: {_gain(found.pruned)}")
    return lines


def _gain(gain: Gain) -> str:
    return f"{gain.expected:.2f}x ({gain.lower:.2f}x to {gain.upper:.2f}x)"
