"""The accuracy table: every pruning method on trained networks, with data that they were not calibrated on.

python benchmarks/accuracy.py                   # all networks: about an hour on two cores
python benchmarks/accuracy.py --networks magika # some of them; the rows of the others stay as they were
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from _results import RESULTS, Benchmark, Row
from accuracy_data.tasks import TASKS, Digits, Recognition, Task

from models import digits
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.moments import Moments
from trtsparse.accuracy.prune import CalibratedResult, Method, prune
from trtsparse.accuracy.sparsegpt import sparsegpt
from trtsparse.files.model import OnnxModel
from trtsparse.precision.half import to_half
from trtsparse.precision.int8 import to_int8
from trtsparse.sparsity.prune import PruneResult

RECOVERED = 80.0  # percent of magnitude's loss that sparsegpt shall win back on recognition
MINUTES = 10.0
SAMPLES = (16, 64, 256)  # lines
SEEDS = 5
CASES = {  # how the rows of each begin
    "rec": "PP-OCRv6 recognition",
    "det": "PP-OCRv6 detection",
    "magika": "Magika",
    "digits": "digits CNN",
    "growth": "growth",
}
WIDTHS = (256, 512, 1024, 2048)


@dataclass
class Table:
    """The rows of one network.

    Attributes:
        bench: Where they go.
        task: The network.
        scores: Metrics by method.
    """

    bench: Benchmark
    task: Task
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, method: str, model: OnnxModel, *, exact: bool = False) -> dict[str, float]:
        """Score a model and add its rows."""
        found = self.task.score(model, exact=exact)
        self.scores[method] = found
        for metric in self.task.metrics:
            self.bench.add(f"{self.task.name}: {method}", metric, found[metric], "%")
        return found

    def recovered(self, method: str, *, at_least: float | None) -> None:
        """Add how much of magnitude's loss a method wins back; there is no such figure where it loses nothing."""
        dense, magnitude, found = (self.scores[name] for name in ("dense", "magnitude one-shot", method))
        for metric in self.task.metrics:
            lost = dense[metric] - magnitude[metric]
            if lost > 0.1:
                share = 100 * (found[metric] - magnitude[metric]) / lost
                case = f"{self.task.name}: {method}"
                self.bench.add(case, f"of magnitude's loss recovered, {metric}", share, "%", at_least=at_least)


def main() -> None:
    """Run what is asked for and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*CASES], default=[*CASES])
    chosen = parser.parse_args().networks
    bench = Benchmark("accuracy", kept(chosen))
    for name in chosen:
        if name == "growth":
            growth(bench)
        else:
            task = TASKS[name]()
            network(bench, task, at_least=RECOVERED if name == "rec" else None)
            if name == "digits":
                retrained(bench, name=task.name)
        bench.finish(("onnxruntime",))  # after every network: a later one may fail


def kept(chosen: list[str]) -> list[Row]:
    """Rows of an earlier run about networks that are not run now."""
    path = RESULTS / "accuracy.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    again = tuple(CASES[name] for name in chosen)
    return [Row(**row) for row in rows if not row["case"].startswith(again)]


def network(bench: Benchmark, task: Task, *, at_least: float | None) -> None:
    """All methods on one network, then the best one in FP16 and INT8."""
    table = Table(bench, task)
    dense = OnnxModel.open(task.model())
    data = task.calibration()
    table.add("dense", dense)
    table.add("magnitude one-shot", prune(dense).model)
    results: dict[str, PruneResult] = {}
    methods: tuple[Method, ...] = ("wanda", "sparsegpt")
    for method in methods:
        results[method] = _timed(bench, task, dense, method, data)
        table.add(method, results[method].model)
        table.recovered(method, at_least=at_least if method == "sparsegpt" else None)
    permuted = _permuted(dense)
    if permuted is not None:
        table.add("magnitude + permutation", prune(permuted).model)
        result = prune(permuted, method="sparsegpt", calibration=data)
        table.add("sparsegpt + permutation", result.model)
        results["sparsegpt + permutation"] = result
    best = max(results, key=lambda name: table.scores[name][task.metrics[0]])
    model = results[best].model
    if isinstance(task, Digits):
        table.add("retrained", OnnxModel.open(digits.sparse_model()))
    table.add(f"{best}, FP16", to_half(model, feeds=data[:4], max_error=math.inf).model)
    table.add(f"{best}, INT8", to_int8(model, calibration=data[:16], max_error=math.inf).model, exact=True)


def retrained(bench: Benchmark, *, name: str) -> None:
    """The digits recipe over several seeds: trained, pruned, trained again. Needs PyTorch; about a minute."""
    runs = [digits.evaluate(seed) for seed in range(SEEDS)]
    case = f"{name}: retrained, {SEEDS} seeds"
    for metric, key in (("dense", "dense"), ("pruned, not retrained", "pruned"), ("retrained", "retrained")):
        bench.add(case, f"digits right, {metric}", [run[key] for run in runs], "%")
    lost = float(np.mean([run["dense"] - run["retrained"] for run in runs]))
    bench.add(case, "lost by pruning and retraining, mean", lost, "points", at_most=digits.LIMIT)


def _timed(
    bench: Benchmark, task: Task, dense: OnnxModel, method: Method, data: list[dict[str, np.ndarray]]
) -> CalibratedResult:
    start, cpu = time.perf_counter(), time.process_time()
    result = prune(dense, method=method, calibration=data)
    minutes = (time.perf_counter() - start) / 60
    case = f"{task.name}: {method}"
    limited = isinstance(task, Recognition) and method == "sparsegpt"
    bench.add(case, "time to prune", minutes, "minutes", at_most=MINUTES if limited else None)
    bench.add(case, "processor time to prune", (time.process_time() - cpu) / 60, "minutes")
    if not isinstance(result, CalibratedResult):
        raise TypeError(result)
    for kind in ("error", "magnitude_error"):
        errors = [value for layer in result.layers if (value := getattr(layer, kind)) is not None]
        metric = "output error per layer, mean" if kind == "error" else "output error per layer by magnitude, mean"
        bench.add(case, metric, 100 * float(np.mean(errors)), "%")
    return result


def _permuted(dense: OnnxModel) -> OnnxModel | None:
    """The dense model with its channels permuted, where that is to be had."""
    try:
        from trtsparse.accuracy.permute import permute
    except ImportError:
        return None
    return permute(dense).model


def growth(bench: Benchmark) -> None:
    """How time grows with the number of samples and with the width of a layer."""
    for count in SAMPLES:
        task = Recognition(calibrated=count)
        data = task.calibration()
        cpu = time.process_time()
        prune(task.model(), method="sparsegpt", calibration=Calibration(data))
        case = f"growth: sparsegpt on recognition, {count} lines"
        bench.add(case, "processor time to prune", (time.process_time() - cpu) / 60, "minutes")
    for width in WIDTHS:
        _one_layer(bench, width)
    bench.add(
        "growth: the whole run", "largest memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB"
    )


def _one_layer(bench: Benchmark, width: int) -> None:
    random = np.random.default_rng(width)
    moments, rows, weights = (
        Moments(width),
        random.normal(size=(2 * width, width)),
        random.normal(size=(width, width)),
    )
    case = f"growth: one layer of {width} x {width}"
    bench.add(case, "moments of 1,000 rows", _cpu(lambda: moments.add(rows)) / (2 * width) * 1000, "s")
    bench.add(case, "sparsegpt without the fit", _cpu(lambda: sparsegpt(weights, moments, fit=False)), "s")
    bench.add(case, "sparsegpt", _cpu(lambda: sparsegpt(weights, moments)), "s")


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
