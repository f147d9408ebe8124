"""The console table of a channel permutation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.accuracy.permute import PermutedChannels, PermuteResult

__all__ = ["permute_table"]

_FEW = 3


def permute_table(result: PermuteResult, *, out: Console) -> None:
    """Print what the new order of channels keeps, and what kept its order for which reason.

    Args:
        result: From `trtsparse.accuracy.permute.permute`.
        out: Where to print.
    """
    title = f"{result.model.name}: magnitude that {result.pattern} pruning keeps, by groups of channels"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("channels", justify="right")
    table.add_column("read by weights", overflow="fold")
    for column in ("tensors permuted", "kept before", "kept now", "no order keeps more", "seconds"):
        table.add_column(column, justify="right")
    for group in result.groups:
        table.add_row(*_cells(group))
    if result.groups:
        out.print(table)
    for name, reason in result.left_alone:
        out.print(f"left alone: {escape(name)}: {escape(reason)}")
    out.print(_summary(result))
    unfinished = sum(not group.converged for group in result.groups)
    if unfinished:
        out.print(f"the time limit ended {unfinished} of {len(result.groups)} searches; more time may find better")


def _cells(group: PermutedChannels) -> tuple[str, ...]:
    more = len(group.weights) - _FEW
    names = ", ".join(group.weights[:_FEW]) + (f" and {more} more" if more > 0 else "")
    return (
        f"{group.channels}",
        escape(names),
        f"{len(group.permuted)}" if group.permuted else "none (no better order)",
        f"{group.kept_before:.2%}",
        f"{group.kept_after:.2%}",
        f"{group.kept_bound:.2%}",
        f"{group.seconds:.1f}",
    )


def _summary(result: PermuteResult) -> str:
    if not result.groups:
        return "no channels can be permuted: the model is as it was"
    compared = "not compared" if result.error is None else f"equal but for {result.error:.1g} of their range"
    kept = f"{result.kept_before:.2%} -> {result.kept_after:.2%} kept"
    return f"{kept} (no order keeps more than {result.kept_bound:.2%}); outputs: {compared}; {result.seconds:.1f} s"
