"""Which weights of a module can be pruned: the rules of `trtsparse.sparsity.weights`, read off the layers.

A layer is known by its class or by one that it inherits from, never by its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trtsparse.errors import ConfigError
from trtsparse.sparsity.pattern import Pattern

__all__ = ["LayerWeight", "Layers", "bake", "find_weights", "kind_of", "parametrizations_of", "unwrapped"]

Layers = Mapping[type, Mapping[str, int]]  # layer class -> its weights -> their reduction axes

_LAYERS: Layers = {
    nn.Linear: {"weight": 1},
    nn.Conv1d: {"weight": 1},
    nn.Conv2d: {"weight": 1},
    nn.Conv3d: {"weight": 1},
    nn.MultiheadAttention: {"in_proj_weight": 1, "q_proj_weight": 1, "k_proj_weight": 1, "v_proj_weight": 1},
}
_NO_DECONVOLUTION = "ConvTranspose: TensorRT is not known to use sparse kernels for it"
_REASONS: Mapping[type, str] = {
    nn.ConvTranspose1d: _NO_DECONVOLUTION,
    nn.ConvTranspose2d: _NO_DECONVOLUTION,
    nn.ConvTranspose3d: _NO_DECONVOLUTION,
    nn.RNNBase: "{kind}: TensorRT has no sparse kernels for recurrent layers",
    nn.RNNCellBase: "{kind}: TensorRT has no sparse kernels for recurrent layers",
    nn.Embedding: "{kind}: rows are looked up, no matrix product",
    nn.EmbeddingBag: "{kind}: rows are looked up, no matrix product",
}
_SPARSE_TYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """One weight of one layer.

    Attributes:
        name: As in ``named_parameters()``, such as "encoder.0.fc.weight"; a parametrised weight has its short name.
        module: The layer.
        around: The modules that the layer is in, from the model on, and the layer.
        attribute: Where the layer keeps the weight.
        shape: Its dims; () while a lazy layer has none.
        axes: The reduction axis, and with ``transposable`` also the axis of the outputs; empty if unknown.
        dtype: The data type, as numpy and ml_dtypes call it.
        reason: Why it cannot be pruned, in words; "" when it can: it is eligible.
    """

    name: str
    module: nn.Module
    around: tuple[nn.Module, ...]
    attribute: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str
    reason: str

    @property
    def layer(self) -> str:
        """The name of the layer, such as "encoder.0.fc"."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """The name of the layer's class."""
        return kind_of(self.module)

    @property
    def key(self) -> int:
        """The same for weights that are tied."""
        if parametrize.is_parametrized(self.module, self.attribute):
            return id(parametrizations_of(self.module, self.attribute))
        return id(getattr(self.module, self.attribute))


def kind_of(module: nn.Module) -> str:
    """The name of the module's class before parametrizations or `fully_shard` put one of theirs before it."""
    theirs = ("torch.nn.utils.parametrize", "torch.distributed.")
    return next(cls.__name__ for cls in type(module).__mro__ if not cls.__module__.startswith(theirs))


def parametrizations_of(module: nn.Module, attribute: str) -> Any:
    """The list of a weight's parametrisations, an ``nn.ModuleList``."""
    found: Any = module.get_submodule(f"parametrizations.{attribute}")
    return found


def bake(module: nn.Module, attribute: str) -> None:
    """Replace a parametrised weight by a parameter with the values that it has now."""
    cls = type(module)
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, own)  # removing changes the class, which copies share
    parametrize.remove_parametrizations(module, attribute)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and `torch.compile`."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules:  # noqa: SLF001 - torch.compile has no public name for it
            model = model.get_submodule("_orig_mod")
        else:
            return model


def find_weights(
    model: nn.Module, *, pattern: Pattern, layers: Layers | None = None, transposable: bool = False
) -> tuple[LayerWeight, ...]:
    """Find every weight of two or more dims, in the order of ``named_modules()``; a tied one at each of its uses.

    Args:
        model: Any module; wrappers are looked through.
        pattern: N:M, for the rule that the reduction is a multiple of M long.
        layers: More layer classes: class -> attribute -> reduction axis; they win over the known ones.
        transposable: The pattern must hold along the outputs too.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        >>> [(weight.name, weight.axes, weight.reason) for weight in find_weights(model, pattern=Pattern())]
        [('0.weight', (1,), 'reduction of 3 is not a multiple of 4'), ('1.weight', (1,), '')]
    """
    known = {**_LAYERS, **(layers or {})}
    found = []
    modules = dict(unwrapped(model).named_modules())
    for name, module in modules.items():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its tensors are judged where they are used
        for attribute, stored, axis in _attributes(module, known):
            axes, weight, reason = _judged(module, stored, attribute, axis, pattern, transposable=transposable)
            shape = () if is_lazy(weight) else tuple(weight.shape)
            full_name = f"{name}.{stored}" if name else stored
            around = tuple(modules[part] for part in _prefixes(name))
            found.append(LayerWeight(full_name, module, around, stored, shape, axes, _dtype(weight), reason))
    return tuple(found)


def _prefixes(name: str) -> list[str]:
    """The names of the modules around "a.b": "", "a", "a.b"."""
    return ["", *itertools.accumulate(name.split("."), "{}.{}".format)] if name else [""]


def _attributes(module: nn.Module, known: Layers) -> Iterator[tuple[str, str, int | None]]:
    """The layer's weights: name, name of what is stored, and reduction axis if the layer's class is known."""
    axes = next((known[cls] for cls in type(module).__mro__ if cls in known), {})
    own = {name: value for name, value in vars(module)["_parameters"].items() if value is not None}
    for attribute, axis in axes.items():
        if not hasattr(module, attribute):
            raise ConfigError("the layer has no such weight", where=f"layers, {kind_of(module)}", got=attribute)
        if parametrize.is_parametrized(module, attribute) or attribute in own:
            yield attribute, attribute, axis
        elif f"{attribute}_v" in own:  # torch.nn.utils.weight_norm: zeros of the direction are zeros of the weight
            yield attribute, f"{attribute}_v", axis
        elif f"{attribute}_orig" in own:
            yield attribute, f"{attribute}_orig", None
    derived = {f"{attribute}_{part}" for attribute in axes for part in ("g", "v", "orig")}
    for attribute, value in own.items():
        if attribute not in axes and attribute not in derived and not is_lazy(value) and value.ndim > 1:
            yield attribute, attribute, None


def _judged(
    module: nn.Module, stored: str, attribute: str, axis: int | None, pattern: Pattern, *, transposable: bool
) -> tuple[tuple[int, ...], Tensor, str]:
    """The axes along which the pattern must hold, the weight, and why it cannot be pruned."""
    with torch.no_grad():
        weight = getattr(module, stored)
    if axis is None:
        return (), weight, _why_unknown(module, stored, attribute)
    if is_lazy(weight):
        return (), weight, "no values yet: run the model once first"
    if not -weight.ndim <= axis < weight.ndim:
        where = f"layers, {kind_of(module)}, {attribute}"
        raise ConfigError("the weight has no such axis", where=where, got=axis, expected=f"one of {weight.ndim} axes")
    axes: tuple[int, ...] = (axis % weight.ndim,)
    if transposable and weight.ndim > 1:
        axes += (int(axes[0] == 0),)
    return axes, weight, _verdict(module, weight, axes, pattern)


def _dtype(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _why_unknown(module: nn.Module, stored: str, attribute: str) -> str:
    if stored != attribute:
        return f"a hook computes the weight from {stored}: remove the hook, or use torch.nn.utils.parametrize"
    reason = next((reason for cls, reason in _REASONS.items() if isinstance(module, cls)), None)
    return (reason or "{kind} is not known to multiply by it: `layers` can say so").format(kind=kind_of(module))


def _verdict(module: nn.Module, weight: Tensor, axes: tuple[int, ...], pattern: Pattern) -> str:
    """Why TensorRT cannot run this weight on Sparse Tensor Cores, in words; "" when it can."""
    group = getattr(module, "groups", 1)
    if not weight.numel():
        return f"empty weight: dims {list(weight.shape)}"
    if weight.is_meta:
        return "no values yet: the weight is on the meta device"
    if group != 1:
        return f"grouped convolution (group = {group}): TensorRT never uses sparse kernels"
    if weight.dtype not in _SPARSE_TYPES:
        return f"data type {_dtype(weight)}: Sparse Tensor Cores do not take it"
    if weight.ndim < 2:
        return "the weight is a vector: no matrix product"
    if weight.shape[axes[0]] % pattern.m:
        return f"reduction of {weight.shape[axes[0]]} is not a multiple of {pattern.m}"
    if weight.shape[axes[-1]] % pattern.m:
        return f"{weight.shape[axes[-1]]} outputs are not a multiple of {pattern.m}: no transposable mask"
    return ""
