"""Objects that TensorRT calls back: their classes derive from the module's own, so they are made when it is known."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from trtsparse.engines.device import Allocate

__all__ = ["make_allocator", "make_profiler", "make_recorder"]

_classes: dict[tuple[types.ModuleType, str], type] = {}


def _once(trt: Any, name: str, make: Callable[[Any], type]) -> Any:
    """An instance of a class whose base is one of the module's; the class is made once a module."""
    if (trt, name) not in _classes:
        _classes[trt, name] = make(trt)
    return _classes[trt, name]()


def make_recorder(trt: Any) -> Any:
    """An IErrorRecorder; ``take()`` returns what was reported since."""
    return _once(trt, "recorder", _recorder_class)


def _recorder_class(trt: Any) -> type:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        """Keeps what one context complains about."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[tuple[Any, str]] = []

        def take(self) -> list[str]:
            errors, self.errors = self.errors, []
            return list(dict.fromkeys(text for _, text in errors))

        def clear(self) -> None:
            self.errors = []

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_code(self, index: int) -> Any:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def report_error(self, code: Any, text: str) -> bool:
            self.errors.append((code, text))
            return False

    return Recorder


def make_allocator(trt: Any) -> Any:
    """An IOutputAllocator; ``prepare(allocate)`` before an execution, ``shape`` and ``failure`` after."""
    return _once(trt, "allocator", _allocator_class)


def _allocator_class(trt: Any) -> type:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Asks the runtime for memory; an exception must not cross TensorRT, so it is kept."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.allocate: Allocate | None = None
            self.shape: tuple[int, ...] | None = None
            self.failure: Exception | None = None

        def prepare(self, allocate: Allocate) -> None:
            self.allocate, self.shape, self.failure = allocate, None, None

        def reallocate_output(self, name: str, _memory: Any, size: int, _alignment: int) -> int:
            if self.allocate is None:
                return 0
            try:
                return self.allocate(name, max(int(size), 1))
            except Exception as error:  # noqa: BLE001 - told to the caller of `execute` or `allocated_shape`
                self.failure = error
                return 0

        def reallocate_output_async(self, name: str, memory: Any, size: int, alignment: int, _stream: Any) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(int(n) for n in shape)

    return Allocator


def make_profiler(trt: Any) -> Any:
    """An IProfiler; ``take()`` returns what was reported since: pairs of a layer and its milliseconds."""
    return _once(trt, "profiler", _profiler_class)


def _profiler_class(trt: Any) -> type:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Keeps the times of the layers in the order in which they come."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def take(self) -> list[tuple[str, float]]:
            times, self.times = self.times, []
            return times

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((str(layer_name), float(ms)))

    return Profiler
