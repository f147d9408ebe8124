"""Sessions: what an application holds to run a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.engines import Engine, TensorSpec, engine_from
from trtsparse.errors import ConfigError, EngineError
from trtsparse.precision.specs import FeedChecker, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Session"]


class Session:
    """A loaded model that checks what it is fed. `run` may be called from several threads at once.

    Args:
        source: An ONNX model: a path (needed for external data), bytes, a ModelProto or an OnnxModel; or an engine,
            which the session then owns.
        engine: "auto", or "onnxruntime".
        threads: Within one operator; by default as many as there are cores.

    Raises:
        TrtSparseError: As in `trtsparse.engines.engine_from`.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
        >>> with Session(parser.parse_model(text)) as session:
        ...     session.run({"x": np.ones((3, 2), np.float32)})["y"].sum()
        np.float32(12.0)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | Engine | Any,
        *,
        engine: str = "auto",
        threads: int | None = None,
    ) -> None:
        loaded = source if isinstance(source, Engine) else engine_from(source, engine=engine, threads=threads)
        self._engine: Engine | None = loaded
        self._inputs = loaded.inputs
        self._outputs = loaded.outputs
        self._description = loaded.description
        self._check = FeedChecker(self._inputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return self._outputs

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._engine is None

    def run(self, feeds: Mapping[str, np.ndarray], *, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Execute once.

        Args:
            feeds: An array for each input, of exactly its data type. Arrays need not be contiguous.
            outputs: Names of the outputs to return, by default all.

        Returns:
            Output name to array, owned by the caller.

        Raises:
            FeedError: An input is missing or unknown.
            DtypeError: A value is not an array, or of another type: nothing is cast in silence.
            ShapeError: Another rank or size, or two dims of the same name differ.
            ConfigError: ``outputs`` has an unknown name.
            EngineError: The session is closed, or the library reports a failure.
        """
        engine = self._engine
        if engine is None:
            raise EngineError("the session is closed", where=self._description, fix="open another one")
        self._check(feeds)
        if outputs is not None:
            self._check_outputs(outputs)
        return engine.run(feeds, outputs=outputs)

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _check_outputs(self, names: Sequence[str]) -> None:
        known = [spec.name for spec in self._outputs]
        for name in names:
            if name not in known:
                raise ConfigError(
                    "the model has no such output",
                    where="outputs",
                    got=repr(name),
                    expected=", ".join(map(repr, known)),
                    fix=did_you_mean(name, known),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session of {self._description}{', closed' if self.closed else ''}>"
