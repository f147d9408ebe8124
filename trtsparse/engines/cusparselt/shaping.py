"""What reads, makes and changes shapes, as PyTorch calls; and what picks values by their place."""

from __future__ import annotations

import math
from typing import Any

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import (
    Picker,
    Step,
    Tensor,
    axes_of,
    is_known,
    numbers,
    operator,
    to_tensor,
)

__all__: list[str] = []


def _torch() -> Any:
    import torch

    return torch


@operator("Shape")
def _shape(node: Node) -> Step:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return lambda x: _torch().tensor(list(x.shape)[start:end], dtype=_torch().int64)


@operator("Size")
def _size(_node: Node) -> Step:
    return lambda x: _torch().tensor(x.numel(), dtype=_torch().int64)


@operator("Reshape")
def _reshape(node: Node) -> Step:
    keep_zeros = node.attributes.get("allowzero", 0)

    def step(x: Tensor, shape: Tensor) -> Tensor:
        wanted = numbers(shape)
        return x.reshape([x.shape[i] if size == 0 and not keep_zeros else size for i, size in enumerate(wanted)])

    return step


@operator("Flatten")
def _flatten(node: Node) -> Step:
    axis = node.attributes.get("axis", 1)

    def step(x: Tensor) -> Tensor:
        at = axis + x.dim() if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return step


@operator("Transpose")
def _transpose(node: Node) -> Step:
    order = node.attributes.get("perm")
    return lambda x: x.permute(order or list(range(x.dim()))[::-1])


@operator("Squeeze")
def _squeeze(node: Node) -> Step:
    def step(x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = axes_of(node, axes)
        return x.squeeze() if along is None else x.squeeze(tuple(along))

    return step


@operator("Unsqueeze")
def _unsqueeze(node: Node) -> Step:
    def step(x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = axes_of(node, axes) or []
        rank = x.dim() + len(along)
        for axis in sorted(a % rank for a in along):
            x = x.unsqueeze(axis)
        return x

    return step


@operator("Concat")
def _concat(node: Node) -> Step:
    axis = node.attributes["axis"]

    def step(*parts: Tensor) -> Tensor:
        device = next((part.device for part in parts if part.device.type != "cpu"), None)
        return _torch().cat([part if device is None else part.to(device) for part in parts], dim=axis)

    return step


@operator("Split")
def _split(node: Node) -> Step:
    axis = node.attributes.get("axis", 0)

    def step(x: Tensor, sizes: Tensor | None = None) -> Any:
        lengths = node.attributes.get("split") if sizes is None else numbers(sizes)
        if lengths is None:  # the last ones are shorter, or empty
            size, count = x.shape[axis], len(node.outputs)
            most = -(-size // count)
            lengths = [min(most, max(size - at * most, 0)) for at in range(count)]
        return x.split(lengths, dim=axis)

    return step


@operator("Slice")
def _slice(node: Node) -> Step:
    given, pick = node.attributes, Picker()

    def step(x: Tensor, *bounds: Tensor | None) -> Tensor:
        read = dict(zip(("starts", "ends", "axes", "steps"), bounds, strict=False))
        limits: dict[str, list[int]] = {
            name: given.get(name) or [] if read.get(name) is None else numbers(read[name])
            for name in ("starts", "ends", "axes", "steps")
        }
        count = len(limits["starts"])
        axes, strides = limits["axes"] or range(count), limits["steps"] or [1] * count
        for axis, start, end, stride in zip(axes, limits["starts"], limits["ends"], strides, strict=True):
            x = _slice_axis(x, axis % x.dim(), (start, end, stride), pick)
        return x

    return step


def _slice_axis(x: Tensor, axis: int, bounds: tuple[int, int, int], pick: Picker) -> Tensor:
    size, (start, end, stride) = x.shape[axis], bounds
    if stride < 0:
        kept = list(range(size))[slice(max(start, -size), None if end < -size else end, stride)]
        return pick(x, axis, kept)
    low, high, _ = slice(start, end).indices(size)
    x = x.narrow(axis, low, max(high - low, 0))
    return x[tuple([slice(None)] * axis + [slice(None, None, stride)])] if stride > 1 else x


@operator("Expand")
def _expand(_node: Node) -> Step:
    def step(x: Tensor, shape: Tensor) -> Tensor:
        return x.expand(_torch().broadcast_shapes(x.shape, tuple(numbers(shape))))

    return step


@operator("Tile")
def _tile(_node: Node) -> Step:
    return lambda x, repeats: x.repeat(numbers(repeats))


@operator("Gather")
def _gather(node: Node) -> Step:
    axis = node.attributes.get("axis", 0)

    def step(x: Tensor, indices: Tensor) -> Tensor:
        along = axis % x.dim()
        if indices.device.type == "cpu" and indices.numel() == 1:
            picked = x.narrow(along, int(indices.item()) % x.shape[along], 1)
            return picked.reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))
        indices = indices.to(x.device)
        indices = _torch().where(indices < 0, indices + x.shape[along], indices)
        if along == 0 and x.dim() == 2:
            return _torch().nn.functional.embedding(indices, x)
        return x.index_select(along, indices.reshape(-1)).reshape(
            (*x.shape[:along], *indices.shape, *x.shape[along + 1 :])
        )

    return step


@operator("Range")
def _range(_node: Node) -> Step:
    def step(start: Tensor, end: Tensor, delta: Tensor) -> Tensor:
        first, last, by = start.item(), end.item(), delta.item()
        return _torch().arange(first, last if (last - first) * by > 0 else first, by, dtype=start.dtype)

    return step


@operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Step:
    torch, value = _torch(), node.attributes.get("value")
    if value is not None and not is_known(value):
        raise NotImplementedError(f"values of type {value.dtype.name}")
    fill = torch.zeros(1) if value is None else to_tensor(value)
    return lambda shape: torch.full(numbers(shape), fill.item(), dtype=fill.dtype)


@operator("Pad")
def _pad(node: Node) -> Step:
    mode = node.attributes.get("mode", "constant")
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in names:
        raise NotImplementedError(f"mode {mode!r}")

    def step(
        x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        given = node.attributes["pads"] if pads is None else numbers(pads)
        along = [a % x.dim() for a in numbers(axes)] if axes is not None else list(range(x.dim()))
        both = dict.fromkeys(range(x.dim()), (0, 0))
        both.update({a: (given[i], given[i + len(along)]) for i, a in enumerate(along)})
        flat = [size for a in reversed(range(x.dim())) for size in both[a]]
        while flat and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        fill = node.attributes.get("value", 0.0) if value is None else value.item()
        options = {"value": fill} if mode == "constant" else {}
        return _torch().nn.functional.pad(x, flat, mode=names[mode], **options) if flat else x

    return step
