"""Measured times against independent ones on a GPU; what a measurement promises, in memory as well.

Independent are events and copies of ``cuda.bindings.runtime``, called here and by no code of the package. What is
compared is taken in turn, and medians are compared: a GPU changes its clock.
"""

import statistics

import numpy as np
import pytest

from trtsparse.bench.measure import BenchOptions, bench, measure
from trtsparse.bench.statistics import summaries, throughput_qps
from trtsparse.errors import UnsupportedOptionError

SHORT = {"iterations": 20, "duration_s": 0.05, "warm_up_ms": 20.0, "energy": False}
LONG = {"iterations": 100, "duration_s": 0.5, "warm_up_ms": 100.0}
BATCH = 10
LARGE = (4096, 1024)
"""16 MiB."""
MS = 2_000_000
"""Cycles that a kernel spins in memory, where they cost nothing: a millisecond of the model's time."""


def feed(n=4, columns=64):
    return np.random.default_rng(0).standard_normal((n, columns)).astype(np.float32)


def fixed(world, shape, **options):
    rows, columns = shape
    return world.engine(columns=columns, rows=((rows, rows, rows),), **options)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"streams": 3}, {"streams": 3, "threads": True}, {"transfers": False}, {"expose_dma": True},
        {"queue_depth": 4}, {"graphs": False}, {"profile_layers": True}, {"spin_wait": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_to_measure_gives_the_right_outputs(world, options, positive):
    engine = world.engine(cycles=world.slow or MS, positive=positive)
    x = feed()
    found = measure(engine, {"x": x}, options=BenchOptions(**SHORT, **options), cuda=world.cuda)
    np.testing.assert_array_equal(found.outputs["y"], 2 * x + np.float32(1))
    if positive:
        np.testing.assert_array_equal(found.outputs["p"], x[x > 0])
    assert len(found.queries) >= 20 * found.options.streams
    assert found.graphs == (world.cuda.graphs and options.get("graphs", True) and not positive)
    for query in found.queries:
        assert 0 <= query.enqueue_ms < 1e3
        assert query.compute_ms > 0
        assert query.end_h2d_ms <= query.start_compute_ms + 1e-2
        assert query.end_compute_ms <= query.start_d2h_ms + 1e-2
    assert not engine.contexts


def test_random_inputs_are_made_for_an_engine(world):
    engine = world.engine(cycles=world.slow or MS)
    found = bench(engine, cuda=world.cuda, options=BenchOptions(**SHORT), shapes={"x": (7, 64)})
    assert (found.random, found.shapes) == (("x",), {"x": (7, 64)})
    assert throughput_qps(found.queries) > 0


def test_graphs_that_a_binding_lacks_are_refused(world):
    if world.cuda.graphs:
        pytest.skip("this binding has graphs")
    with pytest.raises(UnsupportedOptionError, match="this CUDA provider has no CUDA graphs"):
        measure(world.engine(), {"x": feed()}, options=BenchOptions(**SHORT, graphs=True), cuda=world.cuda)


class Independent:
    """Events around work on a stream, by the CUDA runtime itself."""

    def __init__(self):
        from cuda.bindings import runtime

        self.runtime = runtime
        self.stream = self.ask(runtime.cudaStreamCreateWithFlags(1))
        self.pairs = [[self.ask(runtime.cudaEventCreate()) for _ in range(2)] for _ in range(BATCH)]

    def ask(self, answer):
        assert int(answer[0]) == 0, answer[0]
        return answer[1] if len(answer) > 1 else None

    def median_ms(self, work, *, queued):
        """Queued behind each other, so that the GPU need not wait for the host, or one after another."""
        pairs = self.pairs if queued else self.pairs[:1]
        taken = []
        while len(taken) < 150:
            for start, end in pairs:
                self.ask(self.runtime.cudaEventRecord(start, self.stream))
                work(int(self.stream))
                self.ask(self.runtime.cudaEventRecord(end, self.stream))
            self.ask(self.runtime.cudaStreamSynchronize(self.stream))
            times = [self.ask(self.runtime.cudaEventElapsedTime(start, end)) for start, end in pairs]
            taken += times[1:] if queued else times
        return statistics.median(taken[30:])

    def copying(self, device, host, nbytes, kind):
        return lambda stream: self.ask(self.runtime.cudaMemcpyAsync(device, host, nbytes, kind, stream))

    def close(self):
        for pair in self.pairs:
            for event in pair:
                self.ask(self.runtime.cudaEventDestroy(event))
        self.ask(self.runtime.cudaStreamDestroy(self.stream))


@pytest.fixture
def independent(gpu):
    token = gpu.cuda.enter()
    made = Independent()
    yield made
    made.close()
    gpu.cuda.leave(token)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("transfers", [True, False])
def test_executions_are_timed_within_two_percent_of_independent_events(gpu, independent, graphs, transfers):
    if graphs and not gpu.cuda.graphs:
        pytest.skip("this binding has no graphs")
    engine = fixed(gpu, (256, 64), scratch=False, cycles=gpu.slow)
    n = 256 * 64
    x, out = (gpu.kernels.allocate(4 * n) for _ in range(2))
    options = BenchOptions(**LONG, graphs=graphs, transfers=transfers)

    def by_hand(stream):
        gpu.kernels.twice(x, out, n, 1.0, gpu.slow, stream)

    ratios = []
    for _ in range(3):
        before = independent.median_ms(by_hand, queued=True)
        found = measure(engine, {"x": feed(256)}, options=options, cuda=gpu.cuda)
        after = independent.median_ms(by_hand, queued=True)
        ratios.append(summaries(found)["compute"].median / ((before + after) / 2))
    for address in (x, out):
        gpu.kernels.free(address)
    assert found.graphs is graphs
    assert statistics.median(ratios) == pytest.approx(1, abs=0.02), ratios


@pytest.mark.gpu
def test_copies_are_timed_as_independent_events_time_them(gpu, independent):
    nbytes = 4 * LARGE[0] * LARGE[1]
    kinds = independent.runtime.cudaMemcpyKind
    device = gpu.kernels.allocate(nbytes)
    host = independent.ask(independent.runtime.cudaHostAlloc(nbytes, 0))
    copy_in = independent.copying(device, host, nbytes, kinds.cudaMemcpyHostToDevice)
    copy_out = independent.copying(host, device, nbytes, kinds.cudaMemcpyDeviceToHost)
    engine = fixed(gpu, LARGE, scratch=False)
    options = BenchOptions(**LONG, expose_dma=True)
    ratios = {"h2d": [], "d2h": []}
    for _ in range(3):
        copies = {"h2d": copy_in, "d2h": copy_out}
        expected = {part: independent.median_ms(copy, queued=False) for part, copy in copies.items()}
        found = summaries(measure(engine, {"x": feed(*LARGE)}, options=options, cuda=gpu.cuda))
        for part, times in ratios.items():
            times.append(found[part].median / expected[part])
            assert 1e9 < nbytes / (found[part].median * 1e-3) < 1e12  # bytes a second of any bus there is
    independent.ask(independent.runtime.cudaFreeHost(host))
    gpu.kernels.free(device)
    for part, times in ratios.items():
        assert statistics.median(times) == pytest.approx(1, abs=0.1), (part, times)


@pytest.mark.gpu
def test_graphs_change_the_enqueueing_and_not_the_execution(gpu):
    if not gpu.cuda.graphs:
        pytest.skip("this binding has no graphs")
    engine = fixed(gpu, (256, 64), cycles=gpu.slow)
    medians = {True: [], False: []}
    for _ in range(3):
        for graphs, found in medians.items():
            options = BenchOptions(**LONG, graphs=graphs)
            found.append(summaries(measure(engine, {"x": feed(256)}, options=options, cuda=gpu.cuda)))
    compute, enqueue = (
        {graphs: statistics.median(times[part].median for times in found) for graphs, found in medians.items()}
        for part in ("compute", "enqueue")
    )
    assert compute[True] == pytest.approx(compute[False], rel=0.03)
    assert enqueue[True] < enqueue[False]  # one launch in place of two


@pytest.mark.gpu
def test_copies_overlap_with_the_execution_of_the_query_before(gpu):
    engine = fixed(gpu, LARGE, scratch=False, cycles=gpu.slow)
    x = feed(*LARGE)
    rates = {}
    for exposed in (True, False):
        found = measure(engine, {"x": x}, options=BenchOptions(**LONG, expose_dma=exposed), cuda=gpu.cuda)
        rates[exposed] = throughput_qps(found.queries)
    parts = summaries(found)
    whole = sum(parts[part].median for part in ("h2d", "compute", "d2h"))
    assert rates[True] < 1.05e3 / whole
    assert rates[False] > 1.2 * rates[True]


@pytest.mark.gpu
def test_layers_add_up_to_the_execution(gpu):
    engine = fixed(gpu, (256, 64), cycles=gpu.slow)
    found = measure(engine, {"x": feed(256)}, options=BenchOptions(**LONG, profile_layers=True), cuda=gpu.cuda)
    assert [layer.name for layer in found.layers] == ["twice", "add"]
    total = sum(layer.median_ms for layer in found.layers)
    assert total == pytest.approx(summaries(found)["compute"].median, rel=0.05)


@pytest.mark.gpu
def test_energy_is_what_such_a_gpu_may_take(gpu):
    pytest.importorskip("pynvml")
    engine = fixed(gpu, (256, 64), scratch=False, cycles=gpu.slow)
    options = BenchOptions(duration_s=2.0)
    found = measure(engine, {"x": feed(256)}, options=options, cuda=gpu.cuda)
    if found.energy is None:
        pytest.skip("; ".join(found.notes))
    assert 10 < found.energy.mean_watts < 1500
    assert found.energy.joules_per_query == pytest.approx(found.energy.mean_watts * found.wall_s / len(found.queries))
    assert found.clocks.end_mhz is None or 100 < found.clocks.end_mhz <= (found.clocks.max_mhz or 5000)
