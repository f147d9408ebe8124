"""The loop on a GPU, over the in-memory CUDA: order, depth, events, graphs, lifetimes; times are the model's."""

import itertools

import numpy as np
import pytest
from onnx import parser

from tests.doubles import VERSIONS, installed, samples
from tests.doubles.bindings import installed_bindings, make_pycuda, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built, engine_on
from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.bench import device
from trtsparse.bench.measure import BenchOptions, measure
from trtsparse.bench.statistics import summaries
from trtsparse.cuda.cuda_pycuda import PyCuda
from trtsparse.cuda.cuda_python import CudaPython
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import (
    CudaError,
    DeviceError,
    DtypeError,
    EngineError,
    FeedError,
    ShapeError,
    UnsupportedOptionError,
)

ORDERS = ("eager", "late", "shuffled")
X = np.arange(256, dtype=np.float32).reshape(4, 64) - 100
MS = 2_000_000
"""Cycles that a kernel spins for a millisecond."""


@pytest.fixture
def on(monkeypatch):
    """Measures on an in-memory CUDA, whose time is the host's as well, and checks that nothing is left."""

    def run(cuda, *, engine=None, feeds=None, provider=None, cycles=MS, **options):
        monkeypatch.setattr(device, "_clock", cuda.clock_ns)
        monkeypatch.setattr(device, "_sleep", lambda seconds: cuda.pass_time(seconds * 1e3))
        chosen = BenchOptions(**{"iterations": 3, "duration_s": 0.02, "warm_up_ms": 5.0, "energy": False, **options})
        if engine is None:
            engine = KernelEngine(MemoryKernels(cuda), cycles=cycles)
        try:
            return measure(engine, {"x": X} if feeds is None else feeds, options=chosen, cuda=provider or cuda)
        finally:
            cuda.check()
            assert set(cuda.alive.values()) == {0}

    return run


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"streams": 3}, {"streams": 3, "threads": True}, {"transfers": False}, {"expose_dma": True},
        {"queue_depth": 4}, {"graphs": False}, {"profile_layers": True}, {"spin_wait": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_to_measure_gives_the_right_outputs_and_leaves_nothing_behind(on, order, positive, options):
    cuda = MemoryCuda(order=order)
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS, positive=positive)
    found = on(cuda, engine=engine, **options)
    np.testing.assert_array_equal(found.outputs["y"], 2 * X + 1)
    if positive:
        np.testing.assert_array_equal(found.outputs["p"], X[X > 0])
    assert not engine.contexts
    assert not engine.closed
    for stream in range(found.options.streams):
        assert sum(query.stream == stream for query in found.queries) >= 3
    assert found.queries[-1].start_compute_ms >= 19


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_both_bindings_measure_the_same(on, order, binding):
    memory = MemoryCuda(order=order)
    make, provider = {"cuda-python": (make_runtime, CudaPython), "pycuda": (make_pycuda, PyCuda)}[binding]
    with installed_bindings(**{"runtime" if binding == "cuda-python" else "pycuda": make(memory)}):
        cuda = provider()
    found = on(memory, provider=cuda)
    assert (found.cuda, found.graphs) == (binding, binding == "cuda-python")
    assert summaries(found)["compute"].median == pytest.approx(1.02, abs=0.005)
    np.testing.assert_array_equal(found.outputs["y"], 2 * X + 1)


@pytest.mark.parametrize("graphs", [True, False])
def test_times_are_those_of_the_events(on, graphs):
    """A kernel of 1.01 ms and one of 0.01 ms; copies of 0.002 ms and what 1024 bytes take."""
    found = on(MemoryCuda(order="late"), graphs=graphs, expose_dma=True)
    for query in found.queries:
        assert query.compute_ms == pytest.approx(1.02, abs=0.003)
        assert query.h2d_ms == pytest.approx(0.00204, abs=0.002)
        assert query.d2h_ms == pytest.approx(0.00204, abs=0.002)
        assert query.latency_ms == pytest.approx(query.h2d_ms + query.compute_ms + query.d2h_ms)
    assert found.graphs is graphs


def test_the_clock_begins_with_the_first_counted_query_and_parts_follow_each_other(on):
    found = on(MemoryCuda(order="late"), streams=2)
    first = found.queries[0]
    assert first.start_h2d_ms == pytest.approx(0, abs=0.01)
    assert 0 < first.start_enqueue_ms < 0.02
    for query in found.queries:
        marks = [
            query.start_h2d_ms, query.end_h2d_ms, query.start_compute_ms, query.end_compute_ms,
            query.start_d2h_ms, query.end_d2h_ms,
        ]  # fmt: skip
        assert marks == sorted(marks)
        assert query.start_enqueue_ms <= query.end_enqueue_ms <= query.end_compute_ms
    starts = [query.start_h2d_ms for query in found.queries]
    assert starts == sorted(starts)
    assert found.wall_s == pytest.approx((max(q.end_d2h_ms for q in found.queries) - starts[0]) / 1e3)


def test_queries_before_the_end_of_the_warm_up_are_not_counted(on):
    found = on(MemoryCuda(order="late"), warm_up_ms=30.0, duration_s=0.01)
    assert found.warm_up_queries == pytest.approx(29, abs=1)
    assert found.warm_up_ms == pytest.approx(29, abs=2)
    assert len(found.queries) == pytest.approx(11, abs=2)


def test_without_a_duration_only_the_iterations_count(on):
    found = on(MemoryCuda(order="late"), iterations=7, duration_s=0.0, warm_up_ms=0.0)
    assert found.warm_up_queries == 0
    assert len(found.queries) == 8  # the one in flight is finished, and counted as in trtexec


def in_flight(cuda):
    """How many executions are enqueued and not waited for, at each wait of the host for an event."""
    flying, depths = 0, []
    for call in cuda.calls:
        if call[0] == "launch":
            flying += 1
        elif call[0] == "synchronize_event" and flying:
            depths.append(flying)
            flying -= 1
    return depths


@pytest.mark.parametrize(("options", "depth"), [({}, 2), ({"expose_dma": True}, 1), ({"queue_depth": 3}, 3)])
def test_as_many_queries_are_in_flight_as_the_queue_is_deep(on, options, depth):
    cuda = MemoryCuda(order="late")
    on(cuda, **options)
    depths = in_flight(cuda)
    assert depths[:-depth] == [depth] * (len(depths) - depth)
    assert depths[-depth:] == list(range(depth, 0, -1))  # in the end all are waited for


def test_a_query_is_copies_in_execution_and_copies_out_each_on_a_stream_of_its_own(on):
    cuda = MemoryCuda(order="late")
    on(cuda, graphs=False, expose_dma=True)
    methods = [call[0] for call in cuda.calls]
    at = len(methods) - 1 - methods[::-1].index("copy_out")
    query = cuda.calls[at - 8 : at + 2]
    assert [call[0] for call in query] == [
        "record", "copy_in", "record", "wait", "record", "record", "wait", "record", "copy_out", "record"
    ][: len(query)]  # fmt: skip
    h2d_start, copy_in, h2d_end, begin, start, end, follow, out_start, copy_out, out_end = query
    streams = {h2d_start[2], start[2], out_start[2]}
    assert len(streams) == 3
    assert copy_in[4] == h2d_end[2] == h2d_start[2]
    assert begin == ("wait", start[2], h2d_end[1])
    assert end[2] == start[2]
    assert follow == ("wait", out_start[2], end[1])
    assert copy_out[4] == out_end[2] == out_start[2]


def test_queries_in_flight_share_no_buffers(on):
    cuda = MemoryCuda(order="late")
    on(cuda)
    targets = [call[1] for call in cuda.calls if call[0] == "copy_in"]
    assert all(a != b for a, b in itertools.pairwise(targets[2:]))
    assert len(set(targets)) == 2


def test_without_transfers_inputs_are_copied_before_and_outputs_after(on):
    cuda = MemoryCuda(order="late")
    found = on(cuda, transfers=False)
    assert (cuda.copies["in"], cuda.copies["out"]) == (2, 1)
    for query in found.queries:
        assert query.start_h2d_ms == query.end_h2d_ms == query.start_compute_ms
        assert query.start_d2h_ms == query.end_d2h_ms == query.end_compute_ms
    assert set(summaries(found)) == {"latency", "enqueue", "compute"}


def test_a_stream_has_one_graph_for_each_query_in_flight(on):
    cuda = MemoryCuda(order="late")
    found = on(cuda, streams=2, queue_depth=3)
    assert cuda.counts["begin_capture"] == cuda.counts["destroy_graph"] == 6
    assert cuda.counts["launch"] == len(found.queries) + found.warm_up_queries


def test_a_capture_that_fails_is_said_and_executions_go_on_without(on):
    cuda = MemoryCuda(order="late")
    cuda.fail("end_capture", code=901, name="cudaErrorStreamCaptureInvalidated")
    found = on(cuda)
    assert found.graphs is False
    (note,) = found.notes
    assert note == (
        "CUDA graphs cannot be captured here, so executions were enqueued one by one: "
        "end_capture failed; got: cudaErrorStreamCaptureInvalidated (901)"
    )
    np.testing.assert_array_equal(found.outputs["y"], 2 * X + 1)


def test_a_size_that_the_data_decides_is_said_and_needs_no_graph(on):
    cuda = MemoryCuda(order="late")
    found = on(cuda, engine=KernelEngine(MemoryKernels(cuda), cycles=MS, positive=True))
    assert found.graphs is False
    assert found.notes == (
        "only the data decides the size of 'p': the host waits for each execution before it copies",
    )


@pytest.mark.parametrize("positive", [False, True])
def test_graphs_that_were_asked_for_and_cannot_be_are_said(on, positive):
    cuda = MemoryCuda(order="late")
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS, positive=positive)
    engine.can_capture = positive
    found = on(cuda, engine=engine, graphs=True)
    assert found.graphs is False
    assert found.notes[0] == (
        "CUDA graphs are not used: this engine cannot be captured, or only the data decides a size"
    )


@pytest.mark.parametrize(("spin", "blocking"), [(False, True), (True, False)])
def test_events_let_the_host_sleep_unless_it_shall_spin(on, spin, blocking):
    cuda = MemoryCuda()
    on(cuda, spin_wait=spin)
    made = [call[1:] for call in cuda.calls if call[0] == "create_event"]
    assert made.count((True, blocking)) >= 12  # six for each query in flight


def test_pauses_come_before_the_run_and_after_counted_queries(on):
    quick, idle = MemoryCuda(order="late"), MemoryCuda(order="late")
    without, with_pauses = on(quick), on(idle, idle_ms=4.0, sleep_ms=100.0)
    assert len(with_pauses.queries) < len(without.queries) / 2
    assert with_pauses.warm_up_queries == without.warm_up_queries
    assert idle.clock_ns() > quick.clock_ns() + 80e6


def test_layers_are_timed_after_the_measured_run(on):
    found = on(MemoryCuda(order="late"), profile_layers=True)
    assert [layer.name for layer in found.layers] == ["twice", "add"]
    assert found.profile_queries == len(found.layers[0].times_ms) == 19
    assert found.layers[0].median_ms == pytest.approx(1.01, abs=0.005)
    assert found.layers[1].median_ms == pytest.approx(0.01, abs=0.005)


def test_an_engine_that_cannot_time_layers_is_said(on, monkeypatch):
    cuda = MemoryCuda()
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS)

    def refuse(_context, _stream):
        raise UnsupportedOptionError("this version cannot time layers", where="profile_layers")

    monkeypatch.setattr("tests.doubles.kernels.KernelContext.execute_profiled", refuse)
    found = on(cuda, engine=engine, profile_layers=True)
    assert found.layers is None
    assert found.notes == ("no times of layers: this version cannot time layers; where: profile_layers",)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensorrt_is_measured_with_its_layers(on, version, order):
    cuda = MemoryCuda(order=order)
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
    profile = {"x": ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))}
    with engine_on(cuda, samples.tiny("N"), profile, version=version) as (engine, _):
        found = on(cuda, engine=engine, feeds={"x": x}, profile_layers=True, duration_s=0.002, iterations=5)
        assert found.engine == engine.name
        assert found.outputs["y"].shape == (2, 12)
        assert len(found.layers) == engine.raw.num_layers
        medians = [layer.median_ms for layer in found.layers]
        assert medians == sorted(medians)
        assert medians[0] == pytest.approx(0.01)
        engine.close()


def test_values_of_shapes_stay_on_the_host(on, monkeypatch):
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x, int64[2] to) => (float[m, k] y)'
        "{ y = Reshape(x, to) }"
    )
    cuda = MemoryCuda(order="late")
    with installed("10.13.3") as trt:
        trt.submit = cuda.submit
        plan = built(trt, parser.parse_model(text), {"x": ((1, 4), (4, 4), (8, 4)), "to": ((2,), (2,), (2,))})
        monkeypatch.setattr(trt.ICudaEngine, "is_shape_inference_io", lambda _self, name: name == "to")
        where = trt.TensorLocation
        monkeypatch.setattr(
            trt.ICudaEngine, "get_tensor_location", lambda _self, name: where.HOST if name == "to" else where.DEVICE
        )
        engine = TensorRTEngine(plan)
        assert engine.shape_inputs == {"to"}
        x = np.arange(16, dtype=np.float32).reshape(4, 4)
        found = on(cuda, engine=engine, feeds={"x": x, "to": np.array([2, 8])})
        np.testing.assert_array_equal(found.outputs["y"], x.reshape(2, 8))
        assert cuda.counts["copy_in"] == len(found.queries) + found.warm_up_queries + 2
        engine.close()


def test_each_stream_of_an_exclusive_plan_needs_a_profile(on):
    cuda = MemoryCuda()
    rows = ((1, 4, 8), (1, 2, 16))
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS, rows=rows, exclusive=True)
    assert len({query.stream for query in on(cuda, engine=engine, streams=2).queries}) == 2
    with pytest.raises(UnsupportedOptionError) as caught:
        on(cuda, engine=engine, streams=3)
    assert str(caught.value) == (
        "two contexts cannot use one profile of this plan at a time\n"
        "  where: streams\n"
        "  got: 3\n"
        "  expected: at most 2, the profiles that admit the inputs\n"
        "  to fix: build the plan with more profiles, or with TensorRT 10 or later"
    )


def test_the_profile_that_fits_best_is_used(on):
    cuda = MemoryCuda()
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS, rows=((1, 4, 8), (64, 100, 128)))
    x = np.ones((100, 64), np.float32)
    np.testing.assert_array_equal(on(cuda, engine=engine, feeds={"x": x}).outputs["y"], 2 * x + 1)


@pytest.mark.parametrize(
    ("feeds", "error", "text"),
    [
        ({}, FeedError, "an input is missing"),
        ({"x": X, "z": X}, FeedError, "the model has no such input"),
        ({"x": X.astype(np.float64)}, DtypeError, "an array has the wrong data type"),
        ({"x": X[:, :5]}, ShapeError, "an array has the wrong shape"),
        ({"x": np.ones((2000, 64), np.float32)}, ShapeError, "a size is outside of what the plan was built for"),
        ({"x": [1.0]}, FeedError, "inputs to measure with are numpy arrays\n  where: input 'x'\n  got: list"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_made(on, feeds, error, text):
    cuda = MemoryCuda()
    with pytest.raises(error) as caught:
        on(cuda, feeds=feeds)
    assert str(caught.value).startswith(text)
    assert not cuda.counts["allocate"]


def test_graphs_that_the_binding_lacks_are_refused(on):
    with pytest.raises(UnsupportedOptionError) as caught:
        on(MemoryCuda(graphs=False), graphs=True)
    assert str(caught.value) == (
        "this CUDA provider has no CUDA graphs\n  where: graphs=True\n  got: memory\n  expected: cuda-python"
    )


def test_an_engine_on_another_gpu_is_refused():
    cuda = MemoryCuda()
    engine = KernelEngine(MemoryKernels(cuda))
    engine.device = 1
    with pytest.raises(DeviceError) as caught:
        device.measure_on_gpu(engine, {"x": X}, options=BenchOptions(), cuda=cuda)
    assert str(caught.value) == (
        "the engine is loaded on another GPU\n  where: device\n  got: GPU 1\n  expected: GPU 0"
    )


@pytest.mark.parametrize("options", [{}, {"streams": 2}, {"streams": 2, "threads": True}])
def test_an_execution_that_is_refused_ends_the_run_and_frees_everything(on, options):
    cuda = MemoryCuda(order="late")
    engine = KernelEngine(MemoryKernels(cuda), cycles=MS)
    executions = itertools.count()
    engine.should_fail = lambda: next(executions) == 15
    with pytest.raises(EngineError, match="the kernels refuse"):
        on(cuda, engine=engine, graphs=False, **options)
    assert not engine.contexts


FALLIBLE = (
    "create_stream", "allocate", "allocate_pinned", "create_event", "record", "launch", "copy_in",
    "synchronize_event", "elapsed_ms",
)  # fmt: skip


@pytest.mark.parametrize("method", FALLIBLE)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_failing_call_is_raised_and_everything_is_freed(on, method, after, monkeypatch):
    cuda = MemoryCuda(order="late")
    calls = itertools.count()
    plain = getattr(cuda, method)

    def failing(*args, **options):
        if next(calls) == after:
            raise CudaError(method, code=700, name="cudaErrorIllegalAddress")
        return plain(*args, **options)

    engine = KernelEngine(MemoryKernels(cuda), cycles=MS)
    monkeypatch.setattr(cuda, method, failing)
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        on(cuda, engine=engine)
    assert next(calls) > after
