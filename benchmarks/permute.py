"""Channel permutation: how much more magnitude pruning keeps, in how many seconds, and what that does to outputs.

python benchmarks/permute.py                  # some minutes: every network with the default time limit
python benchmarks/permute.py --time-limit 5
"""

from __future__ import annotations

import argparse
import difflib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from _results import Benchmark, seconds

from models import get
from models.packaged import magika_features, ppocr_input, ppocr_read, ppocr_text
from trtsparse.accuracy.permute import PermuteResult, permute
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner
from trtsparse.sparsity.prune import prune

Feeds = Sequence[Mapping[str, np.ndarray]]
Outputs = list[np.ndarray]

LINES = 48
RESNEXT = {"groups": 1, "width_per_group": 64, "image_size": 64}  # groups of one: all its convolutions are eligible


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each search; default: 60")
    limit = parser.parse_args().time_limit
    bench = Benchmark("permute")
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            "PP-OCRv6 det": get("ppocr-det"),
            "PP-OCRv6 rec": get("ppocr-rec"),
            "magika": get("magika"),
            "ResNeXt-50 32x8d, generated": get("resnext50", folder=folder, image_size=64),
            "ResNet-50 shape, generated": get("resnext50", folder=folder, **RESNEXT),
        }
        permuted = {case: kept(bench, case, path, limit) for case, path in networks.items()}
    lines = [{"x": ppocr_input("rec", seed=seed)} for seed in range(LINES)]
    output_error(bench, "PP-OCRv6 rec", networks["PP-OCRv6 rec"], permuted["PP-OCRv6 rec"], lines, characters)
    pages = [{"x": ppocr_input("det", seed=seed)} for seed in range(8)]
    output_error(bench, "PP-OCRv6 det", networks["PP-OCRv6 det"], permuted["PP-OCRv6 det"], pages, None)
    files = [{"bytes": magika_features([path])} for path in sorted(Path(__file__).parent.glob("*.py"))]
    output_error(bench, "magika", networks["magika"], permuted["magika"], files, None)
    one_by_one(bench, "PP-OCRv6 rec", networks["PP-OCRv6 rec"], permuted["PP-OCRv6 rec"], lines[:16])
    bench.finish(("onnxruntime",))


def kept(bench: Benchmark, case: str, path: Path, limit: float) -> PermuteResult:
    """Shares of magnitude, and the time."""
    results: list[PermuteResult] = []
    took = seconds(lambda: results.append(permute(path, time_limit_s=limit)))
    (result,) = results
    bench.add(case, "magnitude kept as it was", 100 * result.kept_before, "%")
    bench.add(case, "magnitude kept with permuted channels", 100 * result.kept_after, "%")
    bench.add(case, "magnitude that no order exceeds", 100 * result.kept_bound, "%")
    possible = result.kept_bound - result.kept_before
    bench.add(case, "gain, of the gain to that bound", 100 * (result.kept_after - result.kept_before) / possible, "%")
    bench.add(case, "seconds for all", took, "s")
    bench.add(case, "searches that ended before the time limit", sum(g.converged for g in result.groups), "")
    bench.add(case, "searches", len(result.groups), "")
    bench.add(case, "output difference to the model as it was", result.error or 0.0, "of range", at_most=1e-3)
    return result


def output_error(
    bench: Benchmark,
    case: str,
    path: Path,
    permuted: PermuteResult,
    feeds: Feeds,
    read: Callable[[Outputs], float] | None,
) -> None:
    """All eligible weights pruned by magnitude, without any recovery."""
    dense = outputs(path, feeds)
    if read is not None:
        bench.add(case, "characters right, dense", 100 * read(dense), "%")
    for name, model in (("as it was", OnnxModel.open(path)), ("permuted", permuted.model)):
        pruned = outputs(prune(model).model, feeds)
        bench.add(case, f"output error, all layers pruned, {name}", distance(pruned, dense), "of norm")
        if read is not None:
            bench.add(case, f"characters right, all layers pruned, {name}", 100 * read(pruned), "%")


def one_by_one(bench: Benchmark, case: str, path: Path, permuted: PermuteResult, feeds: Feeds) -> None:
    """Each permuted weight pruned alone: the mean error, and for how many weights it is smaller than before."""
    dense = outputs(path, feeds)
    weights = sorted({name for group in permuted.groups if group.permuted for name in group.weights})
    errors = np.array(
        [
            [
                distance(outputs(prune(model, include=[name]).model, feeds), dense)
                for model in (OnnxModel.open(path), permuted.model)
            ]
            for name in weights
        ]
    )
    bench.add(case, "output error, one layer pruned, as it was", errors[:, 0].tolist(), "of norm")
    bench.add(case, "output error, one layer pruned, permuted", errors[:, 1].tolist(), "of norm")
    ratio = float(np.exp(np.log(errors[:, 1] / errors[:, 0]).mean()))
    bench.add(case, "the same, permuted against as it was, geometric mean", ratio, "x")
    bench.add(case, "layers whose error is smaller permuted", 100 * float((errors[:, 1] < errors[:, 0]).mean()), "%")


def outputs(model: Path | OnnxModel, feeds: Feeds) -> Outputs:
    """The first output for every feed."""
    run = runner(OnnxModel.open(model))
    return [next(iter(run(feed).values())) for feed in feeds]


def distance(found: Outputs, reference: Outputs) -> float:
    """The norm of the difference relative to that of the reference."""
    off = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(found, reference, strict=True))
    return float((off / sum(float(np.square(b, dtype=np.float64).sum()) for b in reference)) ** 0.5)


def characters(scores: Outputs) -> float:
    """The share of characters that are read right."""
    read = [
        (ppocr_read(score)[0].replace(" ", ""), ppocr_text(seed).replace(" ", ""))
        for seed, score in enumerate(scores)
    ]
    return float(np.mean([difflib.SequenceMatcher(None, found, true).ratio() for found, true in read]))


if __name__ == "__main__":
    main()
