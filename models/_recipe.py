"""What all generators share: options, the graph they describe, and how it is written."""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from models._weights import open_source
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Self

    from models._graph import Graph

__all__ = ["COUNT", "COUNTS", "DIM", "FLAG", "Kind", "Recipe", "option", "suggestion"]


@dataclass(frozen=True)
class Kind:
    """A kind of option; ``convert`` takes a value or its text, and raises TypeError or ValueError if it is wrong."""

    expected: str
    convert: Callable[[Any], Any]


def _count(value: Any, *, least: int = 1) -> int:
    number = int(value) if isinstance(value, str) else operator.index(value)
    if isinstance(value, bool) or number < least:
        raise ValueError
    return number


def _dim(value: Any) -> int | str:
    return value if isinstance(value, str) and value.isidentifier() else _count(value)


def _counts(value: Any) -> tuple[int, ...]:
    numbers = tuple(_count(part) for part in (value.split(",") if isinstance(value, str) else value))
    if len(numbers) < 2:
        raise ValueError
    return numbers


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


COUNT = Kind("a positive integer", _count)
COUNTS = Kind("two or more positive integers, as in 784,512,10", _counts)
DIM = Kind("a positive integer, or a name for a length known later", _dim)
FLAG = Kind("True or False", _flag)
_SEED = Kind("an integer from 0 on", lambda value: _count(value, least=0))
_FILE = Kind("the path of a .safetensors or .npz file", lambda value: None if value is None else Path(value))


def option(default: Any, kind: Kind, text: str) -> Any:
    """Declare a field of a recipe: its default, its kind and a line of help."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and its options; the base of all generators.

    A subclass gives ``name``, its options as fields and ``graph``. Options may be given as text, as on a command
    line; they are converted and checked here.

    Raises:
        ConfigError: An option's value is wrong.
    """

    name: ClassVar[str]

    seed: int = option(0, _SEED, "seed of the generated weights")
    weights: Path | None = option(None, _FILE, "read trained weights from this .safetensors or .npz file")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind, value = field.metadata["kind"], getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, kind.convert(value))
            except (TypeError, ValueError) as error:
                raise self.refused(field.name, got=repr(value), expected=kind.expected) from error

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Make a recipe; like the constructor, but an unknown option is a ConfigError that lists the known ones."""
        known = sorted(field.name for field in dataclasses.fields(cls))
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"the recipe {cls.name!r} has no such option",
                    got=repr(name),
                    expected=", ".join(known),
                    fix=suggestion(name, known),
                )
        return cls(**options)

    def refused(self, name: str, *, got: object, expected: object) -> ConfigError:
        """Return the error for an option whose value does not fit."""
        return ConfigError("an option is wrong", where=f"recipe {self.name!r}, {name}", got=got, expected=expected)

    def graph(self) -> Graph:
        """Describe the network; no weight is made yet, so this is quick at any size."""
        raise NotImplementedError

    def stored_names(self, name: str) -> Iterable[str]:
        """Names under which a weights file may hold the weight ``name``, in the order in which to try them."""
        return (name,)

    def model(self) -> onnx.ModelProto:
        """Return the model in memory.

        Raises:
            ConfigError: Options contradict each other.
            ModelError: The weights file is not one of this network.
        """
        graph = self.graph()
        with open_source(self.weights, seed=self.seed, names=self.stored_names) as source:
            return graph.model(source)

    def save(self, path: Path) -> Graph:
        """Write the model to ``path`` and return its graph; raises what ``model`` does, and OutputError."""
        graph = self.graph()
        with open_source(self.weights, seed=self.seed, names=self.stored_names) as source:
            graph.save(path, source)
        return graph


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """Return "did you mean ...?" with the known word that is most alike, or None if none is.

    Example:
        >>> suggestion("depht", ["batch", "depth"])
        "did you mean 'depth'?"
    """
    return next((f"did you mean {match!r}?" for match in difflib.get_close_matches(word, known, n=1)), None)
