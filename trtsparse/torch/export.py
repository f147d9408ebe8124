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

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.onnx import errors

from trtsparse.errors import ModelError, PruneError
from trtsparse.files import atomic
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.validate import SiteReport, SparsityReport, validate
from trtsparse.sparsity.weights import WeightSite, find_sites
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
        complete: Every eligible weight has a mask, so every eligible site must be compliant, unless no parameter
            has a part in its weight.
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
            _check(report, _trained(report, file, plain, args, pattern=pattern, options=options))
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


def _check(report: SparsityReport, wrong: list[SiteReport]) -> None:
    if wrong:
        raise PruneError(
            "the model multiplies by weights that have no mask",
            where=", ".join(f"{site.op} {site.node!r}, weight {site.tensor!r}" for site in wrong[:5]),
            got=f"{len(wrong)} of {report.by_sites.eligible} eligible sites are not compliant",
            fix="name their layers in SparsePruner(..., layers={Layer: {'weight': axis}}), "
            "or prune the file with `trtsparse prune`",
        )


def _trained(
    report: SparsityReport,
    file: Path,
    plain: nn.Module,
    args: tuple[Any, ...],
    *,
    pattern: Pattern,
    options: dict[str, Any],
) -> list[SiteReport]:
    """The dense sites whose weights parameters have a part in: whatever is not the same in a file with others.

    Exporters slice, scale and add up parameters and store the result under a name of their own, so that neither
    names nor values tell it from a constant.

    Args:
        report: Of the file.
        file: The exported model.
        plain: What it was exported from; its parameters are overwritten.
        args: Example inputs.
        pattern: N:M.
        options: Of `torch.onnx.export`.
    """
    buffers = {name for name, _ in plain.named_buffers(remove_duplicate=False)}
    dense = [site for site in report.sites if _is_dense(site) and site.tensor not in buffers]
    parameters = {name for name, _ in plain.named_parameters(remove_duplicate=False)}
    if all(site.tensor in parameters for site in dense):
        return dense
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        other = Path(folder) / file.name
        try:
            _randomize(plain)
            _export(plain, other, args, options)
            models = OnnxModel.open(file), OnnxModel.open(other)
            sites = find_sites(models[1], pattern=pattern)
        except Exception:  # noqa: BLE001 - a model may refuse such values with any error; then nothing is known
            return dense
        if [_kind(site) for site in sites] != [_kind(site) for site in report.sites]:
            return dense
        pairs = zip(report.sites, sites, strict=True)
        return [old for old, new in pairs if old in dense and _values(models[0], old) != _values(models[1], new)]


def _is_dense(site: SiteReport) -> bool:
    return site.eligible and not site.compliant


def _randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def _kind(site: WeightSite) -> tuple[str, str, tuple[int, ...]]:
    return site.op, site.dtype, site.shape


def _values(model: OnnxModel, site: WeightSite) -> bytes:
    return b"" if site.ref is None else model.read(site.ref).tobytes()
