"""Plan headers: which TensorRT wrote a plan, read from its first bytes without any library or GPU.

Layout of the first 28 bytes: tag ``ftrt`` or ``vtrt``, uint32 0, 8 bytes, uint64 total size, then major, minor, patch
and build, one byte each. Tag, zero and version are what ``trtexec --getPlanVersionOnly`` reads
(https://github.com/NVIDIA/TensorRT, ``printPlanVersion``); the size was seen in plans of TensorRT-RTX 1.7 and is
relied on there only. TensorRT before 8.6 had another layout.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtsparse.errors import PlanError

__all__ = ["FLAVOUR_NAMES", "Flavour", "PlanHeader", "check_matches", "read_header", "version_name"]

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOUR_NAMES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

_TAGS: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_HEADER_NBYTES = 28
_OTHER_FORMATS = (
    (b"\x7fELF", "a shared library"),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{", "JSON text"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
)


@dataclass(frozen=True)
class PlanHeader:
    """What the first bytes of a plan say.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx", as the Python modules are called.
        version: (major, minor, patch, build) of the library that wrote it.
        nbytes: The plan's size as the header states it; None where the flavour does not state it.
    """

    flavour: Flavour
    version: tuple[int, int, int, int]
    nbytes: int | None

    def __str__(self) -> str:
        return version_name(self.flavour, self.version)


def version_name(flavour: str, version: tuple[int, ...] | str) -> str:
    """How messages name a library: "TensorRT-RTX 1.7.1.116"."""
    number = version if isinstance(version, str) else ".".join(map(str, version))
    return f"{FLAVOUR_NAMES[flavour]} {number}"


def read_header(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> PlanHeader:
    """Read a plan's header; only the first bytes of a file are read.

    Args:
        source: A path, or the plan's bytes.

    Raises:
        PlanError: There is no such file, it is not a plan, or it is truncated.

    Example:
        >>> plan = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])
        >>> print(read_header(plan), read_header(plan).nbytes)
        TensorRT-RTX 1.7.1.116 28
    """
    head, available, where = _head(source)
    flavour = _TAGS.get(head[:4])
    if flavour is None:
        raise PlanError(
            "not a TensorRT plan",
            where=where,
            got=_looks_like(head),
            expected="a file that begins with 'ftrt' (TensorRT) or 'vtrt' (TensorRT-RTX)",
            fix="give the engine file that a build wrote",
        )
    if available < _HEADER_NBYTES:
        raise _truncated(where, available, f"at least {_HEADER_NBYTES} bytes")
    if int.from_bytes(head[4:8], "little"):
        raise PlanError(
            "a plan of an unknown layout",
            where=where,
            got=f"layout {int.from_bytes(head[4:8], 'little')}",
            expected="layout 0, which TensorRT 8.6 and later write",
            fix="build the model again",
        )
    nbytes = int.from_bytes(head[16:24], "little") if flavour == "tensorrt_rtx" else None
    if nbytes is not None and available < nbytes:
        raise _truncated(where, available, f"{nbytes} bytes, the size in its header")
    return PlanHeader(flavour, (head[24], head[25], head[26], head[27]), nbytes)


def check_matches(
    header: PlanHeader, flavour: str, version: tuple[int, ...], *, where: object = None, compatible: bool = False
) -> None:
    """Refuse a plan that the installed library did not write.

    Args:
        header: The plan's.
        flavour: Of the installed library.
        version: Of the installed library; compared as far as it goes, so (10, 13) fits every 10.13.
        where: What the message names, usually the file.
        compatible: The plan was built version-compatible: the same major version and no older library is enough.

    Raises:
        PlanError: Flavour or version differ; both are named.
    """
    installed = version_name(flavour, version)
    if header.flavour != flavour:
        raise PlanError(
            f"the plan is for {FLAVOUR_NAMES[header.flavour]}, but {FLAVOUR_NAMES[flavour]} is installed",
            where=where,
            got=f"a plan of {header}",
            expected=f"a plan of {installed}",
            fix=f"build the model again here, or load the plan where {header} is installed",
        )
    same = header.version[: len(version)] == version[:4]
    forward = compatible and header.version[0] == version[0] and header.version[: len(version)] <= version[:4]
    if not same and not forward:
        raise PlanError(
            f"the plan was built by another version of {FLAVOUR_NAMES[flavour]}",
            where=where,
            got=f"a plan of {header}",
            expected=f"a plan of {installed}, which is installed",
            fix=f"build the model again here, or install {header}",
        )


def _head(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> tuple[bytes, int, str]:
    """The first bytes, how many bytes there are, and what to call the source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source)
        return bytes(view[:64]), view.nbytes, "bytes"
    path = Path(source)
    try:
        with path.open("rb") as file:
            return file.read(64), os.fstat(file.fileno()).st_size, str(path)
    except FileNotFoundError as error:
        raise PlanError("there is no such plan", where=path) from error
    except OSError as error:
        raise PlanError("the plan cannot be read", where=path, got=error.strerror) from error


def _truncated(where: str, available: int, expected: str) -> PlanError:
    return PlanError(
        "the plan is truncated",
        where=where,
        got=f"{available} bytes",
        expected=expected,
        fix="copy the file again, or build the model again",
    )


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    for start, name in _OTHER_FORMATS:
        if head.startswith(start):
            return name
    if _is_onnx(head):
        return "an ONNX model: build it first"
    if not any(head):
        return "zeros"
    return f"bytes that begin with {head[:4].hex(' ')}"


def _is_onnx(head: bytes) -> bool:
    """A ModelProto begins with its ir_version (field 1, a small varint) and another field of low number."""
    return len(head) > 3 and head[0] == 0x08 and 0 < head[1] < 0x40 and head[2] & 7 in (0, 2) and head[2] >> 3 <= 25
