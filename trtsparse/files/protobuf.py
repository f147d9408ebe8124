"""One walk over the bytes of a serialized ONNX model, which reaches every tensor without parsing its data.

ONNX files are protocol buffers: a message is a sequence of fields, each a tag (field number and wire type) and a
value; sub-messages are length-prefixed (https://protobuf.dev/programming-guides/encoding/). Only the path from the
model to its tensors is known here; every other field is copied as it stands, so what this module rewrites differs
from its source in the tensors alone, unknown fields and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from trtsparse.errors import ModelError

__all__ = ["Buffer", "Field", "encode_field", "fields", "rewrite_tensors"]

Buffer = bytes | bytearray | memoryview

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

# message -> {field number: sub-message} on the way to tensors; numbers from onnx.proto
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}


class Field(NamedTuple):
    """One field of a message: ``data[start:end]`` is its value, ``data[tag:end]`` the whole field."""

    number: int
    wire: int
    tag: int
    start: int
    end: int
    value: int  # of a VARINT field, else 0


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Iterate over the fields of the message ``data[start:end]``.

    Raises:
        ModelError: The bytes are not a protocol buffer message, or end in the middle of a field.
    """
    position = start
    while position < end:
        tag = position
        key, position = _varint(data, position, end)
        wire, value, value_start = key & 7, 0, position
        if wire == VARINT:
            value, position = _varint(data, position, end)
        elif wire == LENGTH:
            length, value_start = _varint(data, position, end)
            position = value_start + length
        elif wire == FIXED32:
            position += 4
        elif wire == FIXED64:
            position += 8
        else:
            raise ModelError("not an ONNX file", where=f"byte {tag}", got=f"protobuf wire type {wire}")
        if position > end or key < 8:
            raise ModelError(
                "the ONNX file is truncated or damaged",
                where=f"byte {tag}",
                got=f"a field that ends at byte {position}",
                expected=f"an end at or before byte {end}",
                fix="export or copy the model again",
            )
        yield Field(key >> 3, wire, tag, value_start, position, value)


def rewrite_tensors(data: Buffer, visit: Callable[[Buffer, int, int], bytes | None]) -> bytes:
    """Rebuild a serialized ModelProto with other tensors.

    Args:
        data: The serialized model.
        visit: Called with ``(data, start, end)`` for every TensorProto in graphs, subgraphs, attributes and
            functions; returns the tensor's new bytes, or None to keep it.

    Returns:
        The serialized model. Fields other than the tensors are copied byte for byte.

    Raises:
        ModelError: The bytes are not a protocol buffer message.
    """
    return _rewrite(data, 0, len(data), "Model", visit) or bytes(data)


def encode_field(number: int, value: bytes | int) -> bytes:
    """Encode one field: an int as VARINT, bytes as LENGTH."""
    if isinstance(value, int):
        return _encode_varint(number << 3 | VARINT) + _encode_varint(value)
    return _encode_varint(number << 3 | LENGTH) + _encode_varint(len(value)) + value


def _rewrite(
    data: Buffer, start: int, end: int, message: str, visit: Callable[[Buffer, int, int], bytes | None]
) -> bytes | None:
    """The message's new bytes, or None when nothing in it changed."""
    if message == "Tensor":
        return visit(data, start, end)
    children = _CHILDREN[message]
    pieces: list[bytes] = []
    copied = start  # everything before it is in `pieces`
    for field in fields(data, start, end):
        child = children.get(field.number)
        if child is None or field.wire != LENGTH:
            continue
        replacement = _rewrite(data, field.start, field.end, child, visit)
        if replacement is not None:
            pieces += (bytes(data[copied : field.tag]), encode_field(field.number, replacement))
            copied = field.end
    if not pieces:
        return None
    pieces.append(bytes(data[copied:end]))
    return b"".join(pieces)


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise ModelError(
        "the ONNX file is truncated or damaged", where=f"byte {position}", fix="export or copy the model again"
    )


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
