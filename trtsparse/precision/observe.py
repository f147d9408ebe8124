"""The values inside a model while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from trtsparse.precision.graph import pack
from trtsparse.precision.ort import open_session, ort_errors
from trtsparse.precision.typed import SENTINEL

__all__ = ["Observer", "magnitudes", "relative_noise"]

_BUDGET_NBYTES = 256 << 20
_FIRST = 16


class Observer:
    """Runs a model, without optimizations, and gives its inner values.

    Args:
        model: The whole model; it gets more outputs.
        values: Names of values of its main graph.
        name: What error messages call it.

    Raises:
        EngineError: ONNX Runtime does not load the model.
        MissingDependencyError: It is not installed.
    """

    def __init__(self, model: onnx.ModelProto, *, values: Sequence[str], name: str) -> None:
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values if value not in present)
        self._values = tuple(values)
        self._name = name
        self._session = open_session(pack(model, name=name), optimize=False)

    def run(self, feed: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Give each value's name and array, in the order of the names.

        The model runs several times, so that no more than about 256 MB of values are held at once.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        at_once, start = _FIRST, 0
        while start < len(self._values):
            names = list(self._values[start : start + at_once])
            with ort_errors("ONNX Runtime failed while running the model", where=self._name):
                arrays = self._session.run(names, dict(feed))
            yield from zip(names, arrays, strict=True)
            start += len(names)
            largest = max(array.nbytes for array in arrays)
            at_once = max(1, min(_BUDGET_NBYTES // max(largest, 1), 4 * at_once))


def magnitudes(observer: Observer, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The largest magnitude of each float value over all feeds; infinities and masks' sentinels do not count."""
    largest: dict[str, float] = {}
    for feed in feeds:
        for name, value in observer.run(feed):
            largest[name] = max(largest.get(name, 0.0), _magnitude(value))
    return largest


def relative_noise(a: np.ndarray, b: np.ndarray) -> float:
    """The mean square of the difference relative to that of ``a``; infinite where ``b`` is not finite.

    Rounding errors of different nodes are independent: their mean squares add up.
    """
    counted = np.isfinite(a) & (np.abs(a) < SENTINEL)
    reference, other = a[counted], b[counted]
    if not np.isfinite(other).all():
        return np.inf
    power = float(np.mean(np.square(reference, dtype=np.float64))) if reference.size else 0.0
    return float(np.mean(np.square(reference - other, dtype=np.float64))) / max(power, 1e-60) if power else 0.0


def _magnitude(value: np.ndarray) -> float:
    magnitude = np.abs(value)
    counted = magnitude[magnitude < SENTINEL]
    return float(counted.max()) if counted.size else 0.0
