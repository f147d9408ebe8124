"""Reads the values of trtexec's flags: numbers, sizes, shapes, lists of name:value.

The grammar is that of trtexec (https://github.com/NVIDIA/TensorRT, samples/common/sampleOptions.cpp): entries are
separated by commas, a name ends at the last colon or stands in single quotes, sizes end in B, K, M or G. Numbers are
read whole: trtexec takes "10ms" for 10, here it is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trtsparse.errors import ConfigError
from trtsparse.trtexec.flags import Flag, Kind
from trtsparse.trtexec.options import IoFormat, Shape, WeightBudget

__all__ = ["find", "read"]

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_POOLS = {
    "workspace": "workspace",
    "dlaSRAM": "dla_managed_sram",
    "dlaLocalDRAM": "dla_local_dram",
    "dlaGlobalDRAM": "dla_global_dram",
    "tacticSharedMem": "tactic_shared_memory",
}
_TYPES = ("fp32", "fp16", "bf16", "fp8", "int64", "int32", "int8", "int4", "uint8", "bool")
_LAYOUTS = (
    "chw", "chw2", "chw4", "chw16", "chw32", "hwc", "hwc8", "hwc16", "dhwc", "dhwc8", "cdhw32", "dla_linear",
    "dla_hwc4",
)  # fmt: skip
_TEMPFILES = {"in_memory": "ALLOW_IN_MEMORY_FILES", "temporary": "ALLOW_TEMPORARY_FILES"}
_AFFIRMATIVE = ("", "1", "true", "yes", "on", "enable", "enabled")

Value = TypeVar("Value")


def read(flag: Flag, text: str | None) -> Any:
    """The value of a flag.

    Args:
        flag: Its row in the table.
        text: What stands behind "="; None without "=".

    Returns:
        True for a switch, else what the kind says: str, int, float, or a dict or tuple of them.

    Raises:
        ConfigError: There is none, or it cannot be read; the flag is named.

    Example:
        >>> read(Flag("--shapes", "Build", "", "spec", "shapes"), "x:1x3,'y:0':2")
        {'x': (1, 3), 'y:0': (2,)}
    """
    if flag.kind == "switch":
        return _switch(flag, text)
    if not text:
        raise ConfigError(
            f"{flag.name} needs a value", got=flag.name if text is None else f"{flag.name}=", expected=flag.usage
        )
    return _READERS[flag.kind](flag, text)


def find(values: Mapping[str, Value], name: str) -> Value | None:
    """The entry for a tensor: its own, else the first whose name has one "*" and fits.

    Example:
        >>> find({"mask": 1, "input*": 2}, "input_ids"), find({"mask": 1}, "input_ids")
        (2, None)
    """
    if name in values:
        return values[name]
    for pattern, value in values.items():
        before, star, after = pattern.partition("*")
        fits = name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after)
        if star and fits:
            return value
    return None


def _wrong(flag: Flag, got: str, expected: str, *, what: str = "", fix: str | None = None) -> ConfigError:
    what = what or f"{flag.name} has a value that cannot be read"
    return ConfigError(what, where=flag.name, got=repr(got), expected=expected, fix=fix or flag.hint)


def _switch(flag: Flag, text: str | None) -> bool:
    """A value that denies is an error: trtexec ignores it, so that ``--fp16=0`` switches FP16 on there."""
    if (text or "").lower() not in _AFFIRMATIVE:
        raise _wrong(flag, text or "", flag.name, what=f"{flag.name} takes no value", fix="leave the flag out")
    return True


def _text(_flag: Flag, text: str) -> str:
    return text


def _file(flag: Flag, text: str) -> str:
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise _wrong(flag, text, "a path") from error


def _integer(flag: Flag, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise _wrong(flag, text, f"a whole number{_range(flag)}")
    return _within(flag, text, int(text))


def _number(flag: Flag, text: str) -> float:
    return _within(flag, text, _float(flag, text, f"a number{_range(flag)}"))


def _float(flag: Flag, text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise _wrong(flag, text, expected) from error
    if not math.isfinite(number):
        raise _wrong(flag, text, expected)
    return number


def _within(flag: Flag, text: str, number: Value) -> Value:
    low, high = (-math.inf if flag.low is None else flag.low), (math.inf if flag.high is None else flag.high)
    if not low <= number <= high:  # type: ignore[operator]
        raise _wrong(flag, text, f"a number{_range(flag)}", what=f"{flag.name} is out of range")
    return number


def _range(flag: Flag) -> str:
    if flag.low is None:
        return ""
    return f" of at least {flag.low:g}" if flag.high is None else f" from {flag.low:g} to {flag.high:g}"


def _choice(flag: Flag, text: str) -> str:
    found = next((choice for choice in flag.choices if choice.lower() == text.lower()), None)
    if found is None:
        raise _wrong(flag, text, ", ".join(flag.choices), what=f"{flag.name} has no such value")
    return found


def _entries(flag: Flag, text: str) -> list[str]:
    entries = [entry.strip() for entry in re.split(r",(?=(?:[^']*'[^']*')*[^']*$)", text)]  # not inside quotes
    if not all(entries):
        raise _wrong(flag, text, "entries separated by single commas", what=f"{flag.name} has an empty entry")
    return entries


def _pairs(flag: Flag, text: str, example: str) -> list[tuple[str, str]]:
    """Entries "name:value" or "'name':value"; an unquoted name ends at the last colon."""
    pairs = []
    for entry in _entries(flag, text):
        match = re.fullmatch(r"'([^']+)':(.*)|([^']+):([^':]*)", entry)
        if match is None:
            raise _wrong(flag, entry, example)
        pairs.append((match[1], match[2]) if match[1] is not None else (match[3], match[4]))
    return pairs


def _once(flag: Flag, name: str, into: Mapping[str, object]) -> None:
    if name in into:
        raise _wrong(flag, name, "each name once", what=f"{flag.name} names the same twice")


def _shapes(flag: Flag, text: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, dims in _pairs(flag, text, "name:1x3x224x224, or 'name':1x3 for a name with special characters"):
        _once(flag, name, shapes)
        parts = [] if dims in ("", "scalar") else dims.split("x")
        if not all(re.fullmatch(r"\d{1,18}", part) for part in parts):
            raise _wrong(flag, f"{name}:{dims}", "dims as whole numbers with x between: 1x3x224x224, or scalar")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _files(flag: Flag, text: str) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, path in _pairs(flag, text, "name:file, or 'name':file for a file with a colon"):
        _once(flag, name, files)
        if not path:
            raise _wrong(flag, f"{name}:", "name:file")
        files[name] = _file(flag, path)
    return files


def _size(flag: Flag, text: str, unit: str) -> int:
    match = re.fullmatch(r"(\d{1,18}\.?\d{0,18}|\.\d{1,18})([BKMG]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise _wrong(
            flag, text, "a number with B, K, M or G behind it, such as 512M", what=f"{flag.name} has no size"
        )
    return int(float(match[1]) * _UNITS[(match[2] or unit).upper()])


def _pools(flag: Flag, text: str) -> dict[str, int]:
    pools: dict[str, int] = {}
    for name, size in _pairs(flag, text, "pool:size, such as workspace:2G"):
        if name not in _POOLS:
            raise _wrong(flag, name, ", ".join(_POOLS), what=f"Unknown memory pool: {name}")
        _once(flag, _POOLS[name], pools)
        pools[_POOLS[name]] = _size(flag, size, "M")
    return pools


def _signed(flag: Flag, text: str) -> dict[str, bool]:
    signed: dict[str, bool] = {}
    for entry in _entries(flag, text):
        if entry[0] not in "+-":
            raise _wrong(flag, entry, "+name to switch on, -name to switch off")
        name = "CUBLAS_LT" if entry[1:].upper() == "CUBLASLT" else entry[1:]
        found = next((choice for choice in flag.choices if choice.lower() == name.lower()), None)
        if found is None:
            raise _wrong(flag, entry[1:], ", ".join(flag.choices), what=f"{flag.name} has no such name")
        if signed.setdefault(found, entry[0] == "+") != (entry[0] == "+"):
            raise _wrong(flag, text, "either + or -", what=f"Cannot enable and disable {found}")
    return signed


def _formats(flag: Flag, text: str) -> tuple[IoFormat, ...]:
    formats = []
    for entry in _entries(flag, text):
        dtype, colon, layout = entry.rpartition(":")
        if colon and dtype not in _TYPES:
            raise _wrong(
                flag, entry, f"type:layout with one of {', '.join(_TYPES)}", what=f"Invalid DataType {dtype}"
            )
        layouts = layout.split("+")
        unknown = [name for name in layouts if name not in _LAYOUTS]
        if unknown:
            raise _wrong(flag, entry, ", ".join(_LAYOUTS), what=f"Invalid TensorFormat {unknown[0]}")
        if "chw" not in layouts:
            raise _wrong(
                flag, entry, "chw", what=f"{flag.name}: inputs and outputs are in linear layout (chw) here",
                fix="let TensorRT reformat inside the engine",
            )  # fmt: skip
        formats.append(IoFormat(dtype or None))
    return tuple(formats)


def _types(flag: Flag, text: str) -> dict[str, str]:
    types: dict[str, str] = {}
    for name, dtype in _pairs(flag, text, "name:type, such as conv1:fp32"):
        if dtype not in _TYPES:
            raise _wrong(flag, f"{name}:{dtype}", ", ".join(_TYPES), what=f"Invalid DataType {dtype}")
        types[name] = dtype
    return types


def _controls(flag: Flag, text: str) -> dict[str, bool]:
    controls: dict[str, bool] = {}
    for name, value in _pairs(flag, text, "in_memory:allow, temporary:deny, ..."):
        if name not in _TEMPFILES:
            raise _wrong(flag, name, ", ".join(_TEMPFILES), what=f"Unknown --tempfileControls key {name}")
        if value not in ("allow", "deny"):
            raise _wrong(flag, value, "allow, deny", what=f"{flag.name} has no such value")
        controls[_TEMPFILES[name]] = value == "allow"
    return controls


def _percentiles(flag: Flag, text: str) -> tuple[float, ...]:
    percentiles = tuple(_float(flag, entry, "numbers from 0 to 100") for entry in _entries(flag, text))
    outside = [percentile for percentile in percentiles if not 0 <= percentile <= 100]
    if outside:
        raise _wrong(flag, f"{outside[0]:g}", "0 to 100", what=f"Percentile {outside[0]:g} is not in [0,100]")
    return percentiles


def _budget(flag: Flag, text: str) -> WeightBudget | None:
    expected = "-2 (off), -1 (automatic), a percentage such as 50%, or a size such as 20M"
    if text in ("-2", "-1"):
        return None if text == "-2" else WeightBudget()
    if text.endswith("%"):
        percent = _float(flag, text[:-1], expected)
        if not 0 <= percent <= 100:
            raise _wrong(flag, text, expected, what="The weight streaming percent must be between 0 and 100.")
        return WeightBudget(percent=percent)
    if text.startswith("-"):
        raise _wrong(flag, text, expected, what="The weight streaming budget must be -2, -1, or at least 0.")
    return WeightBudget(nbytes=_size(flag, text, "B"))


_READERS: dict[Kind, Callable[[Flag, str], Any]] = {
    "text": _text,
    "file": _file,
    "integer": _integer,
    "number": _number,
    "choice": _choice,
    "shapes": _shapes,
    "files": _files,
    "pools": _pools,
    "signed": _signed,
    "formats": _formats,
    "types": _types,
    "controls": _controls,
    "percentiles": _percentiles,
    "budget": _budget,
}
