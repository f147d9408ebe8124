"""What measuring on the CPU and on a GPU have in common: when to stop, threads, and a quiet interpreter."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from trtsparse.bench.options import BenchOptions

__all__ = ["Pace", "Progress", "in_threads", "quiet"]

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with milliseconds done and in all."""
_SHOWN_EVERY_MS = 50.0


class Pace:
    """Tells one thread when its warm-up is over, and when it may stop: trtexec's rule.

    A query is counted if its execution starts after the warm-up. The run is over when so many rounds were counted and
    the last execution started so much later than the warm-up's end.

    Args:
        options: The least of both.
        on_warm: Called once, when the first counted round has finished.
        progress: Told how far it is.
    """

    def __init__(
        self,
        options: BenchOptions,
        *,
        on_warm: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.done = False
        self.is_warm = False
        self._warm_up_ms = options.warm_up_ms
        self._end_ms = options.warm_up_ms + options.duration_s * 1e3
        self._left = options.iterations
        self._on_warm = on_warm
        self._progress = progress
        self._shown = self._last = 0.0

    def finished(self, starts: Sequence[float]) -> None:
        """A round has finished.

        Args:
            starts: When the executions in it started, in milliseconds.
        """
        if not starts:
            return
        self._last = max(self._last, *starts)
        if min(starts) >= self._warm_up_ms:
            if not self.is_warm:
                self.is_warm = True
                if self._on_warm is not None:
                    self._on_warm()
            self._left -= 1
        self.done = self._left <= 0 and self._last >= self._end_ms
        if self._progress is not None and self._last - self._shown >= _SHOWN_EVERY_MS:
            self._shown = self._last
            self._progress(min(int(self._last), int(self._end_ms)), int(self._end_ms))


def in_threads(works: Sequence[Callable[[threading.Event], T]]) -> list[T]:
    """Do several works, each in a thread of its own; a single one in this thread.

    Args:
        works: Called with an event that is set when one of them has failed: the others should end soon.

    Returns:
        What they return, in order.

    Raises:
        BaseException: The first that one of them raised.
    """
    stop = threading.Event()
    if len(works) == 1:
        return [works[0](stop)]
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = works[number](stop)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(number,), name=f"bench-{number}") for number in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:  # interrupted: they use what the caller frees next
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(works))]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection during the block: its pauses would be measured."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
