"""Files are written whole or not at all: a temporary file in the same folder, flush, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trtsparse.errors import OutputError

__all__ = ["replacing", "replacing_all", "write"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty temporary file that takes ``path``'s place when the block ends without an error.

    Args:
        path: The file to create or replace. Its folder must exist.

    Yields:
        The temporary file's path, in the same folder.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(paths: list[str | os.PathLike[str]] | list[Path]) -> Iterator[tuple[Path, ...]]:
    """Like `replacing`, for files that belong together: all are complete on disk before the first rename.

    Args:
        paths: The files to create or replace, renamed in this order.

    Yields:
        One temporary path each, in the same order.

    Raises:
        OutputError: As in `replacing`.
    """
    targets = [Path(path) for path in paths]
    temporaries: list[Path] = []
    try:
        for target in targets:
            with _output_errors(target):
                temporaries.append(_temporary_beside(target))
        with _output_errors(targets[-1]):
            yield tuple(temporaries)
        for temporary, target in zip(temporaries, targets, strict=True):
            with _output_errors(target):
                _flush(temporary)
        for temporary, target in zip(temporaries, targets, strict=True):
            with _output_errors(target):
                temporary.replace(target)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], data: bytes | bytearray | memoryview | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, replacing what was there in one step.

    Args:
        path: The file to create or replace. Its folder must exist.
        data: All of its content.

    Raises:
        OutputError: As in `replacing`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write(folder + "/report.json", "{}")
        >>> Path(folder + "/report.json").read_text()
        '{}'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def _temporary_beside(target: Path) -> Path:
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    Path(name).chmod(_mode_of(target))
    return Path(name)


def _mode_of(target: Path) -> int:
    """The permissions that a plain ``open(target, "w")`` would leave."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if _is_about_input(error):
            raise
        raise OutputError(
            "cannot write the file",
            where=target,
            got=error.strerror or str(error),
            fix="give a path in an existing, writable folder with enough space",
        ) from error


def _is_about_input(error: OSError) -> bool:
    """Our own errors that happen to be OSErrors (a missing input file) pass unchanged."""
    from trtsparse.errors import TrtSparseError

    return isinstance(error, TrtSparseError)
