"""`tune`: the best dense and the best sparse kernel for each matrix product of a model, by measurement."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from trtsparse.errors import OutputError
from trtsparse.files.model import OnnxModel
from trtsparse.tune.cache import Cache, CacheWarning
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Tuner
from trtsparse.tune.result import GemmResult, Kernel
from trtsparse.tune.sites import AUTO, SiteGemm, eligible_gemms

__all__ = ["SCHEMA", "TuneResult", "tune"]

SCHEMA = "trtsparse.tune/1"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TuneResult:
    """What tuning found.

    Attributes:
        facts: The GPU, its driver, the libraries' versions.
        rows: One result a product, in the order in which they came up.
        sites: The model's eligible sites; empty for products that were given without a model.
        missing: Products for which there was no time.
        unknown: Names of nodes whose size does not follow from the shapes of the inputs.
        cached: How many of the rows were measured by an earlier run.
        seconds: What it took.
        model: The model's name, or "".
    """

    facts: Mapping[str, str]
    rows: tuple[GemmResult, ...]
    sites: tuple[SiteGemm, ...] = ()
    missing: tuple[Gemm, ...] = ()
    unknown: tuple[str, ...] = ()
    cached: int = 0
    seconds: float = 0.0
    model: str = ""

    def find(self, gemm: Gemm) -> GemmResult | None:
        """The result for a product, or None."""
        return next((row for row in self.rows if row.gemm == gemm), None)

    def kernel(self, gemm: Gemm, *, compliant: bool) -> Kernel | None:
        """The kernel to run a product with; None where none is known.

        Args:
            gemm: The product.
            compliant: Its weight holds the pattern of its type, so that a sparse kernel may be used.
        """
        row = self.find(gemm)
        if row is None:
            return None
        if row.stands_in:
            return row.sparse if compliant else None
        return row.choice if compliant else row.dense

    @property
    def totals(self) -> tuple[float, float] | None:
        """Milliseconds of all ``sites`` by the best dense kernels, and with sparse ones where they are faster.

        None where one has no dense kernel or was not measured, and without a model.
        """
        dense = best = 0.0
        for site in self.sites:
            row = self.find(site.gemm)
            if row is None or row.dense is None or row.choice is None:
                return None
            dense += site.count * row.dense.ms
            best += site.count * row.choice.ms
        return (dense, best) if self.sites else None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        totals = self.totals
        return {
            "schema": SCHEMA,
            "model": self.model,
            "facts": dict(self.facts),
            "seconds": self.seconds,
            "cached": self.cached,
            "totals": None if totals is None else {"dense_ms": totals[0], "best_ms": totals[1]},
            "sites": [site.to_dict() for site in self.sites],
            "rows": [row.to_dict() for row in self.rows],
            "missing": [gemm.to_dict() for gemm in self.missing],
            "unknown": list(self.unknown),
        }


def tune(
    work: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel | Sequence[Gemm],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtype: str = AUTO,
    cache: Cache | None = None,
    fresh: bool = False,
    limit_s: float | None = None,
    progress: Progress | None = None,
    tuner: Tuner | None = None,
) -> TuneResult:
    """Measure dense (cuBLASLt) against sparse (cuSPARSELt) kernels on the GPU at hand.

    Kernels run in a child process that they may kill: what it reported is kept, the culprit is skipped, and this
    always ends with a table. Results are kept in a file, so that the next call finds them.

    Args:
        work: A model, whose eligible weight sites are tuned, or products. It is not changed.
        shapes: Of the model's inputs, where they are dynamic.
        dtype: Of a model's products: "fp16", "bf16", "int8", "fp8_e4m3", "tf32", or "auto", as the weights are stored
            (fp16 for float32, int8 or fp8_e4m3 for products of two such values).
        cache: Where results are kept; default: a file in the user's cache folder.
        fresh: Measure again what is known, and try again what failed.
        limit_s: No product is begun after so many seconds; those that are left are in ``missing``.
        progress: Called with (products done, products in all).
        tuner: Measures, and stays open; default: one for this call.

    Raises:
        ConfigError: Shapes are missing or wrong, or there is no such type.
        ModelError: The model is damaged.
        MissingDependencyError: cuBLASLt, cuSPARSELt or their binding is not installed.
        DeviceError: There is no GPU, or not one with Sparse Tensor Cores.
        EngineError: The child process does not start.
    """
    begin = time.monotonic()
    if isinstance(work, Sequence) and not isinstance(work, (str, bytes)):
        sites: tuple[SiteGemm, ...] = ()
        unknown: tuple[str, ...] = ()
        gemms, name = list(dict.fromkeys(work)), ""
    else:
        opened = OnnxModel.open(work)
        sites, unknown = eligible_gemms(opened, shapes=shapes, dtype=dtype)
        gemms, name = list(dict.fromkeys(site.gemm for site in sites)), opened.name
    if not gemms:
        return TuneResult({}, (), unknown=unknown, model=name)
    run = _Run(tuner or Tuner(), cache or Cache(), progress)
    try:
        run.measure(gemms, fresh=fresh, until=None if limit_s is None else begin + limit_s)
    finally:
        if tuner is None:
            run.tuner.close()
    return TuneResult(
        facts=run.tuner.facts(),
        rows=tuple(run.found[gemm] for gemm in gemms if gemm in run.found),
        sites=sites,
        missing=tuple(gemm for gemm in gemms if gemm not in run.found),
        unknown=unknown,
        cached=run.cached,
        seconds=time.monotonic() - begin,
        model=name,
    )


@dataclass
class _Run:
    """One call of `tune`."""

    tuner: Tuner
    cache: Cache
    progress: Progress | None
    found: dict[Gemm, GemmResult] = field(default_factory=dict)
    cached: int = 0
    keeps: bool = True

    def measure(self, gemms: Sequence[Gemm], *, fresh: bool, until: float | None) -> None:
        """Find or measure each product, and keep each result at once."""
        facts = self.tuner.facts()
        known = self.cache.load(facts)
        if not fresh:
            self.tuner.learn(known.lessons)
            self.found = {gemm: known.results[gemm] for gemm in gemms if gemm in known.results}
            self.cached = len(self.found)
        for gemm in gemms:
            if gemm in self.found:
                continue
            if until is not None and time.monotonic() > until:
                return
            if self.progress is not None:
                self.progress(len(self.found), len(gemms))
            self.found[gemm] = result = self.tuner.tune(gemm)
            if "failed" not in result.facts:
                self._keep(facts, result, fresh=fresh)
        if self.progress is not None:
            self.progress(len(gemms), len(gemms))

    def _keep(self, facts: Mapping[str, str], result: GemmResult, *, fresh: bool) -> None:
        types = result.gemm.types
        try:
            if self.keeps:
                self.cache.add(facts, [result], {types: self.tuner.lessons[types]}, fresh=fresh)
        except OutputError as error:
            self.keeps = False
            warnings.warn(f"results of tuning are not kept: {error}", CacheWarning, stacklevel=4)
