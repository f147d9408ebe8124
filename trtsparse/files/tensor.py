"""Where a tensor's bytes are: in the model file or beside it, and how they are encoded there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtsparse.errors import ModelError
from trtsparse.files.protobuf import LENGTH, VARINT, Buffer, encode_field, fields

__all__ = [
    "TensorRef",
    "decode_varints",
    "dtype_name",
    "normal_location",
    "packed_nbytes",
    "relocate",
    "rewrite_varints",
    "strip",
    "stripped_location",
]

INLINE_NBYTES = 1024  # shapes, scales and other small vectors stay in the skeleton: shape inference reads them
_LARGEST_NBYTES = 2**48  # no real tensor has more: the dims are absurd
_LARGEST_RANK = 32  # numpy before 2.0 has no more

_DIMS, _DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 13, 14
_PAYLOADS = {4: "float_data", 5: "int32_data", 7: "int64_data", 9: "raw_data", 10: "double_data", 11: "uint64_data"}
_NOTE_KEY = b"trtsparse"
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_PACKED = {getattr(onnx.TensorProto, name): bits for name, bits in _BITS.items() if hasattr(onnx.TensorProto, name)}


@dataclass(frozen=True)
class TensorRef:
    """The place of one tensor's bytes.

    Attributes:
        name: The tensor's name ("" for the value of a Constant node).
        location: The external file as the model names it, or "" for the model file itself.
        offset: Of the first byte in that file; -1 for an empty tensor: it has no place, whatever the model says.
        nbytes: As stored.
        encoding: "raw_data" for plain little-endian elements (external data and packed float_data too), else the
            protobuf field whose varints hold them.
        data_type: An ``onnx.TensorProto`` data type.
        shape: The dims.
    """

    name: str
    location: str
    offset: int
    nbytes: int
    encoding: str
    data_type: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.nbytes:
            object.__setattr__(self, "offset", -1)  # writers give it that of the next tensor

    @property
    def key(self) -> tuple[str, int]:
        """Equal for two references to the same bytes, whatever the tensors are called."""
        return (self.location, self.offset)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of an element; 4-bit integers are ``ml_dtypes`` types."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.data_type))

    @property
    def packed(self) -> bool:
        """True for types of less than 8 bits: elements share a byte, the first one in its low bits."""
        bits = _PACKED.get(self.data_type, 8)
        return bits < 8 and (bits != 6 or self.encoding == "raw_data")  # 6-bit floats are varints one by one


def dtype_name(data_type: int) -> str:
    """The name that numpy and ml_dtypes use for an ONNX data type: "float16", "bfloat16", "float8_e4m3fn", ..."""
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)))
    except (KeyError, ValueError, TypeError):
        return f"ONNX data type {data_type}"


def packed_nbytes(data_type: int, shape: tuple[int, ...]) -> int:
    """The bytes that ``raw_data`` of this type and shape must have.

    Raises:
        ModelError: A dim is negative, or the size or rank absurd.
    """
    if any(dim < 0 for dim in shape):
        raise ModelError("a tensor has a negative dim", got=list(shape))
    if len(shape) > _LARGEST_RANK:
        raise ModelError("a tensor's dims are absurd", got=f"{len(shape)} dims", expected=f"at most {_LARGEST_RANK}")
    itemsize = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize
    nbytes = -(-math.prod(shape) * _PACKED.get(data_type, 8 * itemsize) // 8)
    if nbytes > _LARGEST_NBYTES:
        raise ModelError("a tensor's dims are absurd", got=f"{list(shape)}: {nbytes} bytes")
    return nbytes


def strip(data: Buffer, start: int, end: int) -> bytes | None:
    """Replace a TensorProto's data by a note of where it is; None when it is small and may stay.

    The note is an ``external_data`` entry, so that every ONNX tool sees an ordinary external tensor.
    """
    payload = None
    rank = 0
    parts = list(fields(data, start, end))
    for field in parts:
        if field.number == _DIMS:
            rank += 1 if field.wire == VARINT else _count_varints(data, field.start, field.end)
        elif field.number in _PAYLOADS and field.end > field.start:
            if payload is not None or field.wire != LENGTH:
                raise ModelError(
                    "a tensor's data is stored in several pieces",
                    where=f"byte {field.tag}",
                    fix="save the model again with onnx.save",
                )
            payload = field
        elif field.number == _EXTERNAL_DATA and encode_field(1, _NOTE_KEY) in bytes(data[field.start : field.end]):
            raise ModelError(
                "the file is a model's skeleton without its weights",
                where=f"byte {field.tag}",
                fix="write models with OnnxModel.save, not their proto",
            )
    if payload is None or (rank < 2 and payload.end - payload.start <= INLINE_NBYTES):
        return None
    note = f"{_PAYLOADS[payload.number]}:{payload.start}:{payload.end - payload.start}"
    entry = encode_field(1, _NOTE_KEY) + encode_field(2, note.encode())
    return b"".join(
        (
            bytes(data[start : payload.tag]),
            bytes(data[payload.end : end]),
            encode_field(_EXTERNAL_DATA, entry),
            encode_field(_DATA_LOCATION, onnx.TensorProto.EXTERNAL),
        )
    )


def stripped_location(tensor: onnx.TensorProto) -> tuple[str, int, int] | None:
    """Read `strip`'s note: (encoding, offset, nbytes) in the model file, or None when there is none."""
    for entry in tensor.external_data:
        if entry.key == _NOTE_KEY.decode():
            encoding, offset, nbytes = entry.value.split(":")
            return ("raw_data" if encoding in ("float_data", "double_data") else encoding), int(offset), int(nbytes)
    return None


def normal_location(location: str) -> str:
    """One spelling for all names of the same path.

    Example:
        >>> normal_location("./weights//w.bin")
        'weights/w.bin'
    """
    return Path(location).as_posix() if location else location


def relocate(names: dict[str, str], data: Buffer, start: int, end: int) -> bytes | None:
    """Give a TensorProto's external file another name; None when it has none of ``names`` (normal locations)."""
    pieces: list[bytes] = []
    copied = start
    for field in fields(data, start, end):
        if field.number != _EXTERNAL_DATA:
            continue
        parts = {part.number: bytes(data[part.start : part.end]) for part in fields(data, field.start, field.end)}
        name = names.get(normal_location(parts.get(2, b"").decode(errors="replace")))
        if parts.get(1) == b"location" and name is not None:
            entry = encode_field(1, b"location") + encode_field(2, name.encode())
            pieces += (bytes(data[copied : field.tag]), encode_field(_EXTERNAL_DATA, entry))
            copied = field.end
    return b"".join([*pieces, bytes(data[copied:end])]) if pieces else None


def decode_varints(payload: np.ndarray, ref: TensorRef) -> np.ndarray:
    """Elements of a tensor whose data are varints (int32_data and its kin).

    Args:
        payload: The field's bytes, uint8 ``(nbytes,)``.
        ref: The tensor.

    Returns:
        An array of the tensor's shape and type (4-bit types: packed bytes).

    Raises:
        ModelError: The number of elements is not that of the shape.
    """
    element, shift, _ = _varint_layout(payload)
    values = np.zeros(element[-1] + 1 if len(element) else 0, np.uint64)
    np.bitwise_or.at(values, element, (payload & 0x7F).astype(np.uint64) << shift)
    expected = packed_nbytes(ref.data_type, ref.shape) if ref.packed else ref.size
    if len(values) != expected:
        raise ModelError(
            "a tensor's dims and data disagree",
            where=f"tensor {ref.name!r}, {ref.encoding}",
            got=f"{len(values)} elements",
            expected=f"{expected} elements for dims {list(ref.shape)}",
        )
    if ref.packed:
        return values.astype(np.uint8)
    if ref.dtype.kind in "iub":
        return values.astype(np.int64).astype(ref.dtype).reshape(ref.shape)
    bits = values.astype(np.dtype(f"u{ref.dtype.itemsize}"))
    return bits.view(ref.dtype).reshape(ref.shape)


def rewrite_varints(payload: np.ndarray, old: np.ndarray, new: np.ndarray, *, name: str) -> None:
    """Change elements of a varint-encoded tensor without changing any length.

    A varint may be longer than it need be (its last bytes then hold zeros), but not shorter.

    Args:
        payload: The field's bytes, uint8 ``(nbytes,)``, changed in place.
        old: The elements as `decode_varints` gave them.
        new: What they shall be, of the same shape and type.
        name: What an error message calls the tensor.

    Raises:
        ModelError: A new element needs more bytes than the old one has.
    """
    element, shift, width = _varint_layout(payload)
    values, before = _varint_values(new), _varint_values(old)
    changed = values != before
    if np.any(values[(width < 10) & changed] >> (7 * width[(width < 10) & changed]).astype(np.uint64)):
        raise ModelError(
            "a tensor's elements are stored in too few bytes to be changed in place",
            where=f"tensor {name!r}",
            fix="save the model again with raw_data: numpy_helper.from_array(numpy_helper.to_array(tensor), name)",
        )
    septets = (values[element] >> shift).astype(np.uint8) & 0x7F | payload & 0x80
    np.copyto(payload, septets, where=changed[element])


def _varint_layout(payload: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each byte the index of its element and its shift in bits; for each element its number of bytes."""
    last = payload < 0x80
    element = np.cumsum(last, dtype=np.int64) - last
    width = np.bincount(element) if len(element) else np.zeros(0, np.int64)
    starts = np.cumsum(width) - width
    shift = 7 * (np.arange(len(payload)) - starts[element])
    return element, shift.astype(np.uint64), width


def _varint_values(elements: np.ndarray) -> np.ndarray:
    """Elements as the unsigned numbers that varints hold: integers sign-extended, others their bit patterns."""
    flat = elements.reshape(-1)
    if flat.dtype.kind in "iub":
        return flat.astype(np.int64).view(np.uint64)
    return flat.view(np.dtype(f"u{flat.dtype.itemsize}")).astype(np.uint64)


def _count_varints(data: Buffer, start: int, end: int) -> int:
    return sum(byte < 0x80 for byte in data[start:end])
