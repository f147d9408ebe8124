"""The steps that `trtsparse.engines.cusparselt.patterns` makes of several nodes."""

from __future__ import annotations

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import Step, Tensor, operator

__all__: list[str] = []


@operator("Silu")
def _silu(_node: Node) -> Step:
    from torch.nn import functional

    return functional.silu  # type: ignore[no-any-return,unused-ignore]


@operator("RmsNorm")
def _rms_norm(node: Node) -> Step:
    from torch.nn import functional

    epsilon = node.attributes["epsilon"]
    return lambda x, scale: functional.rms_norm(x, (x.shape[-1],), scale, epsilon)


@operator("Attention")
def _attention(node: Node) -> Step:
    from torch.nn import functional

    scale = node.attributes["scale"]

    def step(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The keys come transposed, as the product of the original took them."""
        keys = keys.transpose(-1, -2)
        mask = None if mask is None else mask.to(queries.dtype)
        return functional.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)

    return step
