"""`explain`: for each weight of a model, whether it is compliant, eligible and chosen, what that gains, and why."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.validate import SiteReport, validate
from trtsparse.sparsity.weights import find_sites
from trtsparse.tune.bounds import Gain, Totals, totals
from trtsparse.tune.built import Built
from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import DTYPES
from trtsparse.tune.reasons import sentence
from trtsparse.tune.rest import count_rest
from trtsparse.tune.rows import UNKNOWN, SiteRow
from trtsparse.tune.sites import AUTO, SiteGemm, dynamic_inputs, quantized_type, site_gemm, site_type
from trtsparse.tune.times import Times, find_times

__all__ = ["SCHEMA", "Explanation", "Gain", "SiteRow", "Totals", "explain"]

SCHEMA = "trtsparse.explain/1"
_DENSE = ("fp32", "tf32")
_DTYPES = (AUTO, "fp32", *(name for name, kind in DTYPES.items() if kind.outputs))
_JUDGED = ("fp16", "bf16", "int8")


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        model: Its name.
        gpu: Whose times these are.
        times: Where they come from, a sentence.
        sites: In the order of the nodes.
        totals: Of the whole model; None where no times are known.
        report: The build report's model and settings in a sentence; "" without.
        notes: What else to know.
    """

    model: str
    gpu: str
    times: str
    sites: tuple[SiteRow, ...]
    totals: Totals | None
    report: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON types."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "gpu": self.gpu,
            "times": self.times,
            "report": self.report,
            "sites": [site.to_dict() for site in self.sites],
            "totals": None if self.totals is None else dataclasses.asdict(self.totals),
            "notes": list(self.notes),
        }


def explain(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    gpu: str | None = None,
    report: Any = None,
    dtype: str = AUTO,
    total_ms: float | None = None,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Say for each weight site whether it is compliant, eligible and chosen, what a sparse kernel gains, and why.

    Args:
        model: Which; not changed.
        shapes: Of inputs whose shapes are dynamic; default: those of the report's first profile.
        gpu: Use the table that ships for a GPU of this name, or else an estimate from its peaks. None: measure on the
            GPU at hand; where there is none, figures of an H100 stand in, and ``times`` says so.
        report: A build report: its ``to_dict()``, the report itself, or the path of a PLAN.json.
        dtype: "fp32", "fp16", "bf16", "int8", "fp8_e4m3" or "tf32"; "auto" is what the report's engine computes in,
            or else what weights are stored in (fp16 for float32). Products of two quantized values are what these
            are with "auto", and with "fp32" and "tf32".
        total_ms: A measured time of the dense engine for these shapes: totals then are about it. Otherwise the work
            outside of weight products is estimated, and bounded by nothing at all and by everything unfused.
        cache: Where measured results are kept; default: in the user's cache folder.
        progress: Called with (products measured, in all).

    Raises:
        ModelError: The model is damaged.
        ConfigError: Unknown names or types, shapes that are not the model's, or a report of another model.

    Example:
        >>> import numpy as np
        >>> from onnx import TensorProto, helper, numpy_helper
        >>> w = numpy_helper.from_array(np.tile(np.float16([0, 0, 1, 2]), (4096, 1024)).T, "w")
        >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, [2048, 4096]) for n in "xy")
        >>> node = helper.make_node("MatMul", ["x", "w"], ["y"], "proj")
        >>> found = explain(helper.make_model(helper.make_graph([node], "g", [x], [y], [w])), gpu="l40s")
        >>> found.sites[0].compliant, found.sites[0].eligible, found.sites[0].chosen
        (True, True, 'unknown')
        >>> found.sites[0].why
        'a sparse kernel is faster here (1.40x, an estimate)'
    """
    if dtype not in _DTYPES:
        raise ConfigError("no such data type of a product", where="dtype", got=dtype, expected=", ".join(_DTYPES))
    if total_ms is not None and not (total_ms > 0 and math.isfinite(total_ms)):
        raise ConfigError("a time is a positive, finite number of milliseconds", where="total_ms", got=total_ms)
    opened = OnnxModel.open(model)
    built = Built.read(report)
    if report is not None:
        built.check(find_sites(opened, allow_unknown_operators=True), opened.name)
    shapes = shapes or built.shapes or None
    asked, dtype = dtype, built.dtype if dtype == AUTO else dtype
    precision = dtype if dtype in _JUDGED else "stored"
    sites = validate(opened, shapes=shapes, precision=precision, allow_unknown_operators=True).sites
    types = [_type(site, asked, built) for site in sites]
    reasons = [_reason(*of_site, built) for of_site in zip(sites, types, strict=True)]
    products = [
        None if reason else site_gemm(site, kind) for site, kind, reason in zip(sites, types, reasons, strict=True)
    ]
    times = find_times(gpu, sorted({product.gemm for product in products if product}), cache=cache, progress=progress)
    nodes = {site.node for site, reason in zip(sites, reasons, strict=True) if not (reason or site.bodies)}
    rest = count_rest(opened, sites, shapes=shapes, products=nodes)
    rows = [
        _timed(_row(*of_site, built, rest.int8), times)
        for of_site in zip(sites, types, products, reasons, strict=True)
    ]
    rows = [
        dataclasses.replace(
            row, why=sentence(row, sparsity=built.sparsity, peaks=times.peaks, shapes=shapes is not None)
        )
        for row in rows
    ]
    computed = built.floats if dtype == AUTO else dtype
    summed = totals(rows, rest, times.peaks, dtype=computed, total_ms=total_ms)
    dense = {kind for site, kind in zip(sites, types, strict=True) if site.eligible and kind in _DENSE}
    return Explanation(
        model=opened.name,
        gpu=times.gpu,
        times=times.text,
        sites=tuple(rows),
        totals=summed,
        report=built.text,
        notes=(*_input_notes(dynamic_inputs(opened, shapes or {}), dense), *_notes(rows, times, summed)),
    )


def _type(site: SiteReport, asked: str, built: Built) -> str:
    """What a site's product is computed in; types without sparse kernels leave what is quantized as it is."""
    if asked not in (AUTO, *_DENSE):
        return asked
    dtype = built.dtype if asked == AUTO else asked
    return quantized_type(site) or (site_type(site, floats=built.floats) if dtype == AUTO else dtype)


def _reason(site: SiteReport, dtype: str, built: Built) -> str:
    """Why a site is not eligible, the report's word first."""
    known = built.rows.get((site.node, site.tensor), {})
    reason = str(known.get("reason") or site.reason)
    if not reason and dtype in _DENSE:
        return f"{dtype.upper()} build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"
    return reason


def _row(
    site: SiteReport,
    dtype: str,
    product: SiteGemm | None,
    reason: str,
    built: Built,
    closed: Collection[tuple[str, ...]],
) -> SiteRow:
    """A row without times; ``closed`` are the nodes whose output is quantized."""
    known = built.rows.get((site.node, site.tensor), {})
    row = SiteRow(
        node=site.node,
        op=site.op,
        tensor=site.tensor,
        shape=site.shape,
        compliant=known.get("compliant", site.compliant),
        eligible=not reason,
        chosen=UNKNOWN if known.get("chosen") is None else known["chosen"],
        reason=reason,
        violation=f"{site.violating:,} of {site.groups:,} groups have more than 2 non-zeros",
        open_output=quantized_type(site) == dtype == "int8" and (*site.bodies, site.node) not in closed,
        bodies=site.bodies,
    )
    if product is None:
        return row
    return dataclasses.replace(row, gemm=product.gemm, count=product.count, exact=product.exact)


def _timed(row: SiteRow, times: Times) -> SiteRow:
    """The row with its times, where there are any."""
    timing = None if row.gemm is None else times.find(row.gemm)
    if timing is None:
        return row
    return dataclasses.replace(
        row,
        dense_ms=timing.dense_ms * row.count,
        sparse_ms=None if timing.sparse_ms is None else timing.sparse_ms * row.count,
        low=timing.low,
        high=timing.high,
        basis=timing.basis,
        refusal=timing.refusal,
    )


def _input_notes(dynamic: Sequence[str], dense: Collection[str]) -> Iterator[str]:
    """What the model's shapes and types without sparse kernels leave unsaid, and what to give instead."""
    if dynamic:
        yield (
            f"sizes depend on dynamic inputs ({', '.join(dynamic)}): "
            "give --shapes name:1x3x224x224,... (shapes= in Python) for times and gains"
        )
    for dtype in sorted(dense):
        yield (
            f"no 2:4 sparse kernels exist for {dtype}: "
            "give --dtype fp16, bf16, int8 or fp8_e4m3 (dtype= in Python) for what these would gain"
        )


def _notes(rows: Sequence[SiteRow], times: Times, summed: Totals | None) -> list[str]:
    notes = []
    bases = [row.basis for row in rows if row.gain is not None]
    estimates = bases.count("estimate")
    between = sum(basis.startswith("interpolated") for basis in bases)
    if estimates and times.table is not None:
        notes.append(f"{estimates} of {len(bases)} products are not in the table: their times are estimates")
    if between:
        notes.append(f"times of {between} products are interpolated between other numbers of rows")
    if any(not row.exact for row in rows if row.gain is not None):
        notes.append("convolutions over several pixels are taken as matrix products: their kernels read less")
    if any(row.eligible and row.gemm is None for row in rows):
        notes.append("totals leave out weight sites whose size is not known")
    if summed is None:
        return notes
    if any(row.bodies for row in rows if row.dense_ms):
        notes.append(
            "totals count one branch of an If, that whose products take longer, and the body of a Loop or Scan once; "
            "what else these do is left out"
        )
    if summed.total_ms is not None and summed.total_ms < summed.dense_ms:
        notes.append(
            f"the measured {summed.total_ms:.4g} ms are less than the {summed.dense_ms:.4g} ms of the products: "
            "taken as these"
        )
    if summed.total_ms is None and any(bases):
        notes.append("without a measured time of the dense engine the work outside of weight products is an estimate")
    return notes
