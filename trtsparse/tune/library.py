"""What a tuning process asks of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trtsparse.tune.data import Check
from trtsparse.tune.gemm import Gemm

__all__ = ["Candidate", "Library", "Problem"]


@dataclass(frozen=True)
class Candidate:
    """One kernel for one product.

    Attributes:
        kind: "dense" or "sparse".
        name: Names it within its kind and product.
        form: How the reduction is split, the same word for every kernel; "" for the plain form.
        parameters: What is needed to make it again, as JSON types.
    """

    kind: str
    name: str
    form: str = field(default="", compare=False)
    parameters: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"


class Problem(Protocol):
    """One product on one device, with data.

    Every method may raise `trtsparse.tune.gemm.Refused`, take for ever, or kill the process.
    """

    def candidates(self) -> list[Candidate]:
        """Every kernel in its plain form; of each kind the library's own choice first."""

    def variants(self, candidate: Candidate) -> list[Candidate]:
        """Other forms of a kernel that turned out fast."""

    def screen(self, candidate: Candidate) -> float:
        """A quick time in milliseconds."""

    def check(self, candidate: Candidate) -> Check:
        """Compare with float64 on random data, with a poisoned output."""

    def race(
        self, candidates: Sequence[Candidate], rounds: int, before: Callable[[Candidate], None]
    ) -> list[list[float]]:
        """Careful times in milliseconds of each, in turn; ``before`` is told which is about to run."""

    def facts(self) -> dict[str, Any]:
        """What else belongs into the result, as JSON types."""

    def close(self) -> None:
        """Free everything."""


class Library(Protocol):
    """Kernels of one device."""

    def facts(self) -> dict[str, str]:
        """Names and versions that times depend on."""

    def open(self, gemm: Gemm) -> Problem:
        """A product."""

    def healthy(self) -> bool:
        """False when a kernel has made the device unusable for this process."""
