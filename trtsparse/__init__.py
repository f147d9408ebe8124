"""trtsparse: from an ONNX model to a TensorRT engine that uses Sparse Tensor Cores, with the reasons.

The names below are the public interface. Each is imported when first used: `import trtsparse` stays fast and needs
none of TensorRT, CUDA, PyTorch or ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trtsparse._version import __version__

if TYPE_CHECKING:
    from trtsparse.accuracy.calibration import Calibration
    from trtsparse.accuracy.permute import PermuteResult, permute
    from trtsparse.accuracy.prune import CalibratedResult, prune
    from trtsparse.accuracy.sensitivity import Limit, LimitedResult, prune_within, sensitivity
    from trtsparse.bench.compare import compare
    from trtsparse.bench.measure import measure
    from trtsparse.bench.options import BenchOptions
    from trtsparse.bench.records import Measurement
    from trtsparse.builder.build import build
    from trtsparse.builder.config import BuildConfig, Profile
    from trtsparse.builder.engine import BuiltEngine
    from trtsparse.errors import TrtSparseError
    from trtsparse.files.model import OnnxModel
    from trtsparse.runtime.options import SessionOptions
    from trtsparse.runtime.session import Session
    from trtsparse.sparsity.pattern import Pattern
    from trtsparse.sparsity.prune import PruneResult
    from trtsparse.sparsity.validate import SparsityReport, validate
    from trtsparse.triton.export import export_triton
    from trtsparse.triton.options import TritonOptions
    from trtsparse.trtexec.run import trtexec

__all__ = [
    "BenchOptions",
    "BuildConfig",
    "BuiltEngine",
    "CalibratedResult",
    "Calibration",
    "Limit",
    "LimitedResult",
    "Measurement",
    "OnnxModel",
    "Pattern",
    "PermuteResult",
    "Profile",
    "PruneResult",
    "Session",
    "SessionOptions",
    "SparsityReport",
    "TritonOptions",
    "TrtSparseError",
    "__version__",
    "build",
    "compare",
    "export_triton",
    "measure",
    "permute",
    "prune",
    "prune_within",
    "sensitivity",
    "trtexec",
    "validate",
]

_HOMES = {
    "BenchOptions": "trtsparse.bench.options",
    "BuildConfig": "trtsparse.builder.config",
    "BuiltEngine": "trtsparse.builder.engine",
    "CalibratedResult": "trtsparse.accuracy.prune",
    "Calibration": "trtsparse.accuracy.calibration",
    "Limit": "trtsparse.accuracy.sensitivity",
    "LimitedResult": "trtsparse.accuracy.sensitivity",
    "Measurement": "trtsparse.bench.records",
    "OnnxModel": "trtsparse.files.model",
    "Pattern": "trtsparse.sparsity.pattern",
    "PermuteResult": "trtsparse.accuracy.permute",
    "Profile": "trtsparse.builder.config",
    "PruneResult": "trtsparse.sparsity.prune",
    "Session": "trtsparse.runtime.session",
    "SessionOptions": "trtsparse.runtime.options",
    "SparsityReport": "trtsparse.sparsity.validate",
    "TritonOptions": "trtsparse.triton.options",
    "TrtSparseError": "trtsparse.errors",
    "build": "trtsparse.builder.build",
    "compare": "trtsparse.bench.compare",
    "export_triton": "trtsparse.triton.export",
    "measure": "trtsparse.bench.measure",
    "permute": "trtsparse.accuracy.permute",
    "prune": "trtsparse.accuracy.prune",
    "prune_within": "trtsparse.accuracy.sensitivity",
    "sensitivity": "trtsparse.accuracy.sensitivity",
    "trtexec": "trtsparse.trtexec.run",
    "validate": "trtsparse.sparsity.validate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtsparse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
