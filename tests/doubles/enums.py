"""Enumerations that behave like pybind11's: typed, hashable, ordered within one type, never equal to an int."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class EnumType(type):
    """Gives the class-level behaviour: `__members__`, and the native text for a missing member."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(f"type object '{cls.__module__}.{cls.__qualname__}' has no attribute '{name}'")


class Enum(metaclass=EnumType):
    """Base of all made enumerations; a value that no member has is shown as `???`, as the real ones do."""

    __slots__ = ("_value",)
    __members__: Mapping[str, Enum] = MappingProxyType({})

    def __init__(self, value: Any) -> None:
        if isinstance(value, (str, bytes, float)) or not hasattr(value, "__int__"):
            full = f"{type(self).__module__}.{type(self).__qualname__}"
            raise TypeError(
                "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
                f"    1. {full}(value: int)\n\nInvoked with: {value!r}"
            )
        object.__setattr__(self, "_value", int(value))

    @property
    def value(self) -> int:
        return self._value

    @property
    def name(self) -> str:
        return next((name for name, member in self.__members__.items() if member._value == self._value), "???")

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("name", "value"):
            raise AttributeError(f"property of '{type(self).__qualname__}' object has no setter")
        full = f"{type(self).__module__}.{type(self).__qualname__}"
        raise AttributeError(f"'{full}' object has no attribute '{name}'")

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __hash__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value  # type: ignore[attr-defined]

    def _order(self, other: object) -> int:
        if type(other) is not type(self):
            raise TypeError("Expected an enumeration of matching type!")
        return self._value - other._value  # type: ignore[attr-defined]

    def __lt__(self, other: object) -> bool:
        return self._order(other) < 0

    def __le__(self, other: object) -> bool:
        return self._order(other) <= 0

    def __gt__(self, other: object) -> bool:
        return self._order(other) > 0

    def __ge__(self, other: object) -> bool:
        return self._order(other) >= 0

    def __copy__(self) -> Enum:
        return self

    def __deepcopy__(self, memo: object) -> Enum:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self._value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def make_enum(qualname: str, values: Mapping[str, int], module: str) -> type[Enum]:
    """Make an enumeration class.

    Args:
        qualname: Its qualified name, such as `ILogger.Severity`.
        values: Number of each member, by name.
        module: What `__module__` says.
    """
    namespace = {"__slots__": (), "__module__": module, "__qualname__": qualname}
    made = EnumType(qualname.rpartition(".")[2], (Enum,), namespace)
    members = {name: made(value) for name, value in values.items()}
    for name, member in members.items():
        type.__setattr__(made, name, member)
    type.__setattr__(made, "__members__", MappingProxyType(members))
    return made
