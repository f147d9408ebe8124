"""Which of a model's weights get masks: globs, layers and classes to include and exclude, and tied weights."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from trtsparse.errors import ConfigError, PruneError
from trtsparse.torch.layers import LayerWeight

__all__ = ["Choice", "Chosen", "choose"]

Choice: TypeAlias = "str | nn.Module | type"  # a glob on names, a module or a class; each with all that is in it


@dataclass(frozen=True)
class Chosen:
    """One weight.

    Attributes:
        uses: Its uses, more than one if it is tied; the first one is the one to mask.
        reason: Why it gets no mask, in words; "" if it gets one.
    """

    uses: tuple[LayerWeight, ...]
    reason: str

    @property
    def eligible(self) -> bool:
        """The structure allows a sparse kernel, at one use at least."""
        return not self.uses[0].reason


def choose(
    found: Sequence[LayerWeight], *, include: Sequence[Choice], exclude: Sequence[Choice]
) -> tuple[Chosen, ...]:
    """Decide about every weight, a tied one once.

    Raises:
        ConfigError: A choice matches nothing.
        PruneError: A weight or layer named in ``include`` is not eligible, uses contradict each other, or nothing is
            left.
    """
    _check_choices(found, include, "include")
    _check_choices(found, exclude, "exclude")
    tied: dict[int, list[LayerWeight]] = {}
    for weight in found:
        tied.setdefault(weight.key, []).append(weight)
    chosen = tuple(_decide(uses, include, exclude) for uses in tied.values())
    if all(weight.reason for weight in chosen):
        raise PruneError(
            "no weight of the model can be pruned",
            got="; ".join(f"{weight.uses[0].name}: {weight.reason}" for weight in chosen[:5]) or "no weights",
        )
    return chosen


def _decide(uses: Sequence[LayerWeight], include: Sequence[Choice], exclude: Sequence[Choice]) -> Chosen:
    ordered = tuple(sorted(uses, key=lambda use: bool(use.reason)))
    first = ordered[0]
    if include and not any(_matches(use, choice) for use in uses for choice in include):
        return Chosen(ordered, "not included")
    excluded = next((use for use in uses if any(_matches(use, choice) for choice in exclude)), None)
    if excluded is not None:
        return Chosen(ordered, "excluded" if excluded is first else f"excluded as {excluded.name}")
    if first.reason:
        if any(choice in (use.name, use.layer) or choice is use.module for choice in include for use in uses):
            raise PruneError(
                "the weight cannot be pruned",
                where=repr(first.name),
                got=first.reason,
                fix="leave it out of `include`",
            )
        return Chosen(ordered, first.reason)
    _check_axes([use for use in ordered if not use.reason])
    return Chosen(ordered, "")


def _check_axes(uses: Sequence[LayerWeight]) -> None:
    if len({use.axes for use in uses}) > 1:
        raise PruneError(
            "tied weights are used along different axes",
            where=", ".join(repr(use.name) for use in uses),
            got=", ".join(f"axis {use.axes[0]} in {use.kind}" for use in uses),
            fix=f"exclude it: exclude=[{uses[0].name!r}]",
        )


def _matches(weight: LayerWeight, choice: Choice) -> bool:
    if isinstance(choice, str):
        parts = weight.name.split(".")
        names = itertools.accumulate(parts, "{}.{}".format)  # of the modules around it, the layer and the weight
        return any(name == choice or fnmatch.fnmatchcase(name, choice) for name in names)
    if isinstance(choice, type):
        return any(isinstance(module, choice) for module in weight.around)
    return any(module is choice for module in weight.around)


def _check_choices(found: Sequence[LayerWeight], choices: Sequence[Choice], option: str) -> None:
    if isinstance(choices, (str, nn.Module, type)):
        raise ConfigError("one choice where a list belongs", where=option, got=repr(choices), fix=f"{option}=[...]")
    for choice in choices:
        if any(_matches(weight, choice) for weight in found):
            continue
        names = sorted({name for weight in found for name in (weight.name, weight.layer)})
        close = difflib.get_close_matches(choice, names, n=3) if isinstance(choice, str) else []
        raise ConfigError(
            "no weight or layer is meant by this",
            where=option,
            got=choice if isinstance(choice, str) else getattr(choice, "__name__", type(choice).__name__),
            expected=f"for example {', '.join(close or names[:3])}" if names else "a model with weights",
            fix="give names with the wildcards * and ?, layers of this model, or classes of its layers",
        )
