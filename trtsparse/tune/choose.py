"""Choosing a kernel for each product as it comes up: known ones from the cache, the others by measurement."""

from __future__ import annotations

import threading

from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Tuner
from trtsparse.tune.result import Kernel
from trtsparse.tune.tune import tune

__all__ = ["Chooser"]


class Chooser:
    """Tunes products when they are first asked for. Thread-safe; one product is measured at a time.

    Args:
        tuner: Measures; default: one that is started for a product that nobody measured before.
        cache: Where results are kept; default: a file in the user's cache folder.
    """

    def __init__(self, *, tuner: Tuner | None = None, cache: Cache | None = None) -> None:
        self._tuner, self._cache = tuner, cache or Cache()
        self._lock = threading.Lock()

    def __call__(self, gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - an engine's callback
        """The fastest kernel that computes what it should; None where neither library has one.

        Args:
            gemm: The product.
            compliant: Its weight holds the pattern, so that a sparse kernel may be used.

        Raises:
            TrtSparseError: As `trtsparse.tune.tune.tune`.
        """
        with self._lock:
            return tune([gemm], cache=self._cache, tuner=self._tuner).kernel(gemm, compliant=compliant)
