"""Sparse against dense matrix products on a GPU: ``python benchmarks/gpu_sparse.py [--limit-s 400]``.

Each product is tuned: every algorithm that cuBLASLt's heuristics offer against every configuration of cuSPARSELt.
The ratio of a product is the median over rounds in which both kernels ran in turn. The most important products come
first, so that a run that is out of time has measured them. Beside the figures a table is written that
`trtsparse explain --gpu` reads (``h100.json`` on an H100).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from _results import RESULTS, Benchmark

from trtsparse.tune.cache import Cache
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Options, Tuner
from trtsparse.tune.result import GemmResult
from trtsparse.tune.shipped import make, short_name, write
from trtsparse.tune.tune import tune

TARGETS = {"bf16": 1.3, "int8": 1.4, "fp8_e4m3": 1.2, "fp16": 1.3}
LARGE = 2048
"""The targets are about products of at least so many rows and so long a reduction."""
FACTS = (
    (8192, 8192, 8192), (4096, 4096, 4096), (12288, 1024, 1024), (12288, 4096, 1024), (12288, 1024, 4096),
    (2048, 4096, 14336), (64, 14336, 4096),
)  # fmt: skip
"""Squares; BERT-large at batch 32 and length 384; an LLM's feed-forward block, many rows and few."""


def llm() -> Iterator[tuple[int, int, int]]:
    """The feed-forward block of Llama 3 8B, from one token to a long prompt."""
    for rows in (2048, 256, 64, 16, 1):
        yield rows, 14336, 4096
        yield rows, 4096, 14336


def encoders() -> Iterator[tuple[int, int, int]]:
    """ViT-H/14 at batch 32, and the fused projections of BERT-large."""
    rows = 32 * 257
    yield from ((rows, 5120, 1280), (rows, 1280, 5120), (rows, 1280, 1280), (rows, 3840, 1280), (32, 1000, 1280))
    yield 12288, 3072, 1024


def resnext(batch: int) -> Iterator[tuple[int, int, int]]:
    """The 1x1 convolutions of ResNeXt-101 32x8d, and its last layer."""
    channels, pixels = 64, 56 * 56
    for width, size in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
        yield batch * pixels, width, channels
        pixels = size * size
        yield batch * pixels, width, width
        yield batch * pixels, width, channels
        channels = width
    yield batch, 1000, 2048


def products(*, only_facts: bool) -> list[Gemm]:
    """All products, the most important first."""
    found = [Gemm(*dims, dtype) for dtype in TARGETS for dims in FACTS]
    if not only_facts:
        found += [Gemm(*dims, dtype) for dtype in TARGETS for dims in (*llm(), *encoders())]
        found += [Gemm(4096, 4096, 4096, "int8", out) for out in ("fp16", "bf16", "int32")]
        for batch in (32, 256, 1):
            found += [Gemm(*dims, dtype) for dtype in ("fp16", "bf16", "int8") for dims in resnext(batch)]
        found.append(Gemm(4096, 4096, 4096, "tf32"))
    return list(dict.fromkeys(found))


def report(bench: Benchmark, rows: tuple[GemmResult, ...]) -> None:
    """The table of facts in full, everything else as one ratio each, and the means."""
    for row in rows:
        if row.dense is None or row.sparse is None or row.gain is None:
            print(f"{row.gemm.key}: {dict(row.facts)}", file=sys.stderr)
            continue
        gemm, case = row.gemm, row.gemm.key
        if (gemm.m, gemm.n, gemm.k) in FACTS:
            for kernel in (row.dense, row.sparse):
                bench.add(case, f"best {kernel.kind}", [kernel.low, kernel.ms, kernel.high], "ms")
            if "sparse" in row.defaults:
                bench.add(case, "best dense / sparse by default", row.dense.ms / row.defaults["sparse"], "x")
        bench.add(case, "best dense / best sparse", list(row.gains), "x")
    for dtype, target in TARGETS.items():
        large = [row for row in rows if row.gemm.types == Gemm(1, 1, 1, dtype).types and is_large(row)]
        of_facts = [row for row in large if (row.gemm.m, row.gemm.n, row.gemm.k) in FACTS]
        for name, chosen in (("the first table", of_facts), ("all", large)):
            if chosen:
                mean = math.exp(sum(math.log(row.gain or 1) for row in chosen) / len(chosen))
                case = f"{dtype}, {len(chosen)} products of M, K >= {LARGE} in {name}"
                bench.add(case, "geometric mean of best dense / best sparse", mean, "x", at_least=target)


def is_large(row: GemmResult) -> bool:
    """Whether the targets are about it."""
    return row.gain is not None and row.gemm.m >= LARGE and row.gemm.k >= LARGE


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=400.0, help="begin no product later (default: 400)")
    parser.add_argument("--only-facts", action="store_true", help="the first table alone")
    parser.add_argument("--name", default="gpu_sparse", help="of the results' file (default: gpu_sparse)")
    options = parser.parse_args()

    def progress(done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    gemms = products(only_facts=options.only_facts)
    with tempfile.TemporaryDirectory() as folder, Tuner(Options(screen_s=20)) as tuner:
        cache = Cache(
            Path(os.environ.get("OUT") or folder) / f"{options.name}-cache.json"
        )  # comes back whatever happens
        result = tune(gemms, cache=cache, fresh=True, limit_s=options.limit_s, tuner=tuner, progress=progress)
        lessons = {types: learned.to_dict() for types, learned in tuner.lessons.items()}
    bench = Benchmark(options.name)
    report(bench, result.rows)
    bench.add("tuning", "products measured", float(len(result.rows)), "")
    bench.add("tuning", "products without time", float(len(result.missing)), "")
    bench.add("tuning", "each product, in the mean", result.seconds / max(len(result.rows), 1), "s")
    bench.add("tuning", "restarts after a kernel's crash", float(tuner.restarts), "")
    out = Path(os.environ.get("OUT") or RESULTS)
    bench.finish()
    path = out / f"{options.name}.json"
    document = json.loads(path.read_text())
    document["machine"] |= result.facts  # the libraries that were loaded, whatever is installed beside them
    path.write_text(json.dumps(document, indent=1) + "\n")
    name = short_name(result.facts["gpu"])
    suffix = "" if options.name == "gpu_sparse" else f"-{options.name}"
    table = make(name, datetime.now(timezone.utc).date().isoformat(), result.facts, result.rows)
    write(out / f"{name}{suffix}.json", table)
    print(json.dumps(lessons, indent=1))


if __name__ == "__main__":
    main()
