"""Console tables of what the library found, for people; machines read the ``to_dict`` of the same objects."""

from __future__ import annotations

import sys
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.sparsity.prune import PruneResult
from trtsparse.sparsity.validate import SiteReport, SparsityReport, Total

__all__ = ["console", "mark", "prune_table", "sparsity_table"]

_PIPED_WIDTH = 200  # a log file has no width: do not cut names


def console(stream: IO[str] | None = None) -> Console:
    """A rich console; without a terminal it is wide and plain."""
    stream = stream or sys.stdout
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def mark(value: object) -> str:
    """One word for a column: yes, no, a dash where nothing is known, or the text itself."""
    if isinstance(value, str):
        return escape(value)
    return "[dim]-[/]" if value is None else "[green]yes[/]" if value else "[red]no[/]"


def sparsity_table(report: SparsityReport, *, out: Console) -> None:
    """Print a table of sites, then the totals.

    Args:
        report: From `trtsparse.validate`.
        out: Where to print.
    """
    table = Table(
        title=escape(f"{report.model}: {report.pattern} sparsity, {report.precision} values"), title_justify="left"
    )
    for column in (
        "node",
        "op",
        "weight",
        "shape",
        "axis",
        "zeros",
        "violating groups",
        "compliant",
        "eligible",
        "why",
    ):
        table.add_column(column, overflow="fold")
    for site in report.sites:
        table.add_row(*_site_cells(site))
    out.print(table)
    for name, total in (("sites", report.by_sites), ("parameters", report.by_parameters), ("MACs", report.by_macs)):
        out.print(_total_line(name, total))


def prune_table(result: PruneResult, *, out: Console) -> None:
    """Print what pruning changed and what it left alone.

    Args:
        result: From `trtsparse.prune`.
        out: Where to print.
    """
    table = Table(title=escape(f"{result.model.name}: pruned to {result.pattern}"), title_justify="left")
    for column in ("weight", "used by", "axis", "parameters", "set to zero"):
        table.add_column(column, overflow="fold")
    for tensor in result.tensors:
        table.add_row(
            escape(tensor.tensor),
            escape(", ".join(tensor.nodes)),
            ", ".join(str(axis) for axis in tensor.axes),
            f"{tensor.parameters:,}",
            f"{tensor.zeroed:,}" if tensor.zeroed else "0 (was compliant)",
        )
    out.print(table)
    for tensor in result.tensors:
        if tensor.also_read_by and tensor.zeroed:
            out.print(f"note: {escape(tensor.tensor)} is also read by {escape(', '.join(tensor.also_read_by))}")
    for name, reason in result.skipped:
        out.print(f"left alone: {escape(name)}: {escape(reason)}")
    out.print(f"{len(result.tensors)} tensors, {result.zeroed:,} weights set to zero")


def _site_cells(site: SiteReport) -> tuple[str, ...]:
    judged = site.compliant is not None
    return (
        escape(site.node),
        site.op,
        escape(site.tensor),
        "x".join(map(str, site.shape)) or "-",
        str(site.axis) if site.axis >= 0 else "-",
        f"{site.zero_fraction:.1%}" if judged else "-",
        f"{site.violating:,} of {site.groups:,}" if judged else "-",
        mark(site.compliant),
        mark(site.eligible),
        escape("; ".join((site.reason, *site.warnings)).strip("; ")),
    )


def _total_line(name: str, total: Total | None) -> str:
    if total is None:
        return f"{name}: unknown, as some shapes are (give --shapes)"
    return (
        f"{name}: {total.total:,} in all, {total.eligible:,} eligible, {total.compliant:,} of these compliant "
        f"({total.share:.1%} of all)"
    )
