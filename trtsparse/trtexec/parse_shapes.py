"""Optimization profiles from ``--profile``, ``--minShapes``, ``--optShapes``, ``--maxShapes`` and ``--shapes``.

The rules are trtexec's: what is missing of min, opt and max is taken from the others, an input that has a shape to
run with but no range gets a range of that shape alone, and one that has a range runs with its opt.
"""

from __future__ import annotations

from collections.abc import Mapping

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import Arguments
from trtsparse.trtexec.options import Shape, ShapeRange

__all__ = ["read_shapes"]

_RANGE = ("--minShapes", "--optShapes", "--maxShapes")
_SOURCES = {"--minShapes": ("--optShapes", "--maxShapes"), "--optShapes": ("--maxShapes", "--minShapes"),
            "--maxShapes": ("--optShapes", "--minShapes")}  # fmt: skip

Given = dict[str, Mapping[str, Shape]]
Profile = dict[str, ShapeRange]


def read_shapes(arguments: Arguments, *, builds: bool) -> tuple[tuple[Profile, ...], dict[str, Shape]]:
    """Read profiles and shapes to run with.

    Args:
        arguments: The command line.
        builds: An engine is built; else a plan is loaded, which has profiles of its own.

    Returns:
        (min, opt, max) by input for each profile, empty without any; and the shapes to run with.

    Raises:
        ConfigError: Profiles are incomplete, or ``--useProfile`` names none of them.
    """
    profiles = [_complete(given, arguments) for given in _profiles(arguments)]
    shapes = dict(arguments.get("--shapes", {}))
    index = arguments.get("--useProfile", 0)
    if builds and index >= max(len(profiles), 1):
        raise ConfigError(
            "there is no such optimization profile",
            where="--useProfile",
            got=index,
            expected=f"0 to {max(len(profiles), 1) - 1}",
        )
    if not profiles and shapes:
        profiles = [{}]
    if index < len(profiles):
        chosen = profiles[index]
        run = {**{name: triple[1] for name, triple in chosen.items()}, **shapes}
        chosen.update({name: (shape, shape, shape) for name, shape in shapes.items() if name not in chosen})
        shapes = run
    return tuple(profiles), shapes


def _profiles(arguments: Arguments) -> list[Given]:
    """The flags of each profile: those that follow ``--profile=N``, or all when there is no ``--profile``."""
    if not arguments.has("--profile"):
        given: Given = {}
        for name, value, _ in arguments.only(*_RANGE):
            if name in given:
                raise _stray(name)
            given[name] = value
        return [given] if given else []
    found: dict[int, Given] = {}
    current: Given = {}
    expected = -1
    for name, value, position in arguments.only("--profile", *_RANGE):
        if name == "--profile":
            if value in found:
                raise ConfigError("Optimization profile index cannot be the same.", where="--profile", got=value)
            current = found[value] = {}
        elif position != expected or name in current:
            raise _stray(name)
        else:
            current[name] = value
        expected = position + 1
    missing = next((index for index in range(max(found) + 1) if not found.get(index)), None)
    if missing is not None:
        raise ConfigError(
            f"Found invalid or missing shape spec at profile index {missing}.",
            where="--profile",
            expected=f"--profile={missing} --minShapes=<spec> --optShapes=<spec> --maxShapes=<spec>",
        )
    return [found[index] for index in sorted(found)]


def _stray(name: str) -> ConfigError:
    return ConfigError(
        "Multiple --minShapes/--optShapes/--maxShapes without --profile are not allowed.",
        where=name,
        expected="--profile=0 --minShapes=<spec> --optShapes=<spec> --maxShapes=<spec> --profile=1 ...",
        fix=f"put {name} right behind its --profile",
    )


def _complete(given: Given, arguments: Arguments) -> Profile:
    sources = {flag: flag if flag in given else next(s for s in _SOURCES[flag] if s in given) for flag in _RANGE}
    names = list(dict.fromkeys(name for shapes in given.values() for name in shapes))
    for flag, shapes in given.items():
        missing = [name for name in names if name not in shapes]
        if missing:
            raise ConfigError(
                f"{flag} lacks an input that the other shapes have",
                got=", ".join(map(repr, shapes)),
                expected=", ".join(map(repr, names)),
            )
    for flag in (flag for flag in _RANGE if sources[flag] != flag):
        for name in names:
            arguments.warn(f"{sources[flag][2:]} is being broadcasted to {flag[2:]} for tensor {name}")
    low, opt, high = (given[sources[flag]] for flag in _RANGE)
    return {name: (low[name], opt[name], high[name]) for name in names}
