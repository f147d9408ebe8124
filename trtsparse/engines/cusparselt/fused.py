"""The steps that `trtsparse.engines.cusparselt.patterns` makes of several nodes."""

from __future__ import annotations

from dataclasses import replace

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import OPERATORS, Step, Tensor, operator

__all__: list[str] = []


@operator("Silu")
def _silu(_node: Node) -> Step:
    from torch.nn import functional

    return functional.silu  # type: ignore[no-any-return,unused-ignore]


@operator("RmsNorm")
def _rms_norm(node: Node) -> Step:
    from torch.nn import functional

    epsilon = node.attributes["epsilon"]

    def step(x: Tensor, scale: Tensor) -> Tensor:
        if scale.shape == x.shape[-1:]:
            return functional.rms_norm(x, scale.shape, scale, epsilon)
        return functional.rms_norm(x, x.shape[-1:], eps=epsilon) * scale

    return step


@operator("Attention")
def _attention(node: Node) -> Step:
    from torch.nn import functional

    scale, axis = node.attributes["scale"], node.attributes["axis"]
    soften = OPERATORS["Softmax"](replace(node, op="Softmax"))

    def step(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        attend: Step = functional.scaled_dot_product_attention,
    ) -> Tensor:
        """The keys come transposed, as the product of the original took them."""
        mask = None if mask is None else mask.to(queries.dtype)
        rank = max(value.dim() for value in (queries, keys, mask) if value is not None)
        if axis not in (-1, rank - 1) or (mask is not None and not _fits(mask, queries, keys)):
            scores = queries @ keys * scale
            return soften(scores if mask is None else scores + mask) @ values
        keys = keys.transpose(-1, -2)
        return attend(queries, keys, values, mask, scale=scale)

    return step


def _fits(mask: Tensor, queries: Tensor, keys: Tensor) -> bool:
    """Whether a mask gives no dims to the scores, and is the matrix that PyTorch wants."""
    import torch

    scores = (*torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2]), queries.shape[-2], keys.shape[-1])
    return bool(mask.dim() > 1 and torch.broadcast_shapes(mask.shape, scores) == scores)
