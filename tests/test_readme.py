"""What the README shows is run as it stands, and its figures are the ones that a benchmark wrote."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import _readme
from benchmarks.accuracy_data import table as accuracy
from benchmarks.peers import table as end_to_end

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(kind):
    """Code blocks behind a `<!-- test: kind -->` comment."""
    return re.findall(rf"<!-- test: {kind} -->\n```[a-z]*\n(.*?)```", README, re.DOTALL)


def test_there_are_examples_of_both_kinds():
    assert blocks("python")
    assert blocks("shell")


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_example_runs_as_it_stands(code, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("magika")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - running the README is the test
    assert "True" in printed.getvalue()
    written = {path.name for path in tmp_path.iterdir()}
    assert written == ({"sparse.onnx", "sparse.plan", "sparse.plan.json"} if ".save(" in code else set())


@pytest.mark.parametrize("script", blocks("shell"))
def test_a_shell_example_runs_as_it_stands(script, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not compliant: exit code 1" in done.stdout
    assert "a glob that matches nothing is an error: exit code 2" in done.stdout
    assert (tmp_path / "sparse.plan").stat().st_size > 1000


@pytest.mark.parametrize("target", re.findall(r"^make ([a-z]+)", README, re.MULTILINE))
def test_every_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("extra", re.findall(r"`([a-z]+)`", README.partition("| extra |")[2].partition("\n\n")[0]))
def test_every_extra_of_the_readme_exists(extra):
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "result", "table"),
    [("accuracy", "accuracy", accuracy), ("end to end", "gpu_end_to_end", end_to_end)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_of_figures_is_that_of_its_result_file(name, result, table):
    """`python` with the module's file writes it."""
    assert _readme.shown(name) == table.markdown(_readme.rows_of(result))
