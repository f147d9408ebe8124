"""Without PyTorch only `test_without_torch.py` runs, which says so."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["networks.py", "test_[!w]*.py"]
else:
    import torch

    @pytest.fixture(autouse=True)
    def _seed():
        torch.manual_seed(0)
