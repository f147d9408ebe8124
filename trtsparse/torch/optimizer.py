"""Hooks that keep an optimizer from reviving pruned weights.

Before a step gradients are masked (with a closure, each time it was called); after it weights, their master copies
and the optimizer's state. Infinities and NaN of pruned weights leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trtsparse.errors import ConfigError
from trtsparse.torch.masked import MaskedWeight
from trtsparse.torch.masks import apply_mask
from trtsparse.torch.shards import local

__all__ = ["OptimizerHooks", "check_optimizer"]


class OptimizerHooks:
    """The hooks on one optimizer.

    Args:
        optimizer: Any `torch.optim.Optimizer`.
        weights: The masked weights by their parameters' names.
        masters: What the optimizer updates in place of a parameter, by the same names.

    Raises:
        ConfigError: It is no optimizer or updates none of the weights, or a master copy has another shape.
    """

    def __init__(
        self, optimizer: Optimizer, *, weights: Mapping[str, MaskedWeight], masters: Mapping[str, Tensor]
    ) -> None:
        self._weights = weights
        self._masters = masters
        self._check_masters()
        check_optimizer(optimizer, updates=[tensor for tensor, _ in self._targets()], names=list(weights))
        self._handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def mask_gradients(self) -> None:
        """Set gradients to zero where weights are pruned."""
        for tensor, mask in self._targets():
            if tensor.grad is not None and tensor.grad.layout == torch.strided:
                apply_mask(local(tensor.grad), mask)

    def _targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors that the optimizer may change, and the masks that they keep."""
        for name, weight in self._weights.items():
            for parameter in weight.parameters():
                mask = local(weight.mask)
                yield parameter, mask
                if name in self._masters:
                    yield self._masters[name], mask

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.mask_gradients()
        optimizer, *given = args
        closures = [self._masking(closure) for closure in given[:1]]
        named = {name: self._masking(value) if name == "closure" else value for name, value in kwargs.items()}
        return (optimizer, *closures, *given[1:]), named

    def _masking(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """The closure of a step that also masks the gradients which it has computed."""
        if closure is None:
            return None

        def masking() -> Any:
            loss = closure()
            self.mask_gradients()
            return loss

        return masking

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for tensor, mask in self._targets():
            apply_mask(local(tensor), mask)
            for value in optimizer.state.get(tensor, {}).values():
                # 8-bit states are no numbers; others, such as Adam's step, are no values of single weights
                if isinstance(value, Tensor) and value.is_floating_point() and value.shape == tensor.shape:
                    apply_mask(local(value), mask)

    def _check_masters(self) -> None:
        for name, master in self._masters.items():
            if name in self._weights and master.shape != self._weights[name].weight.shape:
                raise ConfigError(
                    "a master weight has another shape than its parameter",
                    where=repr(name),
                    got=tuple(master.shape),
                    expected=tuple(self._weights[name].weight.shape),
                )


def check_optimizer(optimizer: Optimizer, *, updates: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse what is no optimizer, or one that updates none of some tensors.

    Raises:
        ConfigError: So it is.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError("not an optimizer", got=type(optimizer).__name__, expected="a torch.optim.Optimizer")
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if updates and not any(id(tensor) in updated for tensor in updates):
        raise ConfigError(
            "the optimizer updates none of the pruned weights",
            where=type(optimizer).__name__,
            expected=f"{', '.join(names[:3])} among its parameters",
            fix="make it from the parameters of this model, after wrapping; "
            "give copies that it updates instead as master_weights",
        )
