"""From a model's weight sites to the matrix products that they are, for given input shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.files.shapes import check_shapes, input_dims, with_sizes
from trtsparse.sparsity.weights import WeightSite, find_sites
from trtsparse.tune.gemm import DTYPES, Gemm

__all__ = ["AUTO", "SiteGemm", "dynamic_inputs", "eligible_gemms", "quantized_type", "site_gemm", "site_type"]

AUTO = "auto"
"""int8 or fp8_e4m3 for products of two dequantized values, else what the weight is stored in, fp16 for float32."""
_QUANTIZED = {"int8": "int8", "uint8": "int8", "float8_e4m3fn": "fp8_e4m3"}
_STORED = {"float16": "fp16", "bfloat16": "bf16"}


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


def quantized_type(site: WeightSite) -> str:
    """What TensorRT computes a product of two dequantized values in: "int8" or "fp8_e4m3"; "" for other products.

    A weight alone that is stored in such a type saves memory; it is computed in floating point.

    Example:
        >>> site = WeightSite("w", "matmul", "MatMul", (8, 8), 0, "int8", 64, 512, True, "",
        ...                   dequantized=("uint8", "int8"))
        >>> quantized_type(site)
        'int8'
    """
    types = {_QUANTIZED.get(dtype, "") for dtype in site.dequantized}
    return types.pop() if len(types) == 1 else ""


def site_type(site: WeightSite, *, floats: str = "fp16") -> str:
    """What `AUTO` stands for at a site.

    Args:
        site: Which.
        floats: What float32 is computed in.
    """
    return quantized_type(site) or _STORED.get(site.dtype, floats)


def site_gemm(site: WeightSite, dtype: str = AUTO) -> SiteGemm | None:
    """The product of a site, or None where its multiply-accumulates or axes are unknown.

    A convolution is a product of as many rows as its output has pixels, with all weights of an output channel as the
    reduction. The number of rows is the multiply-accumulates for each parameter.

    Args:
        site: An eligible one.
        dtype: A type, or `AUTO`.

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
        gemm=Gemm(site.macs // site.parameters, n, k, site_type(site) if dtype == AUTO else dtype),
        count=site.parameters // (n * k),
        exact=kernel == 1,
    )


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
    found = [site_gemm(site, dtype) for site in sites]
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
