"""A model's folder in a repository, changed so that a server that reads it meanwhile sees whole versions only.

Everything is written to a folder aside and renamed. Triton takes every folder of a repository for a model, hidden
ones too, so that folder is beside the repository where it can be; where it cannot (another file system, no
permission), it holds its configuration first, whose name is not the folder's: Triton refuses it with a message.
Inside a model's folder, names that are no numbers are ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from trtsparse.errors import OutputError, TrtSparseError
from trtsparse.files import atomic
from trtsparse.triton.checks import CONFIG, versions_of

__all__ = ["add_model", "add_version", "replace_version"]

_PREFIX = ".trtsparse-"  # not a digit first: Triton reads "1.tmp" as version 1
Write = Callable[[Path], None]
"""Writes a version's files into an empty folder."""


def add_model(folder: Path, version: int, config: str, write: Write) -> None:
    """Make a model that is not there yet.

    Args:
        folder: The model's; the repository is made if it is missing.
        version: Its first.
        config: Text of ``config.pbtxt``.
        write: Called once.

    Raises:
        OutputError: It cannot be written; nothing is left behind.
    """
    with _errors(folder), _made(folder.parent), _aside(_beside(folder.parent)) as staged:
        (staged / CONFIG).write_text(config, encoding="utf-8")
        (staged / str(version)).mkdir()
        write(staged / str(version))
        _flush(staged)
        staged.rename(folder)
        _flush_folder(folder.parent)


def add_version(folder: Path, version: int | None, config: str | None, write: Write) -> int:
    """Add a version to a model.

    Args:
        folder: The model's.
        version: Its number; None: the next one.
        config: New text of ``config.pbtxt``, written last; None: it stays.
        write: Called once.

    Returns:
        The version's number.

    Raises:
        OutputError: It cannot be written, or is there already; nothing is left behind.
    """
    with _errors(folder), _aside(folder) as staged:
        write(staged)
        _flush(staged)
        number = _rename_to_free(staged, folder, version)
        _flush_folder(folder)
        if config is not None:
            atomic.write(folder / CONFIG, config)
    return number


def replace_version(folder: Path, version: int, config: str | None, write: Write) -> None:
    """Put another version in the place of one.

    Args:
        folder: The model's.
        version: One that is there.
        config: As in `add_version`.
        write: Called once.

    Raises:
        OutputError: It cannot be written; what was there stays.
    """
    with _errors(folder), _aside(folder) as staged:
        write(staged)
        _flush(staged)
        _exchange(staged, folder / str(version))  # the old one is now aside, and is removed
        _flush_folder(folder)
        if config is not None:
            atomic.write(folder / CONFIG, config)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder that is missing, and remove it again when the block ends with an error."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder in ``folder``; whatever is there in the end is removed."""
    staged = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    staged.chmod(0o777 & ~_umask())
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _beside(repository: Path) -> Path:
    """Where a new model is prepared: beside the repository, from where it can be renamed into it, or inside."""
    parent = repository.resolve().parent
    same = parent.stat().st_dev == repository.stat().st_dev
    return parent if same and os.access(parent, os.W_OK | os.X_OK) else repository


def _rename_to_free(staged: Path, folder: Path, version: int | None) -> int:
    """Rename to the version, or to the first free number; another process may be doing the same."""
    while True:
        number = max(versions_of(folder), default=0) + 1 if version is None else version
        try:
            staged.rename(folder / str(number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or version is not None:
                raise
        else:
            return number


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders in one step where the system can, else in two with nothing there in between."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return
    old = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=a.parent))
    b.rename(old)
    a.rename(b)
    old.rename(a)


def _flush(folder: Path) -> None:
    """Have everything on disk before it gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextlib.contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrtSparseError:
        raise
    except OSError as error:
        raise OutputError(
            "cannot write the model into the repository",
            where=folder,
            got=error.strerror or str(error),
            fix="give a repository in a writable place with enough space",
        ) from error
