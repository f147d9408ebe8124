"""The command itself: verbs, exit codes, errors without tracebacks."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.helpers import model
from trtsparse.cli import main as cli
from trtsparse.cli import validate as validate_verb


@pytest.mark.parametrize("verb", ["validate", "prune", "build", "run", "doctor"])
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"usage: trtsparse {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sparsify"])
    assert stopped.value.code == 2
    assert "invalid choice: 'sparsify'" in capsys.readouterr().err


def test_no_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert "VERB" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("trtsparse ")


def test_an_unexpected_error_is_one_message_and_no_traceback(monkeypatch, capsys):
    def fails(_options):
        raise ZeroDivisionError("by zero")

    monkeypatch.delenv("TRTSPARSE_DEBUG", raising=False)
    monkeypatch.setattr(validate_verb, "run", fails)
    assert cli.main(["validate", "x.onnx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: unexpected ZeroDivisionError: by zero\n"
        "  to fix: this is a defect of trtsparse; run again with TRTSPARSE_DEBUG=1 and report the traceback\n"
    )


def test_the_traceback_of_an_unexpected_error_can_be_had(monkeypatch):
    def fails(_options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setenv("TRTSPARSE_DEBUG", "1")
    monkeypatch.setattr(validate_verb, "run", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["validate", "x.onnx"])


def test_ctrl_c_is_exit_code_130(monkeypatch, capsys):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate_verb, "run", interrupted)
    assert cli.main(["validate", "x.onnx"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_module_and_the_command_are_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "trtsparse", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("trtsparse ")


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m trtsparse doctor | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture
def dense(tmp_path):
    """A model whose report does not fit into a pipe, and whose answer is no."""
    names = ["x", *(f"a{index}" for index in range(299)), "y"]
    nodes = [
        helper.make_node("MatMul", [a, f"w{index}"], [b], f"n{index}")
        for index, (a, b) in enumerate(itertools.pairwise(names))
    ]
    weights = [numpy_helper.from_array(np.ones((8, 8), np.float32), f"w{index}") for index in range(300)]
    path = tmp_path / "dense.onnx"
    path.write_bytes(model(nodes, weights).SerializeToString())
    return path


@pytest.mark.parametrize(("options", "code"), [((), 1), (("--require", "0"), 0)])
def test_a_reader_that_goes_away_does_not_change_the_answer(dense, options, code):
    command = [sys.executable, "-m", "trtsparse", "validate", "--json", str(dense), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "{\n"
        running.stdout.close()
        assert "Error" not in running.stderr.read()
        assert running.wait() == code


def test_output_that_cannot_be_written_is_an_error(dense):
    command = [sys.executable, "-m", "trtsparse", "validate", "--json", str(dense)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: cannot write what there is to say\n  got: No space left on device\n",
    )


def test_an_answer_is_given_where_nobody_can_be_told(dense):
    command = [sys.executable, "-m", "trtsparse", "validate", "--json", str(dense)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full, check=False)
    assert done.returncode == 1
