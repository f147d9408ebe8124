"""One version of the library: its classes, its enumerations, its call log."""

from __future__ import annotations

import types
from typing import Any, NamedTuple

from tests.doubles import behaviours
from tests.doubles.classes import Native, bind, shown
from tests.doubles.enums import Enum, make_enum
from tests.doubles.schema import description

BUILDS = {"8.6.1": 6, "10.0.1": 6, "10.3.0": 26}
"""Build numbers that these versions' `__version__` leaves out."""
_CODES = """
SUCCESS UNSPECIFIED_ERROR INTERNAL_ERROR INVALID_ARGUMENT INVALID_CONFIG FAILED_ALLOCATION FAILED_INITIALIZATION
FAILED_EXECUTION FAILED_COMPUTATION INVALID_STATE UNSUPPORTED_STATE
"""
NAMED_ENUMS = {
    "DeviceType": {"GPU": 0, "DLA": 1},
    "ErrorCodeTRT": {name: i for i, name in enumerate(_CODES.split())},
}
"""Enumerations that every version's signatures name and the descriptions leave out."""
SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
FLAG_BITS = {"EngineInvalidityDiagnostics"}
"""Enumerations whose members are bits."""
ALIASES = {
    "float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "int64": "INT64", "bool": "BOOL",
    "uint8": "UINT8", "bfloat16": "BF16", "fp8": "FP8", "int4": "INT4", "fp4": "FP4", "e8m0": "E8M0",
}  # fmt: skip


class Call(NamedTuple):
    """One call: the object (a weak reference), `Class.method`, or `Class.property=`, and the arguments."""

    object: Any
    method: str
    args: tuple[Any, ...]


class Library:
    """What all behaviours of one made module share.

    Attributes:
        version: As given to `make`, such as `10.13.3` or `rtx-1.7.1`.
        numbers: (major, minor, patch, build), as plans carry it.
        rtx: True for TensorRT-RTX.
        typed: True if every network is strongly typed.
        classes: Made classes by name, `ILogger.Severity` among them.
        calls: Every call made, in order.
        module: The made module.
    """

    def __init__(self, version: str) -> None:
        data = description(version)
        self.version = version
        self.rtx = version.startswith("rtx-")
        parts = [int(part) for part in data["version"].split(".")]
        self.numbers = (*parts[:3], parts[3] if len(parts) > 3 else BUILDS[version])
        self.generation = 11 if self.rtx else parts[0]
        self.typed = self.generation >= 11
        name = data["module"]
        self.bindings = f"{name}_bindings.{name}"
        self.calls: list[Call] = []
        self.global_logger: tuple[Any, Any] | None = None
        self.classes: dict[str, Any] = {}
        self._make_enums(data["classes"])
        for cls, members in data["classes"].items():
            if "members" in members:
                self._make_class(cls, data["classes"])
        self.module = self._make_module(name, data)

    def _make_enums(self, classes: dict[str, Any]) -> None:
        for name, members in classes.items():
            if "enum" in members:
                values = {m: 1 << i if name in FLAG_BITS else i for i, m in enumerate(members["enum"])}
                self.classes[name] = make_enum(name, values, self.bindings)
        for name, values in NAMED_ENUMS.items():
            self.classes[name] = make_enum(name, values, self.bindings)
        self.classes["ILogger.Severity"] = make_enum("ILogger.Severity", SEVERITIES, self.bindings)

    def _make_class(self, name: str, classes: dict[str, Any]) -> type:
        if name in self.classes:
            return self.classes[name]
        behaviour = behaviours.find(name)
        parent = behaviour.__mro__[1].__name__
        base = self._make_class(parent, classes) if parent in classes else behaviours.BUFFERS.get(name, Native)
        made = bind(self, name, classes[name]["members"], behaviour, base)
        if name == "ILogger":
            type.__setattr__(made, "Severity", self.classes["ILogger.Severity"])
            for member, severity in self.classes["ILogger.Severity"].__members__.items():
                type.__setattr__(made, member, severity)
        self.classes[name] = made
        return made

    def _make_module(self, name: str, data: dict[str, Any]) -> types.ModuleType:
        module = types.ModuleType(name, f"Double of {name} {data['version']}.")
        module.__dict__["__version__"] = data["version"]
        for cls in [*data["classes"], *NAMED_ENUMS]:
            setattr(module, cls, self.classes[cls])
        for alias, member in ALIASES.items():
            if member in self.classes["DataType"].__members__:
                setattr(module, alias, self.enum("DataType", member))
        for function in data["functions"]:
            setattr(module, function, behaviours.function(self, function))
        module.__dict__["calls"] = self.calls
        module.__dict__["submit"] = lambda _stream_handle, work: work()
        return module

    def enum(self, owner: str, member: str) -> Enum:
        """A member of an enumeration, by names."""
        return self.classes[owner].__members__[member]

    def has(self, owner: str, member: str) -> bool:
        """Whether this version's enumeration has a member."""
        return owner in self.classes and member in self.classes[owner].__members__

    def is_enum(self, kind: str) -> bool:
        """Whether a described type is an enumeration."""
        return isinstance(self.classes.get(kind), type) and issubclass(self.classes[kind], Enum)

    def new(self, name: str, /, **state: Any) -> Any:
        """An instance that the library makes itself."""
        return self.classes[name]._make(**state)

    def dims(self, shape: Any) -> Any:
        """A Dims."""
        return self.classes["Dims"]([int(size) for size in shape])

    def record(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        """Add to the call log."""
        native = next(base for base in type(owner).__mro__ if "_native" in vars(base))
        if name != "log":
            self.calls.append(Call(shown(owner), f"{native.__name__}.{name}", tuple(map(shown, args))))
