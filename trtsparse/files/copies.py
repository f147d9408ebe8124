"""Copies of a model's files, all of them or all but the tensors that are about to be written anyway."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from trtsparse.files import atomic
from trtsparse.files.protobuf import Buffer
from trtsparse.files.tensor import TensorRef

__all__ = ["beside", "copy_file", "load", "names_beside", "ranges", "same_entry", "same_file"]

_PIECE = 1 << 24  # bytes copied at once


def ranges(refs: Iterable[TensorRef], location: str) -> list[tuple[int, int]]:
    """Offsets and ends in one file, in order."""
    return sorted(
        {
            (ref.offset, ref.offset + ref.nbytes)
            for ref in refs
            if ref.location == location and ref.encoding == "raw_data" and ref.nbytes
        }
    )


def copy_file(file: Path | Buffer, target: Path, holes: list[tuple[int, int]]) -> None:
    """Copy a file but for some ranges, which read as zeros."""
    if not isinstance(file, Path):
        target.write_bytes(file)
        return
    if not holes:
        shutil.copyfile(file, target)
        return
    with file.open("rb") as source, target.open("wb") as copy:
        end = file.stat().st_size
        copy.truncate(end)
        starts = [0, *(stop for _, stop in holes)]
        for start, stop in zip(starts, [*(start for start, _ in holes), end], strict=True):
            source.seek(start)
            copy.seek(start)
            for position in range(start, stop, _PIECE):
                copy.write(source.read(min(_PIECE, stop - position)))


def beside(target: Path, location: str) -> Path:
    """Where an external file of the model ``target`` is."""
    return target.parent / location


@contextlib.contextmanager
def names_beside(
    target: Path, locations: Collection[str], *, replaceable: Collection[Path]
) -> Iterator[dict[str, str]]:
    """Take a name beside the model ``target`` for each of its external files, without replacing any other file.

    New names are taken by empty files at once, so several models may be copied into one folder at a time. When the
    block ends with an error, those and new folders are removed again.

    Args:
        target: The model file.
        locations: The names that the files have so far, kept where nothing else has them.
        replaceable: Files that may be replaced.

    Yields:
        The names by location; new ones are ``target``'s with ".data", ".1.data" and so on.

    Raises:
        OutputError: A folder is missing or not writable.
    """
    every = (f"{target.name}.data" if n == 0 else f"{target.name}.{n}.data" for n in itertools.count())
    spare = (name for name in every if name not in locations)
    replaced: list[Path] = []
    with contextlib.ExitStack() as stack:

        def take(name: str) -> bool:
            path = beside(target, name)
            if path == target or any(same_file(other, path) for other in replaced):
                return False  # the second would replace what takes the first one's place
            if path in replaceable:
                replaced.append(path)
                return True
            stack.enter_context(atomic.folders([path.parent], beside=target))
            return stack.enter_context(atomic.claimed(path))

        yield {location: next(filter(take, itertools.chain([location], spare))) for location in locations}


def same_entry(a: Path, b: Path) -> bool:
    """True when both are one name in one folder, which replacing the file keeps and a link's does not."""
    return a.name == b.name and a.parent.resolve() == b.parent.resolve()


def same_file(a: Path | Buffer, b: Path) -> bool:
    """True when both exist and are one file, under whatever names."""
    return isinstance(a, Path) and a.exists() and b.exists() and a.samefile(b)


def load(file: Path | Buffer) -> bytearray:
    """A copy of the whole content."""
    if not isinstance(file, Path):
        return bytearray(file)
    content = bytearray(file.stat().st_size)
    with file.open("rb", buffering=0) as source:
        view = memoryview(content)
        while view and (count := source.readinto(view)):
            view = view[count:]
    return content
