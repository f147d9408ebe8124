"""Which layers to leave dense: what each costs when pruned alone, and the cheapest set that keeps to a limit."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtsparse.accuracy.calibrate import Calibrator, Outcome
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.drop import OutputMeter, ScoreMeter
from trtsparse.accuracy.prune import CalibratedResult, Method, check_method, write
from trtsparse.errors import ConfigError, PrecisionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import Feeds
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern
from trtsparse.sparsity.prune import Selection, ref_of, select
from trtsparse.sparsity.weights import find_sites

__all__ = ["LayerDrop", "Limit", "LimitedResult", "Sensitivity", "prune_within", "sensitivity"]

_TRIES = 16  # layers that are tried once more after the limit is met
Evaluate = Callable[[OnnxModel], float]


@dataclass(frozen=True)
class LayerDrop:
    """What pruning one tensor alone costs.

    Attributes:
        tensor: The weight.
        nodes: The nodes that use it.
        parameters: Its elements.
        drop: The drop with this tensor pruned and all others dense; below 0 where pruning helps.
    """

    tensor: str
    nodes: tuple[str, ...]
    parameters: int
    drop: float


@dataclass(frozen=True)
class Sensitivity:
    """What each layer costs when it is pruned alone.

    Attributes:
        model: The path, or "ModelProto".
        measure: "output error", relative to the root mean square of the output; or "evaluation", the difference of
            the user's score.
        method: How layers were pruned, each calibrated on the dense model.
        layers: Every tensor that can be pruned and is not compliant yet, the most sensitive first.
        together: The drop with all of them pruned.
    """

    model: str
    measure: str
    method: str
    layers: tuple[LayerDrop, ...]
    together: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON types; an infinite drop is the string "inf"."""
        layers = [{**vars(layer), "nodes": list(layer.nodes), "drop": _json(layer.drop)} for layer in self.layers]
        return {**vars(self), "together": _json(self.together), "layers": layers}


@dataclass(frozen=True)
class Limit:
    """How much accuracy pruning may cost.

    Attributes:
        max_drop: Of the score that ``evaluate`` gives; without it, the relative output error on up to 16 calibration
            inputs.
        evaluate: Scores a model, higher is better, as accuracy does. It is called about once for every layer.

    Raises:
        ConfigError: ``max_drop`` is negative.
    """

    max_drop: float
    evaluate: Evaluate | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise ConfigError("the limit must not be negative", where="max_drop", got=self.max_drop)


@dataclass(frozen=True)
class LimitedResult(CalibratedResult):
    """A model pruned as far as a limit allows; ``skipped`` tells the layers left dense for it, and why.

    Attributes:
        drop: What the pruned model lost.
        max_drop: What it was allowed to lose.
        dense: Tensors left dense to keep to the limit.
    """

    drop: float
    max_drop: float
    dense: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The changes, errors and drop as JSON types."""
        return {**super().to_dict(), "drop": self.drop, "max_drop": self.max_drop, "dense": list(self.dense)}


def sensitivity(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    calibration: Calibration | str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] | None = None,
    evaluate: Evaluate | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: Pattern = TWO_FOUR,
    method: Method = "magnitude",
    allow_unknown_operators: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Prune each layer alone and measure what it costs.

    Args:
        model: A path, serialized bytes, or a model in memory.
        calibration: Real inputs, as for `trtsparse.prune`; may be left out where ``evaluate`` is given and the
            method is "magnitude".
        evaluate: Scores a model, higher is better; without it the output error on up to 16 calibration inputs counts.
        include: Globs, as for `trtsparse.prune`.
        exclude: Globs.
        pattern: N:M.
        method: "magnitude", "wanda" or "sparsegpt".
        allow_unknown_operators: As for `trtsparse.prune`; ``evaluate`` must run such a model.
        progress: Called with (layers measured, layers in all).

    Raises:
        ConfigError: There is nothing to measure with.
        TrtSparseError: As in `trtsparse.prune`.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 1] y)
        ... <float[4, 4] v = {9, 0, 9, 1, 0, 9, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1}, float[4, 1] w = {1, 1, 1, 1}>
        ... { h = MatMul(x, v) y = MatMul(h, w) }'''
        >>> feeds = [{"x": np.ones((1, 4), np.float32)}]
        >>> found = sensitivity(parser.parse_model(text), calibration=Calibration(feeds, biases=False))
        >>> [(layer.tensor, round(layer.drop, 3)) for layer in found.layers]
        [('w', 0.419), ('v', 0.065)]
    """
    search = _Search(
        model,
        calibration,
        evaluate,
        include,
        exclude,
        pattern,
        method,
        allow_unknown_operators=allow_unknown_operators,
    )
    alone = search.alone(progress)
    layers = [
        LayerDrop(search.name(number), tuple(site.node for site in uses), search.size(number), alone[number])
        for number, uses in enumerate(search.calibrator.tensors)
    ]
    layers.sort(key=lambda layer: -layer.drop)
    together = search.drop(search.apart)
    return Sensitivity(search.opened.name, search.meter.measure, method, tuple(layers), together)


def prune_within(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    *,
    limit: Limit,
    output: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: Pattern = TWO_FOUR,
    method: Method = "magnitude",
    calibration: Calibration | str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] | None = None,
    allow_unknown_operators: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LimitedResult:
    """Prune as many layers as a limit allows.

    When pruning everything costs too much, layers are left dense: first those that cost most for their size when
    pruned alone. What is dense without need is pruned again, the largest first. The result is measured as it is.

    Args:
        model: As in `trtsparse.prune`, and so are the other arguments.
        limit: How much accuracy may be lost, and how it is measured.
        output: Where to write.
        include: Globs.
        exclude: Globs.
        pattern: N:M.
        method: "magnitude", "wanda" or "sparsegpt".
        calibration: May be left out where the limit has a function and the method is "magnitude".
        allow_unknown_operators: As in `trtsparse.prune`; the limit's function must run such a model.
        progress: Called with (done, total), first for measuring and then for pruning.

    Raises:
        PrecisionError: No layer can be pruned within the limit; nothing is written.
        ConfigError: There is nothing to measure with.
        TrtSparseError: As in `trtsparse.prune`.
    """
    search = _Search(
        model,
        calibration,
        limit.evaluate,
        include,
        exclude,
        pattern,
        method,
        allow_unknown_operators=allow_unknown_operators,
    )
    dense: set[int] = set()
    alone: dict[int, float] = {}
    outcomes = search.calibrator.run(progress=progress)
    drop = search.drop(outcomes)
    if drop > limit.max_drop:
        alone = search.alone(progress)
        order = search.order(alone)
        dense = search.fewest(order, limit.max_drop)
        while drop > limit.max_drop and len(dense) < len(order):
            outcomes = search.calibrator.run(dense=dense, progress=progress)
            drop = search.drop(outcomes)
            if drop > limit.max_drop:
                dense.update([number for number in order if number not in dense][: max(1, len(dense) // 8)])
    if len(dense) == len(alone) > 0:
        raise PrecisionError(
            "no layer can be pruned within the limit",
            error=min(alone.values()),
            limit=limit.max_drop,
            where=search.opened.name,
            fix="raise max_drop, give more calibration data, or retrain",
        )
    written, tensors = write(search.calibrator.model, search.without(dense), list(outcomes.values()), output=output)
    kept = tuple((search.name(number), _reason(alone[number], search.meter.measure)) for number in sorted(dense))
    return LimitedResult(
        written,
        str(pattern),
        tensors,
        (*search.selection.skipped, *kept),
        method,
        len(search.feeds),
        tuple(outcome.layer for outcome in outcomes.values()),
        drop,
        limit.max_drop,
        tuple(name for name, _ in kept),
    )


class _Search:
    """One model, its tensors, and ways to prune some of them."""

    def __init__(
        self,
        model: Any,
        calibration: Any,
        evaluate: Evaluate | None,
        include: Sequence[str],
        exclude: Sequence[str],
        pattern: Pattern,
        method: Method,
        *,
        allow_unknown_operators: bool,
    ) -> None:
        check_method(method, has_data=calibration is not None)
        if calibration is None and evaluate is None:
            raise ConfigError(
                "there is nothing to measure accuracy with",
                where="calibration",
                fix="give calibration data or a function that scores a model",
            )
        self.opened = OnnxModel.open(model)
        options = calibration if isinstance(calibration, Calibration) else Calibration(calibration or ())
        self.feeds: Feeds = () if calibration is None else options.read(self.opened)
        sites = find_sites(self.opened, pattern=pattern, allow_unknown_operators=allow_unknown_operators)
        self.selection = select(self.opened, sites, include=include, exclude=exclude, pattern=pattern)
        self.method = method
        self.calibrator = Calibrator(
            self.opened,
            selection=self.selection,
            pattern=pattern,
            method=method,
            options=options,
            feeds=self.feeds,
        )
        graph = self.calibrator.graph
        self.meter = OutputMeter(graph, self.feeds) if evaluate is None else ScoreMeter(graph, evaluate)

    @functools.cached_property
    def apart(self) -> dict[int, Outcome]:
        """Every tensor pruned, each calibrated on the dense model."""
        return self.calibrator.run(sequential=False)

    def drop(self, outcomes: Mapping[int, Outcome]) -> float:
        """What some pruned tensors cost together."""
        return self.meter.drop({key: v for outcome in outcomes.values() for key, v in outcome.changes().items()})

    def alone(self, progress: Callable[[int, int], None] | None) -> dict[int, float]:
        """What each tensor costs alone."""
        drops = {}
        for number, outcome in self.apart.items():
            drops[number] = self.drop({number: outcome})
            if progress is not None:
                progress(len(drops), len(self.apart))
        return drops

    def order(self, alone: Mapping[int, float]) -> list[int]:
        """Tensors to leave dense, first those that cost most for their size: squares of errors add up."""
        return sorted(alone, key=lambda number: (-(max(alone[number], 0) ** 2) / self.size(number), number))

    def fewest(self, order: Sequence[int], limit: float) -> set[int]:
        """A cheap beginning of an order that, left dense, brings the drop to the limit; at least one."""

        def fits(dense: Collection[int]) -> bool:
            return self.drop({number: o for number, o in self.apart.items() if number not in dense}) <= limit

        few, many = 0, len(order)  # with all of them dense nothing is lost
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if fits(order[:middle]) else (middle, many)
        dense = set(order[:many])
        for number in sorted(dense, key=self.size, reverse=True)[:_TRIES]:
            if len(dense) > 1 and fits(dense - {number}):
                dense.remove(number)
        return dense

    def size(self, number: int) -> int:
        """Elements of a tensor."""
        return ref_of(self.calibrator.tensors[number]).size

    def name(self, number: int) -> str:
        """A tensor's name."""
        return self.calibrator.tensors[number][0].tensor

    def without(self, dense: Collection[int]) -> Selection:
        """The selection less the tensors left dense."""
        left = {id(self.calibrator.tensors[number]) for number in dense}
        return dataclasses.replace(
            self.selection, chosen=tuple(uses for uses in self.selection.chosen if id(uses) not in left)
        )


def _reason(drop: float, measure: str) -> str:
    what = "moves the output by" if measure == "output error" else "loses"
    return f"left dense to keep to the limit: pruned alone it {what} {drop:.3g}"


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"
