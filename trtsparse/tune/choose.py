"""Choosing a kernel for each product as it comes up: known ones from the cache, the others by measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Tuner
from trtsparse.tune.result import Kernel
from trtsparse.tune.tune import TuneResult, tune

__all__ = ["Choose", "Chooser", "NotTuned", "Remembered", "question"]

Choose = Callable[[Gemm, bool], "Kernel | None"]
"""The kernel for a product, given whether its weight is compliant; None where neither library has one.

It may raise `NotTuned`.
"""


class NotTuned(Exception):  # noqa: N818 - an answer that is warned of, not an error that anybody sees
    """Nobody knows a product's kernel yet, as measuring failed; the text says why. It may succeed another time."""


def question(gemm: Gemm, *, compliant: bool) -> str:
    """What a `Choose` was asked, as a text.

    Example:
        >>> question(Gemm(8, 16, 32), compliant=False)
        '8x16x32 bf16->bf16, dense weights'
    """
    return gemm.key if compliant else f"{gemm.key}, dense weights"


class Chooser:
    """Tunes products when they are first asked for. Thread-safe; one product is measured at a time.

    Args:
        device: The GPU's number.
        tuner: Measures, and stays open; default: one of its own, whose process is started when it is needed.
        cache: Where results are kept; default: a file in the user's cache folder.
    """

    def __init__(self, *, device: int = 0, tuner: Tuner | None = None, cache: Cache | None = None) -> None:
        self._own = None if tuner else Tuner(device=device)
        self._tuner, self._cache = tuner or self._own, cache or Cache()
        self._known: dict[Gemm, TuneResult] = {}
        self._lock = threading.Lock()

    def __call__(self, gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - an engine's callback
        """The fastest kernel that computes what it should; None where neither library has one.

        Args:
            gemm: The product.
            compliant: Its weight holds the pattern, so that a sparse kernel may be used.

        Raises:
            NotTuned: It could not be measured; it is tried again when it is asked for again.
            TrtSparseError: As `trtsparse.tune.tune.tune`.
        """
        with self._lock:
            if gemm not in self._known:
                found = tune([gemm], cache=self._cache, tuner=self._tuner)
                failed = found.rows[0].facts.get("failed")
                if failed is not None:
                    raise NotTuned(failed)
                self._known[gemm] = found
            return self._known[gemm].kernel(gemm, compliant=compliant)

    def close(self) -> None:
        """End a process of its own, which holds memory of the GPU; the next new product starts it again."""
        with self._lock:
            if self._own is not None:
                self._own.close()


class Remembered:
    """Choices that were made before.

    Args:
        kernels: By their `question`.
        otherwise: Asked for what is not among them.
    """

    def __init__(self, kernels: Mapping[str, Kernel | None], otherwise: Choose) -> None:
        self._kernels, self._otherwise = kernels, otherwise

    def __call__(self, gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - an engine's callback
        """The kernel that was chosen, or is chosen now."""
        asked = question(gemm, compliant=compliant)
        return self._kernels[asked] if asked in self._kernels else self._otherwise(gemm, compliant)
