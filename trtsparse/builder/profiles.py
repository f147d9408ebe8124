"""Profiles against a model's inputs: every mistake is found, and named, before anything is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trtsparse.builder.profile import Profile, Shape, ShapeRange, check_sizes
from trtsparse.errors import BuildError, ConfigError
from trtsparse.files.shapes import is_shared
from trtsparse.precision.specs import TensorSpec, did_you_mean

__all__ = ["add_profiles", "check_profiles", "infer_profile", "usual_shapes"]

Feeds = Mapping[str, np.ndarray]


def check_profiles(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> None:
    """Compare profiles with the inputs of a model.

    Args:
        inputs: The model's.
        profiles: At least one when an input is dynamic.

    Raises:
        ConfigError: An unknown or missing input, a wrong rank, a fixed dim given another size, two dims of one name
            given different sizes, or dynamic inputs and no profile; input and dim are named.
    """
    dynamic = [spec for spec in inputs if _is_dynamic(spec)]
    if dynamic and not profiles:
        raise ConfigError(
            "the model has dynamic inputs and no profile says how large they are",
            got="; ".join(map(str, dynamic)),
            expected="a range for each of their dynamic dims",
            fix=f"give a profile, such as {_suggestion(dynamic)}",
        )
    for index, profile in enumerate(profiles):
        _check_names(inputs, dynamic, profile, index)
        for spec in inputs:
            if spec.name in profile.shapes and not _may_hold_shape(spec):
                _check_input(spec, profile.shapes[spec.name], index)
        _check_shared(inputs, profile, index)


def infer_profile(inputs: Sequence[TensorSpec], samples: Sequence[Feeds]) -> Profile | None:
    """A profile that accepts all sample inputs; None when no input is dynamic.

    As dims of several inputs may depend on each other, opt has the shapes of one sample: of the first whose shapes
    are the commonest.

    Raises:
        ConfigError: There are no samples, or one lacks a dynamic input.

    Example:
        >>> x = TensorSpec("x", np.dtype(np.float32), ("n", 4))
        >>> print(infer_profile([x], [{"x": np.zeros((n, 4), np.float32)} for n in (2, 8, 2, 1)]))
        x:1x4:2x4:8x4
    """
    dynamic = [spec for spec in inputs if _is_dynamic(spec)]
    if not dynamic:
        return None
    return Profile(_ranges_of({spec.name: [np.shape(_sample(s, spec.name)) for s in samples] for spec in dynamic}))


def usual_shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> dict[str, Shape] | None:
    """The opt shapes of the first profile, without inputs that hold shapes; None when there is no profile."""
    if not profiles:
        return None
    named = {spec.name for spec in inputs if not _may_hold_shape(spec)}
    return {name: triple[1] for name, triple in profiles[0].shapes.items() if name in named}


def add_profiles(
    builder: Any,
    network: Any,
    config: Any,
    profiles: Sequence[Profile],
    samples: Sequence[Feeds] = (),
    *,
    missing: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Give profiles to an IBuilderConfig; inputs that the network reads as shapes get ranges of values.

    Args:
        builder: The Builder.
        network: The INetworkDefinition, parsed.
        config: The IBuilderConfig.
        profiles: What `check_profiles` passed.
        samples: Where values come from that the profiles do not give.
        missing: The value where samples do not give it either; None: that is an error.
        warn: Told where ``missing`` is used.

    Raises:
        ConfigError: A shape input has no values, or a range does not fit.
        BuildError: TensorRT refuses the profile.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    holding = [tensor for tensor in tensors if tensor.is_shape_tensor]
    values = _sampled_values(tensors, samples) if holding else {}
    for index, profile in enumerate(profiles or ([None] if holding else [])):
        made = builder.create_optimization_profile()
        for tensor in tensors:
            given = profile.shapes.get(tensor.name) if profile is not None else None
            if tensor.is_shape_tensor:
                given = given or values.get(tensor.name) or _made_up(tensor, missing, warn)
                low, opt, high = _values(tensor, given, index)
                made.set_shape_input(tensor.name, low, opt, high)
            elif given is not None:
                _check_input(_spec_of(tensor), given, index)
                _set_shape(made, tensor.name, given, where=f"profile {index}")
        if config.add_optimization_profile(made) < 0:
            raise BuildError("TensorRT refuses a profile", where=f"profile {index}", got=str(profile))


def _set_shape(made: Any, name: str, given: ShapeRange, *, where: str) -> None:
    try:
        made.set_shape(name, *given)
    except (RuntimeError, TypeError, ValueError) as error:  # such as dims of more than 31 bits
        why = str(error).strip().partition("\n")[0]
        raise BuildError(
            "TensorRT refuses a profile",
            where=f"{where}, input {name!r}",
            got=f"{given}: {why}",
            fix="give it sizes that TensorRT counts",
        ) from error


def _is_dynamic(spec: TensorSpec) -> bool:
    return spec.shape is None or any(isinstance(dim, str) for dim in spec.shape)


def _may_hold_shape(spec: TensorSpec) -> bool:
    """Small integer inputs may turn out to hold a shape; the network tells after parsing."""
    return spec.dtype.kind in "iu" and spec.shape is not None and len(spec.shape) <= 1 and not _is_dynamic(spec)


def _check_names(inputs: Sequence[TensorSpec], dynamic: list[TensorSpec], profile: Profile, index: int) -> None:
    names = [spec.name for spec in inputs]
    for name in profile.shapes:
        if name not in names:
            raise ConfigError(
                "a profile names an input that the model does not have",
                where=f"profile {index}",
                got=repr(name),
                expected=", ".join(map(repr, names)),
                fix=did_you_mean(name, names),
            )
    missing = [spec for spec in dynamic if spec.name not in profile.shapes]
    if missing:
        raise ConfigError(
            "a profile lacks dynamic inputs",
            where=f"profile {index}",
            got=str(profile),
            expected="; ".join(map(str, missing)),
            fix=f"add {_suggestion(missing)}",
        )


def _check_input(spec: TensorSpec, given: ShapeRange, index: int) -> None:
    where = f"profile {index}, input {spec.name!r}"
    check_sizes(given, where=where)
    if spec.shape is None:
        return
    if len(given[1]) != len(spec.shape):
        raise ConfigError(
            "a profile has the wrong number of dims",
            where=where,
            got=f"{len(given[1])} dims: {'x'.join(map(str, given[1]))}",
            expected=f"{len(spec.shape)} dims: {spec}",
        )
    for axis, dim in enumerate(spec.shape):
        sizes = tuple(shape[axis] for shape in given)
        if isinstance(dim, int) and sizes != (dim, dim, dim):
            raise ConfigError(
                "a profile changes a dim that the model fixes",
                where=f"{where}, dim {axis}",
                got="min {}, opt {}, max {}".format(*sizes),
                expected=dim,
            )


def _check_shared(inputs: Sequence[TensorSpec], profile: Profile, index: int) -> None:
    """Dims of one name have one size: their opt must be equal, and their ranges must overlap."""
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape or ()) if spec.name in profile.shapes else ():
            if not isinstance(dim, str) or not is_shared(dim):
                continue
            place = f"input {spec.name!r}, dim {axis}"
            low, opt, high = sizes = tuple(shape[axis] for shape in profile.shapes[spec.name])
            first, (low0, opt0, high0) = seen.setdefault(dim, (place, sizes))
            if opt != opt0 or max(low, low0) > min(high, high0):
                raise ConfigError(
                    f"a profile gives the dim {dim!r} two sizes",
                    where=f"profile {index}, {place}",
                    got=f"min {low}, opt {opt}, max {high}",
                    expected=f"min {low0}, opt {opt0}, max {high0}, as for {first}",
                )


def _suggestion(specs: Sequence[TensorSpec]) -> str:
    """Such as "x:1x3x224x224:8x3x224x224:16x3x224x224", with made-up sizes for the dynamic dims."""
    parts = []
    for spec in specs:
        dims = spec.shape or ("?",)
        shapes = ("x".join(str(size if isinstance(dim, str) else dim) for dim in dims) for size in (1, 8, 16))
        parts.append(f"{spec.name}:{':'.join(shapes)}")
    return ",".join(parts)


def _sample(sample: Feeds, name: str) -> np.ndarray:
    if name not in sample:
        raise ConfigError("a sample lacks a dynamic input", got=", ".join(map(repr, sample)), expected=repr(name))
    return sample[name]


def _ranges_of(shapes: Mapping[str, Sequence[Shape]]) -> dict[str, ShapeRange]:
    """Ranges of the shapes that each input has in the samples."""
    for seen in shapes.values():
        if not seen:
            raise ConfigError("a profile cannot be inferred without samples")
    usual = _usual(shapes)
    return {name: _range_of(seen, usual, of="dims") for name, seen in shapes.items()}


def _usual(shapes: Mapping[str, Sequence[Shape]]) -> int:
    """The index of the first sample whose shapes are shared with most others."""
    counts = {name: Counter(seen) for name, seen in shapes.items()}
    shared = [
        sum(counts[name][shape] for name, shape in zip(shapes, row, strict=True))
        for row in zip(*shapes.values(), strict=True)
    ]
    return shared.index(max(shared))


def _range_of(shapes: Sequence[Shape], usual: int, *, of: str) -> ShapeRange:
    if len(set(map(len, shapes))) > 1:
        raise ConfigError(f"samples of one input differ in the number of {of}", got=", ".join(map(str, shapes)))
    columns = list(zip(*shapes, strict=True))
    return tuple(map(min, columns)), shapes[usual], tuple(map(max, columns))


def _values(tensor: Any, given: ShapeRange | None, index: int) -> ShapeRange:
    """The range of values of an input that holds a shape."""
    count = _count(tensor)
    if given is None or len(given[1]) != count:
        raise ConfigError(
            "an input holds a shape, and no profile gives the range of its values",
            where=f"profile {index}, input {tensor.name!r}",
            got=None if given is None else f"{len(given[1])} values",
            expected=f"{count} values each for min, opt and max, such as {tensor.name}:1x3:8x3:16x3",
        )
    return given


def _sampled_values(tensors: Sequence[Any], samples: Sequence[Feeds]) -> dict[str, ShapeRange]:
    """Ranges of the values that inputs which hold shapes have in the samples; opt from where the profile's is."""
    holding = [tensor.name for tensor in tensors if tensor.is_shape_tensor]
    dynamic = [t.name for t in tensors if t.name not in holding and any(size < 0 for size in t.shape)]
    whole = [sample for sample in samples if all(name in sample for name in (*holding, *dynamic))]
    if not whole:
        return {}
    values = {name: [tuple(int(v) for v in np.ravel(sample[name])) for sample in whole] for name in holding}
    shapes = {name: [np.shape(sample[name]) for sample in whole] for name in dynamic}
    usual = _usual(shapes or values)
    return {name: _range_of(seen, usual, of="values") for name, seen in values.items()}


def _made_up(tensor: Any, value: int | None, warn: Callable[[str], None] | None) -> ShapeRange | None:
    """One value throughout, as trtexec does where no values are given, and in its words."""
    if value is None:
        return None
    values = (value,) * _count(tensor)
    if warn is not None:
        warn(
            f"Dynamic dimensions required for input: {tensor.name}, but no shapes were provided. Automatically "
            f"overriding shape to: {'x'.join(map(str, values))}"
        )
    return values, values, values


def _count(tensor: Any) -> int:
    return int(np.prod(tuple(tensor.shape), dtype=np.int64))


def _spec_of(tensor: Any) -> TensorSpec:
    dims = tuple(dim if dim >= 0 else "?" for dim in tensor.shape)
    return TensorSpec(tensor.name, np.dtype(np.float32), dims)
