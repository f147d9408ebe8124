"""Console tables of what the library found, for people; machines read the ``to_dict`` of the same objects."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from trtsparse.sparsity.prune import PruneResult
from trtsparse.sparsity.validate import SiteReport, SparsityReport, Total

__all__ = ["SIMPLIFY", "console", "mark", "print_rows", "prune_table", "sparsity_table", "unreached"]

SIMPLIFY = "fix the input shapes in the model and fold its constants"
"""What helps where shape inference ends although every input has a shape."""
_PIPED_WIDTH = 200  # a log file has no width: do not cut names
_INDENT, _GAP = 2, 3  # of what stands under a name, and between two values


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


def print_rows(table: Table, *, out: Console) -> None:
    """Print a table; where it is too wide for that, each row as lines, with the column's name before each value.

    Args:
        table: The first column names the row. Columns that must not be cut are ``no_wrap``, the others have a
            ``min_width``.
        out: Where to print.
    """
    if _least_width(table, out) <= out.width:
        out.print(table)
        return
    if table.title:
        out.print(table.title, style="table.title")
    for name, *values in zip(*(column.cells for column in table.columns), strict=True):
        out.print(name)
        pairs = [
            Text.assemble((f"{column.header} ", "bold"), Text.from_markup(str(value)))
            for column, value in zip(table.columns[1:], values, strict=True)
        ]
        for line in _filled(pairs, out.width - _INDENT):
            out.print(Padding(line, (0, 0, 0, _INDENT), expand=False))


def _filled(pairs: Iterable[Text], width: int) -> list[Text]:
    """As few lines as hold the pairs; one that is wider than a line is wrapped when it is printed."""
    lines: list[Text] = []
    for pair in pairs:
        if lines and lines[-1].cell_len + _GAP + pair.cell_len <= width:
            lines[-1].append(" " * _GAP).append_text(pair)
        else:
            lines.append(pair)
    return lines


def _least_width(table: Table, out: Console) -> int:
    """Of the table with all that must not be cut, its lines between columns included."""

    def width(column: Column) -> int:
        parts = (column.header, *column.cells) if column.no_wrap else ()
        return max((Measurement.get(out, out.options, part).maximum for part in parts), default=column.min_width or 0)

    return 1 + sum(width(column) + 3 for column in table.columns)


def sparsity_table(report: SparsityReport, *, out: Console, complete: bool = False) -> None:
    """Print a table of sites, then the totals.

    Args:
        report: From `trtsparse.validate`.
        out: Where to print.
        complete: Every input has a shape, so that giving shapes would not make more known.
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
    out.print(_total_line("sites", report.by_sites))
    out.print(_total_line("parameters", report.by_parameters))
    if report.by_macs is not None:
        out.print(_total_line("MACs", report.by_macs))
    elif complete:
        out.print(f"MACs: unknown: {escape(unreached(report))}; {SIMPLIFY}")
    else:
        out.print("MACs: unknown, as some shapes are (give --shapes)")


def unreached(report: SparsityReport) -> str:
    """Which nodes' work is unknown although every input has a shape, in words; there must be one."""
    nodes = list(dict.fromkeys((*site.bodies, site.node) for site in report.sites if site.macs is None))
    if len(nodes) == 1:
        return f"shape inference does not reach {nodes[0][-1]}"
    return f"shape inference does not reach {len(nodes)} nodes, the first is {nodes[0][-1]}"


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


def _total_line(name: str, total: Total) -> str:
    return (
        f"{name}: {total.total:,} in all, {total.eligible:,} eligible, {total.compliant:,} of these compliant "
        f"({total.share:.1%} of all)"
    )
