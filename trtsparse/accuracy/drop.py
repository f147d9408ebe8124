"""How much worse a model got: its outputs' relative error on some inputs, or the user's own score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trtsparse.accuracy.stages import Graph
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import Feeds
from trtsparse.precision.ort import ort_errors

__all__ = ["OutputMeter", "ScoreMeter"]

Weights = Mapping[tuple[str, int], np.ndarray]

_FEEDS = 16
_OUTPUTS_NBYTES = 1 << 29  # of the reference, held in memory


class OutputMeter:
    """The root mean square of the outputs' difference, relative to that of the dense model's outputs.

    Args:
        graph: The dense model.
        feeds: The inputs; the first 16 are used, less where the outputs are large.
    """

    measure = "output error"

    def __init__(self, graph: Graph, feeds: Feeds) -> None:
        self._graph = graph
        self._outputs = [value.name for value in graph.proto.graph.output]
        self._feeds: list[Mapping[str, np.ndarray]] = []
        self._reference: list[list[Any]] = []
        run = self._runner({})
        for number in range(min(len(feeds), _FEEDS)):
            self._reference.append(run(feeds[number]))
            self._feeds.append(feeds[number])
            if sum(np.asarray(value).nbytes for values in self._reference for value in values) > _OUTPUTS_NBYTES:
                break

    def drop(self, weights: Weights) -> float:
        """The largest error of all outputs, with other values for some constants; infinite where one is not finite.

        For outputs that are not floats: the root of the share of elements that differ.
        """
        run = self._runner(weights)
        moved, power = np.zeros(len(self._outputs)), np.zeros(len(self._outputs))
        for feed, reference in zip(self._feeds, self._reference, strict=True):
            for i, (a, b) in enumerate(zip(reference, run(feed), strict=True)):
                more = _difference(np.asarray(a), np.asarray(b))
                moved[i] += more[0]
                power[i] += more[1]
        return max(map(_relative, moved, power), default=0.0)

    def _runner(self, weights: Weights) -> Callable[[Mapping[str, np.ndarray]], list[Any]]:
        model = self._graph.whole(weights)
        session = self._graph.session(model)

        def run(feed: Mapping[str, np.ndarray]) -> list[Any]:
            with ort_errors("ONNX Runtime failed while running the model", where=model.name):
                found: list[Any] = session.run(self._outputs, dict(feed))
            return found

        return run


class ScoreMeter:
    """The difference between the dense model's score and a pruned one's.

    Args:
        graph: The dense model.
        evaluate: The user's function, higher is better.
    """

    measure = "evaluation"

    def __init__(self, graph: Graph, evaluate: Callable[[OnnxModel], float]) -> None:
        self._graph = graph
        self._evaluate = evaluate
        self._dense = self._score({})

    def drop(self, weights: Weights) -> float:
        """What is lost with other values for some constants."""
        return self._dense - self._score(weights)

    def _score(self, weights: Weights) -> float:
        score = float(self._evaluate(self._graph.whole(weights)))
        if math.isnan(score):
            raise ConfigError("the score of a model is not a number", where="evaluate", got=score)
        return score


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Sums of squares of the difference and of the reference; for other than floats, of ones."""
    if a.shape != b.shape:
        return math.inf, 1.0
    if a.dtype.kind in "biuOSU":
        return float(np.count_nonzero(a != b)), float(a.size)
    left, right = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(right[finite]).all():
        return math.inf, 1.0
    return float(np.square(left[finite] - right[finite]).sum()), float(np.square(left[finite]).sum())


def _relative(moved: float, power: float) -> float:
    if power:
        return math.sqrt(moved / power)
    return math.inf if moved else 0.0
