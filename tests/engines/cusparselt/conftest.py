from types import SimpleNamespace

import pytest

from tests.doubles.cuda import MemoryCuda
from tests.tune.nvmath_double import CublasLt, CusparseLt, installed_nvmath


class TorchMemory(MemoryCuda):
    """PyTorch's memory on the CPU is the device's."""

    def _place(self, address, nbytes, *, on_device):  # noqa: ARG002 - as it is called
        assert address


@pytest.fixture
def libraries(monkeypatch):
    """Double libraries, and PyTorch's stream as theirs."""
    import torch

    cuda = TorchMemory(order="eager")
    token = cuda.enter()
    stream = cuda.create_stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=stream))
    made = CublasLt(cuda), CusparseLt(cuda)
    with installed_nvmath(*made):
        yield made
    assert not any(library._handles.alive for library in made)
    cuda.leave(token)
