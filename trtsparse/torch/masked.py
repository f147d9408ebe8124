"""A weight with its mask, which lives on the layer: it is moved, copied, saved and loaded with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trtsparse.errors import PruneError
from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch.layers import LayerWeight, bake, kind_of, parametrizations_of
from trtsparse.torch.masks import apply_mask, is_compliant, keep_mask, keep_mask_two_axes
from trtsparse.torch.shards import following, local, whole

__all__ = ["MaskedWeight", "masked_weight", "masked_weights"]

_ATTRIBUTE = "_trtsparse_masks"  # of a layer: its masked weights by name


class MaskedWeight:
    """A parameter that is set to zero where its mask is False, whenever something changed it.

    The mask is a persistent buffer of the layer, "<attribute>_sparsity_mask".

    Args:
        weight: Where it is; eligible.
        pattern: N:M.
        keep_pruned: Keep the values that the mask zeroes, for `recompute` and `remove`.
        missing_masks: What a checkpoint with the weight but without its mask means: "error" or "recompute".
    """

    def __init__(self, weight: LayerWeight, *, pattern: Pattern, keep_pruned: bool, missing_masks: str) -> None:
        self.module = weight.module
        self.attribute = weight.attribute
        self.axes = weight.axes
        self.pattern = pattern
        self.missing_masks = missing_masks
        self._keeps_pruned = keep_pruned
        self._pruned: Tensor | None = None  # the weight before it was last pruned
        self._is_loaded = False
        self._awaits_mask = False
        with torch.no_grad():
            self._put_on(self._choose())
            self._prune()
        layer: Any = self.module  # PyTorch does not type these two
        self._handles = (
            layer.register_load_state_dict_pre_hook(self._before_load),
            layer.register_load_state_dict_post_hook(self._after_load),
        )
        vars(self.module).setdefault(_ATTRIBUTE, {})[self.attribute] = self

    @property
    def key(self) -> str:
        """The mask's name in the layer's state_dict."""
        return f"{self.attribute}_sparsity_mask"

    @property
    def weight(self) -> Tensor:
        """The weight as the layer uses it, without gradient."""
        with torch.no_grad():
            weight: Tensor = getattr(self.module, self.attribute)
        return weight.detach()

    @property
    def mask(self) -> Tensor:
        """True where the weight is kept; on the weight's device, and sharded as it is."""
        mask, weight = self.module.get_buffer(self.key), self.weight
        if mask.shape != weight.shape:
            raise PruneError(
                "a pruned weight has changed its shape",
                where=f"{self.attribute!r} of a {kind_of(self.module)}",
                got=tuple(weight.shape),
                expected=tuple(mask.shape),
                fix="FullyShardedDataParallel flattens weights: use fully_shard instead",
            )
        followed = following(mask, weight)
        if followed is not mask:
            setattr(self.module, self.key, followed)
        return followed

    def parameters(self) -> Iterator[Tensor]:
        """What an optimizer must not change where the mask is False."""
        yield getattr(self.module, self.attribute)

    def apply(self) -> None:
        """Set the weight to zero where the mask is False."""
        apply_mask(local(self.weight), local(self.mask))

    def recompute(self) -> None:
        """Choose the mask again by magnitude, among all values if the pruned ones were kept."""
        with torch.no_grad():
            self._restore()
            mask = self.mask
            local(mask).copy_(local(following(self._choose(), mask)))
            self._prune()

    def take_over(self, *, keep_pruned: bool, missing_masks: str) -> None:
        """Serve another pruner, with its options; what was not kept until now stays zero."""
        self._keeps_pruned |= keep_pruned
        self.missing_masks = missing_masks
        self.apply()

    def remove(self) -> None:
        """Take the mask off; values that it zeroed come back if they were kept."""
        with torch.no_grad():
            self._restore()
        self._take_off()
        self._forget()

    def check_final(self) -> None:
        """Refuse what `finalize` could not do."""

    def finalize(self) -> None:
        """Take the mask off and leave a plain, sparse parameter."""
        self.apply()
        self._take_off()
        self._forget()

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        masked = vars(self.module)[_ATTRIBUTE]
        del masked[self.attribute]
        if not masked:
            delattr(self.module, _ATTRIBUTE)

    def _choose(self) -> Tensor:
        weight = whole(self.weight)
        if len(self.axes) == 1:
            return keep_mask(weight, axis=self.axes[0], pattern=self.pattern)
        return keep_mask_two_axes(weight, axes=(self.axes[0], self.axes[1]), pattern=self.pattern)

    def _put_on(self, mask: Tensor) -> None:
        self.module.register_buffer(self.key, following(mask, self.weight))

    def _take_off(self) -> None:
        delattr(self.module, self.key)

    def _prune(self) -> None:
        if self._keeps_pruned:
            self._pruned = local(self.weight).clone()
        self.apply()

    def _restore(self) -> None:
        if self._pruned is not None:
            weight = local(self.weight)
            weight.copy_(torch.where(local(self.mask), weight, self._pruned.to(weight)))
            self._pruned = None

    def _is_as_pruned(self) -> bool:
        """Nothing has changed the weight since its values were kept."""
        if self._pruned is None:
            return False
        weight = local(self.weight)
        pruned = self._pruned.to(weight, copy=True)
        apply_mask(pruned, local(self.mask))
        same: bool = torch.equal(weight, pruned)
        return same

    def _before_load(self, _: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
        self._is_loaded = self._is_in(state_dict, prefix)
        if prefix + self.key in state_dict or not self._is_loaded:
            return
        self.check_mask_may_be_missing(prefix + self.attribute, prefix + self.key)
        state_dict[prefix + self.key] = self.mask  # satisfies the loading; chosen again after it
        self._awaits_mask = True

    def check_mask_may_be_missing(self, name: str, mask: str) -> None:
        """Refuse a checkpoint that has a weight without its mask, unless masks shall be chosen for such weights."""
        if self.missing_masks == "error":
            raise PruneError(
                "the checkpoint has a pruned weight without its mask",
                where=name,
                expected=mask,
                fix="SparsePruner(..., missing_masks='recompute') chooses masks for the loaded weights",
            )

    def _is_in(self, state_dict: dict[str, Any], prefix: str) -> bool:
        return prefix + self.attribute in state_dict

    def _after_load(self, *_: Any) -> None:
        if self._is_loaded:  # else a checkpoint of other parts of the model
            self._pruned = None  # of the values before loading
            has_mask, self._awaits_mask = not self._awaits_mask, False
            self._settle(has_mask=has_mask)

    def after_load_of_ties(self, *, has_mask: bool) -> None:
        """Prune again after values came in by other names of the weight, before or after those of this layer."""
        if not (self._is_loaded and self._is_as_pruned()):  # then this layer was not the last
            self._pruned, self._is_loaded = None, True
        with torch.no_grad():
            self._restore()
        self._settle(has_mask=has_mask)

    def _settle(self, *, has_mask: bool) -> None:
        if not has_mask:
            self.recompute()
            return
        self._check_mask()
        with torch.no_grad():
            self._prune()

    def _check_mask(self) -> None:
        mask = whole(self.mask)
        for axis in self.axes:
            if not is_compliant(mask, axis=axis, pattern=self.pattern):
                raise PruneError(
                    "a mask does not hold the pattern",
                    where=f"{self.key!r} of a {kind_of(self.module)}",
                    expected=f"{self.pattern} along axis {axis}",
                    fix="load a checkpoint that was saved with the same pattern",
                )


class _MaskedParametrization(MaskedWeight):
    """A weight computed from other tensors; the mask is the last step, whatever an optimizer does to those."""

    @property
    def key(self) -> str:
        steps = parametrizations_of(self.module, self.attribute)
        position = next((i for i, step in enumerate(steps) if isinstance(step, _Mask)), len(steps))
        return f"parametrizations.{self.attribute}.{position}.mask"

    @property
    def mask(self) -> Tensor:
        return self.module.get_buffer(self.key)

    def parameters(self) -> Iterator[Tensor]:
        yield from ()

    def apply(self) -> None:
        """Nothing to do: the weight is masked whenever it is computed."""

    def check_final(self) -> None:
        if hasattr(self.weight, "device_mesh"):
            raise PruneError(
                "a weight that is parametrised and sharded cannot become a plain parameter",
                where=f"{self.attribute!r} of a {kind_of(self.module)}",
                fix="load the full state_dict into a pruned model in one process, and finalize that",
            )

    def finalize(self) -> None:
        bake(self.module, self.attribute)
        self._forget()

    def _put_on(self, mask: Tensor) -> None:
        parametrize.register_parametrization(self.module, self.attribute, _Mask(mask))

    def _take_off(self) -> None:
        del parametrizations_of(self.module, self.attribute)[int(self.key.split(".")[-2])]

    def _prune(self) -> None:
        """Nothing to do: pruned values stay in the tensors that the weight is computed from."""

    def _restore(self) -> None:
        self.mask.fill_(True)  # noqa: FBT003 - a fill value

    def _is_in(self, state_dict: dict[str, Any], prefix: str) -> bool:
        return any(key.startswith(f"{prefix}parametrizations.{self.attribute}.") for key in state_dict)


class _Mask(nn.Module):  # type: ignore[misc, unused-ignore] # a plain class where PyTorch is not installed
    """The last parametrization of a weight."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~following(self.mask, weight), 0)


def masked_weight(weight: LayerWeight, *, pattern: Pattern, keep_pruned: bool, missing_masks: str) -> MaskedWeight:
    """Put a mask on a weight; one that it already has stays as it is.

    Raises:
        PruneError: The weight has a mask of another pattern.
    """
    present: MaskedWeight | None = vars(weight.module).get(_ATTRIBUTE, {}).get(weight.attribute)
    if present is None:
        parametrized = parametrize.is_parametrized(weight.module, weight.attribute)
        kind = _MaskedParametrization if parametrized else MaskedWeight
        return kind(weight, pattern=pattern, keep_pruned=keep_pruned, missing_masks=missing_masks)
    if (present.pattern, present.axes) != (pattern, weight.axes):
        raise PruneError(
            "the weight already has a mask",
            where=repr(weight.name),
            got=f"{present.pattern} along axes {present.axes}",
            expected=f"{pattern} along axes {weight.axes}",
            fix="call remove() of the pruner that made it",
        )
    present.take_over(keep_pruned=keep_pruned, missing_masks=missing_masks)
    return present


def masked_weights(model: nn.Module, *, recurse: bool = True) -> Iterator[MaskedWeight]:
    """Every masked weight of a model, such as a copy of one that is being pruned; or of one layer alone."""
    for module in model.modules() if recurse else (model,):
        yield from tuple(vars(module).get(_ATTRIBUTE, {}).values())
