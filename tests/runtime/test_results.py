"""Arrays that an execution on the GPU cannot fill."""

import numpy as np
import pytest

from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.errors import ConfigError, DtypeError, ShapeError
from trtsparse.runtime.session import Session

X = np.ones((4, 8), np.float32)


@pytest.fixture
def session(cuda):
    with Session(KernelEngine(MemoryKernels(cuda), columns=8), cuda=cuda) as opened:
        yield opened


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        (np.zeros((4, 8)), DtypeError, "cannot fill an array\n{}\n  got: float64\n  expected: float32"),
        ([0.0], DtypeError, "cannot fill an array\n{}\n  got: list\n  expected: float32"),
        (np.zeros((4, 9), "f4"), ShapeError, "cannot fill an array\n{}\n  got: (4, 9)\n  expected: (4, 8)"),
        (np.broadcast_to(X[0], (4, 8)), ConfigError, "the array cannot be written to\n{}\n  got: ndarray"),
    ],
    ids=["type", "list", "shape", "read-only"],
)
def test_an_array_that_cannot_be_filled_is_refused(session, target, kind, text):
    with pytest.raises(kind) as error:
        session.run_into({"x": X}, {"y": target})
    assert str(error.value) == text.format("  where: output 'y'")
    np.testing.assert_array_equal(session.run({"x": X})["y"], 2 * X + 1)


def test_ordinary_host_memory_is_not_filled_on_the_callers_stream(cuda, session):
    stream = cuda.create_stream()
    with pytest.raises(ConfigError) as error:
        session.run_into({"x": X}, {"y": np.zeros_like(X)}, stream=stream)
    assert str(error.value) == (
        "an array in ordinary host memory is filled when the stream was synchronised\n"
        "  where: output 'y', stream=\n"
        "  to fix: leave stream out, or give an array of Session.host_array or a device array"
    )
    target = session.host_array(X.shape, X.dtype)
    session.run_into({"x": X}, {"y": target}, stream=stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target, 2 * X + 1)
    del target
    session.close()
    cuda.destroy_stream(stream)
