"""What tuning found out about a product."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtsparse.tune.gemm import Gemm

__all__ = ["GemmResult", "Kernel"]


@dataclass(frozen=True)
class Kernel:
    """The best kernel of a kind that computes what it should.

    Attributes:
        kind: "dense" or "sparse".
        name: Among the kernels of the library for this product.
        parameters: What `trtsparse.tune.dense.Algorithm` or `trtsparse.tune.sparse.Configuration` takes.
        ms: Median of the careful times.
        low: Shortest of them.
        high: Longest of them.
        error: Against float64, relative in the Frobenius norm.
        bound: The most that is right for the types.
    """

    kind: str
    name: str
    parameters: Mapping[str, Any]
    ms: float
    low: float
    high: float
    error: float
    bound: float

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None) -> Kernel | None:
        """Read the fields as JSON types; None stands for no kernel.

        Raises:
            KeyError, TypeError, ValueError: They are not those of a kernel.
        """
        if fields is None:
            return None
        numbers = {name: float(fields[name]) for name in ("ms", "low", "high", "error", "bound")}
        return cls(str(fields["kind"]), str(fields["name"]), dict(fields["parameters"]), **numbers)


@dataclass(frozen=True)
class GemmResult:
    """A product and its best kernels.

    Attributes:
        gemm: The product.
        dense: The best of cuBLASLt; None where there is none.
        sparse: The best of cuSPARSELt; None where there is none.
        gains: Dense over sparse time, round by round.
        defaults: Quick times in milliseconds of what each library would have taken itself.
        tried: How many kernels were timed.
        skipped: (kernel, why) of those that were not, or that computed something else.
        refused: How many forms of kernels a library does not have for this product, by its answer.
        restarts: How often a kernel killed the process that tunes.
        facts: What else there is to say: bytes of the weight dense and compressed, why there is no sparse kernel.
        source: "measured", or where the result comes from.
    """

    gemm: Gemm
    dense: Kernel | None = None
    sparse: Kernel | None = None
    gains: tuple[float, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    tried: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    restarts: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: str = "measured"

    @property
    def gain(self) -> float | None:
        """Dense over sparse time, the median of the rounds; None unless both are known."""
        return statistics.median(self.gains) if self.gains else None

    @property
    def stands_in(self) -> bool:
        """Whether the dense kernel gives values of another type, as cuBLASLt has none for this one."""
        return "dense_output" in self.facts

    @property
    def choice(self) -> Kernel | None:
        """What to run with pruned weights."""
        known = [kernel for kernel in (self.dense, self.sparse) if kernel]
        return min(known, key=lambda kernel: kernel.ms) if known else None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types; `from_dict` reads it."""
        lists = {"gains": list(self.gains), "skipped": [list(pair) for pair in self.skipped]}
        return {**dataclasses.asdict(self), **lists, "gain": self.gain}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, source: str | None = None) -> GemmResult:
        """Read what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError, TrtSparseError: It was not that.
        """
        return cls(
            gemm=Gemm(**fields["gemm"]),
            dense=Kernel.from_dict(fields["dense"]),
            sparse=Kernel.from_dict(fields["sparse"]),
            gains=tuple(map(float, fields["gains"])),
            defaults={str(kind): float(ms) for kind, ms in fields["defaults"].items()},
            tried=int(fields["tried"]),
            skipped=tuple((str(key), str(why)) for key, why in fields["skipped"]),
            refused={str(why): int(count) for why, count in fields["refused"].items()},
            restarts=int(fields["restarts"]),
            facts=dict(fields["facts"]),
            source=source or str(fields["source"]),
        )
