"""The timing cache file: read before a build, merged and replaced after it, safe to share between processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtsparse.builder.logs import Log
from trtsparse.files import atomic
from trtsparse.files.locks import locked

__all__ = ["attach", "update"]


def attach(config: Any, path: Path, log: Log, warn: Callable[[str], None]) -> None:
    """Give the file's timings to an IBuilderConfig; a file that TensorRT cannot use is left out, with a warning.

    Args:
        config: The IBuilderConfig.
        path: The cache; it need not exist yet.
        log: What TensorRT says.
        warn: Called with the text of the warning.
    """
    data = _read(path)
    if data and _attach(config, data, log):
        return
    if data:
        warn(f"the timing cache {path} is damaged or of another version or GPU: it is ignored and written anew")
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def update(config: Any, path: Path, log: Log) -> None:
    """Merge the timings of a finished build into the file.

    Raises:
        OutputError: The file cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    with locked(path, "the timing cache"):
        data = _read(path)
        if data:
            before = len(log.messages)
            other = config.create_timing_cache(data)
            if other is not None and not _complaints(log.since(before)):
                cache.combine(other, ignore_mismatch=False)  # what other processes have measured meanwhile
        atomic.write(path, bytes(cache.serialize()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _attach(config: Any, data: bytes, log: Log) -> bool:
    before = len(log.messages)
    try:
        cache = config.create_timing_cache(data)
    except (RuntimeError, TypeError, ValueError):
        return False
    if cache is None or _complaints(log.since(before)):
        return False
    return bool(config.set_timing_cache(cache, ignore_mismatch=False)) and not _complaints(log.since(before))


def _complaints(log: Log) -> bool:
    return bool(log.errors) or any("timing cache" in text.lower() for text in log.warnings)
