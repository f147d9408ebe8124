"""Console table of what pruning with calibration data does to each layer's output."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.accuracy.prune import CalibratedResult
from trtsparse.accuracy.sensitivity import LimitedResult

__all__ = ["layer_table"]


def layer_table(result: CalibratedResult, *, out: Console) -> None:
    """Print the output error of each layer, by the method and by magnitude.

    Args:
        result: From `trtsparse.prune` with calibration data, or `trtsparse.accuracy.sensitivity.prune_within`.
        out: Where to print.
    """
    title = f"output error on {result.samples} calibration inputs"
    table = Table(title=escape(title), title_justify="left")
    for column in ("weight", "method", "output error", "by magnitude", "rows", "bias changed", "why"):
        table.add_column(column, overflow="fold")
    for layer in result.layers:
        table.add_row(
            escape(layer.tensor),
            layer.method,
            _percent(layer.error),
            _percent(layer.magnitude_error),
            f"{layer.rows:,}" if layer.rows else "-",
            escape(", ".join(layer.biases)) or "-",
            escape(layer.reason),
        )
    out.print(table)
    if isinstance(result, LimitedResult):
        left = f"{len(result.dense)} layers left dense" if result.dense else "no layer left dense"
        out.print(f"the outputs move by {result.drop:.3g}, at most {result.max_drop:g} was allowed; {left}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
