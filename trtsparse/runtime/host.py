"""Executes the requests of a session with an engine that works on host memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trtsparse.engines.base import Engine
from trtsparse.errors import ConfigError, DtypeError, EngineError, FeedError, ShapeError
from trtsparse.precision.specs import FeedChecker, check_named
from trtsparse.runtime.arrays import array_on_host
from trtsparse.runtime.memory import PoolStats
from trtsparse.runtime.requests import Request
from trtsparse.runtime.results import check_names

__all__ = ["HostRunner"]


class HostRunner:
    """An engine on the host, with threads for submitted requests. Thread-safe.

    Args:
        engine: The engine.
        contexts: How many submitted requests may be under way.
    """

    contexts_replaced = 0

    def __init__(self, engine: Engine, *, contexts: int) -> None:
        self._engine = engine
        self._check = FeedChecker(engine.inputs)
        self.contexts = contexts
        self._free = threading.BoundedSemaphore(contexts)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to make current here."""
        return contextlib.nullcontext()

    @property
    def memory(self) -> dict[str, PoolStats]:
        """No pools here."""
        return {}

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An ordinary numpy array."""
        return np.empty(shape, dtype)

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
        on_device: bool = False,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Execute once; see `trtsparse.runtime.session.Session.run`."""
        feeds = self._prepare(feeds, outputs, into, on_device=on_device, stream=stream)
        return self._execute(feeds, outputs, into)

    def _prepare(
        self, feeds: Mapping[str, Any], outputs: Any, into: Any, *, on_device: bool, stream: Any
    ) -> Mapping[str, Any]:
        if on_device or stream is not None:
            raise ConfigError(
                "this engine works in host memory",
                where="stream" if stream is not None else "to",
                got=self._engine.description,
                fix="leave stream and to='device' out, or open a plan on a GPU",
            )
        check_named(feeds, self._engine.inputs)
        if into is not None:
            check_named(into, self._engine.outputs)
        feeds = _as_numpy(feeds)
        self._check(feeds)
        names = outputs if into is None else into
        if names is not None:
            check_names(tuple(names), self._engine.outputs)
        return feeds

    def _execute(self, feeds: Mapping[str, Any], outputs: Any, into: Any) -> dict[str, Any]:
        if into is None:
            return self._engine.run(feeds, outputs=outputs)
        results = self._engine.run(feeds, outputs=list(into))
        for name, target in into.items():
            _fill(name, target, results[name])
        return dict(into)

    def submit(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
        on_device: bool = False,
    ) -> Request:
        """Have a thread execute; waits while ``contexts`` requests are under way."""
        feeds = self._prepare(feeds, outputs, into, on_device=on_device, stream=None)
        feeds = {name: np.array(array) for name, array in feeds.items()}  # the caller may change what it gave
        self._free.acquire()
        try:
            with self._lock:
                future = self._pool().submit(self._execute, feeds, outputs, into)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return Request(future.result, future.done)

    def _pool(self) -> ThreadPoolExecutor:
        if self._closed:
            raise EngineError("the session is closed", where=self._engine.description, fix="open another one")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.contexts, thread_name_prefix="trtsparse")
        return self._threads

    def close(self) -> None:
        """Finish what is under way. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()


def _as_numpy(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arrays of other libraries in host memory as numpy arrays, without copying; the rest as it is."""
    for value in feeds.values():
        if type(value) is not np.ndarray:
            break
    else:
        return feeds
    return {name: _seen_as_numpy(name, value) for name, value in feeds.items()}


def _seen_as_numpy(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        return value
    try:
        return array_on_host(value)
    except FeedError as error:
        raise type(error)(error.what, where=f"input {name!r}", got=error.got, fix=error.fix) from error


def _fill(name: str, target: Any, result: np.ndarray) -> None:
    if not isinstance(target, np.ndarray) or not target.flags.writeable:
        raise ConfigError("the array cannot be written to", where=f"output {name!r}", got=type(target).__name__)
    if target.dtype != result.dtype:
        raise DtypeError(
            "cannot fill an array", where=f"output {name!r}", got=str(target.dtype), expected=str(result.dtype)
        )
    if target.shape != result.shape:
        raise ShapeError("cannot fill an array", where=f"output {name!r}", got=target.shape, expected=result.shape)
    np.copyto(target, result)
