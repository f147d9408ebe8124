"""The adapter over the strict doubles of all TensorRT versions."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from tests.doubles import VERSIONS, installed, samples
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built, engine_on
from trtsparse.engines.device import DeviceEngine
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import (
    ConfigError,
    DeviceError,
    EngineError,
    MissingDependencyError,
    PlanError,
    UnsupportedOptionError,
)
from trtsparse.precision.specs import TensorSpec
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

DOUBLE = parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, x) }'
)
RANGE = {"x": ((1, 4), (4, 4), (16, 4))}
NOT_STREAMABLE = """\
the plan was built without weight streaming
  where: weights_nbytes
  got: bytes
  to fix: build it with the flag WEIGHT_STREAMING"""
NO_STREAMING = """\
weights cannot be streamed in this version
  where: weights_nbytes
  got: bytes in TensorRT 8.6.1 on GPU 0
  expected: TensorRT 10.0 or later, TensorRT-RTX"""
ORDERS = ("eager", "late", "shuffled")


def nonzero():
    """Coordinates of the elements that are not zero: two outputs, one whose size only the data decides."""
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Neg", ["x"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [
        helper.make_tensor_value_info("at", TensorProto.INT64, [2, None]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_knows_its_inputs_outputs_and_profiles(version):
    profiles = (RANGE, {"x": ((1, 4), (32, 4), (64, 4))})
    with engine_on(MemoryCuda(), DOUBLE, *profiles, version=version) as (engine, trt):
        assert isinstance(engine, DeviceEngine)
        assert engine.name == trt.__name__
        assert engine.inputs == (TensorSpec("x", np.dtype("float32"), ("?", 4)),)
        assert engine.outputs == (TensorSpec("y", np.dtype("float32"), ("?", 4)),)
        assert engine.profiles == profiles
        assert engine.shape_inputs == frozenset()
        assert engine.exclusive_profiles == (version == "8.6.1")
        assert engine.scratch_nbytes(0) == 1 << 20
        assert engine.description.startswith(f"bytes in {'TensorRT-RTX' if 'rtx' in version else 'TensorRT'} ")
        engine.close()
        engine.close()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_runs_a_plan_of_every_version(version, order):
    cuda = MemoryCuda(order=order)
    with engine_on(cuda, samples.tiny("N"), {"x": ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))}, version=version) as (
        engine, _,
    ):  # fmt: skip
        expected = reference(samples.tiny("N"))
        with Session(engine, cuda=cuda, options=SessionOptions(contexts=3)) as session:
            inputs = [np.random.default_rng(i).standard_normal((1 + i % 4, 8, 6, 6)).astype("f") for i in range(10)]
            requests = [session.submit({"x": x}) for x in inputs]
            for x, request in zip(inputs, requests, strict=True):
                np.testing.assert_allclose(request.result()["y"], expected(x), rtol=1e-5)
            for x in inputs * 2:
                on_device = session.run({"x": x}, to="device")["y"]
                np.testing.assert_allclose(on_device.numpy(), expected(x), rtol=1e-5)
                del on_device
    cuda.check()
    assert set(cuda.alive.values()) == {0}


def reference(model):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "11.4.0", "rtx-1.7.1"])
def test_an_output_whose_size_the_data_decides_is_allocated_when_it_is_known(version, order):
    cuda = MemoryCuda(order=order)
    with engine_on(cuda, nonzero(), RANGE, version=version) as (engine, trt):
        with Session(engine, cuda=cuda) as session:
            for n in (1, 4, 2, 16):
                x = np.random.default_rng(n).integers(-1, 2, (n, 4)).astype(np.float32)
                found = session.run({"x": x})
                np.testing.assert_array_equal(found["at"], np.nonzero(x))
                np.testing.assert_array_equal(found["y"], -x)
                on_device = session.run({"x": x}, to="device", outputs=["at"])
                np.testing.assert_array_equal(on_device["at"].numpy(), np.nonzero(x))
                request = session.submit({"x": x})
                np.testing.assert_array_equal(request.result()["at"], np.nonzero(x))
                del on_device
        named = [call for call in trt.calls if call.method.endswith("set_output_allocator")]
        assert {call.args[0] for call in named} == {"at"}
    cuda.check()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scratch", ["pool", "shared"])
def test_scratch_memory_is_ours_where_asked(version, scratch):
    cuda = MemoryCuda(order="shuffled")
    with engine_on(cuda, DOUBLE, RANGE, version=version) as (engine, trt):
        options = SessionOptions(scratch=scratch, contexts=1 if version == "8.6.1" else 3)
        with Session(engine, cuda=cuda, options=options) as session:
            inputs = [np.full((1 + i % 5, 4), i, np.float32) for i in range(9)]
            requests = [session.submit({"x": x}) for x in inputs]
            for x, request in zip(inputs, requests, strict=True):
                np.testing.assert_array_equal(request.result()["y"], 2 * x)
            assert session.memory["device"].held_nbytes >= (1 << 20) * (
                1 if scratch == "shared" else session.contexts
            )
        given = [call for call in trt.calls if "device_memory" in call.method and "size" not in call.method]
        assert len(given) >= (1 if version == "8.6.1" else 3)
    cuda.check()


def test_a_profile_of_its_own_for_each_context_where_the_version_wants_it():
    cuda = MemoryCuda(order="late")
    profiles = (RANGE, RANGE, RANGE)
    with engine_on(cuda, DOUBLE, *profiles, version="8.6.1") as (engine, trt):
        with Session(engine, cuda=cuda, options=SessionOptions(contexts=8)) as session:
            requests = [session.submit({"x": np.full((2, 4), i, np.float32)}) for i in range(9)]
            assert [request.result()["y"][0, 0] for request in requests] == [2 * i for i in range(9)]
            assert session.contexts == 3
        chosen = [call.args[0] for call in trt.calls if call.method.endswith("set_optimization_profile_async")]
        assert sorted(chosen) == [0, 1, 2]
    cuda.check()


def test_weights_are_streamed_within_a_budget():
    cuda = MemoryCuda()
    with (
        engine_on(cuda, DOUBLE, RANGE, version="10.13.3", flags=("WEIGHT_STREAMING",)) as (engine, _),
        Session(engine, cuda=cuda, options=SessionOptions(weights_nbytes=1234)) as session,
    ):
        assert engine.raw.weight_streaming_budget_v2 == 1234
        session.run({"x": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("10.13.3", NOT_STREAMABLE),
        ("8.6.1", NO_STREAMING),
    ],
)
def test_weights_that_cannot_be_streamed_are_told(version, text):
    cuda = MemoryCuda()
    with engine_on(cuda, DOUBLE, RANGE, version=version) as (engine, _):
        with pytest.raises(UnsupportedOptionError) as caught:
            Session(engine, cuda=cuda, options=SessionOptions(weights_nbytes=1))
        assert str(caught.value) == text
    assert set(cuda.alive.values()) == {0}


def test_shape_inputs_are_read_from_host_memory_that_lives_until_the_execution(monkeypatch):
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x, int64[2] to) => (float[m, k] y)'
        "{ y = Reshape(x, to) }"
    )
    cuda = MemoryCuda()
    ranges = {"x": ((1, 4), (4, 4), (8, 4)), "to": ((2,), (2,), (2,))}
    with installed("10.13.3") as trt:
        trt.submit = cuda.submit
        plan = built(trt, parser.parse_model(text), ranges)
        monkeypatch.setattr(trt.ICudaEngine, "is_shape_inference_io", lambda _self, name: name == "to")
        where = trt.TensorLocation
        monkeypatch.setattr(
            trt.ICudaEngine, "get_tensor_location", lambda _self, name: where.HOST if name == "to" else where.DEVICE
        )
        engine = TensorRTEngine(plan)
        assert engine.shape_inputs == {"to"}
        with Session(engine, cuda=cuda) as session:
            x = np.arange(16, dtype=np.float32).reshape(4, 4)
            with pytest.raises(ConfigError) as caught:  # the double leaves this output's size to the data
                session.run_into({"x": x, "to": np.array([2, 8])}, {"y": x})
            assert str(caught.value) == (
                "an output's shape is known only after the execution\n  where: output 'y'\n  to fix: use run"
            )
            for shape in ((2, 8), (8, 2), (16, 1), (2, 8), (2, 8), (8, 2)):
                found = session.run({"x": x, "to": np.array(shape)})["y"]
                np.testing.assert_array_equal(found, x.reshape(shape))
        bound = [c for c in trt.calls if c.method.endswith("set_tensor_address") and c.args[0] == "to"]
        assert bound
    cuda.check()


def test_a_refused_execution_says_why_and_costs_one_context():
    cuda = MemoryCuda()
    with (
        engine_on(cuda, DOUBLE, RANGE, version="10.13.3") as (engine, trt),
        Session(engine, cuda=cuda, options=SessionOptions(contexts=1)) as session,
    ):
        x = np.ones((2, 4), np.float32)
        session.run({"x": x})

        def lost(_stream, _work):
            raise RuntimeError("the device is lost")

        trt.submit = lost
        with pytest.raises(EngineError) as caught:
            session.run({"x": x})
        assert str(caught.value) == (
            "TensorRT refused to execute\n"
            "  where: bytes in TensorRT 10.13.3.9 on GPU 0\n"
            "  got: IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, "
            "condition: execution succeeded. RuntimeError: the device is lost)"
        )
        trt.submit = cuda.submit
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        assert session.contexts_replaced == 1

    cuda.check()


def test_a_context_that_is_not_made_is_told(monkeypatch):
    cuda = MemoryCuda()
    with engine_on(cuda, DOUBLE, RANGE, version="10.13.3") as (engine, trt):
        monkeypatch.setattr(trt.ICudaEngine, "create_execution_context", lambda _self: None)
        with Session(engine, cuda=cuda) as session:
            with pytest.raises(EngineError) as caught:
                session.run({"x": np.ones((2, 4), np.float32)})
            assert str(caught.value) == (
                "TensorRT made no execution context\n"
                "  where: bytes\n"
                "  got: 1,048,576 bytes of intermediate results are needed\n"
                "  to fix: free memory of the GPU, use fewer contexts, or scratch='shared'"
            )
    assert set(cuda.alive.values()) == {0}


@pytest.mark.parametrize(
    ("built_with", "loaded_with", "first", "names"),
    [
        ("10.3.0", "10.13.3", "the plan was built by another version of TensorRT", ("10.3.0.26", "10.13.3.9")),
        ("8.6.1", "11.4.0", "the plan was built by another version of TensorRT", ("8.6.1.6", "11.4.0.106")),
        ("11.4.0", "10.0.1", "the plan was built by another version of TensorRT", ("11.4.0.106", "10.0.1")),
    ],
)
def test_a_plan_of_another_version_names_both(built_with, loaded_with, first, names):
    with installed(built_with) as trt:
        plan = built(trt, DOUBLE, RANGE)
    with installed(loaded_with), pytest.raises(PlanError) as caught:
        TensorRTEngine(plan)
    assert str(caught.value).startswith(first)
    assert all(name in str(caught.value) for name in names)


def test_a_plan_of_the_other_flavour_needs_that_library():
    with installed("11.4.0") as trt:
        plan = built(trt, DOUBLE, RANGE)
    with installed("rtx-1.7.1"), pytest.raises(MissingDependencyError, match="TensorRT cannot be imported"):
        TensorRTEngine(plan)


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "rtx-1.7.1"])
def test_a_damaged_plan_is_told_from_a_machine_without_a_gpu(version, gpus, monkeypatch, tmp_path):
    monkeypatch.setattr("trtsparse.engines.tensorrt.count_gpus", lambda: gpus)
    with installed(version) as trt:
        plan = bytearray(built(trt, DOUBLE, RANGE))
        plan[-5] ^= 255
        path = tmp_path / "m.plan"
        path.write_bytes(plan)
        with pytest.raises(PlanError if gpus else DeviceError) as caught:
            TensorRTEngine(path)
    what = "the plan is damaged" if gpus else "a plan is executed by the library that built it, on an NVIDIA GPU"
    assert caught.value.what == what
    assert caught.value.where == str(path)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_types_go_through(dtype):
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    cuda = MemoryCuda(order="late")
    with (
        engine_on(cuda, samples.tiny(dtype=dtype), version="11.4.0") as (engine, _),
        Session(engine, cuda=cuda) as session,
    ):
        found = session.run({"x": np.ones((2, 8, 6, 6), kind)})["y"]
        assert found.dtype == kind
        assert np.abs(found.astype(np.float32)).max() > 0

    cuda.check()


def test_a_session_opens_a_plan_by_itself(tmp_path):
    cuda = MemoryCuda()
    with installed("10.13.3") as trt:
        trt.submit = cuda.submit
        path = tmp_path / "model.anything"
        path.write_bytes(built(trt, DOUBLE, RANGE))
        with Session(path, cuda=cuda) as session:
            assert repr(session) == f"<Session of {path} in TensorRT 10.13.3.9 on GPU 0>"
            np.testing.assert_array_equal(session.run({"x": np.ones((1, 4), np.float32)})["y"], np.full((1, 4), 2))
    cuda.check()


def test_an_engine_on_another_gpu_is_refused():
    cuda = MemoryCuda(device=1)
    with engine_on(MemoryCuda(device=0), DOUBLE, RANGE) as (engine, _):
        with pytest.raises(DeviceError) as caught:
            Session(engine, cuda=cuda, device=1)
        assert str(caught.value) == (
            "the engine is loaded on another GPU\n"
            "  where: device\n"
            "  got: GPU 0\n"
            "  expected: GPU 1\n"
            "  to fix: open the session with device=0, or load the plan on GPU 1"
        )


def test_outputs_and_layouts_that_arrays_cannot_hold_are_refused(monkeypatch):
    with installed("10.13.3") as trt:
        plan = built(trt, DOUBLE, RANGE)
        with monkeypatch.context() as patch:
            patch.setattr(trt.ICudaEngine, "get_tensor_location", lambda _self, _name: trt.TensorLocation.HOST)
            with pytest.raises(EngineError) as caught:
                TensorRTEngine(plan)
        assert str(caught.value) == (
            "an output is a shape in host memory\n"
            "  where: output 'y', bytes in TensorRT 10.13.3.9 on GPU 0\n"
            "  to fix: leave it out of the model's outputs, or cast it to a float before"
        )
        monkeypatch.setattr(trt.ICudaEngine, "get_tensor_format", lambda _self, _name: trt.TensorFormat.CHW32)
        with pytest.raises(EngineError) as caught:
            TensorRTEngine(plan)
        assert str(caught.value) == (
            "an input or output is not laid out as an array\n"
            "  where: 'x', bytes in TensorRT 10.13.3.9 on GPU 0\n"
            "  got: Row major linear FLOAT format (kLINEAR)\n"
            "  expected: row major, linear\n"
            "  to fix: build the plan without other formats for its inputs and outputs"
        )


def bound(engine, x):
    """A context with host arrays in place of device memory, as the double computes there."""
    y = np.zeros((2, 12), np.float32)
    context = engine.create_context(profile=0, stream=7, own_scratch=True)
    context.set_inputs({"x": x.shape}, {})
    context.set_address("x", x.ctypes.data)
    context.set_address("y", y.ctypes.data)
    return context, y


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_tells_the_times_of_its_layers(version):
    with engine_on(MemoryCuda(), samples.tiny(), version=version) as (engine, trt):
        trt.submit = lambda _stream, work: work()
        x = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
        context, y = bound(engine, x)
        first, second = context.execute_profiled(7), context.execute_profiled(7)
        assert first == second
        assert len(first) == engine.raw.num_layers
        assert first[0] == ("conv + relu", 0.01)
        assert y.any()
        context.close()
        engine.close()


def test_layers_are_timed_only_when_asked_for():
    with engine_on(MemoryCuda(), samples.tiny()) as (engine, trt):
        trt.submit = lambda _stream, work: work()
        context, _ = bound(engine, np.zeros((2, 8, 6, 6), np.float32))
        context.execute(7)
        assert not [call for call in trt.calls if "profile" in call.method]
        context.close()
        engine.close()


@pytest.mark.parametrize("silent", [False, True])
def test_times_that_do_not_come_are_told(silent, monkeypatch):
    with engine_on(MemoryCuda(), samples.tiny()) as (engine, trt):
        trt.submit = lambda _stream, work: work()
        context, _ = bound(engine, np.zeros((2, 8, 6, 6), np.float32))
        monkeypatch.setattr(trt.IExecutionContext, "report_to_profiler", lambda _self: silent)
        with pytest.raises(EngineError) as caught:
            context.execute_profiled(7)
        assert str(caught.value) == (
            "TensorRT did not tell the times of the layers\n"
            f"  where: profiler, {engine.description}\n"
            "  got: no reason given"
        )
        context.close()
        engine.close()


def test_a_version_that_cannot_time_layers_is_told(monkeypatch):
    with engine_on(MemoryCuda(), samples.tiny()) as (engine, trt):
        trt.submit = lambda _stream, work: work()
        context, _ = bound(engine, np.zeros((2, 8, 6, 6), np.float32))
        monkeypatch.delattr(trt.IExecutionContext, "report_to_profiler")
        with pytest.raises(UnsupportedOptionError) as caught:
            context.execute_profiled(7)
        assert str(caught.value) == (
            f"this version cannot time layers\n  where: profile_layers\n  got: {engine.description}"
        )
        context.close()
        engine.close()
