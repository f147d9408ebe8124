"""Groups of nodes that PyTorch, or a GEMM's epilogue, does in one step.

Each rewriter looks at one node and returns whether it changed the graph. A group is replaced only if nothing else
reads what is computed inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from trtsparse.engines.cusparselt.chains import chain_products
from trtsparse.engines.cusparselt.folding import fold_constants, simplify
from trtsparse.engines.cusparselt.graph import PRODUCTS, Graph, Node
from trtsparse.engines.cusparselt.merging import merge_products
from trtsparse.engines.cusparselt.quantized import quantize_products
from trtsparse.engines.cusparselt.ranks import least_ranks

__all__ = ["fuse"]


_ROUNDED = 1e-3  # how far from the square root of 2 exporters, and 16-bit types, are


class _Uses:
    """Who computes and who reads each value of a graph, as it was when this was made; and how many dims it has.

    A constant with more dims than the value beside it gives them to the result, unlike what a group is replaced by.
    """

    def __init__(self, graph: Graph, ranks: Mapping[str, int]) -> None:
        self.graph, self.ranks = graph, ranks
        self.producer = graph.producers()
        self.readers = graph.readers()
        self.nodes = {id(node) for node in graph.nodes}
        self._outputs = set(graph.outputs)

    def only_reader(self, value: str, op: str | None = None) -> Node | None:
        """The one node that reads a value; None where there are more, or where it is an output."""
        readers = self.readers_inside(value)
        return readers[0] if len(readers) == 1 and op in (None, readers[0].op) else None

    def readers_inside(self, value: str) -> list[Node]:
        """All that read a value; nothing where it is an output."""
        return [] if value in self._outputs else self.readers.get(value, [])

    def made_by(self, value: str, op: str) -> Node | None:
        """The node that computes a value, if it is of this kind."""
        node = self.producer.get(value)
        return node if node is not None and node.op == op else None

    def made_inside(self, value: str, op: str) -> Node | None:
        """The same for a value that only one node reads."""
        return self.made_by(value, op) if self.only_reader(value) is not None else None


def fuse(graph: Graph) -> Graph:
    """Rewrite a graph in place, as it was read from a model; returns it."""
    simplify(graph)
    fold_constants(graph)
    ranks = least_ranks(graph)
    quantize_products(graph)
    fold_constants(graph)  # what was dequantized meanwhile
    _fold_batch_norm(_Uses(graph, ranks))
    for rewrite in (_gelu, _silu, _layer_norm, _rms_norm, _attention, _linear, _pointwise, _bias, _epilogue, _sum):
        _everywhere(graph, ranks, rewrite)
    merge_products(graph)
    chain_products(graph)
    graph.prune()
    return graph


def _everywhere(graph: Graph, ranks: Mapping[str, int], rewrite: Callable[[_Uses, Node], bool]) -> None:
    uses = _Uses(graph, ranks)
    for node in list(graph.nodes):
        if id(node) in uses.nodes and rewrite(uses, node):
            uses = _Uses(graph, ranks)


def _other(node: Node, value: str) -> str:
    """The other operand of two."""
    return node.inputs[1] if node.inputs[0] == value else node.inputs[0]


def _number_beside(uses: _Uses, node: Node, value: str) -> float | None:
    """The other operand of two, if it is a constant number that gives no dims to the result."""
    other = _other(node, value)
    constant = uses.graph.constants.get(other)
    fits = constant is not None and constant.ndim <= uses.ranks.get(value, 0)
    return uses.graph.scalar(other) if fits else None


def _is_beside(uses: _Uses, node: Node, value: str, number: float, tolerance: float = 0.0) -> bool:
    found = _number_beside(uses, node, value)
    return found is not None and math.isclose(found, number, rel_tol=tolerance)


def _scaled(uses: _Uses, value: str, factor: float) -> tuple[str, Node] | None:
    """What was multiplied by a number, or divided by its inverse, to give a value that nothing else reads."""
    for op, number in (("Mul", factor), ("Div", 1 / factor)):
        node = uses.made_inside(value, op)
        if node is None:
            continue
        for x in node.inputs if op == "Mul" else node.inputs[:1]:
            if _is_beside(uses, node, x, number, _ROUNDED):
                return x, node
    return None


# -- activations -----------------------------------------------------------------------------------------------------


def _gelu(uses: _Uses, erf: Node) -> bool:
    """0.5 x (1 + erf(x / sqrt 2)), multiplied in any order."""
    if erf.op != "Erf":
        return False
    inside = _scaled(uses, erf.inputs[0], math.sqrt(0.5))
    plus = uses.only_reader(erf.outputs[0], "Add")
    if inside is None or plus is None or not _is_beside(uses, plus, erf.outputs[0], 1.0):
        return False
    x, scale = inside
    gone, value, half = [erf, plus, scale], plus.outputs[0], False
    seen_x = False
    for _ in range(2):
        product = uses.only_reader(value, "Mul")
        if product is None:
            break
        other = _other(product, value)
        halved = _scaled(uses, other, 0.5)
        if other == x and not seen_x:
            seen_x = True
        elif _is_beside(uses, product, value, 0.5) and not half:
            half = True
        elif halved is not None and halved[0] == x and not (seen_x or half):
            seen_x = half = True
            gone.append(halved[1])
        else:
            break
        gone.append(product)
        value = product.outputs[0]
        if seen_x and half:
            uses.graph.replace(gone, Node("Gelu", product.name, [x], [value]))
            return True
    return False


def _silu(uses: _Uses, sigmoid: Node) -> bool:
    if sigmoid.op != "Sigmoid":
        return False
    product = uses.only_reader(sigmoid.outputs[0], "Mul")
    if product is None or _other(product, sigmoid.outputs[0]) != sigmoid.inputs[0]:
        return False
    uses.graph.replace([sigmoid, product], Node("Silu", product.name, [sigmoid.inputs[0]], product.outputs))
    return True


# -- normalisations --------------------------------------------------------------------------------------------------


def _is_last_axis(uses: _Uses, mean: Node) -> bool:
    axes = mean.attributes.get("axes")
    if len(mean.inputs) > 1 and mean.inputs[1] in uses.graph.constants:
        axes = uses.graph.constants[mean.inputs[1]].reshape(-1).tolist()
    return axes is not None and list(axes) == [-1] and mean.attributes.get("keepdims", 1) == 1


def _root_of_mean_square(uses: _Uses, square: Node) -> tuple[list[Node], str, float] | None:
    """sqrt(mean(x ** 2) + epsilon): the nodes, the value, epsilon."""
    if square.op != "Pow" or not _is_beside(uses, square, square.inputs[0], 2.0):
        return None
    mean = uses.only_reader(square.outputs[0], "ReduceMean")
    plus = mean and uses.only_reader(mean.outputs[0], "Add")
    root = plus and uses.only_reader(plus.outputs[0], "Sqrt")
    if mean is None or plus is None or root is None or not _is_last_axis(uses, mean):
        return None
    epsilon = _number_beside(uses, plus, mean.outputs[0])
    return None if epsilon is None else ([square, mean, plus, root], root.outputs[0], epsilon)


def _affine(uses: _Uses, value: str, op: str) -> tuple[Node, str] | None:
    """A product with, or sum of, a constant vector along the last axis."""
    node = uses.only_reader(value, op)
    if node is None:
        return None
    constant = uses.graph.constants.get(_other(node, value))
    if constant is None or constant.size == 1 or constant.shape != _along_the_last(uses, value, constant):
        return None
    return node, _other(node, value)


def _along_the_last(uses: _Uses, value: str, constant: np.ndarray) -> tuple[int, ...]:
    """The shape of a constant with a number for each index of a value's last axis, with as many dims as it has."""
    return (*[1] * (min(constant.ndim, max(uses.ranks.get(value, 0), 1)) - 1), constant.size)


def _layer_norm(uses: _Uses, square: Node) -> bool:
    """(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon) * scale + bias, written out."""
    found = _root_of_mean_square(uses, square)
    if found is None:
        return False
    gone, root, epsilon = found
    centred = uses.made_by(square.inputs[0], "Sub")
    mean = centred and uses.made_by(centred.inputs[1], "ReduceMean")
    if centred is None or mean is None or mean.inputs[0] != centred.inputs[0] or not _is_last_axis(uses, mean):
        return False
    quotient = uses.only_reader(root, "Div")
    if quotient is None or quotient.inputs[0] != centred.outputs[0]:
        return False
    if len(uses.readers_inside(centred.outputs[0])) != 2 or uses.only_reader(mean.outputs[0]) is None:
        return False
    scaled = _affine(uses, quotient.outputs[0], "Mul")
    shifted = scaled and _affine(uses, scaled[0].outputs[0], "Add")
    if scaled is None or shifted is None:
        return False
    inputs = [centred.inputs[0], _flat(uses.graph, scaled[1]), _flat(uses.graph, shifted[1])]
    new = Node("LayerNormalization", shifted[0].name, inputs, shifted[0].outputs, {"axis": -1, "epsilon": epsilon})
    uses.graph.replace([*gone, mean, centred, quotient, scaled[0], shifted[0]], new)
    return True


def _rms_norm(uses: _Uses, square: Node) -> bool:
    """Find x / sqrt(mean(x ** 2) + epsilon) * scale, written out."""
    found = _root_of_mean_square(uses, square)
    if found is None:
        return False
    gone, root, epsilon = found
    quotient = uses.only_reader(root, "Div")
    if quotient is None or quotient.inputs[0] != square.inputs[0]:
        return False
    scaled = _affine(uses, quotient.outputs[0], "Mul")
    if scaled is None:
        return False
    inputs = [square.inputs[0], _flat(uses.graph, scaled[1])]
    new = Node("RmsNorm", scaled[0].name, inputs, scaled[0].outputs, {"epsilon": epsilon})
    uses.graph.replace([*gone, quotient, scaled[0]], new)
    return True


def _flat(graph: Graph, value: str) -> str:
    """A constant as a vector, under a name of its own."""
    constant = graph.constants[value]
    if constant.ndim == 1:
        return value
    name = f"{value} (flat)"
    graph.constants[name] = constant.reshape(-1)
    return name


# -- attention -------------------------------------------------------------------------------------------------------


def _attention(uses: _Uses, softmax: Node) -> bool:
    """softmax(q k^T * scale + mask) v; along axis 3 as exporters write it for four dims, and there may be others."""
    axis = softmax.attributes.get("axis", -1 if softmax.opset >= 13 else 1)
    if softmax.op != "Softmax" or axis not in (-1, 3):
        return False
    product = uses.only_reader(softmax.outputs[0], "MatMul")
    if product is None or product.inputs[0] != softmax.outputs[0]:
        return False
    gone, value, mask, scale = [softmax, product], softmax.inputs[0], "", 1.0
    plus = uses.made_inside(value, "Add")
    if plus is not None:
        left = any(uses.made_inside(plus.inputs[0], op) for op in ("MatMul", "Div", "Mul"))
        value, mask = (plus.inputs[0], plus.inputs[1]) if left else (plus.inputs[1], plus.inputs[0])
        gone.append(plus)
    for op in ("Div", "Mul"):
        scaling = uses.made_inside(value, op)
        factor = scaling and _number_beside(uses, scaling, scaling.inputs[0])
        if scaling is not None and factor:
            value, scale = scaling.inputs[0], factor if op == "Mul" else 1 / factor
            gone.append(scaling)
            break
    scores = uses.made_inside(value, "MatMul")
    constants = uses.graph.constants
    if scores is None or any(name in constants for name in (*scores.inputs, product.inputs[1])):
        return False
    if mask in constants and constants[mask].ndim < 2:  # PyTorch wants a matrix at least
        return False
    gone.append(scores)
    inputs = [*scores.inputs, product.inputs[1], *([mask] if mask else [])]
    given = {"scale": scale, "axis": axis}
    uses.graph.replace(gone, Node("Attention", product.name, inputs, product.outputs, given, softmax.opset))
    return True


# -- products with weights -------------------------------------------------------------------------------------------


def _linear(uses: _Uses, node: Node) -> bool:
    """MatMul or Gemm with a constant weight: y = x W^T + b, with W of shape (N, K)."""
    graph = uses.graph
    weight = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op not in ("MatMul", "Gemm") or weight is None or weight.ndim != 2 or weight.dtype.kind in "iub":
        return False
    given, bias = node.attributes, ""
    transposed = bool(given.get("transB")) if node.op == "Gemm" else False
    if node.op == "Gemm":
        if given.get("transA") or given.get("alpha", 1.0) != 1.0:
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        rows = weight.shape[0 if transposed else 1]
        if bias and (given.get("beta", 1.0) != 1.0 or not _is_row(graph, bias, rows)):
            return False
    inputs = [node.inputs[0], node.inputs[1], *([_flat(graph, bias)] if bias else [])]
    graph.replace([node], Node("Linear", node.name, inputs, node.outputs, {"transposed": transposed, "act": ""}))
    return True


def _is_row(graph: Graph, value: str, size: int) -> bool:
    """Whether a value is a constant for each column of a matrix."""
    constant = graph.constants.get(value)
    return constant is not None and constant.shape in ((size,), (1, size))


def _pointwise(uses: _Uses, node: Node) -> bool:
    """A convolution with a 1x1 kernel, stride 1 and no pads is a product over the channels."""
    weight = uses.graph.constants.get(node.inputs[1]) if node.op == "Conv" else None
    if weight is None or weight.ndim != 4 or weight.shape[2:] != (1, 1):
        return False
    if any(bias not in uses.graph.constants for bias in node.inputs[2:]):
        return False
    given = node.attributes
    if given.get("group", 1) != 1 or any(given.get("pads") or ()) or any(s != 1 for s in given.get("strides") or ()):
        return False
    uses.graph.replace([node], Node("Linear", node.name, node.inputs, node.outputs, {"channels": True, "act": ""}))
    return True


def _bias(uses: _Uses, node: Node) -> bool:
    """The sum with a constant for each output channel after a product or convolution."""
    if node.op not in (*PRODUCTS, "Conv") or len(node.inputs) > 2:
        return False
    weight = uses.graph.constants.get(node.inputs[1])
    after = uses.only_reader(node.outputs[0], "Add")
    if weight is None or after is None:
        return False
    value = _other(after, node.outputs[0])
    constant = uses.graph.constants.get(value)
    if constant is None or not _is_bias(uses, node, weight.shape, constant):
        return False
    inputs = [*node.inputs, _flat(uses.graph, value)]
    uses.graph.replace([node, after], Node(node.op, node.name, inputs, after.outputs, node.attributes, node.opset))
    return True


def _is_bias(uses: _Uses, node: Node, weight: tuple[int, ...], constant: np.ndarray) -> bool:
    """Whether a constant has a number for each output channel, and no more dims than the result."""
    if node.op == "Conv" or node.attributes.get("channels"):
        channels = (weight[0], *[1] * (len(weight) - 2))
        return constant.shape in (channels, (1, *channels))
    rows = weight[0 if node.attributes["transposed"] else 1]
    return constant.size == rows and constant.shape == _along_the_last(uses, node.outputs[0], constant)


def _epilogue(uses: _Uses, node: Node) -> bool:
    """An activation after a product."""
    if node.op not in PRODUCTS or node.attributes["act"]:
        return False
    for op, act in (("Relu", "relu"), ("Gelu", "gelu")):
        after = uses.only_reader(node.outputs[0], op)
        if after is not None and after.attributes.get("approximate", "none") == "none":
            attributes = {**node.attributes, "act": act}
            uses.graph.replace([node, after], Node(node.op, node.name, node.inputs, after.outputs, attributes))
            return True
    return False


def _sum(uses: _Uses, node: Node) -> bool:
    """The sum with a computed value and a ReLU after a product, as in residual networks; the value is its last input.

    Without the ReLU a norm follows in most networks, and compiled code sums in the pass of the norm.
    """
    if node.op != "Linear" or node.attributes["act"]:
        return False
    plus = uses.only_reader(node.outputs[0], "Add")
    after = uses.only_reader(plus.outputs[0], "Relu") if plus is not None else None
    if plus is None or after is None:
        return False
    value = _other(plus, node.outputs[0])
    if value in uses.graph.constants or value == node.outputs[0]:
        return False
    inputs = [*node.inputs[:2], node.inputs[2] if len(node.inputs) > 2 else "", value]
    new = Node("Linear", node.name, inputs, after.outputs, {**node.attributes, "act": "relu"}, node.opset)
    uses.graph.replace([node, plus, after], new)
    return True


def _fold_batch_norm(uses: _Uses) -> None:
    """Scale a convolution's output channels instead of normalising after it; zeros stay zeros."""
    graph = uses.graph
    for conv in [node for node in graph.nodes if node.op == "Conv"]:
        after = uses.only_reader(conv.outputs[0], "BatchNormalization")
        names = [*conv.inputs[1:], *(after.inputs[1:] if after is not None else [])]
        if after is None or not all(name in graph.constants for name in names):
            continue
        if after.attributes.get("training_mode") or len(after.outputs) > 1:
            continue
        scale, shift, mean, variance = (graph.constants[name].astype(np.float64) for name in after.inputs[1:5])
        factor = scale / np.sqrt(variance + after.attributes.get("epsilon", 1e-5))
        weight = graph.constants[conv.inputs[1]]
        bias = graph.constants[conv.inputs[2]].astype(np.float64) if len(conv.inputs) > 2 else 0.0
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)).astype(weight.dtype)
        kernel, offset = f"{conv.inputs[1]} ({after.outputs[0]})", f"{after.outputs[0]} (bias)"
        graph.constants[kernel] = folded.astype(weight.dtype)
        graph.constants[offset] = ((bias - mean) * factor + shift).astype(weight.dtype)
        new = Node("Conv", conv.name, [conv.inputs[0], kernel, offset], after.outputs, conv.attributes, conv.opset)
        graph.replace([conv, after], new)
