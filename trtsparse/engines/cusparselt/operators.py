"""ONNX operators as PyTorch calls: one entry for each operator that the engine executes.

An entry takes a node and gives what executes it: a function of the inputs (None for one left out) that returns the
outputs in order. Values that describe shapes are integer tensors on the CPU, wherever the rest is computed: reading
them waits for nothing, and the same shapes always give the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trtsparse.engines.cusparselt.graph import Node

__all__ = ["OPERATORS", "Tensor", "operator"]

Tensor = Any
Step = Callable[..., Any]
OPERATORS: dict[str, Callable[[Node], Step]] = {}
"""By name; `trtsparse.engines.cusparselt.spatial` and `.fused` add theirs."""


def operator(*names: str) -> Callable[[Callable[[Node], Step]], Callable[[Node], Step]]:
    """Enter a function into the table."""

    def enter(make: Callable[[Node], Step]) -> Callable[[Node], Step]:
        OPERATORS.update(dict.fromkeys(names, make))
        return make

    return enter


def _torch() -> Any:
    import torch

    return torch


def numbers(value: Tensor) -> list[int]:
    """The numbers in a shape-like value."""
    return [int(number) for number in value.reshape(-1).tolist()]


def together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two operands on one device: a constant on the CPU goes to where the other one is."""
    if a.device == b.device or a.dim() == 0 or b.dim() == 0:
        return a, b
    return (a.to(b.device), b) if a.device.type == "cpu" else (a, b.to(a.device))


# -- elementwise -----------------------------------------------------------------------------------------------------

_UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
    "Reciprocal": "reciprocal", "Neg": "neg", "Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Sin": "sin", "Cos": "cos", "Not": "logical_not", "Identity": None, "Dropout": None, "Sign": "sign",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Pow": "pow", "Equal": "eq", "Less": "lt", "Greater": "gt",
    "LessOrEqual": "le", "GreaterOrEqual": "ge", "And": "logical_and", "Or": "logical_or", "MatMul": "matmul",
}  # fmt: skip


@operator(*_UNARY)
def _unary(node: Node) -> Step:
    name = _UNARY[node.op]
    if name is None:
        return lambda x, *_: x
    return getattr(_torch(), name)  # type: ignore[no-any-return]


@operator(*_BINARY)
def _binary(node: Node) -> Step:
    compute = getattr(_torch(), _BINARY[node.op])
    return lambda a, b: compute(*together(a, b))


@operator("Div")
def _div(_node: Node) -> Step:
    def step(a: Tensor, b: Tensor) -> Tensor:
        a, b = together(a, b)
        return a / b if a.is_floating_point() else _torch().div(a, b, rounding_mode="trunc")

    return step


@operator("Max", "Min", "Sum", "Mean")
def _variadic(node: Node) -> Step:
    torch = _torch()
    compute = {"Max": torch.maximum, "Min": torch.minimum}.get(node.op, torch.add)

    def step(*values: Tensor) -> Tensor:
        total = values[0]
        for value in values[1:]:
            total = compute(*together(total, value))
        return total / len(values) if node.op == "Mean" else total

    return step


@operator("Where")
def _where(_node: Node) -> Step:
    torch = _torch()

    def step(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        a, b = together(a, b)
        return torch.where(together(condition, a)[0], a, b)

    return step


@operator("LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Gelu", "Clip", "PRelu")
def _activation(node: Node) -> Step:
    functional, given = _torch().nn.functional, node.attributes
    if node.op == "LeakyRelu":
        return lambda x: functional.leaky_relu(x, given.get("alpha", 0.01))
    if node.op == "Elu":
        return lambda x: functional.elu(x, given.get("alpha", 1.0))
    if node.op == "HardSigmoid":
        alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
        return lambda x: (x * alpha + beta).clamp(0, 1)
    if node.op in ("HardSwish", "Softplus"):
        return getattr(functional, node.op.lower())  # type: ignore[no-any-return]
    if node.op == "Gelu":
        return lambda x: functional.gelu(x, approximate=given.get("approximate", "none"))
    if node.op == "PRelu":
        return lambda x, slope: _torch().where(x < 0, x * slope, x)

    def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        lowest = given.get("min") if low is None else low.item()
        highest = given.get("max") if high is None else high.item()
        return x.clamp(lowest, highest)

    return clip


@operator("Cast")
def _cast(node: Node) -> Step:
    torch = _torch()
    kinds = {
        1: None, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
        10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
    }  # fmt: skip
    to = node.attributes["to"]
    if to not in kinds:
        raise NotImplementedError(f"to type {to}")
    kind = kinds[to]

    def step(x: Tensor, *, floating: Any = None) -> Tensor:
        return x.to(kind or floating or torch.float32)

    return step


# -- shapes ----------------------------------------------------------------------------------------------------------


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
        return x.reshape(math.prod(x.shape[:at]), -1)

    return step


@operator("Transpose")
def _transpose(node: Node) -> Step:
    order = node.attributes.get("perm")
    return lambda x: x.permute(order or list(range(x.dim()))[::-1])


def _axes(node: Node, given: Tensor | None) -> list[int] | None:
    return node.attributes.get("axes") if given is None else numbers(given)


@operator("Squeeze")
def _squeeze(node: Node) -> Step:
    def step(x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(node, axes)
        return x.squeeze() if along is None else x.squeeze(tuple(along))

    return step


@operator("Unsqueeze")
def _unsqueeze(node: Node) -> Step:
    def step(x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(node, axes) or []
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
        if lengths is None:
            return x.split(-(-x.shape[axis] // len(node.outputs)), dim=axis)
        return x.split(lengths, dim=axis)

    return step


@operator("Slice")
def _slice(node: Node) -> Step:
    given = node.attributes

    def step(x: Tensor, *bounds: Tensor | None) -> Tensor:
        read = dict(zip(("starts", "ends", "axes", "steps"), bounds, strict=False))
        limits: dict[str, list[int]] = {
            name: given.get(name) or [] if read.get(name) is None else numbers(read[name])
            for name in ("starts", "ends", "axes", "steps")
        }
        count = len(limits["starts"])
        axes, strides = limits["axes"] or range(count), limits["steps"] or [1] * count
        for axis, start, end, stride in zip(axes, limits["starts"], limits["ends"], strides, strict=True):
            x = _slice_axis(x, axis % x.dim(), start, end, stride)
        return x

    return step


def _slice_axis(x: Tensor, axis: int, start: int, end: int, stride: int) -> Tensor:
    size = x.shape[axis]
    if stride < 0:
        kept = list(range(size))[slice(start, None if end < -size else end, stride)]
        return x.index_select(axis, _torch().tensor(kept, dtype=_torch().int64, device=x.device))
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
        if along == 0 and x.dim() == 2:
            return _torch().nn.functional.embedding(indices.to(x.device), x)
        flat = indices.reshape(-1).to(x.device)
        flat = _torch().where(flat < 0, flat + x.shape[along], flat)
        return x.index_select(along, flat).reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))

    return step


@operator("Range")
def _range(_node: Node) -> Step:
    return lambda start, end, step: _torch().arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Step:
    value = node.attributes.get("value")

    def step(shape: Tensor) -> Tensor:
        torch = _torch()
        fill = torch.zeros(1) if value is None else torch.from_numpy(value.copy())
        return torch.full(numbers(shape), fill.item(), dtype=fill.dtype)

    return step


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


# -- reductions and products -----------------------------------------------------------------------------------------


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(node: Node) -> Step:
    torch, keep = _torch(), bool(node.attributes.get("keepdims", 1))
    compute = {
        "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
        "ReduceL2": torch.linalg.vector_norm,
    }[node.op]  # fmt: skip

    def step(x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(node, axes)
        if not along and node.attributes.get("noop_with_empty_axes"):
            return x
        return compute(x, dim=tuple(along or range(x.dim())), keepdim=keep)

    return step


@operator("ArgMax")
def _argmax(node: Node) -> Step:
    axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
    return lambda x: x.argmax(dim=axis, keepdim=keep)


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Step:
    functional = _torch().nn.functional
    compute = functional.softmax if node.op == "Softmax" else functional.log_softmax
    if node.opset >= 13:
        return lambda x: compute(x, dim=node.attributes.get("axis", -1))

    def over_the_rest(x: Tensor) -> Tensor:
        axis = node.attributes.get("axis", 1) % x.dim()
        return compute(x.reshape(math.prod(x.shape[:axis]), -1), dim=-1).reshape(x.shape)

    return over_the_rest


@operator("Gemm")
def _gemm(node: Node) -> Step:
    given = node.attributes
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)

    def step(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.T if given.get("transA") else a) @ (b.T if given.get("transB") else b)
        product = product if alpha == 1 else product * alpha
        return product if c is None else product + (c if beta == 1 else c * beta)

    return step


@operator("LayerNormalization")
def _layer_norm(node: Node) -> Step:
    functional, epsilon = _torch().nn.functional, node.attributes.get("epsilon", 1e-5)
    axis = node.attributes.get("axis", -1)
    if len(node.outputs) > 1:
        raise NotImplementedError("its second and third outputs")

    def step(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, x.shape[axis % x.dim() :], scale, bias, epsilon)

    return step


@operator("BatchNormalization")
def _batch_norm(node: Node) -> Step:
    functional, epsilon = _torch().nn.functional, node.attributes.get("epsilon", 1e-5)

    def step(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)

    return step


# -- quantized -------------------------------------------------------------------------------------------------------


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale or zero point for each channel, in a shape that broadcasts."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[axis % x.dim()] = -1
    return parameter.reshape(shape)


@operator("QuantizeLinear")
def _quantize(node: Node) -> Step:
    axis = node.attributes.get("axis", 1)

    def step(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        torch = _torch()
        kind = torch.uint8 if zero is None else zero.dtype
        limits = torch.iinfo(kind)
        steps = torch.round(x.float() / _along(scale, x, axis).float())
        if zero is not None:
            steps = steps + _along(zero, x, axis).float()
        return steps.clamp(limits.min, limits.max).to(kind)

    return step


@operator("DequantizeLinear")
def _dequantize(node: Node) -> Step:
    axis = node.attributes.get("axis", 1)

    def step(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        values = x.to(scale.dtype)
        if zero is not None:
            values = values - _along(zero, x, axis).to(scale.dtype)
        return values * _along(scale, x, axis)

    return step
