"""Locks on files that several threads and processes read, change and replace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from trtsparse.errors import OutputError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Keep every other thread and process that locks ``path`` waiting until the block ends.

    The lock is on a file of its own, ``path`` + ".lock", so that ``path`` can be replaced meanwhile. That file stays:
    removing it would race with the next holder.

    Args:
        path: The file to guard. It need not exist; its folder must.
        what: What an error calls it, as in "the cache".

    Raises:
        OutputError: The lock file cannot be made or locked.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder / "tune.json", "the cache"):
        ...     [file.name for file in folder.iterdir()]
        ['tune.json.lock']
    """
    lock = Path(path).with_name(Path(path).name + ".lock")
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, handle)  # releases the lock
            _wait_for(handle)
        except OSError as error:
            raise OutputError(f"cannot lock {what}", where=lock, got=error.strerror) from error
        yield


def _wait_for(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
