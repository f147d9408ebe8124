"""Console table of what pruning with calibration data does to each layer's output."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.accuracy.prune import CalibratedResult

__all__ = ["layer_table"]


def layer_table(result: CalibratedResult, *, out: Console) -> None:
    """Print the output error of each layer, by the method and by magnitude.

    Args:
        result: From `trtsparse.prune` with calibration data.
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


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
