"""Inputs as the command line gives them: their names, and files with their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trtsparse.errors import ConfigError, FeedError
from trtsparse.precision.specs import TensorSpec, did_you_mean
from trtsparse.trtexec.exports import dims
from trtsparse.trtexec.values import find

__all__ = ["check_names", "read_input"]


def read_input(path: str, spec: TensorSpec, shape: Sequence[int] | None, *, flag: str = "--loadInputs") -> np.ndarray:
    """One input from a file: raw bytes in the engine's data type, as trtexec takes them, or a .npy file.

    Args:
        path: The file.
        spec: The input.
        shape: Of the raw bytes; None for the engine's own, where it is fixed.
        flag: That named the file.

    Raises:
        FeedError: It cannot be read, is too long or too short, or of another type.
    """
    where = f"{flag}={spec.name}:{path}"
    try:
        if path.endswith(".npy"):
            with Path(path).open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        data = Path(path).read_bytes()
    except OSError as error:
        raise FeedError("the input file cannot be read", where=where, got=error.strerror) from error
    except (ValueError, EOFError) as error:
        raise FeedError("the input file is not a whole .npy file", where=where, got=str(error)) from error
    sizes = tuple(spec.shape or ()) if shape is None else tuple(shape)
    if any(isinstance(size, str) for size in sizes):
        raise FeedError(
            "the shape of a raw input file is not known",
            where=where,
            got=str(spec),
            fix=f"give it: --shapes={spec.name}:{dims(1 if isinstance(s, str) else s for s in sizes)}",
        )
    expected = int(np.prod([int(size) for size in sizes], dtype=np.int64)) * spec.dtype.itemsize
    if len(data) != expected:
        raise FeedError(
            "an input file has the wrong size",
            where=where,
            got=f"{len(data)} bytes",
            expected=f"{expected} bytes: {dims(int(size) for size in sizes)} of {spec.dtype}",
        )
    return np.frombuffer(data, spec.dtype).reshape([int(size) for size in sizes])


def check_names(names: Sequence[str], given: Mapping[str, object], flag: str) -> None:
    """Refuse a flag that names an input which the engine does not have.

    Args:
        names: Of the engine's inputs.
        given: Names or patterns.
        flag: That gave them.

    Raises:
        ConfigError: There is no such input.
    """
    for pattern in given:
        if not any(find({pattern: True}, name) for name in names):
            raise ConfigError(
                f'Cannot find input tensor with name "{pattern}" in the engine bindings!',
                where=flag,
                expected=", ".join(map(repr, names)),
                fix=did_you_mean(pattern, names) or "Please make sure the input tensor names are correct.",
            )
