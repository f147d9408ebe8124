"""From what the processes of all cases found to rows of figures."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .cases import CASES, DENSE, DENSE_8, NOT_ASKED, SPARSE, SPARSE_8, is_small

__all__ = ["Table", "add_rows", "best", "kind_of", "merged", "paired"]

_MIB = 2**20
_LONGEST = 12
_KINDS = (
    ("norms", r"triton.*norm"), ("other passes", r"triton"), ("sparse products", r"cusparselt"),
    ("attention", r"sdpa|fmha|flash_fwd"), ("convolutions", r"fprop|convolve|cudnn"),
    ("dense products", r"nvjet|gemm|cublas|cutlass"),
)  # fmt: skip
"""Kinds of kernels, and what their names are like; the first that fits."""


class Table(Protocol):
    """What `_results.Benchmark` is."""

    def add(
        self,
        case: str,
        metric: str,
        values: list[float] | float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> float:
        """Add a figure."""
        ...


@dataclass(frozen=True)
class _Case:
    """A table and a report about one case."""

    table: Table
    title: str
    report: Mapping[str, Any]

    @property
    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        return self.report["variants"]  # type: ignore[no-any-return]

    def ms(self, name: str | None) -> list[float]:
        """Times of a variant; none where it did not run."""
        return list(self.variants.get(name or "", {}).get("ms", ()))

    def joules(self, name: str | None) -> list[float | None]:
        """Its energy, as far as it is known."""
        return list(self.variants.get(name or "", {}).get("joules", ()))

    def asked(self, name: str) -> bool:
        """Whether a variant was to be measured."""
        return self.variants.get(name, {}).get("failure") != NOT_ASKED

    def add(self, metric: str, values: list[float] | float, unit: str, **target: float | None) -> None:
        """Add a figure."""
        self.table.add(self.title, metric, values, unit, **target)

    def add_ratios(self, metric: str, values: Sequence[float], *, at_least: float | None = None) -> None:
        """Add ratios; where there are none, a target is missed and the rest is left out."""
        if values:
            self.add(metric, list(values), "x", at_least=at_least)
        elif at_least is not None:
            self.add(f"{metric} (not run)", 0.0, "x", at_least=at_least)


def add_rows(table: Table, report: Mapping[str, Any]) -> None:
    """Add everything that is known of a case.

    Args:
        table: Where to.
        report: As `peers.session.Session` writes it.
    """
    case = next(case for case in CASES if case.name == report["case"])
    shapes = report.get("shapes") or case.shapes.values()
    sizes = " ".join(f"({' x '.join(map(str, shape))})" for shape in shapes)
    found = _Case(table, f"{case.recipe} {sizes}", report)
    for name, variant in found.variants.items():
        if variant.get("failure") != NOT_ASKED:
            _variant(found, name, variant)
    if found.asked(SPARSE):
        _ratios(found, SPARSE, dense_names(found.variants), DENSE, target=case.target)
    if case.int8_target is not None and found.asked(SPARSE_8):
        _ratios(found, SPARSE_8, dense_names(found.variants, eight_bits=True), DENSE_8, target=case.int8_target)
    _explained(found)
    _saved(found)
    _kernels(found)


def merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two reports about one case as one; what is compared with each other stays together.

    Args:
        earlier: A report.
        later: Its variants of 16 bits, and those of 8 bits, replace all such where any of them ran, and its kernels
            those of the same engines.
    """
    chosen = {}
    for small in (False, True):
        ran = any(variant.get("ms") for name, variant in later["variants"].items() if is_small(name) == small)
        chosen[small] = later if ran else earlier
    kept = [
        (name, variant)
        for small, report in chosen.items()
        for name, variant in report["variants"].items()
        if is_small(name) == small
    ]
    profiled = {name: report for report in (earlier, later) for name in report.get("kernels", {})}
    kernels = {name: report["kernels"][name] for name, report in profiled.items()}
    calls: list[Any] = []
    for report in (chosen[False], chosen[True], *profiled.values()):
        calls += [call for call in report["calls"] if call not in calls]
    return {**chosen[False], "variants": dict(kept), "kernels": kernels, "calls": calls}


def dense_names(variants: Mapping[str, Any], *, eight_bits: bool = False) -> list[str]:
    """The variants with dense kernels."""
    starts = ("FP8,", "INT8,", DENSE_8) if eight_bits else ("torch.compile", "eager", DENSE)
    return [name for name in variants if name.startswith(starts)]


def best(variants: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The fastest of some variants by its median; None where none ran.

    Example:
        >>> best({"a": {"ms": [2.0, 3.0, 9.0]}, "b": {"ms": [4.0, 4.0, 1.0]}, "c": {"failure": "no"}}, "abc")
        'a'
    """
    medians = {name: statistics.median(variants[name]["ms"]) for name in names if variants[name].get("ms")}
    return min(medians, key=medians.__getitem__) if medians else None


def kind_of(kernel: str) -> str:
    """What a kernel is about, by its name.

    Example:
        >>> kind_of("nvjet_sm90_tst_128x128_64x6_2x1_v_bz_bias_TNT"), kind_of("Memset (Unknown)")
        ('dense products', 'everything else')
    """
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel)), "everything else")


def paired(numerator: Sequence[float | None], denominator: Sequence[float | None]) -> list[float]:
    """Ratios round by round, of the rounds that both have.

    Example:
        >>> paired([2.0, None, 6.0, 8.0], [1.0, 1.0, 2.0])
        [2.0, 3.0]
    """
    return [a / b for a, b in zip(numerator, denominator, strict=False) if a is not None and b]


def _variant(case: _Case, name: str, variant: Mapping[str, Any]) -> None:
    if not variant.get("ms"):
        why = variant.get("failure") or case.report.get("ended") or "it was built, but not measured"
        case.add(f"{name}: not run: {why}", 0.0, "runs")
        return
    notes = f" ({variant['notes']})" if variant.get("notes") else ""
    case.add(f"{name}{notes}", case.ms(name), "ms")
    case.add(f"{name}, error against float32", variant["error"], "")
    known = [joules for joules in case.joules(name) if joules is not None]
    if known:
        case.add(f"{name}, energy of an inference", known, "J")
    if variant["peak_nbytes"]:
        case.add(f"{name}, peak device memory", variant["peak_nbytes"] / _MIB, "MiB")
    case.add(f"{name}, built in", variant["build_s"], "s")


def _ratios(case: _Case, sparse: str, dense: Sequence[str], own: str, *, target: float | None) -> None:
    """Speed, energy and memory of a sparse engine against dense ones."""
    variants = case.variants
    fastest = best(variants, dense)
    kind = "best 8-bit dense" if sparse == SPARSE_8 else "best dense"
    metric = f"{kind}{f' ({fastest})' if fastest else ''} / {sparse}"
    case.add_ratios(metric, paired(case.ms(fastest), case.ms(sparse)), at_least=target)
    case.add_ratios(f"inferences per joule, {sparse} / {kind}", paired(case.joules(fastest), case.joules(sparse)))
    if own != fastest:
        case.add_ratios(f"{own} / {sparse}", paired(case.ms(own), case.ms(sparse)))
        joules = paired(case.joules(own), case.joules(sparse))
        case.add_ratios(f"inferences per joule, {sparse} / {own}", joules)
    if fastest == own:
        peer = best(variants, [name for name in dense if name != own])
        case.add_ratios(f"best dense of PyTorch ({peer}) / {sparse}", paired(case.ms(peer), case.ms(sparse)))
    if sparse == SPARSE:
        peer = best(variants, [name for name in variants if name.startswith("semi-structured")])
        case.add_ratios(f"PyTorch's {peer} / {sparse}", paired(case.ms(peer), case.ms(sparse)))
    peaks = [variants.get(name, {}).get("peak_nbytes", 0) for name in (sparse, own)]
    if all(peaks):
        case.add(f"peak device memory, {sparse} / {own}", peaks[0] / peaks[1], "x")


def _explained(case: _Case) -> None:
    found = case.report.get("explain", {})
    gains = paired(case.ms(DENSE), case.ms(SPARSE))
    for name, words in (("predicted", ""), ("of the measured time", ", given the dense time")):
        if not found.get(name):
            continue
        expected = found[name]["now"]["expected"]
        case.add(f"explain's expected gain{words}", expected, "x")
        if gains:
            measured = statistics.median(gains)
            off = abs(expected / measured - 1) * 100
            case.add(f"explain's expected gain{words} / measured gain, off by", off, "%", at_most=10)


def _saved(case: _Case) -> None:
    saved = case.report.get("saved")
    if not saved:
        return
    for how, seconds in saved["load_s"].items():
        case.add(f"saved engine, loaded and run once, {how}", seconds, "s")
    case.add("saved engine's file", saved["nbytes"] / _MIB, "MiB")
    case.add("saved engine's file / dense weights in bfloat16", saved["nbytes"] / saved["dense_nbytes"], "x")


def _kernels(case: _Case) -> None:
    """Milliseconds of each kind of kernels as rows, the longest of each engine as a printed table."""
    for engine, kernels in case.report.get("kernels", {}).items():
        kinds: dict[str, float] = defaultdict(float)
        for name, _, ms in kernels:
            kinds[kind_of(name)] += ms
        case.add(f"{engine}'s kernels alone", sum(kinds.values()), "ms")
        for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]):
            case.add(f"{engine}'s kernels alone: {kind}", ms, "ms")
        print(f"{case.title}: {engine}'s kernels, the longest first")
        for name, count, ms in kernels[:_LONGEST]:
            print(f"  {ms:8.4f} ms  {count:4} x  {kind_of(name):15}  {name}")
