"""A benchmark that is asked for help, or misunderstood, measures nothing and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.stem)
def start(request, tmp_path):
    """Starts a benchmark, whose results would lie in the test's folder."""
    if request.param.stem == "build":
        pytest.importorskip("tensorrt_rtx")

    def start(word):
        done = subprocess.run(
            [sys.executable, request.param, word],
            cwd=tmp_path,
            env={**os.environ, "OUT": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not [*tmp_path.iterdir()]
        return done

    return start


def test_help_is_printed(start):
    done = start("--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_an_unknown_option_is_refused(start):
    done = start("--no-such-option")
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-option" in done.stderr
