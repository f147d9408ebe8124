"""Strict doubles of TensorRT, one per described version. Tests only.

>>> trt = make("11.4.0")
>>> hasattr(trt.BuilderFlag, "FP16"), hasattr(make("8.6.1").BuilderFlag, "FP16")
(False, True)
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from tests.doubles.library import Call, Library

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

__all__ = ["VERSIONS", "Call", "installed", "make"]

VERSIONS = ("8.6.1", "10.0.1", "10.3.0", "10.9.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0", "rtx-1.7.1")
"""Every version that has a description; `rtx-` marks TensorRT-RTX."""


def make(version: str) -> types.ModuleType:
    """Make a module named `tensorrt` or `tensorrt_rtx` that has what one version has and nothing else.

    Args:
        version: One of `VERSIONS`.

    Returns:
        A new module with its own call log (`calls`) and its own execution hook (`submit`).
    """
    if version not in VERSIONS:
        raise ValueError(f"no description of {version!r}; there are {', '.join(VERSIONS)}")
    return Library(version).module


@contextlib.contextmanager
def installed(version: str) -> Iterator[types.ModuleType]:
    """A double under its real name in `sys.modules`; importing the other flavour raises ImportError meanwhile."""
    module = make(version)
    other = {"tensorrt": "tensorrt_rtx", "tensorrt_rtx": "tensorrt"}[module.__name__]
    families = ("tensorrt", "tensorrt_rtx")
    saved = {name: entry for name, entry in sys.modules.items() if name.partition(".")[0] in families}
    for name in saved:
        del sys.modules[name]
    sys.modules[module.__name__] = module
    sys.modules[other] = None  # type: ignore[assignment]  # what makes `import` raise ModuleNotFoundError
    try:
        yield module
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in families]:
            del sys.modules[name]
        sys.modules.update(saved)
