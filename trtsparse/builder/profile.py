"""Optimization profiles: for each dynamic input the smallest, the usual and the largest shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtsparse.errors import ConfigError

__all__ = ["Profile", "Shape", "ShapeRange", "check_sizes"]

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
_WORDS = ("min", "opt", "max")


@dataclass(frozen=True)
class Profile:
    """Shapes that one engine must accept, and the one to be fastest at.

    Attributes:
        shapes: Input name to (min, opt, max) shapes. For an input whose *values* are shapes (the second input of a
            Reshape, say) the triple holds values.

    Raises:
        ConfigError: Shapes of one input differ in rank, or min <= opt <= max does not hold; the dim is named. That
            sizes are above 0 is checked where it is known which inputs hold values instead.

    Example:
        >>> profile = Profile.parse("x:1x3x224x224:8x3x224x224:32x3x224x224,mask:1x224")
        >>> profile.shapes["mask"]
        ((1, 224), (1, 224), (1, 224))
        >>> print(profile)
        x:1x3x224x224:8x3x224x224:32x3x224x224,mask:1x224
    """

    shapes: Mapping[str, ShapeRange]

    def __post_init__(self) -> None:
        checked = {name: _checked(name, triple) for name, triple in self.shapes.items()}
        if not checked:
            raise ConfigError("a profile has no inputs", where="profile", expected="input:min:opt:max")
        object.__setattr__(self, "shapes", checked)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.shapes.items())))

    def __str__(self) -> str:
        return ",".join(f"{name}:{_text(triple)}" for name, triple in self.shapes.items())

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read "input:min:opt:max,..."; one shape alone means min = opt = max. Input names may contain colons.

        Raises:
            ConfigError: A part is missing or not a number, an input comes twice, or as for the class.
        """
        shapes: dict[str, ShapeRange] = {}
        for part in text.split(","):
            name, triple = _parse_input(part.strip(), text)
            if name in shapes:
                raise ConfigError("an input comes twice in a profile", where=text, got=name)
            shapes[name] = triple
        return cls(shapes)

    @classmethod
    def fixed(cls, shapes: Mapping[str, Sequence[int]]) -> Profile:
        """A profile with min = opt = max."""
        return cls({name: (tuple(shape),) * 3 for name, shape in shapes.items()})

    def to_dict(self) -> dict[str, Any]:
        """``{input: {"min": [...], "opt": [...], "max": [...]}}``."""
        return {name: dict(zip(_WORDS, map(list, triple), strict=True)) for name, triple in self.shapes.items()}


def check_sizes(given: ShapeRange, *, where: str) -> None:
    """Refuse shapes that no tensor of an engine has.

    Args:
        given: Min, opt and max of an input that holds no shape itself.
        where: The input, for the message.

    Raises:
        ConfigError: A size is negative or zero; the dim is named.
    """
    for word, shape in zip(_WORDS, given, strict=True):
        for index, size in enumerate(shape):
            place = f"{where}, {word}, dim {index}"
            if size < 0:
                raise ConfigError("a dim is negative", where=place, got=size, fix="give real sizes; -1 is none")
            if size == 0:
                raise ConfigError("a dim is zero", where=place, got=size, expected="at least 1")


def _parse_input(part: str, text: str) -> tuple[str, ShapeRange]:
    pieces = part.split(":")
    count = 0  # shapes stand at the end: whatever does not look like one belongs to the name
    while count < min(len(pieces) - 1, 3) and _looks_like_shape(pieces[-1 - count]):
        count += 1
    if count == 0:
        got = f"{pieces[-1]!r} in {part!r}" if len(pieces) > 1 else repr(part)
        raise _malformed("a profile's part has no shape", text, got)
    name, shapes = ":".join(pieces[:-count]), tuple(_parse_shape(piece, part, text) for piece in pieces[-count:])
    if not name:
        raise _malformed("a profile's part has no input name", text, repr(part))
    if count == 2:
        raise _malformed("a profile's part has two shapes, not one or three", text, repr(part))
    return name, (shapes[0], shapes[0], shapes[0]) if count == 1 else (shapes[0], shapes[1], shapes[2])


def _looks_like_shape(piece: str) -> bool:
    return bool(piece) and piece.lstrip("-")[:1].isdigit()


def _parse_shape(piece: str, part: str, text: str) -> Shape:
    try:
        return tuple(int(dim) for dim in piece.lower().split("x"))
    except ValueError as error:
        raise _malformed("a dim is not a number", text, f"{piece!r} in {part!r}") from error


def _malformed(what: str, text: str, got: str) -> ConfigError:
    return ConfigError(what, where=f"profile {text!r}", got=got, expected="input:min:opt:max, such as x:1x3:4x3:8x3")


def _checked(name: str, triple: object) -> ShapeRange:
    where = f"profile, input {name!r}"
    if not isinstance(triple, Sequence) or len(triple) != 3:
        raise ConfigError("a profile needs min, opt and max", where=where, got=repr(triple))
    low, opt, high = (_dims(shape, word, where) for shape, word in zip(triple, _WORDS, strict=True))
    if not len(low) == len(opt) == len(high):
        ranks = ", ".join(f"{word} {len(s)}" for word, s in zip(_WORDS, (low, opt, high), strict=True))
        raise ConfigError("min, opt and max differ in the number of dims", where=where, got=ranks)
    for index, (a, b, c) in enumerate(zip(low, opt, high, strict=True)):
        if a > b:
            raise ConfigError("min is larger than opt", where=f"{where}, dim {index}", got=f"min {a}, opt {b}")
        if b > c:
            raise ConfigError("opt is larger than max", where=f"{where}, dim {index}", got=f"opt {b}, max {c}")
    return low, opt, high


def _dims(shape: object, word: str, where: str) -> Shape:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise ConfigError("a shape is not a sequence of whole numbers", where=f"{where}, {word}", got=repr(shape))
    dims: list[int] = []
    for index, dim in enumerate(shape):
        place = f"{where}, {word}, dim {index}"
        if isinstance(dim, bool) or not hasattr(dim, "__index__"):
            raise ConfigError("a dim is not a whole number", where=place, got=repr(dim))
        dims.append(dim.__index__())
    return tuple(dims)


def _text(triple: ShapeRange) -> str:
    shapes = triple[:1] if triple[0] == triple[1] == triple[2] else triple
    return ":".join("x".join(map(str, shape)) for shape in shapes)
