"""Signatures read off the API descriptions, and the argument checks that pybind11 would do with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.doubles.library import Library

DATA = Path(__file__).parent.parent / "data" / "tensorrt-api"
UNSIGNED = {"flags", "pool_size", "stream_handle", "memory", "stream", "event", "tactic_sources"}
"""Parameters that are unsigned in C++, which a description does not say: a negative number is no match."""
NULLABLE = {"output_allocator", "listener"}
"""Pointer parameters that take None although the description shows no default."""


@cache
def description(version: str) -> dict[str, Any]:
    """The API description of a version such as `10.13.3` or `rtx-1.7.1`."""
    name = f"tensorrt_rtx-{version[4:]}.json" if version.startswith("rtx-") else f"tensorrt-{version}.json"
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, its type as written and its default as written (None: required)."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class Overload:
    """One way to call a function; `parameters` leaves `self` out."""

    text: str
    parameters: tuple[Parameter, ...]


class NoMatchError(Exception):
    """An argument does not fit a parameter."""


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    depth, start, parts = 0, 0, []
    for i, char in enumerate(text):
        depth += (char in "[(<") - (char in "])>")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


@cache
def overloads(name: str, text: str) -> tuple[Overload, ...]:
    """Parse a description such as `f(self: A, n: int = 0) -> B | f(self: A) -> B`."""
    found = []
    for one in re.split(rf" \| (?={re.escape(name)}\()", text):
        inside = one[len(name) + 1 : one.rindex(") ->")]
        parameters = []
        for part in _split(inside):
            head, _, default = part.partition(" = ")
            key, _, kind = head.partition(": ")
            if key != "self":
                parameters.append(Parameter(key, kind, default or None))
        found.append(Overload(one[len(name) :], tuple(parameters)))
    return tuple(found)


def _integer(value: Any, *, unsigned: bool = False) -> int:
    if isinstance(value, (float, str, bytes)) or not (hasattr(value, "__index__") or hasattr(value, "__int__")):
        raise NoMatchError
    number = int(value)
    if not -(2**63) <= number < 2**64 or (unsigned and number < 0):
        raise NoMatchError
    return number


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise NoMatchError
    return list(value)


def _buffer(value: Any) -> Any:
    try:
        memoryview(value).release()
    except TypeError:
        raise NoMatchError from None
    return value


def _bool(value: Any) -> bool:
    if value is None or hasattr(value, "__bool__"):
        return bool(value)
    raise NoMatchError


def _instance(*types: type) -> Any:
    def check(value: Any) -> Any:
        if not isinstance(value, types):
            raise NoMatchError
        return value

    return check


def _float(value: Any) -> float:
    if isinstance(value, (str, bytes)) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise NoMatchError
    return float(value)


BASIC = {
    "int": _integer,
    "typing.SupportsInt": _integer,
    "float": _float,
    "typing.SupportsFloat": _float,
    "bool": _bool,
    "str": lambda value: value.decode() if isinstance(value, bytes) else _instance(str)(value),
    "buffer": _buffer,
    "typing_extensions.Buffer": _buffer,
    "tuple": _instance(tuple),
    "list": _instance(list),
    "numpy.ndarray": _instance(np.ndarray),
}
LIST = re.compile(r"(?:[Ll]ist|collections\.abc\.Sequence)\[(.*)\]$")


def convert(lib: Library, kind: str, value: Any, *, name: str = "") -> Any:
    """One argument as the function gets it.

    Raises:
        NoMatchError: pybind11 would not accept the value for this type.
    """
    if name in UNSIGNED:
        return _integer(value, unsigned=True)
    if kind in BASIC:
        return BASIC[kind](value)
    if match := LIST.match(kind):
        return [convert(lib, match[1], item) for item in _sequence(value)]
    name = kind.rpartition("::")[2]
    made = lib.classes.get(name)
    if made is None:  # not described: a capsule, `object`, or a class whose instances none can be a plain value
        if name[:1].isupper() and isinstance(value, (type(None), int, float, str, bytes, list, tuple, dict)):
            raise NoMatchError
        return value
    if isinstance(value, made):
        return value
    if kind == "Dims" and len(items := [_integer(item) for item in _sequence(value)]) <= 8:
        return made(items)
    if kind == "Weights" and isinstance(value, np.ndarray):
        return made(value)
    raise NoMatchError


def _default(lib: Library, text: str) -> Any:
    if match := re.match(r"<(\w+)\.(\w+): ", text):
        owner = "ILogger.Severity" if match[1] == "Severity" else match[1]
        return lib.enum(owner, match[2])
    return {"None": None, "''": "", "True": True, "False": False}[text] if not text.isdigit() else int(text)


def _bind_one(lib: Library, overload: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    names = [p.name for p in overload.parameters]
    if len(args) > len(names) or set(kwargs) - set(names[len(args) :]):
        raise NoMatchError
    given = dict(zip(names, args, strict=False)) | kwargs
    bound = []
    for parameter in overload.parameters:
        if parameter.name not in given:
            if parameter.default is None:
                raise NoMatchError
            bound.append(_default(lib, parameter.default))
        elif given[parameter.name] is None and (parameter.default == "None" or parameter.name in NULLABLE):
            bound.append(None)
        else:
            bound.append(convert(lib, parameter.kind, given[parameter.name], name=parameter.name))
    return bound


def bind(lib: Library, name: str, text: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments in the order of the first overload that takes them, converted.

    Raises:
        TypeError: No overload takes them, with pybind11's text.
    """
    ways = overloads(name, text)
    for overload in ways:
        try:
            return _bind_one(lib, overload, args, kwargs)
        except NoMatchError:  # noqa: PERF203 - overloads are tried in order
            continue
    raise TypeError(refusal(lib, name, [way.text for way in ways], owner, args, kwargs))


def refusal(
    lib: Library, name: str, ways: list[str], owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """The text of pybind11's TypeError."""
    full = {known: f"{lib.bindings}.{known}" for known in lib.classes}
    lines = [re.sub(r"(?<![\w.])[A-Z]\w+(?:\.Severity)?", lambda m: full.get(m[0], m[0]), way) for way in ways]
    what = "constructor" if name == "__init__" else "function"
    shown = args if name == "__init__" else (owner, *args)
    if name == "__init__":
        cls = f"{type(owner).__module__}.{type(owner).__qualname__}"
        lines = [cls + re.sub(r"self: [\w.]+(, )?", "", line).rpartition(" ->")[0] for line in lines]
    invoked = ", ".join(map(repr, shown))
    if kwargs:
        invoked += "; " * bool(shown) + "kwargs: " + ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    numbered = "".join(f"    {i}. {line}\n" for i, line in enumerate(lines, 1))
    return (
        f"{name}(): incompatible {what} arguments. The following argument types are supported:\n"
        f"{numbered}\nInvoked with: {invoked}"
    )
