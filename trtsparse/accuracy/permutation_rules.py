"""What each operator means for the order of channels: which axes it unites, and which it pins.

A rule is right when its operator is equivariant: with all united axes permuted alike, in inputs and constants, the
outputs come out permuted alike. Sums may be added up in another order, nothing else differs. An operator without a
rule, or of a shape that is not known, pins all that it touches.
"""

from __future__ import annotations

from trtsparse.accuracy.permutation_axes import Axis, concat, pin, product
from trtsparse.accuracy.permutation_shapes import (
    concat_rule,
    gather_rule,
    pad_rule,
    reshape_rule,
    resize_rule,
    sizes_rule,
    slice_rule,
    split_rule,
    squeeze_rule,
    transpose_rule,
)
from trtsparse.accuracy.permutation_step import Rule, Step

__all__ = ["apply_rule"]

_POINTWISE = {
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
_MICROSOFT_POINTWISE = {"BiasGelu", "FastGelu", "Gelu", "QuickGelu"}
_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
_MICROSOFT = "com.microsoft"
_MICROSOFT_RULES = {
    "DequantizeLinear", "QuantizeLinear", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}  # fmt: skip


def apply_rule(step: Step) -> None:
    """Unite and pin the axes of a node's values."""
    rule, data = _rule(step)
    unknown = any(axes is None for axes in (*step.inputs[:data], *step.outputs))
    why = "is not followed" if rule is None else "has a value of unknown rank" if unknown else ""
    if rule is not None and not why:
        for axes in step.inputs[data:]:
            step.pin(axes or (), "reads it as numbers")
        try:
            why = rule(step)
        except (ArithmeticError, IndexError, ValueError):  # axes that the node's values do not have
            why = "has values of ranks that do not fit"
    if why:
        for axes in (*step.inputs, *step.outputs):
            step.pin(axes or (), why)


def _rule(step: Step) -> tuple[Rule | None, int]:
    """The rule, and how many of the first inputs it takes; later ones are shapes, axes and the like."""
    op, domain = step.node.op_type, step.node.domain
    every = len(step.inputs)
    if domain == _MICROSOFT:
        if op in _MICROSOFT_POINTWISE:
            return _pointwise, every
        return (_RULES[op][0], every) if op in _MICROSOFT_RULES else (None, 0)
    if domain not in ("", "ai.onnx"):
        return None, 0
    if op in _POINTWISE:
        return _pointwise, every
    if op in _REDUCTIONS:
        return _reduce, 1
    rule, data = _RULES.get(op, (None, 0))
    return rule, data or every


def _pointwise(step: Step) -> str:
    if step.attribute("broadcast", 0):
        return "broadcasts in the way of opsets before 7"
    for output in step.outputs:
        for axes in step.inputs:
            step.align(axes or (), output or ())
    return ""


def _first_pointwise(step: Step) -> str:
    """Only the first input's elements go to the output, unless Dropout drops some."""
    if step.given(2):
        return "may be in training mode"
    for output in step.outputs:
        step.align(step.input(0), output or ())
    return ""


def _layer_norm(step: Step) -> str:
    """The mean over channels does not depend on their order; gains and biases are permuted along."""
    x, output, *statistics = (*step.inputs[:1], *step.outputs)
    for axes in step.inputs:
        step.align(axes or (), output or ())
    for axes in statistics:
        step.align(axes or (), x or ())
    return ""


def _skip_layer_norm(step: Step) -> str:
    for i, output in enumerate(step.outputs):
        for axes in step.inputs if i in (0, 3) else ():
            step.align(axes or (), output or ())
    for output in step.outputs[1:3]:
        step.pin(output or (), "gives statistics")
    return ""


def _channel_norm(step: Step) -> str:
    """BatchNormalization and InstanceNormalization: one number per channel from every further input."""
    if len([name for name in step.node.output if name]) > 1 or step.attribute("training_mode", 0):
        return "is in training mode"
    x, output = step.input(0), step.output()
    step.carry(x, output)
    for vector in step.inputs[1:]:
        step.align(vector or (), (x[1],))
    return ""


def _group_norm(step: Step) -> str:
    """Channels may change places within their group."""
    x, output = step.input(0), step.output()
    step.carry(x, output)
    groups = step.attribute("num_groups", 1)
    if x[1] is None:
        return "has a dim whose size is not known"
    step.link(x[1], concat([Axis(x[1].size // groups) for _ in range(groups)]))
    for vector in step.inputs[1:]:
        (axis,) = vector or ()
        if axis is not None and axis.size == x[1].size:
            step.link(axis, x[1])
        else:
            step.pin([axis], "has a number for every group")
    return ""


def _softmax(step: Step) -> str:
    x, output = step.input(0), step.output()
    step.carry(x, output)
    axis = step.attribute("axis", -1 if step.opset >= 13 else 1) % len(x)
    over = x[axis : axis + 1] if step.opset >= 13 else x[axis:]
    step.pin(over, "is over this axis")
    return ""


def _conv(step: Step) -> str:
    x, weight, bias = step.input(0), step.input(1), step.input(2)
    output = step.output()
    for axes in (x, weight, output):
        step.pin(axes[2:], "slides over this axis")
    step.carry(x[:1], output[:1])
    step.carry(weight[:1], output[1:2])
    step.align(bias, output[1:2])
    groups = step.attribute("group", 1)
    if groups == 1:
        step.link(x[1], weight[1])
    elif weight[0] is None or weight[1] is None or x[1] is None or x[1].size != groups * weight[1].size:
        return "has groups of a size that is not known"
    elif weight[1].size == 1:  # every input channel has outputs of its own
        step.link(weight[0], product([x[1], Axis(weight[0].size // groups)]))
    else:  # every input channel of a group is read alike; the outputs of a group may change places among themselves
        outer = Axis(groups)
        pin(outer, f"{step.label} has groups")
        step.link(x[1], product([outer, weight[1]]))
        step.link(weight[0], concat([Axis(weight[0].size // groups) for _ in range(groups)]))
    return ""


def _conv_transpose(step: Step) -> str:
    x, weight, output = step.input(0), step.input(1), step.output()
    if step.attribute("group", 1) != 1:
        return "has groups"
    for axes in (x, weight, output):
        step.pin(axes[2:], "slides over this axis")
    step.carry(x[:1], output[:1])
    step.link(x[1], weight[0])
    step.carry(weight[1:2], output[1:2])
    step.align(step.input(2), output[1:2])
    return ""


def _gemm(step: Step) -> str:
    a, b, output = step.input(0), step.input(1), step.output()
    a = a[::-1] if step.attribute("transA", 0) else a
    b = b[::-1] if step.attribute("transB", 0) else b
    (rows, inner), (inner_too, columns) = a, b
    step.carry((inner, rows, columns), (inner_too, *output))
    step.align(step.input(2), output)
    return ""


def _matmul(step: Step) -> str:
    a, b, output = step.input(0), step.input(1), step.output()
    step.carry(a[-1:], b[-2:-1] if len(b) > 1 else b)
    matrix = (*(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))
    batch = output[: len(output) - len(matrix)]
    step.carry(matrix, output[len(batch) :])
    for axes in (a[:-2], b[:-2]):
        step.align(axes, batch)
    return ""


def _pool(step: Step) -> str:
    """Pooling over space; every channel by itself."""
    if len([name for name in step.node.output if name]) > 1:
        return "gives indices that depend on the order"
    x, output = step.input(0), step.output()
    step.carry(x[:2], output[:2])
    for axes in (x[2:], output[2:]):
        step.pin(axes, "slides over this axis")
    return ""


def _reduce(step: Step) -> str:
    """Sums and the like do not depend on the order of what they are over; other axes stay."""
    x, output = step.input(0), step.output()
    axes = step.numbers(1, "axes")
    if axes is None and step.given(1):
        return "is over axes that are not known"
    if not axes and step.attribute("noop_with_empty_axes", 0):
        step.carry(x, output)
        return ""
    over = {int(axis) % len(x) for axis in (axes or range(len(x)))}
    kept = [axis for i, axis in enumerate(x) if i not in over]
    results = output
    if step.attribute("keepdims", 1):
        results = tuple(axis for i, axis in enumerate(output) if i not in over)
    step.carry(tuple(kept), results)
    return ""


def _quantize(step: Step) -> str:
    """Scales and zero points per channel are permuted along with the channels."""
    x, output = step.input(0), step.output()
    step.carry(x, output)
    if step.attribute("block_size", 0) or any(len(axes or ()) > 1 for axes in step.inputs[1:]):
        return "has scales for blocks"
    for vector in step.inputs[1:]:
        if vector and vector[0] is not None and vector[0].size > 1:
            step.link(vector[0], x[step.attribute("axis", 1)])
    return ""


# the rule, and how many of the inputs are data (0: all)
_RULES: dict[str, tuple[Rule, int]] = {
    "AveragePool": (_pool, 1), "BatchNormalization": (_channel_norm, 0), "CastLike": (_first_pointwise, 0),
    "Concat": (concat_rule, 0), "Conv": (_conv, 0), "ConvTranspose": (_conv_transpose, 0),
    "DequantizeLinear": (_quantize, 0), "Dropout": (_first_pointwise, 0), "Expand": (_first_pointwise, 1),
    "Flatten": (reshape_rule, 1), "Gather": (gather_rule, 0), "Gemm": (_gemm, 0), "GlobalAveragePool": (_pool, 1),
    "GlobalLpPool": (_pool, 1), "GlobalMaxPool": (_pool, 1), "GroupNormalization": (_group_norm, 0),
    "Hardmax": (_softmax, 1), "InstanceNormalization": (_channel_norm, 0), "LayerNormalization": (_layer_norm, 0),
    "LogSoftmax": (_softmax, 1), "LpPool": (_pool, 1), "MatMul": (_matmul, 0), "MaxPool": (_pool, 1),
    "Pad": (pad_rule, 1), "QuantizeLinear": (_quantize, 0), "RMSNormalization": (_layer_norm, 0),
    "Reshape": (reshape_rule, 1), "Resize": (resize_rule, 1), "Shape": (sizes_rule, 1),
    "SimplifiedLayerNormalization": (_layer_norm, 0), "Size": (sizes_rule, 1),
    "SkipLayerNormalization": (_skip_layer_norm, 0), "SkipSimplifiedLayerNormalization": (_skip_layer_norm, 0),
    "Slice": (slice_rule, 1), "Softmax": (_softmax, 1), "Split": (split_rule, 1), "Squeeze": (squeeze_rule, 1),
    "Transpose": (transpose_rule, 1), "Unsqueeze": (squeeze_rule, 1), "Upsample": (resize_rule, 1),
}  # fmt: skip
