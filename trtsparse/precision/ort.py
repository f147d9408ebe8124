"""ONNX Runtime on the CPU: the reference that conversions are measured against, and the embedded engine's library."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtsparse.errors import EngineError, MissingDependencyError
from trtsparse.files.check import all_nodes
from trtsparse.files.model import OnnxModel

__all__ = ["Runner", "library", "open_session", "ort_errors", "ort_exceptions", "runner", "weights_nbytes"]

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

_LARGEST_PROTO = 2**31 - 2**20  # protobuf's limit, with room for the graph
_SILENT = 4


def library() -> Any:
    """Import and return ONNX Runtime.

    Raises:
        MissingDependencyError: It is not installed, or cannot be imported.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError("ONNX Runtime is not installed", extra="cpu") from error
    except (ImportError, OSError) as error:  # such as for a library of the system's that it lacks
        raise MissingDependencyError("ONNX Runtime cannot be imported", extra="cpu", where=str(error)) from error
    return onnxruntime


@contextlib.contextmanager
def ort_errors(what: str, *, where: object = None) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into `EngineError` with its own text."""
    try:
        yield
    except ort_exceptions() as error:
        raise EngineError(what, where=where, got=str(error).strip()) from error


@functools.cache
def ort_exceptions() -> tuple[type[Exception], ...]:
    """Every class that ONNX Runtime raises; its own have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def open_session(
    model: OnnxModel,
    *,
    providers: Sequence[Any] | None = None,
    threads: int | None = None,
    optimized: Path | None = None,
    optimize: bool = True,
) -> Any:
    """Load a model into an ``onnxruntime.InferenceSession``.

    Args:
        model: A model on disk is loaded from there, so its external data need not fit a protobuf message.
        providers: ONNX Runtime's execution providers, by default the CPU.
        threads: Within one operator; by default as many as there are cores.
        optimized: Write the model after basic optimization (constants folded, Conv and BatchNormalization fused;
            standard operators only) to this file, weights in ``<name>.data`` beside it if they are large.
        optimize: Apply the optimizations that the providers offer.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        EngineError: It does not load the model; the message is its own.
    """
    ort = library()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(optimized)
        if weights_nbytes(model) > _LARGEST_PROTO // 2:
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{optimized.name}.data"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
            )
    with contextlib.ExitStack() as stack:
        source = _source(model, stack)
        stack.enter_context(ort_errors("ONNX Runtime does not load the model", where=model.name))
        return ort.InferenceSession(source, options, providers=list(providers or ["CPUExecutionProvider"]))


def runner(model: OnnxModel, *, optimize: bool | None = None) -> Runner:
    """A function that runs a model on the CPU and names its outputs.

    Args:
        model: What to run.
        optimize: Let ONNX Runtime fuse nodes; by default unless the model has Q/DQ. What they are fused to saturates
            on some CPUs, and does not take every weight.

    Raises:
        MissingDependencyError, EngineError: As `open_session`; calling the function raises EngineError too.
    """
    if optimize is None:
        optimize = not any(node.op_type == "DequantizeLinear" for node in all_nodes(model.proto))
    session = open_session(model, optimize=optimize)
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with ort_errors("ONNX Runtime failed while running the model", where=model.name):
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


def weights_nbytes(model: OnnxModel) -> int:
    """Bytes of all initializers of the main graph that are not small enough to be in the skeleton."""
    refs = (model.ref(tensor) for tensor in model.proto.graph.initializer)
    return sum(ref.nbytes for ref in refs if ref is not None)


def _source(model: OnnxModel, stack: contextlib.ExitStack) -> str | bytes:
    """A path or bytes for ONNX Runtime; data in memory beyond the model itself go to a temporary folder."""
    if model.path is not None:
        return str(model.path)
    main = model.files[""]
    if len(model.files) == 1 and not isinstance(main, Path) and not model.external_files():
        return bytes(main)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True))
    return str(model.save(Path(folder) / "model.onnx").path)
