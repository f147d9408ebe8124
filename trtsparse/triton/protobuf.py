"""Triton's ModelConfig: the message itself, and reading and writing it as ``config.pbtxt``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from trtsparse._version import __version__
from trtsparse.errors import ConfigError, MissingDependencyError
from trtsparse.precision.specs import did_you_mean

__all__ = ["DTYPES", "messages", "parse_config", "triton_type", "write_config"]

DTYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "object": "TYPE_STRING",
}
"""numpy's name of a type to Triton's."""


def messages() -> Any:
    """The module of Triton's messages.

    Raises:
        MissingDependencyError: Triton's client library is not installed, or cannot be imported.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except Exception as error:  # RuntimeError without gRPC, protobuf's own for a version that does not fit
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("tritonclient"):
            raise MissingDependencyError("Triton's client library is not installed", extra="triton") from error
        reason = f"tritonclient.grpc: {error}"
        raise MissingDependencyError(
            "Triton's client library cannot be imported", extra="triton", where=reason
        ) from error
    return model_config_pb2


def triton_type(dtype: np.dtype[Any], where: str) -> str:
    """The name of Triton's type for one of numpy's.

    Raises:
        ConfigError: Triton has none.

    Example:
        >>> triton_type(np.dtype(np.float16), "input 'x'")
        'TYPE_FP16'
    """
    if dtype.name not in DTYPES:
        raise ConfigError(
            "Triton has no such data type",
            where=where,
            got=dtype.name,
            expected=", ".join(DTYPES),
            fix="cast it to another type inside the model",
        )
    return DTYPES[dtype.name]


def write_config(config: Any) -> str:
    """A ModelConfig as the text of a ``config.pbtxt``."""
    from google.protobuf import text_format

    return f"# Written by trtsparse {__version__}.\n{text_format.MessageToString(config)}"


def parse_config(text: str, *, where: str | Path) -> Any:
    """A ModelConfig from the text of a ``config.pbtxt``.

    Raises:
        ConfigError: Not such a text: the line, and what is wrong there.
    """
    from google.protobuf import text_format

    config = messages().ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        line = error.GetLine()
        said = re.sub(r"^(?:\d+:\d+ : )+", "", str(error).replace("\n", " "))
        raise ConfigError(
            "the model's configuration cannot be read",
            where=where if line is None else f"{where}, line {line}",
            got=said,
            fix=_hint(said),
        ) from error
    return config


def _hint(said: str) -> str | None:
    """The nearest name to one that does not exist."""
    value = re.search(r'[Ee]num type "inference\.([\w.]+)" has no value (?:named|with number) "?(\w+)"?', said)
    if value:
        enum = messages().DESCRIPTOR.enum_types_by_name.get(value[1].rpartition(".")[2])
        names = [] if enum is None else list(enum.values_by_name)
        prefixed = [name for name in names if name.endswith(f"_{value[2]}")]
        return f"did you mean {prefixed[0]!r}?" if prefixed else did_you_mean(value[2], names)
    field = re.search(r'Message type "inference\.([\w.]+)" has no field named "(\w+)"', said)
    if field:
        found = messages().DESCRIPTOR.message_types_by_name.get(field[1].split(".")[0])
        for part in field[1].split(".")[1:]:
            found = found and found.nested_types_by_name.get(part)
        return did_you_mean(field[2], found.fields_by_name) if found else None
    return None
