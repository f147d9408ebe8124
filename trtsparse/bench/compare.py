"""Dense against sparse: both built with the same settings, measured in turn, and which one to ship."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.bench.measure import measure
from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Measurement
from trtsparse.builder.config import COMPILED_FROM, BuildConfig
from trtsparse.engines import cusparselt_lacks
from trtsparse.engines.base import Engine
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import check_same_names, compare_runs
from trtsparse.precision.feeds import random_feeds
from trtsparse.precision.specs import FeedChecker, TensorSpec, input_specs, output_specs
from trtsparse.sparsity.prune import prune

if TYPE_CHECKING:
    from trtsparse.builder.report import BuildReport
    from trtsparse.cuda.base import Cuda
    from trtsparse.engines.cusparselt.engine import CusparseltEngine

__all__ = ["ENGINES", "Comparison", "Side", "compare", "compare_engines"]

SCHEMA = "trtsparse.compare/1"
ENGINES = ("tensorrt", "cusparselt", "onnxruntime")
Model = str | os.PathLike[str] | bytes | Any
Progress = Callable[[int, int], None]
_HALVES = ("fp16", "bf16")
_CLEAR = 0.75  # share of the rounds that the sparse engine must win


@dataclass(frozen=True)
class Side:
    """One of the two engines.

    Attributes:
        description: What it is.
        latency_ms: Median over the rounds of a query's median latency.
        low_ms: Of the fastest round.
        high_ms: Of the slowest round.
        joules_per_query: Median over the rounds, of the whole GPU; None where it is not measured.
    """

    description: str
    latency_ms: float
    low_ms: float
    high_ms: float
    joules_per_query: float | None


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        dense: The engine of the model as it is.
        sparse: The engine of the pruned one.
        gains: Dense over sparse latency, round by round.
        output_error: Largest difference of an output, relative to the dense output's largest magnitude.
        worst_output: Its name.
        random: The inputs that were random.
        runs_sparse: False where no sparse kernel runs in the sparse engine, as far as its library tells.
    """

    dense: Side
    sparse: Side
    gains: tuple[float, ...]
    output_error: float
    worst_output: str
    random: tuple[str, ...] = ()
    runs_sparse: bool = True

    @property
    def gain(self) -> float:
        """Median of the rounds; above 1 the sparse engine is faster."""
        return statistics.median(self.gains)

    @property
    def ships_sparse(self) -> bool:
        """The sparse engine runs sparse and is faster, in the median and in at least three of four rounds."""
        won = sum(gain > 1 for gain in self.gains)
        return self.runs_sparse and self.gain > 1 and won >= _CLEAR * len(self.gains)

    @property
    def energy_gain(self) -> float | None:
        """Dense over sparse energy of a query; None where it is not measured."""
        if not self.dense.joules_per_query or not self.sparse.joules_per_query:
            return None
        return self.dense.joules_per_query / self.sparse.joules_per_query

    @property
    def verdict(self) -> str:
        """Which to ship, and why, in a sentence."""
        spread = f"{min(self.gains):.3g} to {max(self.gains):.3g} in {len(self.gains)} rounds"
        if self.ships_sparse:
            return f"ship the sparse engine: {self.gain:.3g} x as fast ({spread})"
        if not self.runs_sparse:
            return f"ship the dense engine: the sparse one runs no sparse kernels ({self.gain:.3g} x, {spread})"
        if self.gain > 1:
            return f"ship the dense engine: the sparse one is not faster reliably ({self.gain:.3g} x, {spread})"
        return f"ship the dense engine: the sparse one is {self.gain:.3g} x as fast ({spread})"

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON types."""
        error = self.output_error if math.isfinite(self.output_error) else "inf"
        return {
            "schema": SCHEMA,
            "dense": asdict(self.dense),
            "sparse": asdict(self.sparse),
            "gains": list(self.gains),
            "gain": self.gain,
            "energy_gain": self.energy_gain,
            "runs_sparse": self.runs_sparse,
            "ships_sparse": self.ships_sparse,
            "verdict": self.verdict,
            "output_error": error,
            "worst_output": self.worst_output,
            "random": list(self.random),
        }


def compare(
    model: Model,
    *,
    sparse: Model | None = None,
    config: BuildConfig | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    engine: str = "tensorrt",
    rounds: int = 7,
    options: BenchOptions | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Build and run a model dense and sparse, in turn, and say which to ship.

    Args:
        model: The dense model: a path, bytes, a ModelProto or an OnnxModel.
        sparse: The sparse one, retrained perhaps; by default ``model`` pruned by magnitude.
        config: How both are built with TensorRT, but for ``sparsity``; by default FP16. "cusparselt" takes its
            ``precision``, "fp16" or "bf16", and its ``optimization_level``: from 4 on models are compiled.
            "onnxruntime" executes models as they are stored.
        feeds: A numpy array for each input; by default random.
        shapes: Of random inputs.
        engine: "tensorrt"; "cusparselt"; or "onnxruntime" for the CPU, which has no sparse kernels, so that the dense
            engine ships.
        rounds: How often each is measured.
        options: How each round is measured; by default half a second.
        progress: Called with the rounds done and in all.

    Raises:
        ConfigError: An engine that is not known, a precision that it does not take, or too few rounds.
        ModelError: The models have different inputs or outputs.
        FeedError: The feeds do not fit one of the models.
        TrtSparseError: As `trtsparse.build`, `trtsparse.prune` and `trtsparse.bench.measure.measure`.
    """
    if engine not in ENGINES:
        raise ConfigError("no such engine", where="engine", got=repr(engine), expected=", ".join(map(repr, ENGINES)))
    _check_rounds(rounds)
    settings = config or BuildConfig(precision="fp16")
    if engine == "cusparselt":
        _check_precision(settings.precision)
    dense_model = OnnxModel.open(model)
    sparse_model = prune(dense_model).model if sparse is None else OnnxModel.open(sparse)
    given = dict(feeds or {})
    made = random_feeds(dense_model, shapes={**{n: a.shape for n, a in given.items()}, **(shapes or {})})[0]
    arrays = {**made, **given}
    _check_alike(dense_model, sparse_model, arrays)
    with ExitStack() as stack:
        first, _ = _load(stack, dense_model, engine, replace(settings, sparsity="disable"), arrays)
        second, runs_sparse = _load(stack, sparse_model, engine, replace(settings, sparsity="enable"), arrays)
        found = compare_engines(first, second, arrays, rounds=rounds, options=options, progress=progress)
        found = replace(found, runs_sparse=runs_sparse())
    return replace(found, random=tuple(name for name in made if name not in given))


def _check_alike(dense: OnnxModel, sparse: OnnxModel, feeds: Mapping[str, np.ndarray]) -> None:
    """Refuse models that cannot be compared before they are built."""
    check_same_names("inputs", _names(input_specs(dense)), _names(input_specs(sparse)), where=sparse.name)
    check_same_names("outputs", _names(output_specs(dense)), _names(output_specs(sparse)), where=sparse.name)
    for model in (dense, sparse):
        FeedChecker(input_specs(model))(feeds)


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _check_precision(precision: str) -> None:
    if precision in _HALVES:
        return
    quantized = "; a model with Q/DQ nodes is computed in INT8 in either" if precision in ("int8", "best") else ""
    raise ConfigError(
        "the cusparselt engine does not compare in this precision",
        where="precision",
        got=repr(precision),
        expected=" or ".join(map(repr, _HALVES)),
        fix=f"take one of these{quantized}",
    )


def _load(
    stack: ExitStack, model: OnnxModel, engine: str, config: BuildConfig, feeds: Mapping[str, np.ndarray]
) -> tuple[Engine | DeviceEngine, Callable[[], bool]]:
    """An engine, and what tells, once it has run, whether it runs sparse kernels."""
    from trtsparse.runtime.session import Session

    source: Any = model
    runs_sparse: Callable[[], bool] = _never
    if engine == "tensorrt":
        from trtsparse.builder.build import build

        built = build(model, config, samples=[feeds])
        source, runs_sparse = built.plan, partial(_has_sparse, built.report)
    elif engine == "cusparselt":
        from trtsparse.engines.cusparselt.engine import CusparseltEngine

        try:
            source = CusparseltEngine(
                model,
                precision=config.precision,
                compiled=(config.optimization_level or 0) >= COMPILED_FROM,
                use_sparse=config.wants_sparsity,
            )
        except (DeviceError, MissingDependencyError) as error:
            raise cusparselt_lacks(error) from error
        runs_sparse = partial(_uses_sparse, source)
    return stack.enter_context(Session(source, engine=engine if source is model else "auto")).engine, runs_sparse


def _never() -> bool:
    """ONNX Runtime has no sparse kernels."""
    return False


def _has_sparse(report: BuildReport) -> bool:
    """Whether a layer was chosen to run sparse, or may have been where TensorRT does not tell."""
    possible = [row for row in report.sites if row.eligible and row.compliant]
    return bool(report.untraced) or any(row.chosen is not False for row in possible)


def _uses_sparse(engine: CusparseltEngine) -> bool:
    return any(used.kernel is not None and used.kernel.kind == "sparse" for used in engine.used)


def compare_engines(
    dense: Engine | DeviceEngine,
    sparse: Engine | DeviceEngine,
    feeds: Mapping[str, np.ndarray],
    *,
    rounds: int = 7,
    options: BenchOptions | None = None,
    cuda: str | Cuda = "auto",
    progress: Progress | None = None,
) -> Comparison:
    """Measure two engines in turn; each round measures both, the first one changing.

    Args:
        dense: One engine.
        sparse: The other one; same inputs and outputs.
        feeds: A numpy array for each input.
        rounds: At least 3.
        options: How each round is measured; by default half a second after 100 ms of warm-up.
        cuda: The CUDA binding.
        progress: Called with the rounds done and in all.

    Returns:
        What came out; engines do not tell whether sparse kernels run, so that ``runs_sparse`` is True.

    Raises:
        ConfigError: Too few rounds.
        ModelError: The engines have different outputs.
        TrtSparseError: As `trtsparse.bench.measure.measure`.
    """
    _check_rounds(rounds)
    check_same_names("outputs", _names(dense.outputs), _names(sparse.outputs), where=sparse.description)
    chosen = options or BenchOptions(duration_s=0.5, warm_up_ms=100.0)
    pairs: list[tuple[Measurement, Measurement]] = []
    for number in range(rounds):
        order = (dense, sparse) if number % 2 == 0 else (sparse, dense)
        taken = [measure(engine, feeds, options=chosen, cuda=cuda) for engine in order]
        pairs.append((taken[0], taken[1]) if number % 2 == 0 else (taken[1], taken[0]))
        if progress is not None:
            progress(number + 1, rounds)
    last_dense, last_sparse = pairs[-1]
    difference = compare_runs(
        lambda _: dict(last_dense.outputs), lambda _: dict(last_sparse.outputs), feeds=[dict(feeds)]
    )
    medians = [(_latency(a), _latency(b)) for a, b in pairs]
    return Comparison(
        dense=_side([a for a, _ in pairs]),
        sparse=_side([b for _, b in pairs]),
        gains=tuple(a / b for a, b in medians),
        output_error=difference.error,
        worst_output=difference.worst,
    )


def _check_rounds(rounds: int) -> None:
    if rounds < 3:
        raise ConfigError(
            "too few rounds to tell a difference from noise", where="rounds", got=rounds, expected="at least 3"
        )


def _latency(measured: Measurement) -> float:
    return statistics.median(query.latency_ms for query in measured.queries)


def _side(rounds: Sequence[Measurement]) -> Side:
    times = [_latency(measured) for measured in rounds]
    joules = [measured.energy.joules_per_query for measured in rounds if measured.energy is not None]
    return Side(
        description=rounds[-1].description,
        latency_ms=statistics.median(times),
        low_ms=min(times),
        high_ms=max(times),
        joules_per_query=statistics.median(joules) if joules else None,
    )
