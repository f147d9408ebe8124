"""The table of output errors per layer."""

import io

from trtsparse.accuracy.calibrate import LayerError
from trtsparse.accuracy.prune import CalibratedResult
from trtsparse.report.console import console
from trtsparse.report.layers import layer_table


def test_the_table_shows_errors_in_percent_and_why_a_layer_is_different():
    layers = (
        LayerError("w", ("first",), "sparsegpt", 0.0312, 0.2, 1200, 0.01, ("b",), ""),
        LayerError("v[0]", ("second",), "magnitude", None, None, 0, None, (), "also read by Gather 'embedding'"),
    )
    result = CalibratedResult(None, "2:4", (), (), "sparsegpt", 7, layers)
    stream = io.StringIO()
    layer_table(result, out=console(stream))
    title, _, header, _, first, second, _ = stream.getvalue().splitlines()
    assert title.strip() == "output error on 7 calibration inputs"
    assert [cell.strip() for cell in header.strip("\u2503").split("\u2503")] == [
        "weight", "method", "output error", "by magnitude", "rows", "bias changed", "why",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in (first, second)]
    assert cells == [
        ["w", "sparsegpt", "3.12%", "20.00%", "1,200", "b", ""],
        ["v[0]", "magnitude", "-", "-", "-", "-", "also read by Gather 'embedding'"],
    ]
