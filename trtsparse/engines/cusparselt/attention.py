"""Attention by the fastest of PyTorch's implementations: which one that is depends on the GPU and the shapes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtsparse.engines.cusparselt.operators import Tensor

if TYPE_CHECKING:
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["Attention"]

_DEFAULT = "default"
_OTHERS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
"""Our names, and those in ``torch.nn.attention.SDPBackend``."""
_BOUNDS = {"torch.bfloat16": 2e-2, "torch.float16": 3e-3}
"""Largest relative errors, in the Frobenius norm, that are usual where the weights of values are rounded."""
_DIMS = 4  # those that all implementations take: batch, heads, tokens, values


class Attention:
    """``softmax(q k^T * scale + mask) v``; measures once for all of the same shapes and types.

    Args:
        owner: Measures, and keeps the times.
    """

    def __init__(self, owner: Products) -> None:
        self._owner = owner

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, scale: float
    ) -> Tensor:
        """As PyTorch's own function; a graph that is traced gets what an execution before it found out."""
        call = _Call(queries, keys, values, mask, scale)
        return call.by(self._fastest(call) if call.has_choice else _DEFAULT)

    def _fastest(self, call: _Call) -> str:
        known = self._owner.passes
        names = {which: f"{call.name} by {which}" for which in (_DEFAULT, *_OTHERS)}
        if names[_DEFAULT] not in known:
            for which, name in names.items():
                if which == _DEFAULT or call.is_right_by(which):
                    self._owner.pass_ms(name, functools.partial(call.tokens_by, which))
        times = {which: known[name] for which, name in names.items() if name in known}
        return min(times, key=times.__getitem__)


@dataclass(frozen=True)
class _Call:
    """The arguments: (B, H, M, D), (B, H, N, D), (B, H, N, D), a mask that is added to (B, H, M, N), or None."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    scale: float

    @property
    def has_choice(self) -> bool:
        """Whether there are several implementations."""
        return str(self.queries.dtype) in _BOUNDS and self.queries.dim() == _DIMS

    @property
    def name(self) -> str:
        """What the times depend on."""
        tensors = (self.queries, self.keys, self.values, *(() if self.mask is None else (self.mask,)))
        return f"attention {' '.join('x'.join(map(str, tensor.shape)) for tensor in tensors)} {self.queries.dtype}"

    def by(self, which: str) -> Tensor:
        """The result, (B, H, M, D)."""
        from torch.nn import functional

        with _switched_to(which):
            return functional.scaled_dot_product_attention(
                self.queries, self.keys, self.values, self.mask, scale=self.scale
            )

    def tokens_by(self, which: str) -> Tensor:
        """The result as (B, M, H, D), contiguous as a product wants it: some implementations leave it so."""
        return self.by(which).transpose(-3, -2).contiguous()

    def is_right_by(self, which: str) -> bool:
        """Whether an implementation takes such values, and gives what float32 gives for random ones."""
        import torch

        made = [torch.randn_like(tensor) for tensor in (self.queries, self.keys, self.values)]
        try:
            found = replace(self, queries=made[0], keys=made[1], values=made[2]).by(which).float()
        except RuntimeError:  # not for this GPU, these shapes or this mask
            return False
        queries, keys, values = (tensor.float() for tensor in made)
        mask = None if self.mask is None else self.mask.float()
        right = _Call(queries, keys, values, mask, self.scale).by(_DEFAULT)
        return bool((found - right).norm() <= _BOUNDS[str(self.queries.dtype)] * right.norm())


@contextlib.contextmanager
def _switched_to(which: str) -> Iterator[None]:
    if which == _DEFAULT:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, _OTHERS[which])):
        yield
