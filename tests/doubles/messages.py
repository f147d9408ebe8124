"""What the library says: to loggers, or to an error recorder where one is set."""

from __future__ import annotations

import sys
import time
import weakref
from pathlib import PurePosixPath
from typing import Any

from tests.doubles.classes import Field


class ILogger:
    """Base of user loggers."""

    def _init(self) -> None:
        """Nothing to keep."""

    def log(self: Any, _severity: Any, _msg: str) -> None:
        complain("log", 'Tried to call pure virtual function "ILogger::log"')

    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731


class Logger(ILogger):
    """The library's own logger, which prints."""

    min_severity = Field("ILogger.Severity", "WARNING")

    def _init(self: Any, min_severity: Any) -> None:
        self._.min_severity = min_severity

    def log(self: Any, severity: Any, msg: str) -> None:
        if severity <= self._.min_severity:
            letter = {"INTERNAL_ERROR": "F"}.get(severity.name, severity.name[0])
            sys.stdout.write(f"{time.strftime('[%m/%d/%Y-%H:%M:%S]')} [TRT] [{letter}] {msg}\n")


class IErrorRecorder:
    """Base of user error recorders."""

    MAX_DESC_LENGTH = property(lambda _self: 127)


class IProfiler:
    """Base of user profilers."""

    def report_layer_time(self: Any, _layer_name: str, _ms: float) -> None:
        complain("report_layer_time", 'Tried to call pure virtual function "IProfiler::report_layer_time"')


class IProgressMonitor:
    """Base of user progress monitors."""

    def phase_start(self: Any, _phase_name: str, _parent_phase: str, _num_steps: int) -> None:
        complain("phase_start", 'Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self: Any, _phase_name: str, _step: int) -> bool:
        complain("step_complete", 'Tried to call pure virtual function "IProgressMonitor::step_complete"')
        return True

    def phase_finish(self: Any, _phase_name: str) -> None:
        complain("phase_finish", 'Tried to call pure virtual function "IProgressMonitor::phase_finish"')


def complain(where: str, text: str) -> None:
    """A Python override failed: the real library prints it and goes on."""
    sys.stderr.write(f"[ERROR] Exception caught in {where}(): {text}\n")


def call_back(target: Any, method: str, *args: Any, otherwise: Any = None) -> Any:
    """Call a user's override; an exception is printed, and `otherwise` returned."""
    try:
        return getattr(target, method)(*args)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        complain(method, f"{type(error).__name__}: {error}")
        return otherwise


def emit(lib: Any, logger: Any, severity: str, text: str) -> None:
    """Say something to a logger."""
    call_back(logger, "log", lib.enum("ILogger.Severity", severity), text)


def fail(lib: Any, logger: Any, recorder: Any, where: str, code: int, kind: str, text: str, at: str) -> None:
    """Report an API error as this version words it.

    Args:
        lib: The version.
        logger: Hears it if there is no recorder.
        recorder: The error recorder set by the user, or None.
        where: `Interface::method` of the API; empty for an assertion inside of the library.
        code: Error code, as ErrorCodeTRT numbers it.
        kind: Its name, such as `API Usage Error`.
        text: What is wrong.
        at: `function at /path/file.cpp:line`, the source of the check.
    """
    function, _, place = at.partition(" at ")
    source = f"[{PurePosixPath(place).name.replace(':', f'::{function}::')}]"
    if lib.generation == 8:
        message = f"{code}: {source} Error Code {code}: {kind} ({text})"
    elif not where:
        message = f"{source} Error Code {code}: {kind} ({text} In {at})"
    elif lib.generation == 10:
        message = f"{where}: Error Code {code}: {kind} ({text})"
    else:
        message = f"{where}: Error Code {code}: {kind} ({text} In {at})"
    if recorder is not None:
        call_back(recorder, "report_error", lib.classes["ErrorCodeTRT"](code), message)
    else:
        emit(lib, logger, "ERROR", message)


def register_logger(lib: Any, owner: Any, logger: Any, function: str) -> None:
    """Note the process's logger; a second one beside a living first is warned about."""
    owners, first = lib.global_logger or (weakref.WeakSet(), None)
    if len(owners) == 0:
        first = logger
    elif first is not logger:
        emit(lib, logger, "WARNING", (
            f"The logger passed into {function} differs from one already registered for an existing builder, "
            "runtime, or refitter. So the current new logger is ignored, and TensorRT will use the existing one "
            "which is returned by nvinfer1::getLogger() instead."
        ))  # fmt: skip
    owners.add(owner)
    lib.global_logger = (owners, first)
