"""ONNX files of pruned modules, judged by the same walk as every other model."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.onnx import errors

from trtsparse.errors import ModelError, PruneError
from trtsparse.files import atomic
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.validate import SiteReport, SparsityReport, validate
from trtsparse.torch.layers import bake
from trtsparse.torch.masked import masked_weights
from trtsparse.torch.ties import unwatch

__all__ = ["export"]

_MOST_INLINE = 1_500_000_000  # bytes of weights in the model file itself; a protobuf message ends at 2 GiB


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    *,
    pattern: Pattern,
    complete: bool,
    options: dict[str, Any],
) -> SparsityReport:
    """Write a model; see `SparsePruner.export_onnx`.

    Args:
        model: With masks; it is not changed.
        path: The file to write.
        args: Example inputs.
        pattern: N:M.
        complete: Every eligible weight has a mask, so every eligible site of a parameter must be compliant.
        options: Of `torch.onnx.export`.

    Raises:
        ModelError: PyTorch cannot export the model.
        PruneError: The weights are sharded, or a parameter is not compliant although it should be.
        OutputError: The file cannot be written; nothing is left behind.
    """
    atomic.check_writable(path)
    target = Path(path)
    plain = _plain_copy(model)
    with tempfile.TemporaryDirectory(prefix=".trtsparse-", dir=target.parent) as folder:
        file = Path(folder) / target.name
        _export(plain, file, args, options)
        report = validate(file, pattern=pattern)
        if complete:
            _check(report, file, plain)
        OnnxModel.open(file).save(target)
    return dataclasses.replace(report, model=str(target))


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights are plain tensors: no masks, parametrizations or weight_norm."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh"):
            raise PruneError(
                "a sharded model cannot be exported",
                where=repr(name),
                fix="load its full state_dict into a pruned model in one process, and export that",
            )
    for module, hook in _weight_norms(model):  # holds a result of the last forward, which cannot be copied
        setattr(module, hook.name, getattr(module, hook.name).detach())
    plain = copy.deepcopy(model).eval()
    for weight in tuple(masked_weights(plain)):
        weight.finalize()
    unwatch(plain)
    for module in tuple(plain.modules()):
        for attribute in tuple(getattr(module, "parametrizations", ())):
            bake(module, attribute)
    for module, hook in _weight_norms(plain):
        torch.nn.utils.remove_weight_norm(module, hook.name)
    return plain


def _weight_norms(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    hooks = ((module, hook) for module in model.modules() for hook in vars(module)["_forward_pre_hooks"].values())
    return [(module, hook) for module, hook in hooks if isinstance(hook, WeightNorm)]


def _export(model: nn.Module, file: Path, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    with_onnxscript = importlib.util.find_spec("onnxscript") is not None
    chosen = {"dynamo": with_onnxscript, "external_data": nbytes > _MOST_INLINE, "verbose": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's about itself
        warnings.simplefilter("ignore", FutureWarning)
        try:
            torch.onnx.export(model, args, str(file), **chosen)
        except errors.OnnxExporterError as error:
            raise ModelError("PyTorch cannot export the model", where=type(model).__name__, got=str(error)) from error


def _check(report: SparsityReport, file: Path, plain: nn.Module) -> None:
    """Refuse to leave out a parameter; that a constant is dense, such as a buffer, is for the report to say."""
    dense = [site for site in report.sites if site.eligible and not site.compliant]
    wrong = [site for site in dense if _is_parameter(site, OnnxModel.open(file), plain)]
    if wrong:
        raise PruneError(
            "the model multiplies by weights that have no mask",
            where=", ".join(f"{site.op} {site.node!r}, weight {site.tensor!r}" for site in wrong[:5]),
            got=f"{len(wrong)} of {report.by_sites.eligible} eligible sites are not compliant",
            fix="name their layers in SparsePruner(..., layers={Layer: {'weight': axis}}), "
            "or prune the file with `trtsparse prune`",
        )


def _is_parameter(site: SiteReport, model: OnnxModel, plain: nn.Module) -> bool:
    """Whether a tensor of the file is a parameter: by its name or, where it was transposed, by its values."""
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    if site.tensor in parameters:
        return True
    if site.ref is None or site.tensor in dict(plain.named_buffers(remove_duplicate=False)):
        return False
    values = np.sort(model.read(site.ref).astype(np.float32), axis=None)
    alike = (p for p in parameters.values() if p.numel() == values.size and p.ndim > 1 and p.is_floating_point())
    return any(np.array_equal(values, np.sort(p.detach().float().cpu().numpy(), axis=None)) for p in alike)
