"""A node and the axes of its values, on which a rule for its operator unites and pins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtsparse.accuracy.permutation_axes import Axis, pin, unite

__all__ = ["Axes", "Dims", "Rule", "Step"]

Axes = tuple["Axis | None", ...]  # None: a dim whose size is not known
Dims = tuple["int | str | None", ...]  # a number, a symbol that stands for one size, or neither


@dataclass(frozen=True)
class Step:
    """A node with the axes of its values.

    Attributes:
        node: The node.
        opset: Of the standard domain.
        inputs: For each input its axes; None where not even the rank is known. One that is left out has no axes.
        outputs: The same for outputs.
        dims: For each input and output name its dims: a number, a symbol that stands for one size, or None.
        constant: Gives the value of a constant by name, or None.
    """

    node: onnx.NodeProto
    opset: int
    inputs: tuple[Axes | None, ...]
    outputs: tuple[Axes | None, ...]
    dims: Callable[[str], Dims | None]
    constant: Callable[[str], np.ndarray | None]

    @property
    def label(self) -> str:
        """What reasons call the node."""
        return f"{self.node.op_type} {self.node.name or self.node.output[0]!r}"

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def input(self, index: int) -> Axes:
        """The axes of an input whose rank is known; none where it is left out."""
        return (self.inputs[index] or ()) if index < len(self.inputs) else ()

    def output(self) -> Axes:
        """The axes of the first output, whose rank is known."""
        return self.outputs[0] or ()

    def given(self, index: int) -> bool:
        """True when the node has this input."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def numbers(self, index: int, attribute: str = "") -> list[float] | None:
        """The values of a constant input, or of the attribute that older opsets have; None where unknown."""
        if self.given(index):
            value = self.constant(self.node.input[index])
            return None if value is None else value.reshape(-1).tolist()
        value = self.attribute(attribute) if attribute else None
        return None if value is None else list(value)

    def link(self, a: Axis | None, b: Axis | None) -> None:
        """Unite two axes of equal length; where the length of one is not known, the other is pinned."""
        if a is not None and b is not None:
            unite(a, b, f"{self.label} takes axes that do not fit each other")
        else:
            self.pin([a, b], "has a dim whose size is not known")

    def pin(self, axes: Sequence[Axis | None], why: str) -> None:
        """Pin axes because of this node."""
        for axis in axes:
            if axis is not None and axis.size > 1:
                pin(axis, f"{self.label} {why}")

    def align(self, a: Axes, b: Axes) -> None:
        """Link the axes of a value with those of one that it is broadcast to, from the last on."""
        for axis, wide in zip(reversed(a), reversed(b), strict=False):
            if (axis is None or axis.size > 1) and (axis is not None or wide is not None):
                self.link(axis, wide)

    def carry(self, a: Axes, b: Axes) -> None:
        """Link all axes of two values of one shape."""
        for first, second in zip(a, b, strict=True):
            if first is not None or second is not None:
                self.link(first, second)


Rule = Callable[[Step], str]  # gives the reason why all axes have to be pinned, or ""
