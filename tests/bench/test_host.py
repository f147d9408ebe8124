"""Measuring on the CPU, with the real ONNX Runtime and with an engine whose time is a model."""

import threading

import numpy as np
import pytest

from tests.helpers import matmul, random
from trtsparse.bench import host
from trtsparse.bench.measure import BenchOptions, measure
from trtsparse.bench.statistics import summaries, throughput_qps
from trtsparse.errors import DtypeError, EngineError, FeedError
from trtsparse.precision.specs import TensorSpec

X = random(2, 64)
QUICK = {"iterations": 5, "duration_s": 0.05, "warm_up_ms": 10.0, "energy": False}


class Steady:
    """An engine that takes two milliseconds of a clock of its own."""

    name = description = "steady"
    inputs = (TensorSpec("x", np.dtype("float32"), ("n", 64)),)
    outputs = (TensorSpec("y", np.dtype("float32"), ("n", 64)),)

    def __init__(self):
        self.now_ns = 0
        self.calls = 0
        self.threads = set()
        self.fail_at = None
        self.lock = threading.Lock()

    def clock(self):
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9)

    def run(self, feeds, *, outputs=None):
        assert outputs is None
        with self.lock:
            self.calls += 1
            self.threads.add(threading.current_thread())
            self.now_ns += 2_000_000
            if self.calls == self.fail_at:
                raise EngineError("broken")
            return {"y": feeds["x"] * self.calls}

    def close(self):
        raise AssertionError("measuring does not close an engine")


@pytest.fixture
def steady(monkeypatch):
    engine = Steady()
    monkeypatch.setattr(host, "_clock", engine.clock)
    monkeypatch.setattr(host, "_sleep", engine.sleep)
    return engine


@pytest.fixture
def engine():
    pytest.importorskip("onnxruntime")
    from trtsparse.engines.onnxruntime import OnnxRuntimeEngine

    made = OnnxRuntimeEngine(matmul(random(64, 32)), threads=1)
    yield made
    made.close()


def test_times_are_those_of_the_calls(steady):
    found = measure(steady, {"x": X}, options=BenchOptions(**QUICK))
    assert (found.place, found.cuda, found.graphs) == ("cpu", None, False)
    assert found.warm_up_queries == 5
    assert found.warm_up_ms == 10
    assert len(found.queries) == 26  # those that start from 10 to 60 ms
    assert found.wall_s == pytest.approx(0.052)
    assert throughput_qps(found.queries) == pytest.approx(500)
    assert summaries(found).keys() == {"latency", "compute"}
    assert summaries(found)["compute"].median == pytest.approx(2.0)
    first = found.queries[0]
    assert (first.start_compute_ms, first.end_compute_ms) == (0, 2)
    assert first.enqueue_ms == first.h2d_ms == first.d2h_ms == 0
    np.testing.assert_array_equal(found.outputs["y"], X * steady.calls)


def test_streams_are_threads(steady):
    found = measure(steady, {"x": X}, options=BenchOptions(streams=3, **QUICK))
    assert len(steady.threads) == 3
    assert threading.current_thread() not in steady.threads
    for stream in range(3):
        assert sum(query.stream == stream for query in found.queries) >= 5
    starts = [query.start_compute_ms for query in found.queries]
    assert starts == sorted(starts)


def test_pauses_are_not_measured(steady):
    options = BenchOptions(**QUICK, idle_ms=6.0, sleep_ms=50.0)
    found = measure(steady, {"x": X}, options=options)
    assert found.warm_up_queries == 5
    assert len(found.queries) == 8
    assert {round(query.compute_ms, 6) for query in found.queries} == {2.0}


@pytest.mark.parametrize("streams", [1, 3])
def test_a_failure_ends_the_run(steady, streams):
    steady.fail_at = 12
    with pytest.raises(EngineError, match="broken"):
        measure(steady, {"x": X}, options=BenchOptions(streams=streams, **QUICK))
    assert steady.calls < 12 + streams


def test_options_for_gpus_are_said_to_have_no_effect(steady):
    options = BenchOptions(**{**QUICK, "energy": True}, graphs=True, expose_dma=True, transfers=False)
    found = measure(steady, {"x": X}, options=options)
    assert found.notes == (
        "without effect on the CPU: graphs, transfers, expose_dma",
        "no power and energy: they are measured on GPUs",
    )


def test_an_engine_without_times_of_layers_is_said(steady):
    found = measure(steady, {"x": X}, options=BenchOptions(profile_layers=True, **QUICK))
    assert found.layers is None
    assert found.notes == ("no times of layers: steady does not tell them",)


@pytest.mark.parametrize(
    ("feeds", "error"),
    [({}, FeedError), ({"x": X, "y": X}, FeedError), ({"x": X.astype(np.float64)}, DtypeError)],
)
def test_wrong_inputs_are_refused_before_the_run(steady, feeds, error):
    with pytest.raises(error):
        measure(steady, feeds, options=BenchOptions(**QUICK))
    assert not steady.calls


@pytest.mark.parametrize("streams", [1, 2])
def test_onnx_runtime_is_measured_and_gives_its_outputs(engine, streams):
    found = measure(engine, {"x": X}, options=BenchOptions(streams=streams, **QUICK))
    assert len(found.queries) >= 5 * streams
    assert all(query.compute_ms > 0 for query in found.queries)
    assert found.wall_s > 0
    np.testing.assert_array_equal(found.outputs["y"], engine.run({"x": X})["y"])


def test_onnx_runtime_tells_its_nodes(engine):
    found = measure(engine, {"x": X}, options=BenchOptions(profile_layers=True, **QUICK))
    assert [layer.name for layer in found.layers] == ["matmul"]
    assert found.profile_queries == len(found.layers[0].times_ms) >= 5
    assert found.layers[0].average_ms < 50
