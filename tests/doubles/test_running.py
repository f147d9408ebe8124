"""Engines execute through ONNX Runtime on host memory, and refuse what the real ones refuse."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.doubles import VERSIONS, make, samples

GOOD = ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))


def engine_of(version, model, *shapes, **settings):
    trt = make(version)
    plan = samples.plan(trt, model, *shapes, **settings)
    logger = samples.recorder(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    assert engine is not None, logger.lines
    return trt, logger, engine


def expected(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_small_network_gives_the_values_of_onnx_runtime(version):
    model = samples.tiny("N")
    trt, logger, engine = engine_of(version, model, *GOOD)
    context = engine.create_execution_context()
    x = np.random.default_rng(3).standard_normal((3, 8, 6, 6)).astype(np.float32)
    assert context.set_input_shape("x", x.shape)
    assert tuple(context.get_tensor_shape("y")) == (3, 12)
    y = np.zeros((3, 12), np.float32)
    assert context.set_tensor_address("x", x.ctypes.data)
    assert context.set_tensor_address("y", y.ctypes.data)
    assert context.infer_shapes() == []
    assert context.execute_async_v3(7) is True, logger.lines
    np.testing.assert_allclose(y, expected(model, x), rtol=1e-6)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert [(n, engine.get_tensor_mode(n).name, engine.get_tensor_dtype(n).name) for n in names] == [
        ("x", "INPUT", "FLOAT"), ("y", "OUTPUT", "FLOAT"),
    ]  # fmt: skip
    assert [tuple(s) for s in engine.get_tensor_profile_shape("x", 0)] == list(GOOD)
    assert tuple(engine.get_tensor_shape("x")) == (-1, 8, 6, 6)
    assert [call.args for call in trt.calls if call.method.endswith(".execute_async_v3")] == [(7,)]


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_half_types_execute(dtype):
    model = samples.tiny(dtype=dtype)
    _, logger, engine = engine_of("11.4.0", model)
    context = engine.create_execution_context()
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    x, y = np.ones((2, 8, 6, 6), kind), np.zeros((2, 12), kind)
    context.set_tensor_address("x", x.ctypes.data)
    context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(0), logger.lines
    assert np.abs(y.astype(np.float32)).max() > 0


@pytest.mark.parametrize("version", ["8.6.1", "10.9.0", "11.0.0", "rtx-1.7.1"])
def test_shapes_outside_of_the_profile_are_refused(version):
    _, logger, engine = engine_of(version, samples.tiny("N"), *GOOD)
    context = engine.create_execution_context()
    assert context.infer_shapes() == ["x"]
    assert not context.all_binding_shapes_specified
    for shape, text in (
        (
            (5, 8, 6, 6),
            "Set dimension [5,8,6,6] for tensor x does not satisfy any optimization profiles. Valid range",
        ),
        ((2, 4, 6, 6), "Static dimension mismatch while setting input shape for x. Set dimensions are [2,4,6,6]"),
        ((2, 8, 6), "Set dimensions of x are [2,8,6]. Expected dimensions are [-1,8,6,6]."),
    ):
        assert context.set_input_shape("x", shape) is False
        assert text in logger.errors()[-1]
    assert context.set_input_shape("z", (1, 8, 6, 6)) is False
    assert "Given invalid input tensor name: z" in logger.errors()[-1]
    assert tuple(context.get_tensor_shape("x")) == (-1, 8, 6, 6)
    assert context.execute_async_v3(0) is False
    assert "Input shapes are not set for: x" in logger.errors()[-1]


def test_a_missing_address_is_refused():
    _, logger, engine = engine_of("10.13.3", samples.tiny())
    context = engine.create_execution_context()
    assert context.execute_async_v3(0) is False
    assert "Address is not set for input tensor x." in logger.errors()[-1]
    x = np.zeros((2, 8, 6, 6), np.float32)
    context.set_tensor_address("x", x.ctypes.data)
    assert context.execute_async_v3(0) is False
    assert "Neither address or allocator is set for output tensor y." in logger.errors()[-1]
    assert context.set_tensor_address("z", x.ctypes.data) is False


def test_a_hook_may_execute_later_with_the_addresses_of_the_call():
    trt, _, engine = engine_of("10.16.1", samples.tiny())
    queue = []
    trt.submit = lambda stream, work: queue.append((stream, work))
    context = engine.create_execution_context()
    x, y, other = np.zeros((2, 8, 6, 6), np.float32), np.zeros((2, 12), np.float32), np.zeros((2, 12), np.float32)
    context.set_tensor_address("x", x.ctypes.data)
    context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(11) is True
    context.set_tensor_address("y", other.ctypes.data)
    assert not y.any()
    x[:] = 1  # what lies at the address when the stream gets there
    ((stream, work),) = queue
    work()
    assert stream == 11
    np.testing.assert_allclose(y, expected(samples.tiny(), x), rtol=1e-6)
    assert not other.any()


@pytest.mark.parametrize(
    ("version", "method"), [("8.6.1", "reallocate_output"), ("11.0.0", "reallocate_output_async")]
)
def test_outputs_may_be_allocated_by_the_user(version, method):
    trt, logger, engine = engine_of(version, samples.tiny())
    y = np.zeros((2, 12), np.float32)
    heard = []

    class Allocator(trt.IOutputAllocator):
        def __init__(self):
            trt.IOutputAllocator.__init__(self)

        def notify_shape(self, tensor_name, shape):
            heard.append((tensor_name, tuple(shape)))

    def give(_self, _tensor_name, _memory, size, _alignment, *_stream):
        heard.append(size)
        return y.ctypes.data

    setattr(Allocator, method, give)
    context = engine.create_execution_context()
    x = np.ones((2, 8, 6, 6), np.float32)
    context.set_tensor_address("x", x.ctypes.data)
    assert context.set_output_allocator("y", Allocator())
    assert context.execute_async_v3(0), logger.lines
    assert heard == [y.nbytes, ("y", (2, 12))]
    np.testing.assert_allclose(y, expected(samples.tiny(), x), rtol=1e-6)


def test_profiles_are_switched_and_forget_the_shapes():
    trt = make("11.4.0")
    build = samples.Build(trt)
    build.parse(samples.tiny("N"))
    for top in (2, 8):
        build.config.add_optimization_profile(build.profile((1, 8, 6, 6), (2, 8, 6, 6), (top, 8, 6, 6)))
    engine = trt.Runtime(build.logger).deserialize_cuda_engine(build.run())
    assert engine.num_optimization_profiles == 2
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (8, 8, 6, 6)) is False
    assert context.set_optimization_profile_async(2, 0) is False
    assert context.set_optimization_profile_async(1, 0) is True
    assert context.active_optimization_profile == 1
    assert context.set_input_shape("x", (8, 8, 6, 6)) is True
    assert context.get_max_output_size("y") == 8 * 12 * 4
    assert context.set_optimization_profile_async(0, 0) is True
    assert context.infer_shapes() == ["x"]


def test_a_context_without_memory_needs_some():
    trt, logger, engine = engine_of("11.4.0", samples.tiny())
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    x, y = np.zeros((2, 8, 6, 6), np.float32), np.zeros((2, 12), np.float32)
    context.set_tensor_address("x", x.ctypes.data)
    context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(0) is False
    assert "Device memory is not set" in logger.errors()[-1]
    context.set_device_memory(4096, engine.device_memory_size_v2)
    assert context.execute_async_v3(0) is True


@pytest.mark.parametrize(
    ("built", "loaded", "text"),
    [
        ("10.3.0", "10.13.3", "expecting library version 10.13.3.9 got 10.3.0.26, please rebuild."),
        ("8.6.1", "11.4.0", "expecting library version 11.4.0.106 got 8.6.1.6, please rebuild."),
        ("11.4.0", "rtx-1.7.1", "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
        ("rtx-1.7.1", "10.0.1", "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
    ],
)
def test_plans_of_another_version_or_flavour_are_refused(built, loaded, text):
    plan = bytes(samples.plan(make(built), samples.tiny()))
    trt = make(loaded)
    logger = samples.recorder(trt)
    assert trt.Runtime(logger).deserialize_cuda_engine(plan) is None
    assert text in logger.errors()[-1]


@pytest.mark.parametrize("version", ["8.6.1", "10.9.0", "11.4.0", "rtx-1.7.1"])
def test_truncated_and_damaged_plans_are_refused(version):
    trt = make(version)
    logger = samples.recorder(trt)
    runtime = trt.Runtime(logger)
    plan = bytes(samples.plan(trt, samples.tiny()))
    damaged = plan[:-9] + bytes([plan[-9] ^ 255]) + plan[-8:]
    for wrong, text in (
        (b"", "empty memory buffer"),
        (plan[:30], "bufferSize >= minBufferSize"),
        (plan[:-1], "plan.header.size == blobSize failed"),
        (damaged, "payload intact failed"),
    ):
        assert runtime.deserialize_cuda_engine(wrong) is None
        assert text in logger.errors()[-1]
    engine = runtime.deserialize_cuda_engine(plan)
    assert bytes(engine.serialize()) == plan


def test_a_failing_execution_returns_false_and_says_why():
    trt, logger, engine = engine_of("10.13.3", samples.tiny())

    def refuse(_stream, _work):
        raise RuntimeError("the device is lost")

    trt.submit = refuse
    context = engine.create_execution_context()
    x, y = np.zeros((2, 8, 6, 6), np.float32), np.zeros((2, 12), np.float32)
    context.set_tensor_address("x", x.ctypes.data)
    context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(0) is False
    assert "RuntimeError: the device is lost" in logger.errors()[-1]


def test_a_profiler_hears_every_layer():
    trt, _, engine = engine_of("10.9.0", samples.tiny())

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.layers = []

        def report_layer_time(self, layer_name, _ms):
            self.layers.append(layer_name)

    context = engine.create_execution_context()
    context.profiler = profiler = Profiler()
    x, y = np.zeros((2, 8, 6, 6), np.float32), np.zeros((2, 12), np.float32)
    assert context.execute_v2([x.ctypes.data, y.ctypes.data])
    assert context.execute_async_v3(0)
    assert profiler.layers[0] == "conv + relu"
