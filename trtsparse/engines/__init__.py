"""Engines: one adapter per execution library, behind the protocols in `trtsparse.engines.base` and `.device`.

`engine_from` tells by a file's first bytes which library it is for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trtsparse.builder.plan import PlanHeader, read_header
from trtsparse.cuda.driver import count_gpus
from trtsparse.engines.base import Engine, TensorSpec
from trtsparse.engines.cusparselt.saved import is_saved
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError

__all__ = [
    "ENGINES",
    "DeviceEngine",
    "Engine",
    "TensorSpec",
    "check_engine",
    "cusparselt_lacks",
    "engine_from",
    "needs_gpu",
    "plan_header",
]

ENGINES = ("auto", "onnxruntime", "tensorrt", "cusparselt")
_PLAN_MAGICS = (b"ftrt", b"vtrt")


def engine_from(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    engine: str = "auto",
    threads: int | None = None,
    device: int = 0,
) -> Engine | DeviceEngine:
    """Load a model with the library that can execute it, recognised by its content.

    Args:
        source: An ONNX model (a path, bytes, a ModelProto or an OnnxModel), a plan of TensorRT or TensorRT-RTX (a
            path or bytes), or the path of a saved cusparselt engine.
        engine: "auto"; "onnxruntime" for an ONNX model on the CPU; "cusparselt" for one on a GPU without TensorRT;
            "tensorrt" for a plan.
        threads: As in `trtsparse.engines.onnxruntime.OnnxRuntimeEngine`.
        device: The number of the GPU that is current in this thread; where one is needed.

    Returns:
        An engine that works in host memory for an ONNX model in ONNX Runtime, else one on the GPU.

    Raises:
        ConfigError: ``engine`` is unknown, or cannot execute what ``source`` holds.
        ModelError: Neither an ONNX model nor a plan.
        PlanError: A damaged plan, or one of another version or flavour; both versions are named.
        DeviceError: A plan or the cusparselt engine, and no GPU.
        EngineError: The library does not load the model.
        MissingDependencyError: The library is not installed.
    """
    header = plan_header(source)
    check_engine(engine, header)
    if header is not None:
        from trtsparse.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(source, device=device)
    if needs_gpu(source, engine):
        from trtsparse.engines.cusparselt.engine import CusparseltEngine

        try:
            return CusparseltEngine(source, device=device)
        except (DeviceError, MissingDependencyError) as error:
            raise cusparselt_lacks(error) from error
    from trtsparse.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(source, threads=threads)


def check_engine(engine: str, header: PlanHeader | None, *, where: str = "engine") -> None:
    """Refuse an engine that cannot execute something.

    Args:
        engine: Its name.
        header: That of the plan to execute; None for a model.
        where: What the message names.

    Raises:
        ConfigError: There is no such engine, or it is not for plans, or not for models.
    """
    if engine not in ENGINES:
        raise ConfigError("no such engine", where=where, got=repr(engine), expected=", ".join(ENGINES))
    if header is not None and engine in ("onnxruntime", "cusparselt"):
        raise ConfigError(
            f"{'ONNX Runtime' if engine == 'onnxruntime' else 'this engine'} cannot execute a plan",
            where=where,
            got=f"a plan of {header}",
            expected="an ONNX model",
            fix="give the ONNX model that the plan was built from",
        )
    if header is None and engine == "tensorrt":
        raise ConfigError(
            "TensorRT executes plans",
            where=where,
            got="something that does not begin as a plan does",
            expected="a plan",
            fix="build a plan of the model first",
        )


def cusparselt_lacks(error: DeviceError | MissingDependencyError) -> DeviceError | MissingDependencyError:
    """What the cusparselt engine lacks here, all of it at once.

    Args:
        error: About the first thing that was found to be missing.

    Returns:
        That there is no GPU, where there is none at all; of a package that is missing, what installs all of them;
        else ``error``.
    """
    if not count_gpus():
        return DeviceError(
            "there is no GPU to run the engine on",
            where="engine='cusparselt'",
            got="no GPU that CUDA can use",
            expected="an NVIDIA GPU of compute capability 8.0 (Ampere) or newer",
            fix="run it on a machine with an NVIDIA GPU, or the ONNX model with engine='onnxruntime'",
        )
    if isinstance(error, MissingDependencyError) and error.extra in ("cuda", "torch"):
        return MissingDependencyError(
            "the cusparselt engine needs PyTorch and Python's packages for CUDA", extra="cuda,torch", where=error.what
        )
    return error


def needs_gpu(source: object, engine: str) -> bool:
    """Whether `engine_from` would give an engine on a GPU.

    Raises:
        ConfigError: It would give none: ``engine`` is unknown, or cannot execute what ``source`` holds.
        PlanError: As in `plan_header`.
    """
    header = plan_header(source)
    check_engine(engine, header)
    if header is not None or engine == "cusparselt":
        return True
    return engine == "auto" and isinstance(source, (str, os.PathLike)) and is_saved(source)


def plan_header(source: object) -> PlanHeader | None:
    """The header if something begins as a plan does; None for anything else.

    Raises:
        PlanError: It is truncated.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return read_header(source) if bytes(source[:4]) in _PLAN_MAGICS else None
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        with Path(source).open("rb") as file:
            return read_header(source) if file.read(4) in _PLAN_MAGICS else None
    return None
