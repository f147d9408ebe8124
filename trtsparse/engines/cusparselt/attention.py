"""Attention by the fastest of PyTorch's implementations: which one that is depends on the GPU and the shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtsparse.engines.cusparselt.operators import FAILURES, Tensor

if TYPE_CHECKING:
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["Attention"]

_DEFAULT = "default"
_BOUNDS = {"torch.bfloat16": 2e-2, "torch.float16": 3e-3}
"""Largest relative errors, in the Frobenius norm, that are usual where the weights of values are rounded."""
_DIMS = 4  # those that all implementations take: batch, heads, tokens, values
_HIDDEN = 0.3  # of the keys, in the mask of a check


class Attention:
    """``softmax(q k^T * scale + mask) v``; measures once for all of the same shapes, strides and types.

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
        names = {which: f"{call.name} by {which}" for which in _IMPLEMENTATIONS}
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
        forms = ("x".join(map(str, tensor.shape)) + "/" + "x".join(map(str, tensor.stride())) for tensor in tensors)
        return f"attention {' '.join(forms)} {self.queries.dtype}"

    def by(self, which: str) -> Tensor:
        """The result, (B, H, M, D)."""
        return _IMPLEMENTATIONS[which](self)

    def tokens_by(self, which: str) -> Tensor:
        """The result as (B, M, H, D), contiguous as a product wants it: some implementations leave it so."""
        return self.by(which).transpose(-3, -2).contiguous()

    def is_right_by(self, which: str) -> bool:
        """Whether an implementation takes such values, and gives what float32 gives for random ones."""
        try:
            made = self._random()
            found = made.by(which).float()
            right = made.in_float32().by(_DEFAULT)
        except (*FAILURES, AttributeError):  # not in this PyTorch, not for this GPU or form, or too little memory
            return False
        return bool((found - right).norm() <= _BOUNDS[str(self.queries.dtype)] * right.norm())

    def _random(self) -> _Call:
        """Values of the same form, and a mask that hides some keys; nobody else's random numbers change."""
        import torch

        source = torch.Generator(self.queries.device).manual_seed(0)

        def like(tensor: Tensor) -> Tensor:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            return made.normal_(generator=source)

        mask = self.mask
        if mask is not None:
            hidden = torch.rand(mask.shape, generator=source, device=mask.device) < _HIDDEN
            hidden[..., 0] = False
            mask = torch.zeros_like(mask).masked_fill_(hidden, torch.finfo(mask.dtype).min)
        return replace(self, queries=like(self.queries), keys=like(self.keys), values=like(self.values), mask=mask)

    def in_float32(self) -> _Call:
        """The same, more exactly."""
        mask = None if self.mask is None else self.mask.float()
        return _Call(self.queries.float(), self.keys.float(), self.values.float(), mask, self.scale)


def _by_pytorch(call: _Call) -> Tensor:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(call.queries, call.keys, call.values, call.mask, scale=call.scale)


# by their operators: the switches of `torch.nn.attention.sdpa_kernel` are those of the whole process


def _by_cudnn(call: _Call) -> Tensor:
    import torch

    attend = torch.ops.aten._scaled_dot_product_cudnn_attention  # noqa: SLF001 - it has no other name
    return attend(call.queries, call.keys, call.values, call.mask, compute_log_sumexp=False, scale=call.scale)[0]


def _by_flash(call: _Call) -> Tensor:
    import torch

    if call.mask is not None:
        raise NotImplementedError("flash attention takes no mask")
    attend = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001 - it has no other name
    return attend(call.queries, call.keys, call.values, scale=call.scale)[0]


_IMPLEMENTATIONS: dict[str, Callable[[_Call], Tensor]] = {
    _DEFAULT: _by_pytorch,
    "cudnn": _by_cudnn,
    "flash": _by_flash,
}
