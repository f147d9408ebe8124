import numpy as np
import pytest

from trtsparse.errors import CudaError
from trtsparse.tune.gemm import DTYPES, Gemm
from trtsparse.tune.operands import Operands


@pytest.fixture
def stream(cuda):
    made = cuda.create_stream()
    yield made
    cuda.destroy_stream(made)


def operands(cuda, stream, gemm, l2_nbytes=1 << 16):
    return Operands(
        cuda, stream, gemm, l2_nbytes=l2_nbytes, y_nbytes=gemm.padded_m * gemm.n * gemm.output_type.nbytes
    )


@pytest.mark.parametrize(("m", "l2_nbytes"), [(64, 1 << 20), (64, 1 << 16), (512, 1 << 10)])
def test_the_sets_together_are_twice_as_large_as_the_cache(cuda, stream, m, l2_nbytes):
    data = operands(cuda, stream, Gemm(m, 64, 256), l2_nbytes)
    one = data.x.nbytes + data.w.nbytes // 2 + m * 64 * 2
    assert len(data.sets) >= 2
    assert len(data.sets) * one >= 2 * l2_nbytes
    assert len({address for one in data.sets for address in (one.x, one.w, one.y)}) == 3 * len(data.sets)
    data.close()


def test_every_set_holds_the_same_values_repeated_to_the_end(cuda, stream, monkeypatch):
    monkeypatch.setattr("trtsparse.tune.data._PERIOD", 4 * 101)
    data = operands(cuda, stream, Gemm(48, 64, 256, "fp16"))
    for one in data.sets:
        for address, matrix in ((one.x, data.x), (one.w, data.w)):
            host = np.empty((matrix.rows, matrix.columns), np.float16)
            cuda.copy_out(host.ctypes.data, address, host.nbytes, stream)
            cuda.synchronize(stream)
            np.testing.assert_array_equal(host.astype(np.float64), matrix.take(np.arange(matrix.rows)))
    data.close()


def test_what_is_added_is_in_every_set_too(cuda, stream):
    data = operands(cuda, stream, Gemm(42, 64, 256, "fp16", "", "add"))
    for one in data.sets:
        host = np.empty((48, 64), np.float16)
        cuda.copy_out(host.ctypes.data, one.c, host.nbytes, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(host.astype(np.float64), data.c.take(np.arange(48)))
    one = data.x.nbytes + data.w.nbytes // 2 + 2 * data.c.nbytes
    assert len(data.sets) * one >= 2 << 16
    data.close()


def test_poison_covers_the_whole_output(cuda, stream):
    gemm = Gemm(48, 64, 256, "fp16")
    data = operands(cuda, stream, gemm)
    data.poison(gemm.output_type)
    assert np.isnan(data.read(gemm.output_type, (48, 64))).all()
    data.close()


def test_a_bias_is_made_where_the_epilogue_adds_one(cuda, stream):
    data = operands(cuda, stream, Gemm(16, 64, 256, "int8", epilogue="bias"))
    assert data.bias.dtype == np.float32
    assert data.bias_as(DTYPES["fp32"])
    data.close()
    data = operands(cuda, stream, Gemm(16, 64, 256))
    assert (data.bias, data.bias_as(DTYPES["bf16"])) == (None, 0)
    data.close()


def test_scratch_memory_is_shared_by_name_and_grows(cuda, stream):
    data = operands(cuda, stream, Gemm(16, 64, 256))
    first = data.scratch("workspace", 100)
    assert data.scratch("workspace", 50) == first
    assert data.scratch("other", 100) != first
    assert data.scratch("workspace", 200) != first
    data.close()


def test_memory_that_is_short_leaves_nothing_behind(cuda, stream):
    cuda.free_limit = 5 << 20
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
        operands(cuda, stream, Gemm(1024, 1024, 1024))
    assert cuda.alive["allocations"] == 0


def test_values_of_every_type_are_stored_as_they_are(cuda, stream):
    for name, kind in DTYPES.items():
        if kind.outputs:
            data = operands(cuda, stream, Gemm(16, 64, 256, name))
            assert data.x.block.dtype == data.w.block.dtype == kind.numpy
            data.close()
