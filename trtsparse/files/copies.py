"""Copies of a model's files, all of them or all but the tensors that are about to be written anyway."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from trtsparse.files.protobuf import Buffer
from trtsparse.files.tensor import TensorRef

__all__ = ["beside", "copy_file", "load", "ranges", "same_file"]

_PIECE = 1 << 24  # bytes copied at once


def ranges(refs: Iterable[TensorRef], location: str) -> list[tuple[int, int]]:
    """Offsets and ends in one file, in order."""
    return sorted(
        {
            (ref.offset, ref.offset + ref.nbytes)
            for ref in refs
            if ref.location == location and ref.encoding == "raw_data"
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
