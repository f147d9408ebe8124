"""Which layers could run sparse, and which do: the double's own reading, written apart from trtsparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.doubles.importer import constant
from tests.doubles.network import layer_names

FUSED = ("Add", "Relu", "Clip", "Sigmoid", "HardSwish", "LeakyRelu")
"""What a convolution or matrix product takes along, if nothing else reads its output."""
CHOSEN_FROM = 64
"""Output channels from which the sparse kernel is the faster one."""
HALF = {"HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


@dataclass(frozen=True)
class Layer:
    """One layer of the built engine."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compute: str = ""
    compliant: bool = False
    eligible: bool = False
    chosen: bool = False


def two_of_four(weight: np.ndarray, axis: int) -> bool:
    """Whether each run of four along an axis has at most two non-zeros."""
    rows = np.moveaxis(np.asarray(weight), axis, -1)
    if rows.ndim == 0 or rows.shape[-1] % 4 or not rows.size:
        return False
    groups = rows.reshape(-1, 4).astype(np.float32)
    return bool(((groups != 0).sum(axis=1) <= 2).all())


class Graph:
    """The lookups that fusing needs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.names = dict(zip(map(id, self.nodes), layer_names(self.nodes), strict=True))
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.explicit = any(node.op_type == "DequantizeLinear" for node in self.nodes)

    def weight(self, name: str) -> tuple[np.ndarray | None, list[Any]]:
        """The constant behind a tensor, and the quantizers and dequantizers on the way to it."""
        node, passed = self.producer.get(name), []
        while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            passed.insert(0, node)
            name = node.input[0]
            node = self.producer.get(name)
        return constant(self.model, name), passed

    def quantized(self, name: str) -> bool:
        """Whether a tensor is only read to be quantized."""
        readers = self.readers.get(name, [])
        return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)

    def tail(self, node: Any) -> list[Any]:
        """Nodes that fuse behind one."""
        fused: list[Any] = []
        while node.output[0] not in self.outputs:
            readers = self.readers.get(node.output[0], [])
            if len(readers) != 1 or readers[0].op_type not in FUSED:
                break
            node = readers[0]
            fused.append(node)
        return fused


@dataclass(frozen=True)
class Site:
    """A candidate: its weight, reduction axis, output channels, the (de)quantizers before and what fuses behind."""

    weight: np.ndarray
    axis: int
    channels: int
    passed: tuple[Any, ...]
    tail: tuple[Any, ...]


def _site(graph: Graph, node: Any) -> Site | None:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    sides = {"Conv": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}.get(node.op_type, ())
    side = next((i for i in sides if graph.weight(node.input[i])[0] is not None), None)
    if side is None or attributes.get("group", 1) != 1:
        return None
    weight, passed = graph.weight(node.input[side])
    if weight is None or weight.ndim < 2:
        return None
    if node.op_type == "Conv":
        axis, out = 1, 0
    else:
        transposed = bool(attributes.get(("transA", "transB")[side], 0))
        axis, out = (-1, -2) if transposed == bool(side) else (-2, -1)
    return Site(weight, axis, weight.shape[out], tuple(passed), tuple(graph.tail(node)))


def _compute_type(site: Site, flags: set[str], *, typed: bool, explicit: bool) -> str:
    """Data type that the layer computes in: the graph's if typed, else what the flags allow.

    Where a network has Q/DQ layers, the flag INT8 allows INT8 to those alone.
    """
    if site.passed:
        return "FP8" if "float8" in site.weight.dtype.name else "INT8"
    if typed:
        return {"float16": "HALF", "bfloat16": "BF16"}.get(site.weight.dtype.name, "FLOAT")
    allowed = (("FP16", "HALF"), ("BF16", "BF16"), ("INT8", "INT8"))
    given = flags - {"INT8"} if explicit else flags
    return next((kind for flag, kind in allowed if flag in given), "FLOAT")


def _fused(graph: Graph, node: Any, site: Site, flags: set[str], *, typed: bool) -> Layer:
    compute = _compute_type(site, flags, typed=typed, explicit=graph.explicit)
    compliant = two_of_four(site.weight, site.axis)
    eligible = compliant and compute in HALF and "SPARSE_WEIGHTS" in flags
    last = site.tail[-1] if site.tail else node
    fits = site.channels >= CHOSEN_FROM and (not site.passed or graph.quantized(last.output[0]))
    names = [graph.names[id(n)] for n in [node, *site.tail]]
    quantizers = [graph.names[id(n)] for n in site.passed if n.op_type == "QuantizeLinear"]
    if site.passed:
        names = [site.passed[0].input[0], *quantizers, *names]
    return Layer(
        " + ".join(names), "conv" if node.op_type == "Conv" else "gemm", tuple(node.input[:1]), tuple(last.output),
        compute, compliant=compliant, eligible=eligible, chosen=eligible and fits,
    )  # fmt: skip


def engine_layers(model: onnx.ModelProto, flags: set[str], *, typed: bool) -> list[Layer]:
    """The fused layers of a build.

    A quantized layer runs sparse only where its output is quantized too, as seen on real builds.

    Args:
        model: What is built.
        flags: Names of the builder flags that are set.
        typed: The network is strongly typed.
    """
    graph = Graph(model)
    sites = {id(node): site for node in graph.nodes if (site := _site(graph, node)) is not None}
    taken = {id(node) for site in sites.values() for node in (*site.passed, *site.tail)}
    layers = []
    for node in graph.nodes:
        if id(node) in sites:
            layers.append(_fused(graph, node, sites[id(node)], flags, typed=typed))
        elif id(node) not in taken and node.op_type != "Constant":
            layers.append(Layer(graph.names[id(node)], node.op_type, tuple(node.input), tuple(node.output)))
    return layers


def tactic(layer: Layer) -> str:
    """Kernel name of a built layer."""
    if not layer.compute:
        return "0x0000000000000000"
    kind = HALF.get(layer.compute, "f32f32")
    sparse = "sparse_" if layer.chosen else ""
    verb = "fprop_" if layer.kind == "conv" else ""
    return f"sm80_xmma_{verb}{sparse}{layer.kind}_{kind}_tilesize128x128x64_stage3_tensor16x8x32"


def log_lines(layers: list[Layer], generation: int) -> list[str]:
    """The two lines about sparsity as a generation words them."""
    eligible = [layer.name for layer in layers if layer.eligible]
    chosen = [layer.name for layer in layers if layer.chosen]
    if generation == 8:
        return [
            f"(Sparsity) Layers eligible for sparse math: {', '.join(eligible)}",
            f"(Sparsity) TRT inference plan picked sparse implementation for layers: {', '.join(chosen)}",
        ]
    found = f"(Sparsity) Found {len(eligible)} layer(s) eligible to use sparse tactics"
    chose = f"(Sparsity) Chose {len(chosen)} layer(s) using sparse tactics"
    return [
        found + (f": {', '.join(eligible)}" if eligible else ""),
        chose + (f": {', '.join(chosen)}" if chosen else ""),
    ]
