"""The help names every flag, once, under its heading or with the reason why it is refused."""

import re

import pytest

from trtsparse.trtexec.arguments import BY_NAME, FLAGS
from trtsparse.trtexec.help import help_text
from trtsparse.trtexec.policy import LIKES, Policy


def text(like=11):
    return help_text(Policy.of(like, reason=f"--like={like}"))


@pytest.mark.parametrize("like", LIKES)
def test_every_flag_is_in_the_help_once(like):
    usages = re.findall(r"^  (--?\w.*?)(?:  |$)", text(like), re.MULTILINE)
    named = [name for usage in usages for name in re.findall(r"(?<!\w)--?[A-Za-z]\w*", usage.split('"')[0])]
    assert sorted(named) == sorted(BY_NAME)


def test_the_sections_are_trtexecs():
    assert re.findall(r"=== (.*) ===", text()) == [
        "Model Options",
        "Build Options",
        "Inference Options",
        "Tuning Options",
        "Reporting Options",
        "System Options",
        "Help",
        "trtsparse",
        "Refused",
    ]


def test_a_row_has_the_usage_and_one_line():
    assert "  --onnx=<file>                     The ONNX model.\n" in text()
    assert (
        "  --sparsity=spec                   Sparse kernels: enable, or force to prune by magnitude first. One of\n"
        "                                    disable, enable, force.\n" in text()
    )


def test_flags_of_other_versions_and_no_ops_are_marked():
    assert "FP16 kernels. (not in trtexec 11)" in text(11)
    assert "FP16 kernels.\n" in text(10)
    assert "Replay a CUDA graph (default from 11 on). (no-op)" in text(11)
    assert "Replay a CUDA graph (default from 11 on).\n" in text(8)


def test_refused_flags_stand_with_their_reason_and_no_row_of_their_own():
    refused = text().split("=== Refused ===")[1]
    named = {name for line in refused.splitlines() if line.startswith("  --") for name in line.split()}
    assert named == {flag.name for flag in FLAGS if flag.here.status == "refused"}
    assert "  --calib\n      INT8 ranges are found by running the model" in refused


def test_lines_fit_a_terminal():
    policy, *lines = text().splitlines()[1:]
    assert policy.startswith("Measured like trtexec 11")
    assert max(map(len, lines)) <= 110
