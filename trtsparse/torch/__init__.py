"""Pruning and fine-tuning for PyTorch modules: masks that hold while any optimizer trains.

The known recipe: train dense, prune by magnitude, train again with the same recipe and the masks fixed, export::

    pruner = prune_trained_model(model, optimizer)   # one line more than dense training
    train(model, optimizer)
    report = pruner.export_onnx("model.onnx", (example,))

This folder needs the extra ``torch``.
"""

from __future__ import annotations

from trtsparse.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401 - one clear error here, instead of one in each module
except ImportError as error:
    raise MissingDependencyError("trtsparse.torch needs PyTorch", extra="torch") from error

from trtsparse.torch.pruner import SparsePruner, prune_trained_model
from trtsparse.torch.state import SparseState, WeightState

__all__ = ["SparsePruner", "SparseState", "WeightState", "prune_trained_model"]
