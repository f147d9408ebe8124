"""Random inputs for an engine, with or without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtsparse.engines.base import Engine
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import ConfigError, FeedError
from trtsparse.precision.feeds import input_shapes, random_feeds
from trtsparse.precision.specs import did_you_mean

__all__ = ["engine_feeds", "random_inputs"]

Shapes = Mapping[str, Sequence[int]]


def random_inputs(
    source: Any,
    engine: Engine | DeviceEngine,
    *,
    given: Mapping[str, Any],
    shapes: Shapes | None = None,
) -> dict[str, np.ndarray]:
    """Make the inputs that are not given; a model knows more of them than an engine, such as its vocabulary's size.

    Args:
        source: What the engine was made of.
        engine: Whose inputs.
        given: Inputs that need not be made.
        shapes: Shapes of the others.

    Returns:
        Input name to array, without those given.

    Raises:
        ConfigError, FeedError: As `engine_feeds` and `trtsparse.precision.feeds.random_feeds`.
    """
    if isinstance(engine, DeviceEngine):
        return engine_feeds(engine, given=given, shapes=shapes)
    _check_shapes(given, shapes or {})
    known = [spec.name for spec in engine.inputs]
    if not shapes and all(name in given for name in known):
        return {}
    wanted = {name: np.shape(array) for name, array in given.items() if name in known}
    made = random_feeds(source, shapes={**wanted, **(shapes or {})})[0]
    return {name: array for name, array in made.items() if name not in given}


def engine_feeds(
    engine: Engine | DeviceEngine,
    *,
    given: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Make the inputs that are not given.

    Floats are standard normal; integers are 0 or 1, which are indices into anything.

    Args:
        engine: Whose inputs.
        given: Inputs that need not be made; their shapes count as given, too.
        shapes: Shapes of inputs with dynamic dims; by default those that a plan's first profile is best for.
        seed: Equal seeds give equal arrays.

    Returns:
        Input name to array, without those given.

    Raises:
        ConfigError: ``shapes`` names an unknown input, or contradicts the engine or what is given.
        FeedError: An input is a shape, whose values nobody can guess.
    """
    given = given or {}
    _check_shapes(given, shapes or {})
    wanted = {**{name: np.shape(array) for name, array in given.items()}, **(shapes or {})}
    sizes = _shapes_of(engine, wanted)
    random = np.random.default_rng(seed)
    made = {}
    for spec in engine.inputs:
        if spec.name in given:
            continue
        if isinstance(engine, DeviceEngine) and spec.name in engine.shape_inputs:
            raise FeedError(
                "the values of an input decide shapes, so that random ones cannot be made up",
                where=f"input {spec.name!r}",
                fix="give its array",
            )
        made[spec.name] = _random(random, spec.dtype, sizes[spec.name])
    return made


def _check_shapes(given: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a shape for an input that is given in another one."""
    for name, shape in shapes.items():
        if name in given and np.shape(given[name]) != tuple(shape):
            raise ConfigError(
                "a shape is asked for an input that is given in another one",
                where=f"shapes, input {name!r}",
                got=tuple(shape),
                expected=np.shape(given[name]),
                fix="leave the shape out, or the array",
            )


def _shapes_of(engine: Engine | DeviceEngine, wanted: Shapes) -> dict[str, tuple[int, ...]]:
    if not isinstance(engine, DeviceEngine):
        return input_shapes(engine.inputs, wanted)
    names = [spec.name for spec in engine.inputs]
    for name in wanted:
        if name not in names:
            raise ConfigError(
                "the engine has no such input",
                where="shapes",
                got=repr(name),
                expected=", ".join(map(repr, names)),
                fix=did_you_mean(name, names),
            )
    usual = [{name: sizes[1] for name, sizes in profile.items()} for profile in engine.profiles]
    candidates = [{name: tuple(wanted.get(name, sizes[name])) for name in names} for sizes in usual]
    fitting = (
        found
        for found, profile in zip(candidates, engine.profiles, strict=True)
        if all(_between(profile[name], found[name]) for name in names)
    )
    return next(fitting, candidates[0])  # what fits no profile is refused with the reason when it is fed


def _between(limits: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> bool:
    low, _, high = limits
    return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _random(random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if dtype.kind in "biu":
        return np.asarray(random.integers(0, 2, shape)).astype(dtype)
    return np.asarray(random.standard_normal(shape, np.float32)).astype(dtype)
