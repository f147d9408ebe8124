"""Inputs that no profile of a plan admits, or that are not where a plan reads them."""

import numpy as np
import pytest
from onnx import parser

from tests.doubles import installed
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built, engine_on
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import FeedError, ShapeError
from trtsparse.runtime.session import Session

HEADER = '<ir_version: 8, opset_import: ["": 17]> '


def test_shapes_that_only_different_profiles_admit_are_refused_together():
    model = parser.parse_model(HEADER + "g (float[n, m] x) => (float[n, m] y) { y = Add(x, x) }")
    tall, wide = {"x": ((4, 1), (8, 1), (16, 2))}, {"x": ((1, 4), (1, 8), (2, 16))}
    cuda = MemoryCuda()
    with engine_on(cuda, model, tall, wide) as (engine, _), Session(engine, cuda=cuda) as session:
        for shape in ((16, 2), (2, 16)):
            assert session.run({"x": np.ones(shape, np.float32)})["y"].shape == shape
        with pytest.raises(ShapeError) as error:
            session.run({"x": np.ones((16, 16), np.float32)})
    assert str(error.value) == (
        "no profile of the plan admits these shapes together\n"
        "  got: 'x' (16, 16)\n"
        "  expected: 'x' (4, 1) to (16, 2) or 'x' (1, 4) to (2, 16)\n"
        "  to fix: build the plan with a profile that covers them"
    )
    cuda.check()


def test_the_values_of_a_shape_input_cannot_be_on_the_gpu(monkeypatch):
    model = parser.parse_model(HEADER + "g (float[4, 4] x, int64[2] to) => (float[m, k] y) { y = Reshape(x, to) }")
    cuda = MemoryCuda()
    with installed("10.13.3") as trt:
        trt.submit = cuda.submit
        place = trt.TensorLocation
        monkeypatch.setattr(trt.ICudaEngine, "is_shape_inference_io", lambda _self, name: name == "to")
        monkeypatch.setattr(
            trt.ICudaEngine, "get_tensor_location", lambda _self, name: place.HOST if name == "to" else place.DEVICE
        )
        engine = TensorRTEngine(built(trt, model))
        with Session(engine, cuda=cuda) as session:
            x = np.ones((4, 4), np.float32)
            on_gpu = session.run({"x": x, "to": np.array([2, 8])}, to="device")["y"]
            assert on_gpu.shape == (2, 8)
            pointer = {"data": (on_gpu.address, False), "shape": (2,), "typestr": "<i8", "version": 3}
            values = type("Values", (), {"__cuda_array_interface__": pointer})()
            with pytest.raises(FeedError) as error:
                session.run({"x": x, "to": values})
            del on_gpu
    assert str(error.value) == (
        "the values of a shape input are read on the host\n"
        "  where: 'to'\n"
        "  got: an array on GPU 0\n"
        "  expected: a numpy array"
    )
    cuda.check()
