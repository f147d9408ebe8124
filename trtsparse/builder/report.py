"""What a build did, in facts that can be checked: `BuildReport`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtsparse.builder.config import BuildWarning
from trtsparse.files.model import OnnxModel

__all__ = ["SCHEMA", "BuildReport", "Chosen", "Notes", "PrecisionReport", "SiteRow", "fingerprint"]

SCHEMA = "trtsparse.build/1"
Chosen = bool | Literal["decided at load"] | None


@dataclass(frozen=True)
class SiteRow:
    """One weight site of the source model and its three columns.

    Attributes:
        node: The node's name, as the source model has it.
        op: Its operator.
        tensor: The weight.
        shape: Its dims as stored.
        axis: The reduction axis, or -1.
        parameters: Its elements.
        macs: Multiply-accumulates at the first profile's opt shapes; None where not known.
        compliant: Every group holds the pattern (after pruning, at the precision reached); None where not judged.
        eligible: The structure and the precision allow a sparse kernel.
        found: TensorRT's log lists it among the eligible layers; None where the log says nothing.
        chosen: The built engine runs a sparse kernel for it; "decided at load" where kernels are chosen on the target
            machine; None where the library told nothing.
        reason: If not eligible, why.
        warnings: What makes a gain unlikely although it is eligible.
    """

    node: str
    op: str
    tensor: str
    shape: tuple[int, ...]
    axis: int
    parameters: int
    macs: int | None
    compliant: bool | None
    eligible: bool
    found: bool | None
    chosen: Chosen
    reason: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PrecisionReport:
    """How the precision was reached.

    Attributes:
        asked: BuildConfig's ``precision``.
        reached: What the engine computes in; with flags TensorRT may still keep single layers in FP32.
        way: "as is", "flags", "converted graph" or "converted graph and flags".
        typing: "strong" or "weak".
        flags: The precision flags that were set.
        stored: The precision of the model's weights before.
        error: Of the converted model against the source, relative to the output range; None if not converted.
        limit: The largest that was allowed.
        kept: Nodes that stay in FP32.
        conversion: What the converters report.
    """

    asked: str
    reached: str
    way: str
    typing: Literal["strong", "weak"]
    flags: tuple[str, ...] = ()
    stored: str = "fp32"
    error: float | None = None
    limit: float | None = None
    kept: tuple[str, ...] = ()
    conversion: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class BuildReport:
    """Everything about one build; ``to_dict()`` is what `BuiltEngine.save` writes beside the plan.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx".
        version: Of the library, as the plan's header states it.
        model: ``name``, ``sha256`` of the model file, ``external``: names and SHA-256 of its data files.
        precision: See `PrecisionReport`.
        sparsity: "disable", "enable" or "force".
        sites: One row a weight site.
        pruning: What "force" pruned; None otherwise.
        profiles: As given or inferred.
        inputs: ``name``, ``dtype``, ``shape`` each; -1 is a dynamic dim.
        outputs: Likewise.
        config: The whole configuration.
        warnings: The texts that were raised as warnings too.
        library_warnings: What TensorRT itself warned about.
        untraced: Names of sparse layers that could not be traced to a node of the source model.
        build_seconds: Inside TensorRT's builder.
        total_seconds: Of everything.
        plan_bytes: The plan; not part of ``to_dict()``.
    """

    flavour: str
    version: str
    model: dict[str, Any]
    precision: PrecisionReport
    sparsity: str
    sites: tuple[SiteRow, ...]
    pruning: dict[str, Any] | None
    profiles: tuple[dict[str, Any], ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    warnings: tuple[str, ...]
    library_warnings: tuple[str, ...]
    untraced: tuple[str, ...]
    build_seconds: float
    total_seconds: float
    plan_bytes: bytes = field(repr=False)

    @functools.cached_property
    def plan(self) -> dict[str, Any]:
        """``sha256`` and ``nbytes`` of the plan; hashed when first asked for, which takes a while for large plans."""
        return {"sha256": hashlib.sha256(self.plan_bytes).hexdigest(), "nbytes": len(self.plan_bytes)}

    @property
    def chosen(self) -> tuple[SiteRow, ...]:
        """The sites that are known to run sparse."""
        return tuple(row for row in self.sites if row.chosen is True)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "plan_bytes"}
        return {"schema": SCHEMA, "plan": self.plan, **{name: _as_json(value) for name, value in facts.items()}}


@dataclass
class Notes:
    """Collects a build's warnings, each raised as a Python warning at once.

    Attributes:
        texts: In order.
    """

    texts: list[str] = field(default_factory=list)

    def warn(self, text: str, category: type[BuildWarning] = BuildWarning) -> None:
        """Raise a warning that points at the first caller outside this package."""
        self.texts.append(text)
        warnings.warn(text, category, stacklevel=_caller_depth())


def fingerprint(model: OnnxModel) -> dict[str, Any]:
    """The name and the SHA-256 of a model's file, and of its external data files."""
    external = [{"name": path.name, "sha256": _sha256(path)} for path in model.external_files()]
    return {"name": model.name, "sha256": _sha256(model.files[""]), "external": external}


def _sha256(source: Any) -> str:
    if not isinstance(source, Path):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


_PACKAGE = str(Path(__file__).parent.parent)


def _caller_depth() -> int:
    frame = inspect.currentframe()
    frame, depth = (frame.f_back if frame else None), 1
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    return depth


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value
