"""Tables for people: three columns, names as they are, totals in words; a bar only on a terminal."""

import dataclasses
import io
import sys
from functools import partial

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtsparse.report.console import console, mark, print_rows, prune_table, sparsity_table
from trtsparse.report.progress import progress_bar
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def gemm(name="gemm", batch=2):
    weights = np.random.default_rng(0).standard_normal((8, 8), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w[0]"], ["y"], name, transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(weights, "w[0]")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def printed(show, subject):
    stream = io.StringIO()
    show(subject, out=console(stream))
    return stream.getvalue()


def test_the_three_columns_are_kept_apart():
    text = printed(sparsity_table, validate(gemm()))
    for column in ("compliant", "eligible", "violating groups"):
        assert column in text
    assert "16 of 16" in text
    assert "sites: 1 in all, 1 eligible, 0 of these compliant (0.0% of all)" in text


def test_names_with_brackets_are_printed_as_they_are():
    assert "w[0]" in printed(sparsity_table, validate(gemm("a[bold]b")))
    assert "a[bold]b" in printed(sparsity_table, validate(gemm("a[bold]b")))
    assert "w[0]" in printed(prune_table, prune(gemm()))


def test_dynamic_shapes_leave_the_work_unknown_and_say_what_to_give():
    assert "MACs: unknown, as some shapes are (give --shapes)" in printed(sparsity_table, validate(gemm(batch="n")))


@pytest.mark.parametrize(
    ("unknown", "text"),
    [
        (("a[b]",), "MACs: unknown: shape inference does not reach a[b]"),
        (("a[b]", "a[b]", "c"), "MACs: unknown: shape inference does not reach 2 nodes, the first is a[b]"),
    ],
)
def test_where_every_input_has_a_shape_no_more_shapes_are_asked_for(unknown, text):
    report = validate(gemm())
    sites = tuple(dataclasses.replace(report.sites[0], node=node, macs=None) for node in unknown)
    report = dataclasses.replace(report, sites=(*report.sites, *sites), by_macs=None)
    printed_text = printed(partial(sparsity_table, complete=True), report)
    assert f"{text}; fix the input shapes in the model and fold its constants" in printed_text
    assert "give --shapes" not in printed_text


def test_known_work_is_told_where_every_input_has_a_shape():
    assert "MACs: 128 in all" in printed(partial(sparsity_table, complete=True), validate(gemm()))


def wide():
    table = Table(title=escape("[m].onnx"))
    table.add_column("node", overflow="fold", min_width=6)
    table.add_column("compliant", no_wrap=True)
    table.add_column("gain", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=8)
    table.add_row(escape("layer[0]/MatMul"), mark(value=True), "[green]1.50x[/]", "it is as fast as it can be")
    return table


def at_width(width):
    stream = io.StringIO()
    print_rows(wide(), out=Console(file=stream, width=width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_table_is_printed_where_nothing_that_must_be_whole_is_cut():
    least = 1 + (6 + 3) + (9 + 3) + (5 + 3) + (8 + 3)
    for width in (least, least + 20):
        lines = at_width(width)
        assert {len(line) for line in lines[1:]} <= set(range(width + 1))
        (header,) = [line for line in lines if "compliant" in line]
        assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["node", "compliant", "gain", "why"]
        assert any("│ yes       │ 1.50x │" in line for line in lines)
    assert "┃" not in "".join(at_width(least - 1))


def test_a_table_that_is_too_wide_is_lines_for_each_row():
    assert at_width(32) == [
        "[m].onnx",
        "layer[0]/MatMul",
        "  compliant yes   gain 1.50x",
        "  why it is as fast as it can be",
    ]
    assert at_width(20)[2:4] == ["  compliant yes", "  gain 1.50x"]
    assert "…" not in "".join(at_width(20))


def test_a_compliant_tensor_is_said_to_have_been_so():
    again = prune(prune(gemm()).model)
    assert "0 (was compliant)" in printed(prune_table, again)


def test_no_bar_without_a_terminal(capsys):
    with progress_bar("working") as update:
        update(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("working") as update:
        update(1, 2)
    assert "working" in terminal.getvalue()


@pytest.mark.parametrize("reached", [True, False])
def test_every_total_has_a_share(reached):
    report = validate(prune(gemm()).model if reached else gemm())
    assert report.by_parameters.share == float(reached)
