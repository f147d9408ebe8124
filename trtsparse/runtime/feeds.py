"""Inputs of an execution on a GPU: read from arrays of any library, checked, and matched with a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trtsparse.cuda.base import Cuda
from trtsparse.engines.device import DeviceEngine, ProfileShapes
from trtsparse.errors import FeedError, ShapeError
from trtsparse.precision.specs import FeedChecker, check_named
from trtsparse.runtime.arrays import Foreign, foreign_array

__all__ = ["FeedReader", "Key", "best_profiles"]

Key = tuple[Any, ...]
"""The shapes of all inputs in order, then the values of shape inputs."""
_KNOWN_LIMIT = 4096


class FeedReader:
    """Reads feeds. Shapes that were checked once are recognised, which makes the usual call fast. Thread-safe.

    Args:
        engine: Whose inputs.
        cuda: The device.
        intake: A stream for producers to order their work before.
    """

    def __init__(self, engine: DeviceEngine, cuda: Cuda, *, intake: int) -> None:
        self._cuda = cuda
        self._intake = intake
        self._inputs = engine.inputs
        self._expected = tuple((spec.name, spec.dtype) for spec in engine.inputs)
        self._check = FeedChecker(engine.inputs)
        self._profiles = engine.profiles
        self._values = tuple(name for name, _ in self._expected if name in engine.shape_inputs)
        self._value_at = tuple(i for i, (name, _) in enumerate(self._expected) if name in engine.shape_inputs)
        self._known: dict[Key, tuple[int, ...]] = {}

    def __call__(self, feeds: Mapping[str, Any]) -> tuple[list[Any], Key, tuple[int, ...]]:
        """Read and check.

        Returns:
            Arrays in the order of the inputs, each a numpy array or `Foreign`; the key of their shapes; the profiles
            that fit, best first.

        Raises:
            FeedError: An input is missing or unknown, or a shape input is not in host memory.
            DtypeError: A value is not an array, or of another type.
            ShapeError: Another rank or size, or no profile admits it.
        """
        check_named(feeds, self._inputs)
        arrays = []
        for name, dtype in self._expected:
            value = feeds.get(name)
            if type(value) is not np.ndarray:
                value = self._see(name, value, feeds)
            if value.dtype != dtype:
                self._explain(feeds, {name: value})
            arrays.append(value)
        if len(feeds) != len(arrays):
            self._explain(feeds, {})
        key: Key = tuple([array.shape for array in arrays])
        profiles = self._known.get(key)
        if profiles is None:
            profiles = self._admit(arrays, key)
        if self._value_at:
            key += tuple([self._host_values(arrays[i]) for i in self._value_at])
        return arrays, key, profiles

    def _see(self, name: str, value: Any, feeds: Mapping[str, Any]) -> Foreign | np.ndarray:
        if isinstance(value, np.ndarray):
            return value
        seen = None if value is None else foreign_array(value, cuda=self._cuda, stream=self._intake)
        if seen is None:
            self._explain(feeds, {})
            raise FeedError("not an array", where=f"input {name!r}", got=type(value).__name__)
        if isinstance(seen, Foreign) and seen.stream is None and seen.owner is not value:
            return seen._replace(stream=self._intake)  # DLPack: the producer made this stream wait
        return seen

    def _host_values(self, array: Any) -> bytes:
        if isinstance(array, Foreign):
            raise FeedError(
                "the values of a shape input are read on the host",
                where=", ".join(map(repr, self._values)),
                got=f"an array on GPU {array.device}",
                expected="a numpy array",
            )
        data: bytes = array.tobytes()
        return data

    def _explain(self, feeds: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
        """Have `FeedChecker` raise: it looks at numpy arrays, so it is shown stand-ins without memory."""
        shown: dict[str, Any] = {}
        for name, value in feeds.items():
            array = seen.get(name, value)
            if not isinstance(array, (np.ndarray, Foreign)) and hasattr(array, "shape"):
                array = foreign_array(array, cuda=self._cuda, stream=self._intake)
            if isinstance(array, Foreign):
                array = np.broadcast_to(np.empty((), array.dtype), array.shape)
            shown[name] = array if isinstance(array, np.ndarray) else value
        self._check(shown)

    def _admit(self, arrays: list[Any], key: Key) -> tuple[int, ...]:
        names = [name for name, _ in self._expected]
        self._explain(dict(zip(names, arrays, strict=True)), {})
        shapes = dict(zip(names, key, strict=True))
        profiles = best_profiles(self._profiles, shapes)
        if not profiles:
            raise _outside(self._profiles, shapes)
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[key] = profiles
        return profiles


def best_profiles(profiles: tuple[ProfileShapes, ...], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Profiles that admit some shapes; first the one whose usual shape is nearest, then the narrower one.

    Example:
        >>> small, large = {"x": ((1, 8), (2, 8), (4, 8))}, {"x": ((1, 8), (32, 8), (64, 8))}
        >>> best_profiles((large, small), {"x": (3, 8)}), best_profiles((large, small), {"x": (9, 8)})
        ((1, 0), (0,))
    """

    def distance(index: int) -> tuple[float, float]:
        ranges = profiles[index]
        far = width = 0.0
        for name, shape in shapes.items():
            low, usual, high = ranges[name]
            far += sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(shape, usual, strict=True))
            width += sum(math.log((b + 1) / (a + 1)) for a, b in zip(low, high, strict=True))
        return far, width

    return tuple(sorted((i for i, p in enumerate(profiles) if _admits(p, shapes)), key=distance))


def _admits(profile: ProfileShapes, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(
        len(shape) == len(profile[name][0])
        and all(a <= size <= b for a, size, b in zip(profile[name][0], shape, profile[name][2], strict=True))
        for name, shape in shapes.items()
    )


def _outside(profiles: tuple[ProfileShapes, ...], shapes: Mapping[str, tuple[int, ...]]) -> ShapeError:
    """Name the first dim that no profile admits; where each admits it, the shapes do not fit together."""
    for name, shape in shapes.items():
        for i, size in enumerate(shape):
            ranges = [(profile[name][0][i], profile[name][2][i]) for profile in profiles]
            if not any(low <= size <= high for low, high in ranges):
                return ShapeError(
                    "a size is outside of what the plan was built for",
                    where=f"input {name!r}, dim {i}",
                    got=f"{size}, in {shape}",
                    expected=" or ".join(f"min {low}, max {high}" for low, high in dict.fromkeys(ranges)),
                    fix="build the plan with a profile that covers it",
                )
    return ShapeError(
        "no profile of the plan admits these shapes together",
        got=", ".join(f"{name!r} {shape}" for name, shape in shapes.items()),
        expected=" or ".join(
            ", ".join(f"{name!r} {profile[name][0]} to {profile[name][2]}" for name in shapes) for profile in profiles
        ),
        fix="build the plan with a profile that covers them",
    )
