"""The console table of a build report."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.builder.report import BuildReport
from trtsparse.report.console import mark

__all__ = ["build_table"]

_FEW = 5


def build_table(report: BuildReport, *, out: Console) -> None:
    """Print how the engine was built, and the three columns of every weight site.

    Args:
        report: From `trtsparse.build`.
        out: Where to print.
    """
    precision = report.precision
    out.print(f"{report.flavour} {report.version}, sparsity {report.sparsity}, built in {report.build_seconds:.1f} s")
    error = "" if precision.error is None else f", error {precision.error:.2g} (limit {precision.limit:.2g})"
    out.print(f"precision {precision.asked} asked, {precision.reached} reached: {precision.way}{error}")
    if precision.kept:
        more = f" and {len(precision.kept) - _FEW} more (in the report)" if len(precision.kept) > _FEW else ""
        out.print(f"kept in FP32: {escape(', '.join(precision.kept[:_FEW]))}{more}")
    if report.pruning is not None:
        out.print(f"force: {report.pruning['zeroed']:,} weights pruned by magnitude")
    for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            out.print(f"{kind} {escape(tensor['name'])}: {tensor['dtype']} {tuple(tensor['shape'])}")
    table = Table(title="weight sites", title_justify="left")
    for column in ("node", "op", "shape", "compliant", "eligible", "chosen", "why"):
        table.add_column(column, overflow="fold")
    for row in report.sites:
        table.add_row(
            escape(row.node),
            row.op,
            "x".join(map(str, row.shape)) or "-",
            mark(row.compliant),
            mark(row.eligible),
            mark(row.chosen),
            escape("; ".join((row.reason, *row.warnings)).strip("; ")),
        )
    out.print(table)
    for text in report.warnings:
        out.print(f"[yellow]warning[/]: {escape(text)}")
