"""The table of a channel permutation."""

import io

from trtsparse.accuracy.permute import PermutedChannels, PermuteResult
from trtsparse.files.model import OnnxModel
from trtsparse.report.console import console
from trtsparse.report.permute import permute_table


def group(weights, *, permuted=("p",), converged=True):
    return PermutedChannels(tuple(weights), permuted, 64, 10.0, 0.75, 0.76, 0.8, 1.25, converged=converged)


def printed(*groups, left_alone=(), error=1.25e-6):
    model = OnnxModel({}, name="[m].onnx", proto=object())
    stream = io.StringIO()
    permute_table(PermuteResult(model, "2:4", groups, left_alone, error, 2.5), out=console(stream))
    return stream.getvalue()


def test_every_group_is_a_row_with_its_shares():
    text = printed(group(["a", "b[0]"]))
    assert "[m].onnx: magnitude that 2:4 pruning keeps, by groups of channels" in text
    (row,) = [line for line in text.splitlines() if "b[0]" in line]
    cells = [cell.strip() for cell in row.split("│")]
    assert cells == ["", "64", "a, b[0]", "1", "75.00%", "76.00%", "80.00%", "1.2", ""]
    assert text.splitlines()[-1] == (
        "75.00% -> 76.00% kept (no order keeps more than 80.00%); outputs: equal but for 1e-06 of their range; 2.5 s"
    )


def test_many_weights_are_counted():
    assert "a, b, c and 2 more" in printed(group("abcde"))


def test_a_group_without_a_better_order_says_so():
    assert "none (no better order)" in printed(group(["a"], permuted=()))


def test_reasons_and_unfinished_searches_are_listed():
    text = printed(group(["a"], converged=False), group(["b"]), left_alone=(("w[1]", "graph input 'x'"),), error=None)
    assert "left alone: w[1]: graph input 'x'" in text
    assert "outputs: not compared" in text
    assert "the time limit ended 1 of 2 searches; more time may find better" in text


def test_a_model_without_channels_that_may_move_says_so():
    text = printed(left_alone=(("w", "graph input 'x'"),), error=None)
    assert text == "left alone: w: graph input 'x'\nno channels can be permuted: the model is as it was\n"
