"""Files of many types that a normal system has, with the type that their names tell."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TYPES", "Sample", "samples"]

TYPES = {  # ending -> Magika's labels that are right
    ".bmp": ("bmp",), ".bz2": ("bzip",), ".c": ("c",), ".cpp": ("cpp",), ".css": ("css",), ".csv": ("csv",),
    ".exe": ("pebin",), ".gif": ("gif",), ".gz": ("gzip",), ".h": ("c", "cpp"), ".html": ("html",), ".ico": ("ico",),
    ".ini": ("ini",), ".jar": ("jar", "zip"), ".java": ("java",), ".jpg": ("jpeg",), ".js": ("javascript",),
    ".json": ("json",), ".md": ("markdown",), ".o": ("elf",), ".otf": ("otf",), ".pdf": ("pdf",), ".pem": ("pem",),
    ".php": ("php",), ".pm": ("perl",), ".png": ("png",), ".py": ("python",),
    ".pyc": ("pythonbytecode",), ".rb": ("ruby",), ".rs": ("rust",), ".rst": ("rst",), ".sh": ("shell",),
    ".so": ("elf",), ".svg": ("svg",), ".tar": ("tar",), ".tcl": ("tcl",), ".toml": ("toml",), ".ttf": ("ttf",),
    ".wav": ("wav",), ".whl": ("zip",), ".woff": ("woff",), ".woff2": ("woff2",), ".xml": ("xml",), ".xz": ("xz",),
    ".yaml": ("yaml",), ".yml": ("yaml",), ".zip": ("zip",),
}  # fmt: skip
_EACH = 40  # files of one ending in one set
_LOOKED_AT = 400_000


@dataclass(frozen=True)
class Sample:
    """One file.

    Attributes:
        path: Where it is.
        labels: What it may be called.
    """

    path: Path
    labels: tuple[str, ...]


def samples(kind: str) -> list[Sample]:
    """Files for "calibration" or "test": no file has the same content as another, nor is in both sets.

    Looked for in Python's installation, the environment and the system's programs; large files are left out.
    """
    found: dict[str, list[Sample]] = {}
    seen: set[bytes] = set()
    for path in _files():
        ending = path.suffix.lower()
        mine = found.setdefault(ending, [])
        if ending not in TYPES or len(mine) >= _EACH:
            continue
        try:
            if not 64 <= path.stat().st_size <= 4 << 20 or path.is_symlink():
                continue
            digest = hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            continue
        if digest not in seen and (digest[0] % 3 == 0) == (kind == "calibration"):
            seen.add(digest)
            mine.append(Sample(path, TYPES[ending]))
    return [sample for ending in sorted(found) for sample in found[ending]]


def _files() -> Iterator[Path]:
    roots = dict.fromkeys(Path(root).resolve() for root in (sys.base_prefix, sys.prefix, Path(os.sep) / "usr"))
    looked_at = 0
    for root in roots:
        for folder, inner, names in os.walk(root):
            inner.sort()
            for name in sorted(names):
                looked_at += 1
                if looked_at > _LOOKED_AT:
                    return
                yield Path(folder) / name
