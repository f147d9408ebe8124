"""A progress bar while TensorRT builds, and Ctrl-C that stops the build."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["monitoring"]

_QUIET_SECONDS = 2.0  # shorter builds show nothing


@contextlib.contextmanager
def monitoring(trt: Any, config: Any, *, supported: bool) -> Iterator[threading.Event]:
    """Watch the builds in the block.

    While TensorRT runs, Python's own Ctrl-C would wait until the build is done. Here it sets the event, and the
    monitor tells TensorRT to stop at its next step; the builder then returns no plan.

    Args:
        trt: The TensorRT module.
        config: The IBuilderConfig that gets the monitor.
        supported: This version has progress monitors; without them Ctrl-C acts after the build.

    Yields:
        An event that is set once the user has asked to stop.
    """
    cancelled = threading.Event()
    if not supported:
        yield cancelled
        return
    bar = _Bar()
    monitor = _make_monitor(trt, bar, cancelled)
    config.progress_monitor = monitor
    with _catching_ctrl_c(cancelled):
        try:
            yield cancelled
        finally:
            bar.close()
            config.progress_monitor = None


@contextlib.contextmanager
def _catching_ctrl_c(cancelled: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _make_monitor(trt: Any, bar: _Bar, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            bar.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar.step(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            bar.finish(phase_name)

    return Monitor()


class _Bar:
    """One line per running phase, on a terminal only, from the third second on. Called from several threads."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._display: Any = None
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._depth: dict[str, int] = {}
        self._steps: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, Any] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._depth[phase] = self._depth.get(parent or "", -1) + 1
            self._steps[phase] = (0, steps)

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            self._steps[phase] = (step + 1, self._steps.get(phase, (0, 0))[1])
            if self._shown and time.monotonic() - self._began > _QUIET_SECONDS:
                self._draw()

    def finish(self, phase: str) -> None:
        with self._lock:
            self._steps.pop(phase, None)
            task = self._tasks.pop(phase, None)
            if task is not None:
                self._display.remove_task(task)

    def close(self) -> None:
        with self._lock:
            self._shown = False
            if self._display is not None:
                self._display.stop()

    def _draw(self) -> None:
        if self._display is None:
            self._display = _new_display()
            self._display.start()
        for phase, (done, steps) in self._steps.items():
            if phase not in self._tasks:
                indent = "  " * self._depth.get(phase, 0)
                self._tasks[phase] = self._display.add_task(f"{indent}{phase}", total=steps or None)
            self._display.update(self._tasks[phase], completed=done)


def _new_display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
