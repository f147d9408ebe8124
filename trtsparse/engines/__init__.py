"""Engines: one adapter per execution library, behind the protocol in `trtsparse.engines.base`.

`engine_from` tells by a file's first bytes which library it is for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trtsparse.engines.base import Engine, TensorSpec
from trtsparse.errors import ConfigError, DeviceError

__all__ = ["Engine", "TensorSpec", "engine_from"]

_CHOICES = ("auto", "onnxruntime")
_PLAN_MAGICS = (b"ftrt", b"vtrt")


def engine_from(
    source: str | os.PathLike[str] | bytes | Any, *, engine: str = "auto", threads: int | None = None
) -> Engine:
    """Load a model with the library that can execute it.

    Args:
        source: An ONNX model (a path, bytes, a ModelProto or an OnnxModel), or a plan (a path or bytes).
        engine: "auto", or "onnxruntime" for an ONNX model.
        threads: As in `trtsparse.engines.onnxruntime.OnnxRuntimeEngine`.

    Raises:
        ConfigError: ``engine`` is unknown, or cannot execute what ``source`` holds.
        ModelError: Neither an ONNX model nor a plan.
        PlanError: A damaged plan.
        DeviceError: A plan, which needs a GPU and its own library.
        EngineError: The library does not load the model.
        MissingDependencyError: The library is not installed.
    """
    if engine not in _CHOICES:
        raise ConfigError("no such engine", where="engine", got=repr(engine), expected=", ".join(_CHOICES))
    if _first_bytes(source) in _PLAN_MAGICS:
        _refuse_plan(source, engine)
    from trtsparse.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(source, threads=threads)


def _first_bytes(source: object) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:4])
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        with Path(source).open("rb") as file:
            return file.read(4)
    return b""


def _refuse_plan(source: str | os.PathLike[str] | bytes, engine: str) -> None:
    """Say what a plan would need; executing plans is not part of this version."""
    from trtsparse.builder.plan import read_header

    header = read_header(source)
    if engine == "onnxruntime":
        raise ConfigError(
            "ONNX Runtime cannot execute a plan",
            where="engine",
            got=f"a plan of {header}",
            expected="an ONNX model",
            fix="give the ONNX model that the plan was built from",
        )
    raise DeviceError(
        "a plan is executed by the library that built it, on an NVIDIA GPU",
        where="bytes" if isinstance(source, (bytes, bytearray, memoryview)) else source,
        got="no engine for plans here",
        expected=f"{header} and a GPU that the plan was built for",
        fix="run the ONNX model that the plan was built from on the CPU",
    )
