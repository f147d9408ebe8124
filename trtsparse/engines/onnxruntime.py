"""ONNX Runtime: runs the same pruned, FP16 or Q/DQ model on any CPU, and on other providers that are installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from trtsparse.errors import ConfigError, EngineError, UnsupportedOptionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import library, open_session, ort_exceptions
from trtsparse.precision.specs import TensorSpec, input_specs, output_specs

__all__ = ["OnnxRuntimeEngine"]


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
        EngineError: ONNX Runtime does not load the model; the message is its own.
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
        if threads is not None and threads < 1:
            raise ConfigError("the number of threads must be positive", where="threads", got=threads)
        opened = OnnxModel.open(model)
        _check_providers(providers or [])
        self._session: Any = open_session(opened, providers=providers, threads=threads)
        self._model_name = opened.name
        self._exceptions = ort_exceptions()
        self._inputs = input_specs(opened)
        self._outputs = output_specs(opened)
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
            return dict(zip(names, session.run(names, feeds), strict=True))
        except self._exceptions as error:
            what = "ONNX Runtime failed while running the model"
            raise EngineError(what, where=self._model_name, got=str(error).strip()) from error

    def close(self) -> None:
        """Free the model. Closing twice is harmless; a `run` in another thread ends first."""
        self._session = None


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
