"""Every notebook runs from top to bottom, and is kept in git without outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDS = {"03-retrain-pytorch": ("torch", "sklearn", "onnxruntime")}


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request, tmp_path):
    """A notebook in a checkout of its own, where what it needs is installed."""
    for library in NEEDS.get(request.param.stem, ("tensorrt_rtx", "magika")):
        pytest.importorskip(library)
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    return Path(shutil.copy(request.param, tmp_path / "notebooks"))


def run(*words, folder):
    """A command of this Python in a folder; this checkout is installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_notebook_is_a_script_that_takes_the_models_beside_it(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    script = notebook.with_suffix(".py")
    shown = "print(sys.modules['models'].__file__)"
    script.write_text("\n\n".join(["".join(cell["source"]) for cell in cells] + [shown]))
    printed = run(script, folder=notebook.parent).splitlines()
    assert printed[-1] == str(notebook.parent.parent / "models" / "__init__.py")


@pytest.mark.slow
def test_a_notebook_runs_in_a_kernel_from_top_to_bottom(notebook):
    """An event loop is running there."""
    for library in ("nbconvert", "ipykernel"):
        pytest.importorskip(library)
    run("-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", notebook, folder=notebook.parent)
