"""The command itself: verbs, exit codes, errors without tracebacks."""

import subprocess
import sys

import pytest

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
