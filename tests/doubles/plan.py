"""Plan bytes: the header that real plans carry, then what this double needs to execute."""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER = struct.Struct("<4sIIIQ4B4sI28x")
"""Magic, 0, format, 0, total size, version, magic again, target; 64 bytes."""


def magic(lib: Any) -> bytes:
    """`vtrt` for TensorRT-RTX, `ftrt` otherwise."""
    return b"vtrt" if lib.rtx else b"ftrt"


def pack(lib: Any, facts: dict[str, Any], model: bytes) -> bytes:
    """A plan.

    Args:
        lib: The version that builds.
        facts: What the engine tells about itself; plain JSON values.
        model: The ONNX model that executes.
    """
    text = json.dumps(facts, sort_keys=True).encode()
    size = HEADER.size + 8 + len(text) + len(model)
    tag = magic(lib)
    return HEADER.pack(tag, 0, 2, 0, size, *lib.numbers, tag, 4) + struct.pack("<Q", len(text)) + text + model


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Facts and model of a plan whose header was found right.

    Raises:
        ValueError: The payload is damaged.
    """
    (length,) = struct.unpack_from("<Q", data, HEADER.size)
    start = HEADER.size + 8
    return json.loads(data[start : start + length]), data[start + length :]
