"""Which graph a context takes, on host memory: a recorder stands for CUDA's capture."""

import ctypes
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import models
from tests.engines.cusparselt.programs import plain
from tests.helpers import model as make_model
from trtsparse.engines.cusparselt.context import CusparseltContext
from trtsparse.engines.cusparselt.engine import CusparseltEngine
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import input_specs, output_specs

torch = pytest.importorskip("torch")
WIDTHS = (8, 16, 4)


class Graph:
    """Work that is recorded once, and done when it is replayed."""

    def __init__(self):
        self.work, self.pool, self.stream, self.replays = None, None, None, 0

    def replay(self):
        self.replays += 1
        self.work()


class Recorder:
    """PyTorch's graphs; outside of a capture, work is done at once."""

    def __init__(self):
        self.graphs, self.capturing, self.wrote = [], None, []

    @contextmanager
    def capture(self, graph, *, pool, stream, capture_error_mode):
        assert (stream is not None, capture_error_mode) == (True, "thread_local")
        graph.pool, graph.stream, self.capturing = pool, stream, graph
        self.graphs.append(graph)
        yield
        self.capturing = None

    def run(self, work, inputs, outputs):
        assert all(
            tensor.is_inference() for tensor in (*inputs, *outputs)
        )  # compiled code is for one kind of tensors
        if self.capturing is None:
            self.wrote += [tensor.data_ptr() for tensor in outputs]
            work(inputs, outputs)
        else:
            self.capturing.work = partial(work, inputs, outputs)


@pytest.fixture(scope="module")
def model():
    return OnnxModel.open(models.get("mlp", widths=WIDTHS))


@contextmanager
def opened(model, *, floating=None, linear=plain):
    """A context over host memory, and what was recorded."""
    recorder = Recorder()

    def new_stream(**_options):
        return SimpleNamespace(wait_stream=lambda _other: None, synchronize=lambda: None)

    class Event(SimpleNamespace):
        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    stream = new_stream()
    fakes = {
        "device": lambda _device: nullcontext(), "stream": lambda _stream: nullcontext(), "CUDAGraph": Graph,
        "Stream": new_stream, "Event": Event, "current_stream": lambda: stream,
        "default_stream": lambda _device: stream, "graph_pool_handle": object,
        "graph": recorder.capture, "synchronize": lambda *_device: None,
    }  # fmt: skip

    def as_tensor(memory, device):
        assert device.type == "cpu"
        found = memory.__cuda_array_interface__
        return torch.frombuffer(
            (ctypes.c_uint8 * found["shape"][0]).from_address(found["data"][0]), dtype=torch.uint8
        )

    with pytest.MonkeyPatch.context() as patched:
        for name, value in fakes.items():
            patched.setattr(torch.cuda, name, value)
        patched.setattr(torch, "as_tensor", as_tensor)
        engine = CusparseltEngine.__new__(CusparseltEngine)
        engine.compiled, engine.device, engine.lock = False, 0, threading.Lock()
        engine.inputs, engine.outputs, engine._layouts = input_specs(model), output_specs(model), {}
        engine._chooser = SimpleNamespace(close=lambda: None)
        engine.program = Program(fuse(read_graph(model)), device="cpu", floating=floating, linear=linear)
        engine.runner = lambda _shapes: partial(recorder.run, engine.program.run)
        yield CusparseltContext(engine), recorder


class Caller:
    """Who feeds a context: arrays at addresses of its own."""

    def __init__(self, model):
        self.right, self.rng = OnnxRuntimeEngine(model), np.random.default_rng(0)

    def arrays(self, rows):
        return np.zeros((rows, WIDTHS[0]), np.float32), np.full((rows, WIDTHS[-1]), -1, np.float32)

    def run(self, context, arrays):
        """Execute on new values, and compare."""
        x, y = arrays
        x[:], y[:] = self.rng.standard_normal(x.shape), -1
        assert context.set_inputs({"input": x.shape}, {}) == {"output": y.shape}
        context.set_address("input", x.ctypes.data)
        context.set_address("output", y.ctypes.data)
        context.execute(0)
        np.testing.assert_allclose(y, self.right.run({"input": x})["output"], rtol=1e-4, atol=1e-5)


def test_addresses_that_come_again_are_captured_and_nothing_is_copied(model):
    caller = Caller(model)
    with opened(model) as (context, recorder):
        same = caller.arrays(3)
        for _ in range(4):
            caller.run(context, same)
        assert [graph.replays for graph in recorder.graphs] == [1, 3]
        other = caller.arrays(3)
        caller.run(context, other)
        assert [graph.replays for graph in recorder.graphs] == [1, 3, 1]
        # they share memory, which is taken again on the same stream only
        assert len({graph.pool for graph in recorder.graphs}) == 1
        assert len({id(graph.stream) for graph in recorder.graphs}) == 1


def test_addresses_that_always_change_share_one_graph(model):
    caller = Caller(model)
    with opened(model) as (context, recorder):
        kept = [caller.arrays(3) for _ in range(30)]
        for arrays in kept:
            caller.run(context, arrays)
        assert [graph.replays for graph in recorder.graphs] == [30]


def test_a_shape_has_a_few_graphs_at_most(model):
    caller = Caller(model)
    with opened(model) as (context, recorder):
        kept = [caller.arrays(3) for _ in range(6)]
        for _ in range(5):
            for arrays in kept:
                caller.run(context, arrays)
        assert [graph.replays for graph in recorder.graphs] == [6, 4, 4, 4, 4, 2 * 4]


def test_making_a_graph_leaves_the_callers_memory_alone(model):
    """Another execution's results may still be read there."""
    caller = Caller(model)
    with opened(model) as (context, recorder):
        arrays = caller.arrays(2)
        for _ in range(2):
            caller.run(context, arrays)
        assert len(recorder.graphs) == 2
        assert arrays[1].ctypes.data not in recorder.wrote


def test_the_least_recently_used_shape_is_dropped(model):
    caller = Caller(model)
    with opened(model) as (context, recorder):
        kept = {rows: caller.arrays(rows) for rows in range(1, 10)}
        for rows in (*kept, 9, 1):
            caller.run(context, kept[rows])
        assert [graph.replays for graph in recorder.graphs] == [1] * 11  # nine, one that came again, one anew


def test_steps_are_timed_and_give_the_right_values(model):
    caller = Caller(model)
    with opened(model) as (context, recorder):
        arrays = caller.arrays(3)
        context.execute = lambda stream: timed.extend(context.execute_profiled(stream))
        timed = []
        caller.run(context, arrays)
        assert [name for name, ms in timed if ms > 0] == ["layers.0/Gemm", "layers.1/Gemm"]
        assert recorder.graphs == []


@pytest.mark.parametrize("names", [("x", "y"), ("x", "z"), ("y", "z"), ()])
def test_values_are_right_where_an_output_lies_on_an_input_or_another_output(names):
    """``z`` is the input itself, which is lost once ``y`` was written there."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    source = OnnxModel.open(make_model(nodes, inputs={"x": [4]}, outputs={"y": [4], "z": [4]}))
    arrays = {name: np.zeros(4, np.float32) for name in "xyz"}
    if names:
        arrays[names[1]] = arrays[names[0]]
    with opened(source) as (context, recorder):
        for number in range(4):
            arrays["x"][:] = values = np.array([-1, 2, -3, number], np.float32)
            context.set_inputs({"x": (4,)}, {})
            for name, array in arrays.items():
                context.set_address(name, array.ctypes.data)
            context.execute(0)
            wanted = {"x": values, "y": np.maximum(values, 0), "z": values}
            for name in {"z"} if "z" in names else {"y", "z"}:
                np.testing.assert_array_equal(arrays[name], wanted[name])
        assert len(recorder.graphs) == (1 if names else 2)


def test_an_empty_batch_is_executed(model):
    with opened(model) as (context, _):
        for _ in range(3):
            x, y = np.zeros((0, WIDTHS[0]), np.float32), np.zeros((0, WIDTHS[-1]), np.float32)
            assert context.set_inputs({"input": x.shape}, {}) == {"output": y.shape}
            context.execute(0)  # without addresses


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=40))
@settings(max_examples=20, deadline=None)
def test_any_order_of_shapes_and_addresses_gives_the_right_values(order):
    model = OnnxModel.open(models.get("mlp", widths=WIDTHS))
    caller = Caller(model)
    with opened(model) as (context, recorder):
        kept = {(rows, which): caller.arrays(rows) for rows in range(1, 4) for which in range(4)}
        for key in order:
            caller.run(context, kept[key])
        assert len(recorder.graphs) <= 3 * (4 + 5)


def test_values_are_copied_in_the_models_types(model):
    """So that one compiled program serves both kinds of graphs."""

    def wide(*of):
        product = plain(*of)
        return lambda x: product(x.float()).double()

    caller = Caller(model)
    with opened(model, floating=torch.float64, linear=wide) as (context, _):
        caller.run(context, caller.arrays(3))
        (found,) = context._graphs.values()
        assert found.inputs
        assert {tensor.dtype for tensor in (*found.inputs, *found.outputs)} == {torch.float32}
