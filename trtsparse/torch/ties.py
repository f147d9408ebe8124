"""Checkpoints of models with tied weights: the last of its names that is loaded says what a weight's values are.

A mask lies on one of the layers that share a weight. The others copy values of the checkpoint into the same
parameter, before or after that layer, and a checkpoint may have the weight by any of its names alone; so the modules
around that layer and another prune the weight again when everything in them has been loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from trtsparse.torch.layers import LayerWeight
from trtsparse.torch.masked import MaskedWeight, masked_weights

__all__ = ["unwatch", "watch"]

_HANDLES = "_trtsparse_tie_hooks"  # of a module around tied weights
_LOADED = "_trtsparse_loaded_ties"  # of such a module, while it is loaded: weights, their masks' names, which came


def watch(uses: Sequence[LayerWeight]) -> None:
    """Prune a tied weight again after a checkpoint was loaded into any module that has two or more of its uses.

    Args:
        uses: Where the weight is used; its mask is on the first.
    """
    others = {id(module) for use in uses[1:] for module in use.around}
    for module in uses[0].around:
        if id(module) in others and _HANDLES not in vars(module):
            hooked: Any = module  # PyTorch does not type these two
            vars(module)[_HANDLES] = (
                hooked.register_load_state_dict_pre_hook(_before_load),
                hooked.register_load_state_dict_post_hook(_after_load),
            )


def unwatch(model: nn.Module) -> None:
    """Take the hooks off all modules that have no masked weights any more."""
    for module in model.modules():
        if _HANDLES in vars(module) and next(masked_weights(module), None) is None:
            for handle in vars(module).pop(_HANDLES):
                handle.remove()
            vars(module).pop(_LOADED, None)  # of a load that something else refused


def _before_load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    loaded = []
    for weight, mask, names in _tied(module):
        came = [prefix + name for name in names if prefix + name in state_dict]
        if came:
            has_mask = prefix + mask in state_dict
            if not has_mask:
                weight.check_mask_may_be_missing(came[0], prefix + mask)
            loaded.append((weight, prefix + mask, has_mask))
    vars(module)[_LOADED] = loaded


def _after_load(module: nn.Module, keys: Any) -> None:
    for weight, mask, has_mask in vars(module).pop(_LOADED, ()):
        weight.after_load_of_ties(has_mask=has_mask)
        if mask in keys.missing_keys:  # chosen just now
            keys.missing_keys.remove(mask)


def _tied(module: nn.Module) -> Iterator[tuple[MaskedWeight, str, list[str]]]:
    """The masked weights in a module that have several names there: with the mask's name, and these."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer, inner in module.named_modules():
        for weight in masked_weights(inner, recurse=False):
            own = names.get(id(next(weight.parameters(), None)), [])
            if len(own) > 1:
                yield weight, f"{layer}.{weight.key}".lstrip("."), own
