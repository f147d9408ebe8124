"""Rules for operators that move elements: what becomes of the order of channels. See `permutation_rules`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from trtsparse.accuracy.permutation_axes import PRODUCT, Axis, concat, find, split
from trtsparse.accuracy.permutation_step import Axes, Step

__all__ = [
    "concat_rule",
    "gather_rule",
    "pad_rule",
    "reshape_rule",
    "resize_rule",
    "sizes_rule",
    "slice_rule",
    "split_rule",
    "squeeze_rule",
    "transpose_rule",
]


def concat_rule(step: Step) -> str:
    """One axis is a row of the inputs' axes, which are permuted each within itself."""
    output = step.output()
    axis = step.attribute("axis", 1) % len(output)
    parts = [axes[axis] for axes in step.inputs if axes]
    for axes in step.inputs:
        step.carry(_without(axes or (), [axis]), _without(output, [axis]))
    return _join(step, parts, output[axis])


def split_rule(step: Step) -> str:
    """The other way round."""
    x = step.input(0)
    axis = step.attribute("axis", 0) % len(x)
    for axes in step.outputs:
        step.carry(_without(axes or (), [axis]), _without(x, [axis]))
    return _join(step, [axes[axis] for axes in step.outputs if axes], x[axis])


def _join(step: Step, parts: Sequence[Axis | None], whole: Axis | None) -> str:
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < len(parts):
        step.pin([whole, *parts], "has a part whose size is not known")
    else:
        step.link(concat(known), whole)
    return ""


def slice_rule(step: Step) -> str:
    """A range is a part of its axis; only a range of whole steps of one."""
    x, output = step.input(0), step.output()
    starts, ends = step.numbers(1, "starts"), step.numbers(2, "ends")
    axes = step.numbers(3, "axes")
    if starts is None or (axes is None and step.given(3)):
        return "takes a range that is not known"
    cut = [int(axis) % len(x) for axis in (axes or range(len(starts)))]
    steps = step.numbers(4) if step.given(4) else [1] * len(cut)
    step.carry(_without(x, cut), _without(output, cut))
    for number, axis in enumerate(cut):
        whole, part = x[axis], output[axis]
        if whole is None or part is None or ends is None or steps is None or steps[number] != 1:
            step.pin([whole, part], "takes a range that is not known, or not every element of it")
            continue
        first, last, _ = slice(int(starts[number]), int(ends[number])).indices(whole.size)
        step.link(concat([Axis(first), part, Axis(whole.size - max(first, last))]), whole)
    return ""


def gather_rule(step: Step) -> str:
    """Whole rows by number: numbers and rows stay as they are, the other axes are carried along."""
    x, index, output = step.input(0), step.input(1), step.output()
    axis = step.attribute("axis", 0) % len(x)
    for axes in (x[axis : axis + 1], index, output[axis : axis + len(index)]):
        step.pin(axes, "takes elements by their number")
    step.carry((*x[:axis], *x[axis + 1 :]), (*output[:axis], *output[axis + len(index) :]))
    return ""


def transpose_rule(step: Step) -> str:
    """Axes change places."""
    x = step.input(0)
    order = step.attribute("perm", range(len(x))[::-1])
    step.carry(tuple(x[i] for i in order), step.output())
    return ""


def squeeze_rule(step: Step) -> str:
    """Axes of length one come or go."""
    x, output = step.input(0), step.output()
    axes = step.numbers(1, "axes")
    if axes is None:
        return reshape_rule(step)
    wide, narrow = (x, output) if step.node.op_type == "Squeeze" else (output, x)
    ones = {int(axis) % len(wide) for axis in axes}
    step.carry(_without(wide, ones), narrow)
    return ""


@dataclass(frozen=True)
class _Dim:
    """A factor of a shape: its axis, or a symbol where the size is not known."""

    axis: Axis | None
    symbol: object = None


def reshape_rule(step: Step) -> str:
    """Axes that are merged become products, those that are split turn out to be products; matched from both ends."""
    x, output = step.input(0), step.output()
    symbols = list(step.dims(step.node.input[0]) or ())
    sources = [_Dim(axis, symbol or object()) for axis, symbol in zip(x, symbols, strict=True)]
    copied = step.numbers(1) if step.node.op_type == "Reshape" and not step.attribute("allowzero", 0) else None
    targets = []
    for i, (axis, symbol) in enumerate(zip(output, step.dims(step.node.output[0]) or (), strict=True)):
        same = sources[i].symbol if copied and copied[i] == 0 else symbol or object()
        targets.append(_Dim(axis, same))
    left, right = ([dim for dim in dims if dim.axis is None or dim.axis.size != 1] for dims in (sources, targets))
    _match(step, left, right, end=-1)
    _match(step, left, right, end=0)
    step.pin([dim.axis for dim in (*left, *right)], "does not keep this axis")
    return ""


def _match(step: Step, left: list[_Dim], right: list[_Dim], *, end: int) -> None:
    """Take equal factors off two shapes at one end, splitting the larger ones, as long as that is possible."""
    while left and right:
        a, b = left[end].axis, right[end].axis
        if a is None or b is None:
            if a is not None or b is not None or left[end].symbol != right[end].symbol:
                return
            del left[end], right[end]
        elif a.size == b.size:
            step.link(a, b)
            del left[end], right[end]
        else:
            dims, larger, smaller = (left, a, b) if a.size > b.size else (right, b, a)
            if not _is_product(larger, smaller.size, end):
                return
            dims[end : len(dims) if end else 1] = [_Dim(part) for part in find(larger).parts]


def _is_product(axis: Axis, size: int, end: int) -> bool:
    """True when the axis is a product, or could be made one with a first or last factor of this size."""
    axis = find(axis)
    if axis.parts or not size:
        return axis.kind == PRODUCT
    sizes = (axis.size // size, size) if end else (size, axis.size // size)
    return axis.size % size == 0 and split(axis, sizes, PRODUCT)


def resize_rule(step: Step) -> str:
    """Axes that keep their length at a scale of exactly one are not touched."""
    x, output = step.input(0), step.output()
    if (
        step.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
        or step.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch"
        or step.attribute("axes")
    ):
        return "does not scale every axis by itself"
    scales = step.numbers(2 if step.node.op_type == "Resize" and step.opset > 10 else 1, "scales")
    for i, (axis, result) in enumerate(zip(x, output, strict=True)):
        is_one = scales[i] == 1 if scales else step.given(3)
        if is_one and (axis is None) == (result is None) and (axis is None or axis.size == (result or axis).size):
            step.carry((axis,), (result,))
        else:
            step.pin([axis, result], "scales this axis")
    return ""


def pad_rule(step: Step) -> str:
    """Axes that are not padded are not touched."""
    x, output = step.input(0), step.output()
    pads = step.numbers(1, "pads")
    if pads is None or step.given(3):
        return "pads axes that are not known"
    for i, (axis, result) in enumerate(zip(x, output, strict=True)):
        if pads[i] == 0 == pads[i + len(x)]:
            step.carry((axis,), (result,))
        else:
            step.pin([axis, result], "pads this axis")
    return ""


def sizes_rule(step: Step) -> str:
    """Shape and Size see no elements."""
    step.pin(step.output(), "gives sizes")
    return ""


def _without(axes: Axes, left_out: Collection[int]) -> Axes:
    return tuple(axis for i, axis in enumerate(axes) if i not in left_out)
