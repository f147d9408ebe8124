"""From a model's weight sites to the matrix products that they are, for given input shapes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.files.shapes import check_shapes, input_dims, with_sizes
from trtsparse.sparsity.weights import WeightSite, find_sites
from trtsparse.tune.gemm import DTYPES, Gemm

__all__ = ["AUTO", "SiteGemm", "dynamic_inputs", "eligible_gemms", "int8_nodes", "site_gemm"]

AUTO = "auto"
"""int8 for products of two dequantized values, else what the weight is stored in, and fp16 for float32."""
_MOVING = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_STORED = {"float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8_e4m3"}


@dataclass(frozen=True)
class SiteGemm:
    """A weight site as a product.

    Attributes:
        node: The node's name.
        op: Its operator.
        tensor: The weight's name.
        gemm: The product.
        count: How many such products the node computes: more than one for a stack of weights.
        exact: The product reads and computes the same; a convolution over several pixels reads less than its ``x``.
    """

    node: str
    op: str
    tensor: str
    gemm: Gemm
    count: int = 1
    exact: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        gemm = self.gemm
        return {
            "node": self.node, "op": self.op, "tensor": self.tensor, "m": gemm.m, "n": gemm.n, "k": gemm.k,
            "dtype": gemm.dtype, "count": self.count, "exact": self.exact,
        }  # fmt: skip


def int8_nodes(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of products, as weight sites call them, whose operands are both dequantized: INT8 in TensorRT.

    A weight alone that is stored as INT8 saves memory; it is computed in floating point.
    """
    producers = {name: node for node in graph.node for name in node.output}

    def dequantized(name: str) -> bool:
        node = producers.get(name)
        while node is not None and node.op_type in _MOVING:
            node = producers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return frozenset(
        node.name or f"{node.op_type}_{position}"
        for position, node in enumerate(graph.node)
        if node.op_type in ("Conv", "Gemm", "MatMul") and all(dequantized(name) for name in node.input[:2])
    )


def site_gemm(site: WeightSite, dtype: str = AUTO, *, int8: Collection[str] = ()) -> SiteGemm | None:
    """The product of a site, or None where its multiply-accumulates or axes are unknown.

    A convolution is a product of as many rows as its output has pixels, with all weights of an output channel as the
    reduction. The number of rows is the multiply-accumulates for each parameter.

    Args:
        site: An eligible one.
        dtype: A type, or `AUTO`.
        int8: What `int8_nodes` found.

    Example:
        >>> conv = WeightSite("w", "conv", "Conv", (64, 16, 3, 3), 1, "float16", 9216, 9216 * 100, True, "",
        ...                   output_axis=0)
        >>> found = site_gemm(conv)
        >>> found.gemm.key, found.exact
        ('100x64x144 fp16->fp16', False)
    """
    if not site.macs or not site.parameters or site.axis < 0 or site.output_axis < 0:
        return None
    n = site.shape[site.output_axis]
    k = site.parameters // n if site.op == "Conv" else site.shape[site.axis]
    kernel = math.prod(site.shape[2:]) if site.op == "Conv" else 1
    return SiteGemm(
        node=site.node,
        op=site.op,
        tensor=site.tensor,
        gemm=Gemm(site.macs // site.parameters, n, k, _stored_type(site, int8) if dtype == AUTO else dtype),
        count=site.parameters // (n * k),
        exact=kernel == 1,
    )


def _stored_type(site: WeightSite, int8: Collection[str]) -> str:
    return "int8" if site.node in int8 else _STORED.get(site.dtype, "fp16")


def eligible_gemms(
    model: OnnxModel, *, shapes: Mapping[str, tuple[int, ...]] | None = None, dtype: str = AUTO
) -> tuple[tuple[SiteGemm, ...], tuple[str, ...]]:
    """The products of a model's eligible sites, in the order of the nodes.

    Args:
        model: An opened model.
        shapes: Of inputs whose shapes are dynamic.
        dtype: A type, or `AUTO`.

    Returns:
        The products, and the names of nodes whose size does not follow from the shapes of the inputs.

    Raises:
        ConfigError: Shapes are missing or wrong, or there is no such type.
        ModelError: The model is damaged.
    """
    if dtype != AUTO and not (dtype in DTYPES and DTYPES[dtype].outputs):
        known = [AUTO, *(name for name, kind in DTYPES.items() if kind.outputs)]
        raise ConfigError("no such data type of a product", where="dtype", got=dtype, expected=", ".join(known))
    sites = [site for site in find_sites(model, shapes=shapes, allow_unknown_operators=True) if site.eligible]
    int8 = int8_nodes(model.proto.graph)
    found = [site_gemm(site, dtype, int8=int8) for site in sites]
    unknown = tuple(site.node for site, gemm in zip(sites, found, strict=True) if gemm is None)
    if unknown:
        _require_shapes(model, shapes or {}, unknown)
    return tuple(gemm for gemm in found if gemm is not None), unknown


def dynamic_inputs(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Inputs whose shape is dynamic and does not follow from the given ones, each with its dims.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> dynamic_inputs(OnnxModel.open(parser.parse_model(text)), {})
        ('x: nx4',)
    """
    inputs = input_dims(model.proto.graph)
    sizes = check_shapes(inputs, shapes)
    known = {name: None if dims is None else with_sizes(dims, sizes) for name, dims in inputs.items()}
    return tuple(
        f"{name}: {'of any rank' if dims is None else 'x'.join(map(str, dims))}"
        for name, dims in known.items()
        if name not in shapes and (dims is None or any(isinstance(dim, str) for dim in dims))
    )


def _require_shapes(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]], unknown: Sequence[str]) -> None:
    """Refuse inputs whose shape is dynamic and not given."""
    dynamic = dynamic_inputs(model, shapes)
    if dynamic:
        raise ConfigError(
            "the size of a product depends on shapes that are not known",
            where=f"{model.name}, {len(unknown)} weight sites, the first is {unknown[0]}",
            got=", ".join(dynamic),
            fix="give --shapes name:1x3x224x224,... (shapes= in Python)",
        )
