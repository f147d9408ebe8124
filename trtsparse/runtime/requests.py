"""Submitted requests: results to be collected later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["Request"]

_FIRST_PAUSE, _LONGEST_PAUSE = 2e-5, 1e-3


class Request:
    """What `Session.submit` returns; like a future. Thread-safe; may be awaited.

    Results stay with it after the session was closed. A request that is dropped executes all the same.

    Args:
        collect: Waits and returns the outputs, or raises; called any number of times.
        is_done: Whether ``collect`` would return at once.
    """

    def __init__(self, collect: Callable[[], dict[str, Any]], is_done: Callable[[], bool]) -> None:
        self._collect = collect
        self._is_done = is_done

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._is_done()

    def result(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the outputs.

        Args:
            timeout: Seconds to wait; None: until done.

        Returns:
            Output name to array.

        Raises:
            TimeoutError: Not done in time; the request goes on.
            EngineError: The execution failed.
            CudaError: A CUDA call failed.
        """
        if timeout is not None:
            self._wait(timeout)
        return self._collect()

    def exception(self, *, timeout: float | None = None) -> BaseException | None:
        """Wait, and return the error that `result` would raise; None if there is none.

        Raises:
            TimeoutError: Not done in time; the request goes on.
        """
        if timeout is not None:
            self._wait(timeout)
        try:
            self._collect()
        except Exception as error:  # noqa: BLE001 - returned, as futures do
            return error
        return None

    def _wait(self, timeout: float) -> None:
        deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
        while not self._is_done():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the request was not done in {timeout} seconds")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return asyncio.get_running_loop().run_in_executor(None, self._collect).__await__()
