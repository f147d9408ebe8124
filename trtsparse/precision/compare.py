"""How far a model's outputs are from another's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtsparse.errors import FeedError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import Runner, runner
from trtsparse.precision.specs import check_outputs

__all__ = ["Comparison", "check_same_names", "compare_models", "compare_runs"]


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        error: The largest of ``per_output``.
        per_output: For each output, the largest difference over all elements and feeds, relative to the largest
            magnitude of the reference over all elements and feeds. 0 is equal; infinite when one side has a NaN or
            infinity where the other has none, or the shapes differ. For outputs that are not floats: the share of
            elements that differ, 0 to 1.
        feeds: How many inputs were compared.
    """

    error: float
    per_output: Mapping[str, float]
    feeds: int

    @property
    def worst(self) -> str:
        """The output with the largest error."""
        return max(self.per_output, key=lambda name: self.per_output[name])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; an infinite error is the string "inf"."""
        shown = {name: _json(error) for name, error in self.per_output.items()}
        return {"error": _json(self.error), "per_output": shown, "feeds": self.feeds}


def compare_models(
    a: str | os.PathLike[str] | bytes | Any,
    b: str | os.PathLike[str] | bytes | Any,
    *,
    feeds: Iterable[Mapping[str, np.ndarray]],
) -> Comparison:
    """Run both models in ONNX Runtime on the CPU with the same inputs, and compare the outputs.

    A model with Q/DQ runs in their exact arithmetic, without ONNX Runtime's INT8 kernels.

    Args:
        a: The reference: a path, bytes, a ModelProto or an OnnxModel.
        b: The other model. It takes the same inputs and has outputs of the same names.
        feeds: The inputs.

    Raises:
        ModelError: The outputs have different names, or are not tensors.
        FeedError: There are no feeds.
        EngineError: ONNX Runtime does not load or run one of the models.
        MissingDependencyError: ONNX Runtime is not installed.

    Example:
        >>> from onnx import parser
        >>> head = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)'
        >>> a = parser.parse_model(head + '{ y = Add(x, x) }')
        >>> b = parser.parse_model(head + '<float c = {2.5}> { y = Mul(x, c) }')
        >>> compare_models(a, b, feeds=[{"x": np.array([1, 4], np.float32)}]).error
        0.25
    """
    first, second = OnnxModel.open(a), OnnxModel.open(b)
    names = [[value.name for value in model.proto.graph.output] for model in (first, second)]
    check_same_names("outputs", *names, where=second.name)
    check_outputs(first)
    check_outputs(second)
    return compare_runs(runner(first), runner(second), feeds=feeds)


def check_same_names(what: str, a: Sequence[str], b: Sequence[str], *, where: object) -> None:
    """Refuse to compare models that differ in the names of their inputs or outputs; the order does not matter.

    Args:
        what: "inputs" or "outputs".
        a: The reference's.
        b: The other model's.
        where: The other model.

    Raises:
        ModelError: They differ.
    """
    if sorted(a) != sorted(b):
        raise ModelError(
            f"the models have different {what}",
            where=where,
            got=", ".join(map(repr, b)),
            expected=", ".join(map(repr, a)),
        )


def compare_runs(a: Runner, b: Runner, *, feeds: Iterable[Mapping[str, np.ndarray]]) -> Comparison:
    """Like `compare_models`, for two functions from inputs to outputs.

    Raises:
        FeedError: There are no feeds.
    """
    meter = ErrorMeter()
    for feed in feeds:
        meter.add(a(feed), b(feed))
    return meter.result()


@dataclass
class ErrorMeter:
    """Gathers differences feed by feed, so that only one feed's outputs are in memory."""

    feeds: int = 0
    _differences: dict[str, float] = field(default_factory=dict)
    _magnitudes: dict[str, float] = field(default_factory=dict)

    def add(self, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
        """Take the outputs of one feed; ``b`` has all names of the reference ``a``."""
        self.feeds += 1
        for name, reference in a.items():
            difference, magnitude = _difference(reference, b[name])
            self._differences[name] = max(difference, self._differences.get(name, 0.0))
            self._magnitudes[name] = max(magnitude, self._magnitudes.get(name, 0.0))

    def result(self) -> Comparison:
        """The comparison so far."""
        if not self.feeds:
            raise FeedError("there is nothing to compare: no feeds were given")
        per_output = {
            name: _relative(difference, self._magnitudes[name]) for name, difference in self._differences.items()
        }
        return Comparison(max(per_output.values(), default=0.0), per_output, self.feeds)


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest difference and the reference's largest magnitude; for other than floats, share and 1."""
    if a.shape != b.shape:
        return math.inf, 1.0
    if a.dtype.kind in "biuOSU":
        return (float(np.mean(a != b)) if a.size else 0.0), 1.0
    left, right = (np.asarray(values, np.float64 if a.dtype == np.float64 else np.float32) for values in (a, b))
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return math.inf, 1.0
    if not finite.all():
        left, right = left[finite], right[finite]
    if not left.size:
        return 0.0, 0.0
    if not np.isfinite(right).all():
        return math.inf, 1.0
    return float(np.abs(left - right).max()), float(np.abs(left).max())


def _relative(difference: float, magnitude: float) -> float:
    if not difference:
        return 0.0
    return difference / magnitude if magnitude else math.inf


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"
