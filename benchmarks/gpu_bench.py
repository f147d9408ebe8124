"""What ``trtsparse bench`` measures against independent events on a GPU: ``python benchmarks/gpu_bench.py``.

The engine is the one of the GPU tests (``tests/doubles/kernels.py``): a kernel that spins for about a millisecond.
Independent are events and copies of ``cuda.bindings.runtime``, called here and by no code of the package. Each
measurement lies between two independent ones, and medians are compared: a GPU changes its clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from _results import Benchmark, ratios

from tests.doubles.kernels import GpuKernels, KernelEngine
from trtsparse.bench.measure import BenchOptions, measure
from trtsparse.bench.records import Measurement
from trtsparse.bench.statistics import summaries, throughput_qps
from trtsparse.cuda.base import Cuda, open_cuda
from trtsparse.errors import MissingDependencyError

CYCLES = 2_000_000  # about a millisecond
ROUNDS, COUNT, SKIPPED, BATCH = 7, 200, 30, 10
SMALL = (256, 64)
LARGE = (4096, 1024)
USUAL: dict[str, Any] = {"iterations": 200, "duration_s": 0.5, "warm_up_ms": 100.0, "energy": False}


class Independent:
    """Events around work on a stream of its own."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.runtime: Any = runtime
        self.stream = int(self.ask(runtime.cudaStreamCreateWithFlags(1)))
        self.pairs = [tuple(self.ask(runtime.cudaEventCreate()) for _ in range(2)) for _ in range(BATCH)]

    def ask(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call that succeeded."""
        if int(answer[0]) != 0:
            raise SystemExit(f"CUDA failed: {answer[0]}")
        return answer[1] if len(answer) > 1 else None

    def median_ms(self, work: Callable[[int], object], *, queued: bool) -> float:
        """Of work that is queued behind other such work, so that the GPU need not wait for the host, or alone."""
        pairs = self.pairs if queued else self.pairs[:1]
        taken: list[float] = []
        while len(taken) < COUNT + SKIPPED:
            for start, end in pairs:
                self.ask(self.runtime.cudaEventRecord(start, self.stream))
                work(self.stream)
                self.ask(self.runtime.cudaEventRecord(end, self.stream))
            self.ask(self.runtime.cudaStreamSynchronize(self.stream))
            times = [float(self.ask(self.runtime.cudaEventElapsedTime(start, end))) for start, end in pairs]
            taken += times[1:] if queued else times
        return statistics.median(taken[SKIPPED:])

    def copying(self, target: int, source: int, nbytes: int, kind: Any) -> Callable[[int], object]:
        """A copy to be enqueued."""
        return lambda stream: self.ask(self.runtime.cudaMemcpyAsync(target, source, nbytes, kind, stream))


def engine_of(kernels: GpuKernels, shape: tuple[int, int], **options: Any) -> KernelEngine:
    """An engine of one shape."""
    rows, columns = shape
    return KernelEngine(kernels, columns=columns, rows=((rows, rows, rows),), **options)


def run(cuda: Cuda, engine: KernelEngine, shape: tuple[int, int], **options: Any) -> Measurement:
    """One measurement, whose outputs are checked."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = measure(engine, {"x": x}, options=BenchOptions(**{**USUAL, **options}), cuda=cuda)
    if not (found.outputs["y"] == 2 * x + np.float32(1)).all():
        raise SystemExit("wrong answers")
    return found


def off_by(found: list[float], expected: list[float]) -> float:
    """Percent that the median of ratios is away from 1."""
    return abs(statistics.median(ratios(found, expected)) - 1) * 100


def executions(bench: Benchmark, cuda: Cuda, kernels: GpuKernels, independent: Independent) -> None:
    """The kernel by hand, and in every way to measure it."""
    engine = engine_of(kernels, SMALL, scratch=False, cycles=CYCLES)
    n = SMALL[0] * SMALL[1]
    x, out = (kernels.allocate(4 * n) for _ in range(2))
    ways = {f"{'graphs' if graphs else 'no graphs'}, {'transfers' if transfers else 'no transfers'}":
            {"graphs": graphs, "transfers": transfers}
            for graphs in ((False, True) if cuda.graphs else (False,)) for transfers in (True, False)}  # fmt: skip

    def by_hand() -> float:
        return independent.median_ms(lambda stream: kernels.twice(x, out, n, 1.0, CYCLES, stream), queued=True)

    for way, options in ways.items():
        before, found, after = [], [], []
        for _ in range(ROUNDS):
            before.append(by_hand())
            found.append(summaries(run(cuda, engine, SMALL, **options))["compute"].median)
            after.append(by_hand())
        expected = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
        case = f"kernel of about 1 ms, {cuda.name}, {way}"
        bench.add(case, "independent events", expected, "ms")
        bench.add(case, "bench, median execution", found, "ms")
        bench.add(case, "difference of medians", off_by(found, expected), "%", at_most=2)
    for address in (x, out):
        kernels.free(address)


def transfers(bench: Benchmark, cuda: Cuda, kernels: GpuKernels, independent: Independent) -> None:
    """Copies of 16 MiB."""
    nbytes = 4 * LARGE[0] * LARGE[1]
    kinds = independent.runtime.cudaMemcpyKind
    device = kernels.allocate(nbytes)
    host = int(independent.ask(independent.runtime.cudaHostAlloc(nbytes, 0)))
    by_hand = {
        "h2d": independent.copying(device, host, nbytes, kinds.cudaMemcpyHostToDevice),
        "d2h": independent.copying(host, device, nbytes, kinds.cudaMemcpyDeviceToHost),
    }
    engine = engine_of(kernels, LARGE, scratch=False)
    expected: dict[str, list[float]] = {"h2d": [], "d2h": []}
    found: dict[str, list[float]] = {"h2d": [], "d2h": []}
    for _ in range(ROUNDS):
        for part, work in by_hand.items():
            expected[part].append(independent.median_ms(work, queued=False))
        parts = summaries(run(cuda, engine, LARGE, expose_dma=True))
        for part, times in found.items():
            times.append(parts[part].median)
    for part, times in found.items():
        case = f"{part}, 16 MiB, {cuda.name}"
        bench.add(case, "independent events", expected[part], "ms")
        bench.add(case, "bench", times, "ms")
        bench.add(case, "difference of medians", off_by(times, expected[part]), "%", at_most=10)
        bench.add(case, "bandwidth", [nbytes / ms / 1e6 for ms in times], "GB/s")
    independent.ask(independent.runtime.cudaFreeHost(host))
    kernels.free(device)


def overlap(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """What queueing gains where copies and executions take about the same time."""
    engine = engine_of(kernels, LARGE, scratch=False, cycles=CYCLES)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for exposed, values in rates.items():
            values.append(throughput_qps(run(cuda, engine, LARGE, expose_dma=exposed).queries))
    case = f"kernel of about 1 ms and copies of 16 MiB in and out, {cuda.name}"
    bench.add(case, "throughput, one query at a time", rates[True], "queries/s")
    bench.add(case, "throughput, two in flight", rates[False], "queries/s")
    bench.add(case, "gain", ratios(rates[False], rates[True]), "x")


def own_cost(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """The host's time for a query that does next to nothing: what is shorter is not executed back to back."""
    engine = engine_of(kernels, (16, 64), scratch=False)
    for name, options in {"transfers": {}, "no transfers": {"transfers": False}}.items():
        taken = [
            1e6 / throughput_qps(run(cuda, engine, (16, 64), spin_wait=True, **options).queries)
            for _ in range(ROUNDS)
        ]
        bench.add(f"next to no execution, {cuda.name}, {name}", "time of a query", taken, "us")


def energy(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """Power while the kernel spins, where NVML tells it."""
    engine = engine_of(kernels, SMALL, scratch=False, cycles=CYCLES)
    found = run(cuda, engine, SMALL, duration_s=3.0, energy=True)
    if found.energy is None:
        print("; ".join(found.notes), file=sys.stderr)
        return
    case = f"kernel of about 1 ms, {cuda.name}"
    bench.add(case, f"power by the {found.energy.source}", found.energy.mean_watts, "W")
    bench.add(case, "energy of a query", found.energy.joules_per_query * 1e3, "mJ")


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bench = Benchmark("gpu_bench")
    kernels: GpuKernels | None = None
    for binding in ("cuda-python", "pycuda"):
        try:
            cuda = open_cuda(binding)
        except MissingDependencyError as missing:
            print(f"left out: {missing}", file=sys.stderr)
            continue
        token = cuda.enter()
        kernels = kernels or GpuKernels(0)
        independent = Independent()
        executions(bench, cuda, kernels, independent)
        transfers(bench, cuda, kernels, independent)
        overlap(bench, cuda, kernels)
        own_cost(bench, cuda, kernels)
        energy(bench, cuda, kernels)
        cuda.leave(token)
    if kernels is None:
        raise SystemExit("no binding to measure with: the results stay as they are")
    bench.finish(("cuda-bindings",))


if __name__ == "__main__":
    main()
