"""What TensorRT says, collected per build.

TensorRT has one logger per process: while a builder, runtime or refitter lives, the logger of a new one is ignored.
So there is one logger object a module, used for everything that this package makes, and it forwards to the collector
of the operation that is running. Operations that need their messages run one after another (`collecting` holds a
lock); the builder's own worker threads may log, so a collector per thread would miss messages.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Log", "collecting", "logger_for"]

_LOGGING = logging.getLogger("trtsparse.tensorrt")
_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
TRACE = 5
"""The level in Python's logging of TensorRT's level VERBOSE, which is not collected."""
_IGNORED_LOGGER = "differs from one already registered"


@dataclass
class Log:
    """The messages of one operation, without those of level VERBOSE except about sparsity.

    Attributes:
        messages: (level, text), such as ("ERROR", "..."), in order.
    """

    messages: list[tuple[str, str]] = field(default_factory=list)

    @property
    def errors(self) -> tuple[str, ...]:
        """Texts of the levels ERROR and INTERNAL_ERROR, each once."""
        return tuple(dict.fromkeys(text.strip() for level, text in self.messages if level.endswith("ERROR")))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Texts of level WARNING, each once."""
        return tuple(dict.fromkeys(text.strip() for level, text in self.messages if level == "WARNING"))

    @property
    def unheard(self) -> bool:
        """Another object's logger was registered first: the builder's messages went there."""
        return any(_IGNORED_LOGGER in text for _, text in self.messages)

    def since(self, count: int) -> Log:
        """The messages after the first ``count``."""
        return Log(self.messages[count:])


_lock = threading.RLock()
_current: Log | None = None
_loggers: dict[types.ModuleType, Any] = {}


@contextlib.contextmanager
def collecting(trt: types.ModuleType) -> Iterator[tuple[Any, Log]]:
    """Collect what TensorRT says during the block; other threads wait for their turn.

    Yields:
        The logger to give to Builder, Runtime and OnnxParser, and the log that it fills.
    """
    global _current  # noqa: PLW0603 - TensorRT's logger is global too
    with _lock:
        before, _current = _current, Log()
        try:
            yield logger_for(trt), _current
        finally:
            _current = before


def logger_for(trt: types.ModuleType) -> Any:
    """The one logger of a TensorRT module; outside `collecting` it writes to Python's logging."""
    with _lock:
        if trt not in _loggers:
            _loggers[trt] = _make_logger(trt)
        return _loggers[trt]


def _make_logger(trt: Any) -> Any:
    severities = trt.ILogger.Severity
    names = {int(getattr(severities, name)): name for name in _LEVELS}
    verbose = int(severities.VERBOSE)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            number = int(severity)
            if number < verbose or "(Sparsity)" in msg:
                _receive(names.get(number, "INFO"), msg)
            elif _LOGGING.isEnabledFor(TRACE):
                _LOGGING.log(TRACE, "%s: %s", "VERBOSE", msg)

    return Logger()


def _receive(level: str, text: str) -> None:
    if _current is not None:
        _current.messages.append((level, text))
        _LOGGING.debug("%s: %s", level, text)
    elif level in ("WARNING", "ERROR", "INTERNAL_ERROR"):
        _LOGGING.log(_LEVELS[level], "%s", text)
