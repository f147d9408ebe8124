"""The command line of NVIDIA's trtexec, of every TensorRT version, over this package's builder and runtime.

``trtsparse.trtexec(...)`` runs one: see `trtsparse.trtexec.run.trtexec`. The package itself is callable, because the
function and the package have one name, and Python binds the package to it on the first import of any of its modules.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtsparse.trtexec.run import TrtexecResult


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> TrtexecResult:
        """`trtsparse.trtexec.run.trtexec`."""
        from trtsparse.trtexec.run import trtexec

        return trtexec(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
