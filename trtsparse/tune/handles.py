"""Starting the libraries of kernels through nvmath-python."""

from __future__ import annotations

from typing import Any

from trtsparse.errors import DeviceError, MissingDependencyError

__all__ = ["start"]


def start(title: str, module: str, *, create: str, error: str) -> tuple[Any, int]:
    """A library's binding, and a new handle for the current device.

    Args:
        title: The library's name.
        module: The binding's, in ``nvmath.bindings``.
        create: Its function that makes a handle.
        error: Its exception.

    Raises:
        MissingDependencyError: The binding or the library is not installed.
        DeviceError: The library does not take the device.
    """
    try:
        binding = getattr(__import__("nvmath.bindings", fromlist=[module]), module)
    except (ImportError, AttributeError) as missing:
        raise MissingDependencyError(f"{title} is used through nvmath-python", extra="cuda") from missing
    try:
        return binding, int(getattr(binding, create)())
    except getattr(binding, error) as refused:
        raise DeviceError(f"{title} does not take this GPU", got=str(refused)) from refused
    except RuntimeError as failed:  # the binding is there, the library is not
        raise MissingDependencyError(f"{title} cannot be loaded", extra="cuda", where=str(failed)) from failed
