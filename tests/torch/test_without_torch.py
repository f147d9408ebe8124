"""What happens where PyTorch is not installed."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules["torch"] = None
import trtsparse
from trtsparse.errors import MissingDependencyError
for module in ("trtsparse.torch", "trtsparse.torch.pruner"):
    try:
        __import__(module)
    except MissingDependencyError as error:
        print(error, error.exit_code)
"""


def test_the_error_names_the_extra():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == "trtsparse.torch needs PyTorch\n  to fix: pip install 'trtsparse[torch]' 3\n" * 2


def test_the_other_tests_of_this_folder_run():
    pytest.importorskip("torch", reason="the tests of trtsparse.torch need PyTorch")
    import trtsparse.torch

    assert sorted(trtsparse.torch.__all__) == trtsparse.torch.__all__
    for name in trtsparse.torch.__all__:
        assert getattr(trtsparse.torch, name).__doc__, name
