"""What a session costs on a GPU, with kernels in TensorRT's place: ``python benchmarks/gpu_runtime.py``.

The engine is the one of the GPU tests (``tests/doubles/kernels.py``): its execute launches one kernel, so that what
is measured is the session's own part. Ratios and differences come from interleaved runs in this process.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from _results import Benchmark, ratios

from tests.doubles.kernels import GpuKernels, KernelEngine
from trtsparse.cuda.base import Cuda, open_cuda
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

CALLS, ROUNDS = 200, 21
IN_FLIGHT = 6
SMALL = (16, 64)
LARGE = (4096, 1024)
FILLING = 2112  # blocks: more than an H100 holds at once, so that two kernels do not run side by side


def microseconds(work: Callable[[], object], calls: int = CALLS) -> float:
    """Of one call, over a round of calls."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls * 1e6


def rounds(*works: Callable[[], object], calls: int = CALLS, count: int = ROUNDS) -> list[list[float]]:
    """Times of each work in each round, taken in turn after a warm-up."""
    for work in works:
        microseconds(work, max(calls // 4, 8))
    taken = [[microseconds(work, calls) for work in works] for _ in range(count)]
    return [list(times) for times in zip(*taken, strict=True)]


def minus(a: list[float], b: list[float]) -> list[float]:
    """Pair by pair."""
    return [x - y for x, y in zip(a, b, strict=True)]


class Bare:
    """The calls that nobody can leave out: copies, execution and synchronisation on pinned memory."""

    def __init__(self, cuda: Cuda, engine: KernelEngine, shape: tuple[int, ...]) -> None:
        self.cuda, self.shape = cuda, shape
        self.nbytes = int(np.prod(shape)) * 4
        self.stream = cuda.create_stream()
        self.context = engine.create_context(profile=0, stream=self.stream, own_scratch=True)
        self.x, self.y = cuda.allocate(self.nbytes), cuda.allocate(self.nbytes)
        self.host_x, self.host_y = cuda.allocate_pinned(self.nbytes), cuda.allocate_pinned(self.nbytes)
        self.context.set_inputs({"x": shape}, {})
        self.context.set_address("x", self.x)
        self.context.set_address("y", self.y)
        self._enqueue()
        cuda.synchronize(self.stream)
        cuda.begin_capture(self.stream)
        self._enqueue()
        self.graph = cuda.end_capture(self.stream)

    def _enqueue(self) -> None:
        self.cuda.copy_in(self.x, self.host_x, self.nbytes, self.stream)
        self.context.execute(self.stream)
        self.cuda.copy_out(self.host_y, self.y, self.nbytes, self.stream)

    def run(self) -> None:
        """Once."""
        self._enqueue()
        self.cuda.synchronize(self.stream)

    def replay(self) -> None:
        """Once, as a graph of the same."""
        self.cuda.launch(self.graph, self.stream)
        self.cuda.synchronize(self.stream)

    def close(self) -> None:
        """Free everything."""
        self.context.close()
        self.cuda.destroy_graph(self.graph)
        self.cuda.destroy_stream(self.stream)
        for address in (self.x, self.y):
            self.cuda.free(address)
        for address in (self.host_x, self.host_y):
            self.cuda.free_pinned(address)


class LikePolygraphy:
    """The steps of Polygraphy's TrtRunner.infer: pageable arrays, shapes and addresses each time."""

    def __init__(self, bare: Bare, engine: KernelEngine) -> None:
        self.bare, self.engine = bare, engine

    def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Once."""
        bare = self.bare
        for spec in self.engine.inputs:
            array = feeds[spec.name]
            if array.dtype != spec.dtype or len(array.shape) != len(spec.shape or ()):
                raise ValueError(spec.name)
            bare.context.set_inputs({spec.name: array.shape}, {})
            array = np.ascontiguousarray(array)
            bare.cuda.copy_in(bare.x, array.ctypes.data, array.nbytes, bare.stream)
            bare.context.set_address(spec.name, bare.x)
        bare.context.set_address("y", bare.y)
        bare.context.execute(bare.stream)
        output = np.empty(bare.shape, np.float32)
        bare.cuda.copy_out(output.ctypes.data, bare.y, output.nbytes, bare.stream)
        bare.cuda.synchronize(bare.stream)
        return {"y": output}


def engine_of(kernels: GpuKernels, shape: tuple[int, int], **options: Any) -> KernelEngine:
    """An engine of one kernel and one shape."""
    rows, columns = shape
    return KernelEngine(kernels, columns=columns, rows=((rows, rows, rows),), scratch=False, **options)


def overhead(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """One request at a time, from and to numpy arrays."""
    engine = engine_of(kernels, SMALL)
    bare = Bare(cuda, engine_of(kernels, SMALL), SMALL)
    runner = LikePolygraphy(bare, engine)
    x = np.random.default_rng(0).standard_normal(SMALL).astype(np.float32)
    plain = Session(engine, cuda=cuda, options=SessionOptions(graphs=False))
    graphs = Session(engine, cuda=cuda)
    np.testing.assert_array_equal(graphs.run({"x": x})["y"], runner.infer({"x": x})["y"])
    feeds = {"x": x}
    bare_run, bare_replay, with_plain, with_graphs, peer = rounds(
        bare.run, bare.replay, lambda: plain.run(feeds), lambda: graphs.run(feeds), lambda: runner.infer(feeds)
    )
    case = f"run, {SMALL[0]} x {SMALL[1]} float32"
    bench.add(case, "bare sequence", bare_run, "us")
    bench.add(case, "bare sequence as a graph", bare_replay, "us")
    bench.add(case, "Session.run without graphs", with_plain, "us")
    bench.add(case, "Session.run with graphs", with_graphs, "us")
    bench.add(case, "overhead without graphs over the bare sequence", minus(with_plain, bare_run), "us", at_most=30)
    bench.add(case, "overhead with graphs over the bare graph", minus(with_graphs, bare_replay), "us", at_most=15)
    bench.add(case, "overhead with graphs over the bare sequence", minus(with_graphs, bare_run), "us", at_most=15)
    bench.add(case, "TrtRunner-style / Session.run without graphs", ratios(peer, with_plain), "x")
    bench.add(case, "TrtRunner-style / Session.run with graphs", ratios(peer, with_graphs), "x")
    bare.close()
    plain.close()
    graphs.close()


def finished(cuda: Cuda, work: Callable[[], object], calls: int) -> float:
    """Milliseconds of one call, until the device has finished all of them."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    cuda.synchronize_device()
    return (time.perf_counter() - start) / calls * 1e3


class Alone:
    """Copies alone, in both directions at once, and executions alone."""

    def __init__(self, cuda: Cuda, kernels: GpuKernels) -> None:
        self.cuda = cuda
        self.engine = engine_of(kernels, LARGE)
        self.bare = Bare(cuda, self.engine, LARGE)
        self.back = cuda.create_stream()

    def copies(self) -> None:
        """One in, one out."""
        bare = self.bare
        self.cuda.copy_in(bare.x, bare.host_x, bare.nbytes, bare.stream)
        self.cuda.copy_out(bare.host_y, bare.y, bare.nbytes, self.back)

    def compute(self) -> None:
        """One execution."""
        self.bare.context.execute(self.bare.stream)

    def spin(self, share: float) -> int:
        """How many cycles make an execution take ``share`` times the copies."""
        finished(self.cuda, self.copies, 20)
        copies = statistics.median(finished(self.cuda, self.copies, 50) for _ in range(5))
        self.engine.cycles = 1_000_000
        finished(self.cuda, self.compute, 5)
        self.engine.cycles = int(1_000_000 * share * copies / finished(self.cuda, self.compute, 20))
        return self.engine.cycles

    def close(self) -> None:
        """Free everything."""
        self.cuda.destroy_stream(self.back)
        self.bare.close()


class Requests:
    """The same work through a session, one after another or several in flight."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.arrays = [
            (session.host_array(LARGE, np.float32), session.host_array(LARGE, np.float32)) for _ in range(8)
        ]
        for x, _ in self.arrays:
            x[:] = 1
        self.flying: deque[Any] = deque()
        self.count = 0

    def submit(self) -> None:
        """Up to six in flight."""
        x, y = self.arrays[self.count % len(self.arrays)]
        self.count += 1
        if len(self.flying) >= IN_FLIGHT:
            self.flying.popleft().result()
        self.flying.append(self.session.submit({"x": x}, into={"y": y}))

    def run(self) -> None:
        """One."""
        x, y = self.arrays[0]
        self.session.run_into({"x": x}, {"y": y})

    def close(self) -> None:
        """Check the answers and free everything."""
        while self.flying:
            self.flying.popleft().result()
        if not all((y == 3).all() for _, y in self.arrays):
            raise SystemExit("wrong answers")
        self.arrays.clear()
        self.session.close()


def pipelined(bench: Benchmark, cuda: Cuda, kernels: GpuKernels, *, share: float) -> None:
    """Copies and executions overlap: ``share`` is how long an execution takes, in units of the copies."""
    alone = Alone(cuda, kernels)
    engine = engine_of(kernels, LARGE, cycles=alone.spin(share))
    requests = Requests(Session(engine, cuda=cuda, options=SessionOptions(contexts=IN_FLIGHT)))
    works = {"copies": alone.copies, "compute": alone.compute, "submit": requests.submit, "run": requests.run}
    for work in works.values():
        finished(cuda, work, 40)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(7):
        for name, work in works.items():
            taken[name].append(finished(cuda, work, 200))  # so many that filling and draining do not count
    slower = [max(pair) for pair in zip(taken["copies"], taken["compute"], strict=True)]
    case = f"pipeline, compute {share:g} x copies, 16 MiB in and out"
    for name, times in taken.items():
        bench.add(case, f"{name}, each", times, "ms")
    bench.add(case, "submit, share of the slower rate", ratios(slower, taken["submit"]), "", at_least=0.95)
    bench.add(case, "run, share of the slower rate", ratios(slower, taken["run"]), "")
    bench.add(case, "submit / run, rate", ratios(taken["run"], taken["submit"]), "x")
    requests.close()
    alone.close()


class Counting:
    """A CUDA provider that counts copies."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.name, self.device, self.graphs = cuda.name, cuda.device, cuda.graphs
        self.copies = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cuda, name)
        if not name.startswith("copy_"):
            return found

        def counted(*args: int) -> None:
            self.copies += 1
            found(*args)

        return counted


def zero_copy(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """PyTorch's tensors in, PyTorch's tensors out."""
    torch: Any = importlib.import_module("torch")

    bare = Bare(cuda, engine_of(kernels, SMALL), SMALL)
    stream = torch.cuda.Stream()
    x, y = torch.ones(SMALL, device="cuda"), torch.zeros(SMALL, device="cuda")
    counting: Any = Counting(cuda)
    with Session(engine_of(kernels, SMALL), cuda=counting) as watched:
        for _ in range(5):
            watched.run_into({"x": x}, {"y": y})
            watched.run({"x": x}, to="device")
        torch.cuda.synchronize()
        if not (y == 3).all():
            raise SystemExit("wrong answers")
    case = f"torch to torch, {SMALL[0]} x {SMALL[1]} float32"
    bench.add(case, "copies of any kind in 10 runs", float(counting.copies), "", at_most=0)
    engine = engine_of(kernels, SMALL)
    session = Session(engine, cuda=cuda)
    plain = Session(engine, cuda=cuda, options=SessionOptions(graphs=False))
    feeds, outputs, handle = {"x": x}, {"y": y}, stream.cuda_stream

    def enqueue_bare() -> None:
        bare.context.set_address("x", x.data_ptr())
        bare.context.set_address("y", y.data_ptr())
        bare.context.execute(handle)

    def synchronous_bare() -> None:
        bare.context.set_address("x", x.data_ptr())
        bare.context.set_address("y", torch.empty(SMALL, device="cuda").data_ptr())
        bare.context.execute(bare.stream)
        cuda.synchronize(bare.stream)

    with torch.cuda.stream(stream):
        base, with_graphs, without = rounds(
            enqueue_bare,
            lambda: session.run_into(feeds, outputs, stream=handle),
            lambda: plain.run_into(feeds, outputs, stream=handle),
        )
        stream.synchronize()
    bench.add(case, "bare enqueue", base, "us")
    bench.add(case, "overhead of run_into on torch's stream", minus(with_graphs, base), "us", at_most=10)
    bench.add(case, "the same without graphs", minus(without, base), "us")
    base, owned = rounds(synchronous_bare, lambda: torch.from_dlpack(session.run(feeds, to="device")["y"]))
    bench.add(case, "overhead of run to a new tensor, synchronised", minus(owned, base), "us")
    session.close()
    plain.close()
    torch.cuda.synchronize()
    bare.close()


def memory(bench: Benchmark, cuda: Cuda, kernels: GpuKernels) -> None:
    """What a session with one context holds."""
    rows, columns = LARGE
    engine = KernelEngine(kernels, columns=columns, rows=((rows, rows, rows),))
    need = engine.scratch_nbytes(0) + 2 * rows * columns * 4
    options = SessionOptions(contexts=1, scratch="pool", graphs=False)
    x = np.ones(LARGE, np.float32)
    with Session(
        KernelEngine(kernels, columns=columns, rows=((rows, rows, rows),)), cuda=cuda, options=options
    ) as first:
        first.run({"x": x})  # what the driver sets up once for a process, such as the kernels' code
    before = cuda.memory_info()[0]
    session = Session(engine, cuda=cuda, options=options)
    for _ in range(5):
        session.run({"x": x})
    taken = before - cuda.memory_info()[0]
    held = session.memory["device"].held_nbytes
    case = f"memory, {rows} x {columns} float32 in, scratch and out"
    bench.add(case, "engine's need and I/O", need / 2**20, "MiB")
    bench.add(case, "held by the session / need", held / need, "x", at_most=1.01)
    bench.add(case, "taken from the driver / need", taken / need, "x", at_most=1.01)
    session.close()


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cuda = open_cuda("cuda-python")
    token = cuda.enter()
    kernels, filling = GpuKernels(0), GpuKernels(0, most_blocks=FILLING)
    bench = Benchmark("gpu_runtime")
    memory(bench, cuda, kernels)
    overhead(bench, cuda, kernels)
    zero_copy(bench, cuda, kernels)
    for share in (0.6, 1.0, 1.6):
        pipelined(bench, cuda, filling, share=share)
    cuda.leave(token)
    bench.finish(("cuda-bindings", "torch"))


if __name__ == "__main__":
    main()
