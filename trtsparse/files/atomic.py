"""Files are written whole or not at all: a temporary file in the same folder, flush, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trtsparse.errors import OutputError, TrtSparseError

__all__ = ["check_writable", "claimed", "folders", "replacing", "replacing_all", "write"]


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


@contextlib.contextmanager
def folders(paths: Sequence[Path], *, beside: Path) -> Iterator[None]:
    """Make folders that are missing, and remove those again when the block ends with an error.

    Args:
        paths: Folders at or below that of ``beside``.
        beside: A file whose own folder must exist.

    Raises:
        OutputError: The folder of ``beside`` is missing, or another cannot be made.
    """
    made: list[Path] = []
    try:
        with _output_errors(beside):
            beside.parent.stat()
        for path in paths:
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            for folder in reversed(missing):
                with _output_errors(folder):
                    if _make(folder):
                        made.append(folder)
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Take a name that nothing has, by an empty file, which is removed again when the block ends with an error.

    Args:
        path: The name. Its folder must exist.

    Yields:
        False when a file, folder or link has the name already: it stays as it is.

    Raises:
        OutputError: The folder is missing or not writable.
    """
    with _output_errors(path):
        try:
            path.open("xb").close()
            free = True
        except FileExistsError:
            free = False
    try:
        yield free
    except BaseException:
        if free:
            path.unlink(missing_ok=True)
        raise


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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Fail now rather than after a long computation whose result goes to ``path``.

    Raises:
        OutputError: As in `replacing`.
    """
    target = Path(path)
    with _output_errors(target):
        _temporary_beside(target).unlink()


def _make(folder: Path) -> bool:
    """Make a folder; False when somebody else has made it meanwhile."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


def _temporary_beside(target: Path) -> Path:
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    if "\0" in target.name:
        raise OSError("a file name cannot have a NUL")
    handle, name = tempfile.mkstemp(prefix=".trtsparse-", suffix=".tmp", dir=target.parent)
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
    except TrtSparseError:
        raise  # some of our errors about input are OSErrors too
    except OSError as error:
        raise OutputError(
            "cannot write the file",
            where=target,
            got=error.strerror or str(error),
            fix="give a path in an existing, writable folder with enough space",
        ) from error
