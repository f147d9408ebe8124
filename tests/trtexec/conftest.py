"""Models and places for whole command lines."""

import onnx
import pytest

from tests.doubles import installed
from tests.doubles.cuda import MemoryCuda
from tests.helpers import matmul, random, sparse
from trtsparse.cuda.driver import count_gpus


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(sparse(64, 128, axis=0)), path)
    return path


@pytest.fixture
def dynamic(tmp_path):
    path = tmp_path / "d.onnx"
    onnx.save(matmul(random(8, 4), rows="n"), path)
    return path


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def without_gpu():
    if count_gpus():
        pytest.skip("there is a GPU")


@pytest.fixture
def cuda():
    provider = MemoryCuda()
    with installed("10.13.3") as trt:
        trt.submit = provider.submit
        provider.trt = trt
        yield provider
