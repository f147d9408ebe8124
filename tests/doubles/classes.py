"""Behaviour, written once, masked by one version's description.

A behaviour is a plain class. `bind` makes the class of one version from it: public names exist where the
description has them and nowhere else, arguments are checked by the described signatures, and an instance has
no attribute that the real one lacks. State lives in the slot `_`, which no description can name.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.doubles.schema import NoMatchError, convert, refusal
from tests.doubles.schema import bind as bind_arguments

if TYPE_CHECKING:
    from tests.doubles.library import Library


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class PybindType(type):
    """Metaclass of the made classes: native error texts, and `__init__` that must have run."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__call__(*args, **kwargs)
        if not hasattr(self, "_"):
            native = next(base for base in cls.__mro__ if "_native" in vars(base))
            raise TypeError(f"{_full(native)}.__init__() must be called when overriding __init__")
        return self

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(f"type object '{_full(cls)}' has no attribute '{name}'")


class Native:
    """What every made class has. Attributes that the description lacks can be neither read nor set."""

    __slots__ = ()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise TypeError(f"{_full(type(self))}: No constructor defined!")

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(type(self), name, None)
        if isinstance(found, property) and found.fget is None:
            raise AttributeError(f"property of '{type(self).__qualname__}' object has no getter")
        raise AttributeError(f"'{_full(type(self))}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        missing = object()
        found = inspect.getattr_static(type(self), name, missing)
        if isinstance(found, property) and found.fset is None:
            raise AttributeError(f"property of '{type(self).__qualname__}' object has no setter")
        if not hasattr(self, "__dict__") and name != "_":
            if found is missing:
                raise AttributeError(f"'{_full(type(self))}' object has no attribute '{name}'")
            if not isinstance(found, property):
                raise AttributeError(f"'{_full(type(self))}' object attribute '{name}' is read-only")
        object.__setattr__(self, name, value)

    @classmethod
    def _make(cls, **state: Any) -> Any:
        """An instance made by the library itself, past the constructor."""
        self = cls.__new__(cls)
        self._ = SimpleNamespace(**state)
        return self


@dataclass(frozen=True)
class Field:
    """A stored property.

    Attributes:
        kind: Type as a description would write it.
        default: Value before it is set; the member's name for an enumeration.
        readonly: No setter; or a function of the library that tells.
        writeonly: No getter.
        nullable: None may be set.
        accept: Called with (self, value); False means that the value is not taken.
        source: Name of the state attribute that holds the value; the state itself without.
    """

    kind: str
    default: Any = None
    readonly: bool | Callable[[Any], bool] = False
    writeonly: bool = False
    nullable: bool = False
    accept: Callable[[Any, Any], bool] | None = None
    source: str = ""

    def bound(self, lib: Library, name: str) -> property:
        """The property of one version's class."""

        def store(owner: Any) -> Any:
            return getattr(owner._, self.source) if self.source else owner._

        def get(owner: Any) -> Any:
            state = vars(store(owner))
            if name in state:
                return state[name]
            return lib.enum(self.kind, self.default) if lib.is_enum(self.kind) else self.default

        def put(owner: Any, value: Any) -> None:
            try:
                taken = None if value is None and self.nullable else convert(lib, self.kind, value)
            except NoMatchError:
                way = f"(arg0: {type(owner).__name__}, arg1: {self.kind}) -> None"
                raise TypeError(refusal(lib, "", [way], owner, (value,), {})) from None
            lib.record(owner, f"{name}=", (taken,))
            if self.accept is None or self.accept(owner, taken):
                setattr(store(owner), name, taken)

        readonly = self.readonly(lib) if callable(self.readonly) else self.readonly
        return property(None if self.writeonly else get, None if readonly else put)


def _method(lib: Library, name: str, text: str, behaviour: Callable[..., Any] | None) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = bind_arguments(lib, name, text, self, args, kwargs)
        if behaviour is None:
            raise NotImplementedError(f"double: {type(self).__name__}.{name} has no behaviour yet")
        if name == "__init__":
            self._ = SimpleNamespace()
        lib.record(self, name, tuple(bound))
        return behaviour(self, *bound)

    method.__name__ = name
    method.__doc__ = text
    return method


def _missing_property(name: str) -> property:
    def access(self: Any, *_value: Any) -> Any:
        raise NotImplementedError(f"double: {type(self).__name__}.{name} has no behaviour yet")

    return property(access, access)


def _constructor(lib: Library, text: str, behaviour: type) -> Callable[..., Any]:
    if not text.startswith("__init__("):
        return Native.__init__
    return _method(lib, "__init__", text, vars(behaviour).get("_init", lambda _self: None))


def bind(lib: Library, name: str, members: dict[str, str], behaviour: type, base: type) -> type:
    """The class of one version.

    Args:
        lib: The version.
        name: Class name.
        members: Described members: a signature, `property`, or the text of a class attribute.
        behaviour: Plain class with the behaviour; names that start with `_` are copied, others masked.
        base: The made base class.
    """
    known = vars(behaviour)
    skipped = {"__dict__", "__weakref__", "__module__", "__qualname__", "__slots__", "__init__", "_init"}
    namespace = {key: value for key, value in known.items() if key.startswith("_") and key not in skipped}
    namespace |= {"__module__": lib.bindings, "__qualname__": name, "_lib": lib, "_native": True}
    has_slot = any("_" in vars(parent) for parent in base.__mro__)
    namespace["__slots__"] = () if has_slot else ("_", "__weakref__")
    for member, text in members.items():
        found = known.get(member)
        if member == "__init__":
            namespace[member] = _constructor(lib, text, behaviour)
        elif isinstance(found, Field):
            namespace[member] = found.bound(lib, member)
        elif isinstance(found, property):
            namespace[member] = found
        elif text.startswith(f"{member}("):
            namespace[member] = _method(lib, member, text, found)
        elif text == "property":
            namespace[member] = found if found is not None else _missing_property(member)
    return PybindType(name, (base,), namespace)


def shown(value: Any) -> Any:
    """An argument as the call log keeps it: objects of the library by weak reference, buffers by their size."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{memoryview(value).nbytes} bytes>"
    return weakref.ref(value) if isinstance(value, Native) else value
