"""Judge a model: which weight sites are eligible, which are compliant, and how much of the work they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import TWO_FOUR, GroupCount, Pattern
from trtsparse.sparsity.values import PRECISIONS, count_site
from trtsparse.sparsity.weights import WeightSite, find_sites

__all__ = ["SCHEMA", "SiteReport", "SparsityReport", "Total", "as_pattern", "validate"]

SCHEMA = "trtsparse.sparsity/1"


@dataclass(frozen=True)
class SiteReport(WeightSite):
    """A weight site and what its values are; see `WeightSite` for the other fields.

    Attributes:
        groups: Groups of M consecutive weights along the reduction axis.
        violating: Groups with more than N non-zeros.
        first_violating: Index, in the stored shape, of the first violating group's first element.
        zero_fraction: Zeros among the parameters, 0 to 1.
        compliant: No group is violating; None where the values cannot be judged (``reason`` says why).
    """

    groups: int = 0
    violating: int = 0
    first_violating: tuple[int, ...] | None = None
    zero_fraction: float = 0.0
    compliant: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that a report shows, as JSON types."""
        hidden = {"ref", "quantization", "output_axis", "dequantized", "bodies"}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Total:
    """One way of adding up the sites.

    Attributes:
        total: Of all sites.
        eligible: Of the eligible ones.
        compliant: Of those that are eligible and compliant.
    """

    total: int
    eligible: int
    compliant: int

    @property
    def share(self) -> float:
        """Eligible and compliant, of all: what Sparse Tensor Cores may do, 0 to 1."""
        return self.compliant / self.total if self.total else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """What `validate` found.

    Attributes:
        model: The path, or "ModelProto".
        pattern: "2:4".
        precision: The precision whose values were judged.
        sites: In the order of the nodes.
        by_sites: Totals counting every site once.
        by_parameters: Totals of parameters, every tensor once however often it is used.
        by_macs: Totals of multiply-accumulates; None where dynamic shapes leave some unknown.
    """

    model: str
    pattern: str
    precision: str
    sites: tuple[SiteReport, ...]
    by_sites: Total
    by_parameters: Total
    by_macs: Total | None

    @property
    def compliant(self) -> bool:
        """True when there are eligible sites and all of them are compliant."""
        return 0 < self.by_sites.eligible == self.by_sites.compliant

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types; its form is `sparsity-report.schema.json` beside this module."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "pattern": self.pattern,
            "precision": self.precision,
            "compliant": self.compliant,
            "by_sites": dataclasses.asdict(self.by_sites),
            "by_parameters": dataclasses.asdict(self.by_parameters),
            "by_macs": None if self.by_macs is None else dataclasses.asdict(self.by_macs),
            "sites": [site.to_dict() for site in self.sites],
        }


def validate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    precision: str = "stored",
    pattern: Pattern | str = TWO_FOUR,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    allow_unknown_operators: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SparsityReport:
    """Judge every weight of a model. Weights are mapped one after another, never loaded together.

    Args:
        model: A path, serialized bytes, or a model in memory. It is not changed.
        precision: Judge the values as they will be after conversion: "fp16", "bf16", or "int8" (symmetric, per output
            channel). "stored" and "fp32" take them as they are.
        pattern: N:M, or "N:M".
        shapes: Input shapes for counting multiply-accumulates where the model's are dynamic.
        allow_unknown_operators: Accept operators of the standard domain that ONNX does not define (plugins).
        progress: Called with (bytes judged, bytes in all) after every weight.

    Raises:
        ModelError: The model cannot be read or contradicts itself.
        ConfigError: An unknown precision, shapes that are not the model's, or what is no pattern.
        PatternError: A text that is not N:M.

    Example:
        >>> import numpy as np
        >>> from onnx import helper, numpy_helper, TensorProto
        >>> w = numpy_helper.from_array(np.tile(np.float32([0, 0, 1, 2]), (8, 2)), "w")
        >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in "xy")
        >>> graph = helper.make_graph([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "g", [x], [y], [w])
        >>> report = validate(helper.make_model(graph))
        >>> report.compliant, report.sites[0].groups, report.by_macs.share
        (True, 16, 1.0)
    """
    if precision not in PRECISIONS:
        raise ConfigError("unknown precision", where="precision", got=precision, expected=", ".join(PRECISIONS))
    pattern = as_pattern(pattern)
    opened = OnnxModel.open(model)
    sites = find_sites(opened, shapes=shapes, pattern=pattern, allow_unknown_operators=allow_unknown_operators)
    reports = []
    judged: dict[tuple[Any, ...], GroupCount] = {}
    total = sum(site.ref.nbytes for site in sites if site.ref is not None)
    done = 0
    for site in sites:
        reports.append(_judge(opened, site, pattern, precision, judged))
        if progress is not None and site.ref is not None:
            done += site.ref.nbytes
            progress(done, total)
    return SparsityReport(
        model=opened.name,
        pattern=str(pattern),
        precision=precision,
        sites=tuple(reports),
        by_sites=_total(reports, lambda _: 1),
        by_parameters=_total(_each_tensor_once(reports), lambda site: site.parameters),
        by_macs=None if any(site.macs is None for site in reports) else _total(reports, lambda site: site.macs or 0),
    )


def as_pattern(given: Pattern | str) -> Pattern:
    """A pattern, or the one that a text such as "2:4" says.

    Raises:
        ConfigError: Neither.
        PatternError: A text that is not N:M.
    """
    if isinstance(given, str):
        return Pattern.parse(given)
    if not isinstance(given, Pattern):
        raise ConfigError("not a pattern", where="pattern", got=repr(given), expected="a Pattern, or text as '2:4'")
    return given


def _judge(
    model: OnnxModel, site: WeightSite, pattern: Pattern, precision: str, judged: dict[tuple[Any, ...], GroupCount]
) -> SiteReport:
    """Judge one site; a tensor used several times along the same axis is read once."""
    facts = {f.name: getattr(site, f.name) for f in dataclasses.fields(site)}
    if site.ref is None or not site.analysable or site.shape[site.axis] % pattern.m:
        return SiteReport(**facts)
    key = (site.ref.key, site.shape, site.axis, site.output_axis if precision == "int8" else None)
    count = judged.get(key) if site.quantization is None else None
    if count is None:
        count = judged[key] = count_site(model, site, pattern=pattern, precision=precision)
    return SiteReport(
        **facts,
        groups=count.groups,
        violating=count.violating,
        first_violating=count.first,
        zero_fraction=count.zeros / site.parameters,
        compliant=count.violating == 0,
    )


def _each_tensor_once(sites: list[SiteReport]) -> list[SiteReport]:
    """One site a tensor; it stands for the tensor only when eligible, and compliant, at every use."""
    uses: dict[object, list[SiteReport]] = {}
    for site in sites:
        uses.setdefault(site.ref.key if site.ref else (site.tensor, site.node), []).append(site)
    return [min(found, key=lambda site: (site.eligible, bool(site.compliant))) for found in uses.values()]


def _total(sites: list[SiteReport], amount: Callable[[SiteReport], int]) -> Total:
    return Total(
        total=sum(amount(site) for site in sites),
        eligible=sum(amount(site) for site in sites if site.eligible),
        compliant=sum(amount(site) for site in sites if site.eligible and site.compliant),
    )
