"""ONNX Runtime: runs the same pruned, FP16 or Q/DQ model on any CPU, and on other providers that are installed."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from trtsparse.engines.base import LayerTimes
from trtsparse.errors import ConfigError, EngineError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import library, open_session, ort_errors, ort_exceptions
from trtsparse.precision.specs import TensorSpec, input_specs, output_specs

__all__ = ["OnnxRuntimeEngine"]

_FAILED = "ONNX Runtime failed while running the model"
_SILENT = 4
_RECORDED = 20_000  # executions of nodes: ONNX Runtime writes about a kilobyte for each
_FEWEST_RUNS = 10
_WITH_BODY = ("If", "Loop", "Scan")
_BEYOND_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
"""Of the data types that numpy itself lacks, those that lie in memory as numpy has them; smaller ones are packed."""


class OnnxRuntimeEngine:
    """An ONNX model in ONNX Runtime. `run` may be called from several threads at once.

    Args:
        model: A path (needed for external data), bytes, a ModelProto or an OnnxModel.
        providers: Execution providers in order of preference, such as ``["CUDAExecutionProvider"]``; by default the
            CPU. All must be available: falling back to another one in silence is refused.
        threads: Within one operator; by default as many as there are cores.

    Raises:
        ModelError: Not an ONNX model.
        ConfigError: ``threads`` is not positive.
        UnsupportedOptionError: The installed ONNX Runtime lacks a provider.
        EngineError: ONNX Runtime does not load the model; the message is its own. Or it has an input or output of a
            type that is not to be had in Python, such as int4.
        MissingDependencyError: ONNX Runtime is not installed.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'
        >>> engine = OnnxRuntimeEngine(parser.parse_model(text), threads=1)
        >>> engine.run({"x": np.array([1, 2], np.float32)})
        {'y': array([2., 4.], dtype=float32)}
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        _check_threads(threads)
        opened = OnnxModel.open(model)
        _check_providers(providers or [])
        self._session: Any = open_session(opened, providers=providers, threads=threads)
        self._model: OnnxModel | None = opened
        self._model_name = opened.name
        self._threads = threads
        self._exceptions = ort_exceptions()
        self._inputs = input_specs(opened)
        self._outputs = output_specs(opened)
        self._by_values = _needs_values([*self._inputs, *self._outputs])
        self._output_names = [spec.name for spec in self._outputs]
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    @property
    def description(self) -> str:
        """The model, the library's version and the providers."""
        return f"{self._model_name} in ONNX Runtime {library().__version__} ({', '.join(self.providers)})"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return self._outputs

    def run(self, feeds: Mapping[str, np.ndarray], *, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Execute once.

        Args:
            feeds: An array for each input, in host memory.
            outputs: The outputs to return, by default all.

        Raises:
            EngineError: The engine is closed, or ONNX Runtime reports a failure; the message is its own.
        """
        session = self._session
        if session is None:
            raise EngineError("the engine is closed", where=self._model_name)
        names = self._output_names if outputs is None else list(outputs)
        try:
            found = self._execute(session, names, feeds)
            return dict(zip(names, found, strict=bool(names)))  # asked for none, ONNX Runtime returns all
        except self._exceptions as error:
            raise EngineError(_FAILED, where=self._model_name, got=str(error).strip()) from error

    def profile(self, feeds: Mapping[str, np.ndarray], *, runs: int) -> list[LayerTimes]:
        """Execute several times and time each node, in a session of its own.

        The times are the host's, in whole microseconds: what a node enqueues on a GPU may take longer. The time of a
        control flow node is that of its whole body.

        Args:
            feeds: As in `run`.
            runs: How many executions; fewer for a model with many nodes, but not fewer than ten.

        Returns:
            One for each execution.

        Raises:
            EngineError: The engine is closed, or ONNX Runtime reports a failure; the message is its own.
        """
        model = self._model
        if model is None:
            raise EngineError("the engine is closed", where=self._model_name)
        runs = min(runs, max(_FEWEST_RUNS, _RECORDED // max(1, len(model.proto.graph.node))))
        with tempfile.TemporaryDirectory(prefix="trtsparse-", ignore_cleanup_errors=True) as folder:
            session = self._open_profiling(model, Path(folder))
            with ort_errors(_FAILED, where=self._model_name):
                for _ in range(runs):
                    self._execute(session, self._output_names, dict(feeds))
                record = Path(session.end_profiling())
            with record.open("rb") as file:
                return _node_times(json.load(file))

    def _execute(self, session: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self._by_values:
            return _run_by_values(session, names, feeds)
        found: list[np.ndarray] = session.run(names, feeds)
        return found

    def _open_profiling(self, model: OnnxModel, folder: Path) -> Any:
        ort = library()
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        path = model.path or model.save(folder / "model.onnx").path
        with ort_errors("ONNX Runtime does not load the model", where=self._model_name):
            return ort.InferenceSession(str(path), options, providers=list(self.providers))

    def close(self) -> None:
        """Free the model. Closing twice is harmless; a `run` in another thread ends first."""
        self._session = self._model = None


def _check_threads(threads: object) -> None:
    if threads is not None and not (isinstance(threads, Integral) and int(threads) >= 1):
        raise ConfigError("the number of threads must be positive", where="threads", got=repr(threads))


def _check_providers(providers: Sequence[str]) -> None:
    available = library().get_available_providers()
    for provider in providers:
        if provider not in available:
            raise UnsupportedOptionError(
                "the installed ONNX Runtime has no such execution provider",
                where="providers",
                got=provider,
                expected=", ".join(available),
                fix="for CUDA: pip install onnxruntime-gpu" if "CUDA" in provider else None,
            )


def _needs_values(specs: Sequence[TensorSpec]) -> bool:
    """Whether some arrays must go through ``onnxruntime.OrtValue``, because numpy itself lacks their type.

    Raises:
        EngineError: Not even that takes the type.
    """
    beyond = [spec for spec in specs if spec.dtype.isbuiltin != 1]
    for spec in beyond:
        if spec.dtype.name not in _BEYOND_NUMPY:
            raise EngineError(
                "ONNX Runtime takes and gives no arrays of this data type in Python",
                where=repr(spec.name),
                got=str(spec.dtype),
                expected=f"a type of numpy, or {', '.join(_BEYOND_NUMPY)}",
                fix="have the model cast it",
            )
    return bool(beyond)


def _run_by_values(session: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}  # the values point into them
    found = session.run_with_ort_values(names, {name: _value_of(array) for name, array in arrays.items()})
    return [_array_of(value) for value in found]


def _value_of(array: np.ndarray) -> Any:
    """An ``OrtValue`` over the memory of an array."""
    kind = library().OrtValue
    if array.dtype.isbuiltin == 1:
        return kind.ortvalue_from_numpy(array)
    raw = array.view(f"u{array.itemsize}")
    return kind.ortvalue_from_numpy_with_onnx_type(raw, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _array_of(value: Any) -> np.ndarray:
    """A copy of what an ``OrtValue`` holds."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.element_type()))
    if dtype.isbuiltin == 1:
        found: np.ndarray = value.numpy()
        return found
    array = np.empty(value.shape(), dtype)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _node_times(events: Iterable[Mapping[str, Any]]) -> list[LayerTimes]:
    """What ONNX Runtime's profile says about nodes, by execution; those in bodies of other nodes are left out."""
    runs: list[LayerTimes] = []
    nodes: list[_Node] = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            start, spent = int(event["ts"]), int(event["dur"])
            has_body = event["args"].get("op_name") in _WITH_BODY
            nodes.append(_Node(name.removesuffix("_kernel_time"), start, start + spent, has_body))
        elif name == "model_run":  # it comes after its nodes
            runs.append(_outermost(nodes))
            nodes = []
    return runs


class _Node(NamedTuple):
    """One execution of a node, in microseconds."""

    name: str
    start: int
    end: int
    has_body: bool


def _outermost(nodes: list[_Node]) -> LayerTimes:
    bodies = [node for node in nodes if node.has_body]
    return tuple(
        (node.name, (node.end - node.start) / 1e3)
        for node in sorted(nodes, key=lambda node: node.start)
        if not any(body.start <= node.start and node.end <= body.end for body in bodies if body is not node)
    )
