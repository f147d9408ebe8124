"""Which TensorRT is here: told without importing it, which takes a second, or by what was imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from trtsparse.builder.plan import FLAVOUR_NAMES, version_name
from trtsparse.trtexec.log import Library
from trtsparse.trtexec.policy import Like, like_of

__all__ = ["installed_library", "library_like", "library_of"]

_CUDA = (13, 12, 11)
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", *(f"tensorrt-cu{cuda}{part}" for cuda in _CUDA for part in ("", "-bindings"))),
    "tensorrt_rtx": ("tensorrt-rtx", *(f"tensorrt-rtx-cu{cuda}" for cuda in _CUDA)),
}


def installed_library() -> Library:
    """The TensorRT that a build would use, by what its packages say about themselves; TensorRT before RTX."""
    for flavour, names in _DISTRIBUTIONS.items():
        if flavour in sys.modules:
            module = sys.modules[flavour]
            if hasattr(module, "__version__"):
                return library_of(module)
            continue  # its import was found to fail
        version = _packaged_version(flavour, names)
        if version:
            return _library(flavour, version)
    return Library()


def _packaged_version(flavour: str, names: tuple[str, ...]) -> str | None:
    """What the package's folder of metadata, beside the package, is called: "tensorrt-10.13.3.9.dist-info"."""
    spec = importlib.util.find_spec(flavour)
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        for entry in Path(folder).parent.glob("*.dist-info"):
            name, _, version = entry.stem.partition("-")
            if name.lower().replace("_", "-") in names:
                return version
    from importlib import metadata  # takes longer than everything else here

    for name in names:
        for found in metadata.distributions(name=name):
            return found.version
    return None


def library_of(module: Any) -> Library:
    """An imported module ``tensorrt`` or ``tensorrt_rtx``."""
    return _library(module.__name__.partition(".")[0], str(module.__version__))


def library_like(library: Library) -> tuple[Like, str]:
    """The trtexec that a library stands for, and the reason in words."""
    flavour = next((name for name, shown in FLAVOUR_NAMES.items() if shown == library.name), None)
    return like_of(flavour, ".".join(map(str, library.version)) if flavour else None)


def _library(flavour: str, version: str) -> Library:
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return Library(version_name(flavour, "").strip(), tuple(numbers))
