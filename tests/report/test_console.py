"""Tables for people: three columns, names as they are, totals in words; a bar only on a terminal."""

import io
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtsparse.report.console import console, prune_table, sparsity_table
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
