"""Prune a model and keep it sparse while it trains. All state is on the model: there may be any number of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from trtsparse.errors import ConfigError
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.validate import SparsityReport
from trtsparse.torch.choice import Choice, choose
from trtsparse.torch.export import export
from trtsparse.torch.layers import Layers, find_weights, unwrapped
from trtsparse.torch.masked import MaskedWeight, masked_weight
from trtsparse.torch.optimizer import OptimizerHooks, check_optimizer
from trtsparse.torch.state import SparseState, judge
from trtsparse.torch.ties import unwatch, watch

__all__ = ["SparsePruner", "prune_trained_model"]


def prune_trained_model(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    include: Sequence[Choice] = (),
    exclude: Sequence[Choice] = (),
    pattern: Pattern = TWO_FOUR,
) -> SparsePruner:
    """Prune a trained model by magnitude and keep it so: `SparsePruner` and its `attach` in one call.

    Train again afterwards with the recipe that the dense model was trained with.

    Args:
        model: Changed in place: its eligible weights become compliant.
        optimizer: The optimizer of the training to come.
        include: As in `SparsePruner`.
        exclude: As in `SparsePruner`.
        pattern: N:M.

    Returns:
        The pruner; it need not be kept.

    Raises:
        ConfigError: As in `SparsePruner` and `SparsePruner.attach`.
        PruneError: As in `SparsePruner`.

    Example:
        >>> import torch
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = prune_trained_model(model, optimizer)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> _ = optimizer.step()
        >>> int((model.weight == 0).sum()), pruner.sparse_state().compliant
        (16, True)
    """
    _check("model", model, "a torch.nn.Module", ok=isinstance(model, nn.Module))
    parameters = dict(unwrapped(model).named_parameters())
    check_optimizer(optimizer, updates=[*parameters.values()], names=[*parameters])  # before weights are lost
    pruner = SparsePruner(model, include=include, exclude=exclude, pattern=pattern)
    pruner.attach(optimizer)
    return pruner


class SparsePruner:
    """Masks on the eligible weights of a model, and hooks that keep optimizers from reviving what they zero.

    Making it prunes the model in place. Masks are persistent buffers ("<weight>_sparsity_mask"): they move, copy,
    save and load with the model. To resume, make the pruner first, then ``load_state_dict``. A model that already
    has masks, such as a copy of a pruned one, keeps them.

    A weight that `torch.nn.utils.parametrize` computes gets its mask as the last parametrization. Of tied weights one
    is masked; a checkpoint may have the weight by any of its names, but load it into a part of the model that has the
    mask too, or call `apply`.

    With DistributedDataParallel or `torch.compile` the order does not matter; ``broadcast_buffers=False``
    saves DDP from sending masks at every forward. With ``fully_shard`` make the optimizer and call `attach` after
    sharding; `recompute`, `sparse_state` and loading are then collective: every process calls them. Averages of
    weights stay sparse if the copy that holds them is made after pruning.

    Not thread-safe.

    Args:
        model: Any module on any device, wrapped or not.
        pattern: N:M.
        include: What to prune: globs on names ("encoder", "*.fc?.weight"), modules, or classes of modules, each with
            all that is in it. Empty: everything eligible.
        exclude: What to leave alone, likewise; wins over ``include``.
        layers: Layer classes of your own: class -> {attribute: reduction axis}. Subclasses of Linear, Conv1d to
            Conv3d and MultiheadAttention need none; ``{Class: {}}`` leaves a subclass out.
        transposable: The pattern shall hold along the axis of the outputs too.
        keep_pruned: Keep the values that masks zero: `recompute` chooses among all, `remove` puts them back.
        missing_masks: What ``load_state_dict`` does with a checkpoint that has a weight without its mask: "error", or
            "recompute" for checkpoints of dense training.

    Attributes:
        model: The model, without wrappers.
        pattern: N:M.

    Raises:
        ConfigError: A glob, layer or class matches nothing, or an option is wrong.
        PruneError: A weight named in ``include`` is not eligible, tied weights are used along different axes, no
            weight is eligible, or the model has masks of another pattern.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> pruner = SparsePruner(model)
        >>> print(pruner.sparse_state())
        weight    layer   shape    zeros  eligible  compliant  reason
        0.weight  Conv2d  8x3x3x3  0.0%   False                reduction of 3 is not a multiple of 4
        2.weight  Conv2d  8x8x3x3  50.0%  True      True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pattern: Pattern = TWO_FOUR,
        include: Sequence[Choice] = (),
        exclude: Sequence[Choice] = (),
        layers: Layers | None = None,
        transposable: bool = False,
        keep_pruned: bool = False,
        missing_masks: Literal["error", "recompute"] = "error",
    ) -> None:
        _check("model", model, "a torch.nn.Module", ok=isinstance(model, nn.Module))
        _check("pattern", pattern, "a trtsparse.Pattern, such as Pattern(2, 4)", ok=isinstance(pattern, Pattern))
        known = missing_masks in ("error", "recompute")
        _check("missing_masks", missing_masks, "'error' or 'recompute'", ok=known)
        self.model = unwrapped(model)
        self.pattern = pattern
        found = find_weights(self.model, pattern=pattern, layers=layers, transposable=transposable)
        self._weights = choose(found, include=include, exclude=exclude)
        self._masked: dict[str, MaskedWeight] = {
            chosen.uses[0].name: masked_weight(
                chosen.uses[0], pattern=pattern, keep_pruned=keep_pruned, missing_masks=missing_masks
            )
            for chosen in self._weights
            if not chosen.reason
        }
        for chosen in self._weights:
            if not chosen.reason:
                watch(chosen.uses)
        self._hooks: list[OptimizerHooks] = []

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks, True where a weight is kept, by the names of the weights; they are the buffers themselves."""
        return {name: weight.mask for name, weight in self._masked.items()}

    def attach(self, optimizer: Optimizer, *, master_weights: Mapping[str, Tensor] | None = None) -> None:
        """Keep an optimizer from reviving pruned weights; any number of optimizers may be attached.

        Before each step gradients are masked, after it weights and the optimizer's state, such as momentum. States of
        8-bit optimizers are left alone; the weights are not. `torch.amp.GradScaler` and closures are fine.

        Args:
            optimizer: Any `torch.optim.Optimizer`, of this model's parameters.
            master_weights: Where the optimizer updates copies in a higher precision instead of parameters: the copies
                by the parameters' names.

        Raises:
            ConfigError: It is no optimizer or updates none of the pruned weights, or a master weight has another
                shape than its parameter; or the pruner was removed or finalized.
        """
        if not self._masked:
            raise ConfigError("the pruner has no masks any more", fix="make another SparsePruner for the model")
        self._hooks.append(OptimizerHooks(optimizer, weights=self._masked, masters=master_weights or {}))

    def mask_gradients(self) -> None:
        """Set gradients to zero where weights are pruned; only needed before `torch.nn.utils.clip_grad_norm_`."""
        for hooks in self._hooks:
            hooks.mask_gradients()

    def apply(self) -> None:
        """Set weights to zero where they are pruned; only needed after code that is no optimizer changed them."""
        for weight in self._masked.values():
            weight.apply()

    def recompute(self) -> None:
        """Choose all masks again by magnitude, among all values with ``keep_pruned``."""
        for weight in self._masked.values():
            weight.recompute()

    def sparse_state(self) -> SparseState:
        """Judge every weight as it is now: eligible, masked, compliant, its zeros, and why it has no mask."""
        return SparseState(
            pattern=str(self.pattern),
            weights=tuple(
                judge(
                    chosen.uses,
                    pattern=self.pattern,
                    masked=chosen.uses[0].name in self._masked,
                    reason=chosen.reason,
                )
                for chosen in self._weights
            ),
        )

    def remove(self) -> None:
        """Take masks and hooks off; with ``keep_pruned`` pruned values come back, else weights stay as they are."""
        self._detach()
        for weight in self._masked.values():
            weight.remove()
        self._masked.clear()
        unwatch(self.model)

    def finalize(self) -> SparseState:
        """Take masks and hooks off after training; the model is a plain one with sparse weights.

        Parametrised weights that were pruned become plain parameters.

        Returns:
            The state, in which no weight is masked any more.

        Raises:
            PruneError: A parametrised weight is sharded; nothing was changed.
        """
        for weight in self._masked.values():
            weight.check_final()
        self._detach()
        for weight in self._masked.values():
            weight.finalize()
        self._masked.clear()
        unwatch(self.model)
        return self.sparse_state()

    def export_onnx(self, path: str | os.PathLike[str], args: tuple[Any, ...], **options: Any) -> SparsityReport:
        """Write the model as it is now to an ONNX file and judge it with `trtsparse.validate`.

        A plain copy in eval mode is exported, so neither masks nor parametrizations are in the file; the model trains
        on. PyTorch's newer exporter is used where onnxscript is installed, else the older one.

        Args:
            path: The file to write; above 1.5 GB the weights are in a second file beside it.
            args: Example inputs of the model.
            options: Of `torch.onnx.export`, such as ``input_names``, ``dynamic_shapes`` and ``opset_version``.

        Returns:
            What `trtsparse.validate` finds in the file. Constants that do not depend on parameters, such as buffers,
            are not pruned, and may not be compliant; a second export, with other parameters, tells which they are.

        Raises:
            ModelError: PyTorch cannot export the model.
            PruneError: All eligible weights have masks and yet a weight in the file is not compliant: it is a
                parameter, or computed from some, that is not the weight of a known layer. Or the weights are sharded.
            OutputError: The file cannot be written; nothing is left behind.
        """
        complete = all(chosen.uses[0].name in self._masked for chosen in self._weights if chosen.eligible)
        return export(self.model, path, args, pattern=self.pattern, complete=complete, options=options)

    def _detach(self) -> None:
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()


def _check(option: str, value: object, expected: str, *, ok: bool) -> None:
    if not ok:
        raise ConfigError("an argument is wrong", where=option, got=repr(value), expected=expected)
