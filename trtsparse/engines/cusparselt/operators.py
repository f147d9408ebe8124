"""ONNX operators as PyTorch calls: one entry for each operator that the engine executes.

An entry takes a node and gives what executes it: a function of the inputs (None for one left out) that returns the
outputs in order. Values that describe shapes are integer tensors on the CPU, wherever the rest is computed: reading
them waits for nothing, and the same shapes always give the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node

__all__ = [
    "FAILURES",
    "OPERATORS",
    "Picker",
    "Step",
    "Tensor",
    "axes_of",
    "is_known",
    "numbers",
    "operator",
    "to_tensor",
]

Tensor = Any
Step = Callable[..., Any]
OPERATORS: dict[str, Callable[[Node], Step]] = {}
"""By name; `trtsparse.engines.cusparselt.shaping`, `.spatial`, `.resizing` and `.fused` add theirs."""
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, ArithmeticError)
"""What a step raises for values that it does not take."""


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


def axes_of(node: Node, given: Tensor | None) -> list[int] | None:
    """The axes in an input, or before some opset in an attribute; None for neither."""
    return node.attributes.get("axes") if given is None else numbers(given)


class Picker:
    """Takes values by their places along an axis, which no data decide.

    The places are on the device from when a shape is first executed, as nothing can be moved there while a graph is
    captured, and stay as long as the step: such graphs read them.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[tuple[int, ...], Any], Tensor] = {}

    def __call__(self, x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
        """The values at some places."""
        key = (tuple(places), x.device)
        if key not in self._places:
            self._places[key] = _torch().tensor(key[0], dtype=_torch().int64, device=x.device)
        return x.index_select(axis, self._places[key])


def is_known(array: np.ndarray) -> bool:
    """Whether PyTorch computes with values of an array's type."""
    return array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"


def to_tensor(array: np.ndarray, *, device: Any = "cpu", floating: Any = None) -> Tensor:
    """A contiguous copy in PyTorch, of bfloat16 too, which numpy knows by ml_dtypes only.

    Args:
        array: In any order; it need not be writable.
        device: Where the copy is, and is reordered; it is converted before, so that it takes no more memory there.
        floating: PyTorch's type that float32 values get, in which finite ones stay finite; None: as they are.
    """
    import torch

    if array.dtype.name == "bfloat16":
        return torch.tensor(array.view(np.int16)).to(device).view(torch.bfloat16).contiguous()
    kind = floating if array.dtype == np.float32 else None
    made = torch.tensor(array, dtype=kind)
    if kind is not None and bool(made.isinf().any()):  # what stands for minus infinity in masks is too large
        made = torch.where(torch.tensor(np.isinf(array)), made, made.clamp(*_limits(kind)))
    return made.to(device).contiguous()


def _limits(kind: Any) -> tuple[float, float]:
    most = float(_torch().finfo(kind).max)
    return -most, most


def together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two operands on one device: a constant on the CPU goes to where the other one is."""
    if a.device == b.device or a.dim() == 0 or b.dim() == 0:
        return a, b
    return (a.to(b.device), b) if a.device.type == "cpu" else (a, b.to(a.device))


# -- elementwise -----------------------------------------------------------------------------------------------------

_UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
    "Reciprocal": "reciprocal", "Neg": "neg", "Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Sin": "sin", "Cos": "cos", "Not": "logical_not", "Identity": None, "Sign": "sign",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Equal": "eq", "Less": "lt", "Greater": "gt",
    "LessOrEqual": "le", "GreaterOrEqual": "ge", "And": "logical_and", "Or": "logical_or", "MatMul": "matmul",
}  # fmt: skip


@operator(*_UNARY)
def _unary(node: Node) -> Step:
    name = _UNARY[node.op]
    return (lambda x: x) if name is None else getattr(_torch(), name)


@operator("Dropout")
def _dropout(node: Node) -> Step:
    if len(node.outputs) > 1:
        raise NotImplementedError("its mask")

    def step(x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
        if training is not None and bool(training):
            raise NotImplementedError("training_mode")
        return x

    return step


@operator(*_BINARY)
def _binary(node: Node) -> Step:
    compute = getattr(_torch(), _BINARY[node.op])
    return lambda a, b: compute(*together(a, b))


@operator("Pow")
def _pow(_node: Node) -> Step:
    def step(a: Tensor, b: Tensor) -> Tensor:
        a, b = together(a, b)
        return _torch().pow(a, b).to(a.dtype)

    return step


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
        return x if lowest is None and highest is None else x.clamp(lowest, highest)

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
        # where others are lowered, what is float32 was made from integers, see `lowering`
        lower = floating is not None and x.is_floating_point() and x.dtype != torch.float32
        return x.to(kind or (floating if lower else torch.float32))

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
        along = axes_of(node, axes)
        if not along and node.attributes.get("noop_with_empty_axes"):
            return x
        return compute(x, dim=tuple(along or range(x.dim())), keepdim=keep).to(x.dtype)

    return step


@operator("ArgMax")
def _argmax(node: Node) -> Step:
    axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
    if node.attributes.get("select_last_index"):
        raise NotImplementedError("the last of equal values")
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
        shape = x.shape[axis % x.dim() :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return functional.layer_norm(x, shape, scale, bias, epsilon)
        y = functional.layer_norm(x, shape, eps=epsilon) * scale
        return y if bias is None else y + bias

    return step


@operator("BatchNormalization")
def _batch_norm(node: Node) -> Step:
    functional, epsilon = _torch().nn.functional, node.attributes.get("epsilon", 1e-5)
    if len(node.outputs) > 1 or node.attributes.get("training_mode"):
        raise NotImplementedError("statistics of its own")

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
    torch, axis = _torch(), node.attributes.get("axis", 1)
    _refuse_blocks(node)
    kinds = {0: torch.uint8, 2: torch.uint8, 3: torch.int8}
    wanted = node.attributes.get("output_dtype", 0)
    has_zero = len(node.inputs) > 2 and bool(node.inputs[2])
    if not has_zero and wanted not in kinds:
        raise NotImplementedError(f"to type {wanted}")

    def step(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        kind = kinds[wanted] if zero is None else zero.dtype
        limits = torch.iinfo(kind)
        steps = torch.round(x.float() / _along(scale, x, axis).float())
        if zero is not None:
            steps = steps + _along(zero, x, axis).float()
        return steps.clamp(limits.min, limits.max).to(kind)

    return step


@operator("DequantizeLinear")
def _dequantize(node: Node) -> Step:
    axis = node.attributes.get("axis", 1)
    _refuse_blocks(node)
    if node.attributes.get("output_dtype"):
        raise NotImplementedError("a type of its result")

    def step(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        values = x if zero is None else x.int() - _along(zero, x, axis).int()
        return (values * _along(scale, x, axis).float()).to(scale.dtype)

    return step


def _refuse_blocks(node: Node) -> None:
    if node.attributes.get("block_size"):
        raise NotImplementedError("scales of blocks")
