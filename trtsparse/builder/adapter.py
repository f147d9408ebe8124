"""The installed library: ``tensorrt`` or ``tensorrt_rtx``, imported on request and never at import.

The raw API is used throughout, not Polygraphy's loaders: which of the two modules those use is a global setting made
before their first import, so one process cannot hold both flavours; their ONNX loaders log the parser's errors and
raise a text without them, where all refused nodes are needed; and their configurations give dynamic dims without a
profile the size 1.
"""

from __future__ import annotations

import importlib
import types

from trtsparse.builder.plan import FLAVOUR_NAMES, Flavour
from trtsparse.errors import ConfigError, MissingDependencyError

__all__ = ["find_tensorrt"]

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


def find_tensorrt(prefer: Flavour | None = None) -> types.ModuleType:
    """Import the TensorRT that is installed.

    Args:
        prefer: The flavour to import; None for the first that works, TensorRT before TensorRT-RTX.

    Returns:
        The module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        MissingDependencyError: It is not installed, or its library cannot be loaded.
        ConfigError: There is no such flavour.
    """
    if prefer is not None and prefer not in FLAVOUR_NAMES:
        raise ConfigError("flavour has no such value", got=repr(prefer), expected=", ".join(map(repr, FLAVOUR_NAMES)))
    reasons: list[str] = []
    for name in (prefer,) if prefer else FLAVOUR_NAMES:
        module = _import(name, reasons)
        if module is not None:
            return module
    if prefer:
        what = f"{FLAVOUR_NAMES[prefer]} cannot be imported"
    else:
        what = "neither TensorRT nor TensorRT-RTX can be imported"
    raise MissingDependencyError(what, extra=_EXTRAS[prefer or "tensorrt_rtx"], where="; ".join(reasons))


def _import(name: str, reasons: list[str]) -> types.ModuleType | None:
    """The module, or None with the reason added; a package without its library may fail in several ways."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reasons.append(f"{name}: {error}")
        return None
    if not hasattr(module, "Builder"):
        reasons.append(f"{name}: the package holds no library")
        return None
    return module
