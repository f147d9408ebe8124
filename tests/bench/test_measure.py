"""From a file, bytes or an engine to a measurement."""

import numpy as np
import onnx
import pytest

from tests.doubles import samples
from tests.doubles.bindings import installed_bindings, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built, engine_on
from tests.doubles.kernels import KernelEngine, MemoryKernels
from tests.helpers import matmul, random
from trtsparse.bench.measure import BenchOptions, bench, measure
from trtsparse.errors import ConfigError, DeviceError, MissingDependencyError, ModelError, ShapeError

QUICK = BenchOptions(iterations=3, duration_s=0.005, warm_up_ms=1.0, energy=False)


@pytest.fixture
def model():
    pytest.importorskip("onnxruntime")
    proto = matmul(random(64, 32))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
def test_a_model_is_measured_on_the_cpu_with_random_inputs(model, kind, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    source = {"proto": model, "bytes": model.SerializeToString(), "path": tmp_path / "m.onnx"}[kind]
    found = bench(source, options=QUICK)
    assert (found.engine, found.place) == ("onnxruntime", "cpu")
    assert found.shapes == {"x": (1, 64)}
    assert found.random == ("x",)
    assert found.outputs["y"].shape == (1, 32)


def test_given_inputs_are_fed(model):
    x = random(5, 64)
    found = bench(model, feeds={"x": x}, options=QUICK)
    assert found.random == ()
    assert found.shapes == {"x": (5, 64)}
    np.testing.assert_allclose(found.outputs["y"], x @ random(64, 32), rtol=1e-4, atol=1e-5)


def test_shapes_of_random_inputs_can_be_given(model):
    assert bench(model, shapes={"x": (7, 64)}, options=QUICK).shapes == {"x": (7, 64)}


def test_inputs_left_out_have_sizes_that_fit_those_given():
    pytest.importorskip("onnxruntime")
    signature = "g (float[n, 4] a, float[n, 4] b) => (float[n, 4] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {signature} {{ y = Add(a, b) }}')
    found = bench(proto, feeds={"a": np.ones((6, 4), np.float32)}, options=QUICK)
    assert found.shapes == {"a": (6, 4), "b": (6, 4)}
    assert found.random == ("b",)


def test_wrong_shapes_and_inputs_are_refused(model):
    with pytest.raises(ConfigError, match="the model has no such input"):
        bench(model, shapes={"z": (7, 64)}, options=QUICK)
    with pytest.raises(ShapeError, match="an array has the wrong shape"):
        bench(model, feeds={"x": random(2, 65)}, options=QUICK)


def test_a_shape_for_an_input_that_is_given_otherwise_is_refused(model):
    with pytest.raises(ConfigError) as caught:
        bench(model, feeds={"x": random(2, 64)}, shapes={"x": [3, 64]}, options=QUICK)
    assert str(caught.value) == (
        "a shape is asked for an input that is given in another one\n"
        "  where: shapes, input 'x'\n"
        "  got: (3, 64)\n"
        "  expected: (2, 64)\n"
        "  to fix: leave the shape out, or the array"
    )
    assert bench(model, feeds={"x": random(2, 64)}, shapes={"x": [2, 64]}, options=QUICK).random == ()


def test_options_of_gpus_are_refused_for_a_model(model):
    with pytest.raises(ConfigError, match="an ONNX model is executed on the CPU"):
        bench(model, device=0, options=QUICK)


def test_something_else_is_refused():
    with pytest.raises(ModelError):
        bench(b"nothing of the kind", options=QUICK)


def test_a_plan_is_measured_on_the_gpu_by_whatever_binding_is_installed():
    memory = MemoryCuda(order="late")
    profile = {"x": ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))}
    with engine_on(memory, samples.tiny("N"), profile) as (engine, trt), \
         installed_bindings(runtime=make_runtime(memory), pycuda=None):  # fmt: skip
        engine.close()
        plan = built(trt, samples.tiny("N"), profile)
        found = bench(plan, options=QUICK)
        assert (found.engine, found.place, found.cuda) == ("tensorrt", "gpu", "cuda-python")
        assert found.shapes == {"x": (2, 8, 6, 6)}
        assert found.random == ("x",)
        assert bench(plan, shapes={"x": (3, 8, 6, 6)}, options=QUICK).shapes == {"x": (3, 8, 6, 6)}
    memory.check()
    assert set(memory.alive.values()) == {0}


def test_an_engine_stays_open_and_random_inputs_are_made_for_it():
    cuda = MemoryCuda(order="late")
    engine = KernelEngine(MemoryKernels(cuda))
    found = bench(engine, cuda=cuda, options=QUICK)
    assert found.random == ("x",)
    assert found.shapes == {"x": (4, 64)}
    assert not engine.closed
    assert bench(engine, cuda=cuda, shapes={"x": (9, 64)}, options=QUICK).shapes == {"x": (9, 64)}


def test_without_a_gpu_a_plan_says_what_is_missing():
    plan = b"ftrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([10, 13, 3, 9])
    with (
        installed_bindings(runtime=make_runtime(MemoryCuda(), gpus=0), pycuda=None),
        pytest.raises(DeviceError) as caught,
    ):
        bench(plan, options=QUICK)
    assert str(caught.value).startswith("a plan is executed by the library that built it, on an NVIDIA GPU")
    assert caught.value.exit_code == 3


def test_an_engine_on_a_gpu_needs_a_binding():
    engine = KernelEngine(MemoryKernels(MemoryCuda()))
    with installed_bindings(runtime=None, pycuda=None), pytest.raises(MissingDependencyError) as caught:
        measure(engine, {"x": np.ones((4, 64), np.float32)}, options=QUICK)
    assert caught.value.extra == "cuda"


def test_progress_reaches_the_end(model):
    shown = []
    options = BenchOptions(iterations=3, duration_s=0.3, warm_up_ms=10.0)
    bench(model, options=options, progress=lambda done, total: shown.append((done, total)))
    assert shown
    assert {total for _, total in shown} == {310}
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
