"""The batch dim: whether a model has one, and how large a batch its profiles admit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtsparse.engines import TensorSpec
from trtsparse.engines.device import ProfileShapes
from trtsparse.errors import ConfigError
from trtsparse.files.shapes import is_shared
from trtsparse.triton.source import Facts

__all__ = ["DEFAULT_MAX_BATCH", "Batching", "Sample", "find_batching", "samples"]

DEFAULT_MAX_BATCH = 32
"""Where nothing limits it."""
_UNNAMED = (
    "a plan does not name its dims: if another than the first varies with it, give the model, or max_batch_size 0"
)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Batching:
    """How Triton treats the first dim.

    Attributes:
        max_size: Largest batch; 0: there is no batch dim for Triton, requests have the model's own shapes.
        note: Why so, where users might wonder; else empty.
    """

    max_size: int
    note: str = ""


def find_batching(facts: Facts, *, asked: int | None = None, plan: bool) -> Batching:
    """Decide on ``max_batch_size``.

    Args:
        facts: The model's.
        asked: What the user wants, if anything; 0: no batching.
        plan: A plan, which has a profile even where we do not know it.

    Raises:
        ConfigError: A batch is asked for that the model or its profiles do not admit, or the profile of a plan with a
            batch dim is not known.
    """
    if asked == 0:
        return Batching(0)
    missing = _why_not(facts, plan=plan) or (_perhaps(facts) if plan and asked is None else "")
    if missing:
        if asked:
            raise ConfigError(
                "the model has no batch dim",
                where="max_batch_size",
                got=f"{asked}, and {missing}",
                fix="leave it out; requests then have the model's own shapes",
            )
        return Batching(0, f"no batches: {missing}")
    if not facts.profiles:
        if asked is None and plan:
            raise ConfigError(
                "the largest batch of the plan's profile is not known",
                where="profiles",
                expected="the profiles that the plan was built with, or max_batch_size",
            )
        unlimited = f"no profile limits the batch: max_batch_size {DEFAULT_MAX_BATCH} was assumed"
        return Batching(asked) if asked else Batching(DEFAULT_MAX_BATCH, unlimited)
    reach = _reach(facts)
    if asked and asked > reach:
        raise ConfigError(
            "the profiles do not admit every batch up to max_batch_size",
            where="max_batch_size",
            got=asked,
            expected=f"at most {reach}" if reach else "0: not every profile admits a single request",
        )
    if not reach:
        return Batching(0, "no batches: not every profile admits a single request, which Triton may send")
    unnamed = asked is None and plan and _free(facts.inputs) and _free(facts.outputs)
    return Batching(asked or reach, _UNNAMED if unnamed else "")


def _why_not(facts: Facts, *, plan: bool) -> str:
    """What keeps the first dim from being a batch dim; empty if nothing does."""
    symbol: str | None = None
    known = {dim for spec in facts.inputs for dim in spec.shape or () if is_shared(dim)}
    for role, specs in (("input", facts.inputs), ("output", facts.outputs)):
        for spec in specs:
            if not spec.shape:
                return f"{role} {spec.name!r} has no dims"
            first = spec.shape[0]
            if isinstance(first, int) or spec.name in facts.shape_inputs:
                return f"the first dim of {role} {spec.name!r} is always {first}"
            if not is_shared(first):  # exporters name every dim anew: such a name says nothing, but "2*n" does
                if role == "output" and known.intersection(_words(first)):
                    return f"the first dim of output {spec.name!r} is {first!r}"
                continue
            if role == "input" and symbol not in (None, first):
                return f"the first dims of the inputs are {symbol!r} and {first!r}"
            if role == "input":
                symbol = first
            elif symbol is not None and first != symbol:
                return f"the first dim of output {spec.name!r} is {first!r}, not {symbol!r}"
    return _elsewhere(facts, plan=plan) if facts.inputs else "there are no inputs"


def _elsewhere(facts: Facts, *, plan: bool) -> str:
    """Where the first dims' size is another dim's too: requests put together would see each other there."""
    firsts = {spec.shape[0] for spec in (*facts.inputs, *facts.outputs) if spec.shape and is_shared(spec.shape[0])}
    for role, specs in (("input", facts.inputs), ("output", facts.outputs)):
        for spec in specs:
            for axis, dim in enumerate(spec.shape or ()):
                if axis and isinstance(dim, str) and firsts.intersection(_words(dim)):
                    return f"dim {axis} of {role} {spec.name!r} is {dim!r}, which varies with the first dims"
    for name, axis in _free(facts.outputs) if plan and not _free(facts.inputs) else ():  # TensorRT works out all else
        return f"dim {axis} of output {name!r} varies, and of the inputs only the first dims do"
    return ""


def _perhaps(facts: Facts) -> str:
    """Which dim of a plan, which does not name them, is probably the first one again."""
    for name, axis in _free(facts.inputs):
        known = [profile for profile in facts.profiles if name in profile]
        ranges = [[[shape[at] for shape in profile[name]] for profile in known] for at in (0, axis)]
        if known and ranges[0] == ranges[1]:
            return f"dim {axis} of input {name!r} has the first dim's range in every profile, and may be the same"
    return ""


def _free(specs: Sequence[TensorSpec]) -> list[tuple[str, int]]:
    """Dims without a name after the first: (name of the tensor, axis)."""
    return [(spec.name, axis) for spec in specs for axis, dim in enumerate(spec.shape or ()) if axis and dim == "?"]


def _words(dim: str) -> list[str]:
    """The names in a dim such as "2*n" or "past + n"."""
    return re.findall(r"[^\W\d]\w*", dim)


def _reach(facts: Facts) -> int:
    """The largest batch such that it and every smaller one is admitted, whatever the other dims are; 0 if none is."""
    ranges = []
    others = set()
    for profile in facts.profiles:
        triples = [triple for _, triple in sorted(profile.items())]
        ranges.append((max(low[0] for low, _, _ in triples), min(high[0] for _, _, high in triples)))
        others.add(tuple((low[1:], high[1:]) for low, _, high in triples))
    if len(others) > 1:  # a batch may have shapes of any profile, so all must admit it
        return 0 if any(low > 1 for low, _ in ranges) else min(high for _, high in ranges)
    reach = 0
    for low, high in sorted(ranges):
        if low <= reach + 1:
            reach = max(reach, high)
    return reach


@dataclass(frozen=True)
class Sample:
    """One request that a profile is made for.

    Attributes:
        batch: Its size; 0 where there is no batch dim.
        shapes: Input name to shape, without the batch dim.
        profile: The profile's index.
    """

    batch: int
    shapes: Mapping[str, Shape]
    profile: int


def samples(facts: Facts, batching: Batching) -> tuple[Sample, ...]:
    """Requests of the usual and the largest shapes of every profile, and of single items of those shapes.

    Raises:
        ConfigError: There are dynamic inputs and no profile, or an input's values are shapes.
    """
    if facts.shape_inputs:
        raise ConfigError("an input's values are shapes: none can be made up", where=", ".join(facts.shape_inputs))
    profiles = facts.profiles or (_fixed(facts.inputs, batching),)
    found: dict[tuple[int, tuple[tuple[str, Shape], ...]], Sample] = {}
    for index, profile in enumerate(profiles):
        for word in (1, 2):
            whole = {spec.name: _shape(spec, profile, word) for spec in facts.inputs}
            if not batching.max_size:
                found.setdefault((0, tuple(whole.items())), Sample(0, whole, index))
                continue
            rest = {name: shape[1:] for name, shape in whole.items()}
            largest = min(*(shape[0] for shape in whole.values()), batching.max_size)
            for size in (1, largest):
                found.setdefault((size, tuple(rest.items())), Sample(size, rest, index))
    return tuple(sorted(found.values(), key=lambda sample: (sample.profile, sample.batch)))


def _shape(spec: TensorSpec, profile: ProfileShapes, word: int) -> Shape:
    """The usual (1) or largest (2) shape of an input; fixed inputs need not be in the profile."""
    return profile[spec.name][word] if spec.name in profile else tuple(spec.shape or ())  # type: ignore[arg-type]


def _fixed(inputs: Sequence[TensorSpec], batching: Batching) -> ProfileShapes:
    """What stands for the profile where only the batch is dynamic."""
    ranges = {}
    for spec in inputs:
        rest = spec.shape[1:] if batching.max_size and spec.shape else spec.shape
        if rest is None or any(isinstance(dim, str) for dim in rest):
            raise ConfigError(
                "requests of unknown shape cannot be made up",
                where=f"input {spec}",
                fix="give a profile with the shapes to prepare",
            )
        shapes = [(size, *rest) if batching.max_size else rest for size in (1, 1, batching.max_size)]
        ranges[spec.name] = tuple(shapes)
    return ranges  # type: ignore[return-value]  # three shapes each, of numbers as just checked
