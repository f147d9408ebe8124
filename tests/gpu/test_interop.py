"""Arrays and streams of other libraries on a real GPU."""

import gc

import ml_dtypes
import numpy as np
import pytest

from tests.doubles.kernels import KernelEngine
from trtsparse.errors import ConfigError
from trtsparse.runtime.session import Session

pytestmark = pytest.mark.gpu


def right(x):
    return 2 * x + 1


def make(library, n=4):
    values = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
    module = pytest.importorskip(library)
    return (module, module.tensor(values, device="cuda:0") if library == "torch" else module.asarray(values)), values


def to_numpy(array):
    return array.cpu().numpy() if hasattr(array, "cpu") else array.get()


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_smoke_arrays_go_in_and_out_in_place(gpu, library):
    (module, x), values = make(library)
    with gpu.session(gpu.engine(cycles=gpu.slow)) as session:
        counted = Counted(gpu.cuda)
        with Session(gpu.engine(), cuda=counted) as watched:
            for _ in range(4):
                y = module.from_dlpack(watched.run({"x": x}, to="device")["y"])
                np.testing.assert_array_equal(to_numpy(y), right(values))
        assert counted.copies == []
        found = session.run({"x": x}, to="device")["y"]
        y = module.from_dlpack(found)
        np.testing.assert_array_equal(to_numpy(y), right(values))
        pointer = y.data_ptr() if library == "torch" else y.data.ptr
        assert pointer == found.address
        del y, found
    gc.collect()


class Counted:
    """A provider that notes copies."""

    def __init__(self, cuda):
        self._cuda = cuda
        self.copies = []

    def __getattr__(self, name):
        return getattr(self._cuda, name)

    name = property(lambda self: self._cuda.name)
    device = property(lambda self: self._cuda.device)
    graphs = property(lambda self: self._cuda.graphs)

    def copy_in(self, *args):
        self.copies.append(("in", args))
        self._cuda.copy_in(*args)

    def copy_out(self, *args):
        self.copies.append(("out", args))
        self._cuda.copy_out(*args)

    def copy_across(self, *args):
        self.copies.append(("across", args))
        self._cuda.copy_across(*args)


def test_torch_tensors_are_filled_in_place(gpu):
    torch = pytest.importorskip("torch")
    with gpu.session(gpu.engine(cycles=gpu.slow)) as session:
        x, y = torch.randn(4, 64, device="cuda"), torch.empty(4, 64, device="cuda")
        for _ in range(4):
            x.normal_()
            session.run_into({"x": x}, {"y": y})
            torch.testing.assert_close(y, right(x), rtol=0, atol=0)


def test_the_producers_stream_is_waited_for(gpu):
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    with gpu.session() as session:
        x = torch.zeros(64, 64, device="cuda")
        for value in range(1, 6):
            with torch.cuda.stream(side):
                torch.cuda._sleep(20_000_000)  # about ten milliseconds before the tensor is written
                x.fill_(value)
                if gpu.cuda.name == "pycuda" or value % 2:
                    found = session.run({"x": x})["y"]
                else:
                    found = session.submit({"x": x}).result()["y"]
            assert (found == 2 * value + 1).all()


def test_the_consumers_stream_waits_for_an_array_still_being_written(gpu):
    torch = pytest.importorskip("torch")
    if gpu.cuda.name == "pycuda":
        pytest.skip("PyCUDA takes its own streams only")
    ours, theirs = torch.cuda.Stream(), torch.cuda.Stream()
    with gpu.session(gpu.engine(cycles=20 * gpu.slow)) as session:
        x = torch.full((4, 64), 3.0, device="cuda")
        torch.cuda.synchronize()
        pending = session.run({"x": x}, stream=ours)["y"]
        with torch.cuda.stream(theirs):
            y = torch.from_dlpack(pending) + 0
        theirs.synchronize()
        assert (y == 7).all()
        del pending, y
    gc.collect()


def test_everything_on_the_callers_torch_stream(gpu):
    torch = pytest.importorskip("torch")
    if gpu.cuda.name == "pycuda":
        with gpu.session() as session, pytest.raises(ConfigError) as caught:
            session.run({"x": torch.zeros(4, 64, device="cuda")}, stream=torch.cuda.Stream())
        assert str(caught.value) == (
            "PyCUDA works with its own streams only\n"
            "  where: stream\n"
            "  got: Stream\n"
            "  expected: a pycuda.driver.Stream\n"
            "  to fix: use cuda='cuda-python' with streams of other libraries"
        )
        return
    stream = torch.cuda.Stream()
    with gpu.session(gpu.engine(cycles=gpu.slow)) as session, torch.cuda.stream(stream):
        x, y = torch.randn(8, 64, device="cuda"), torch.empty(8, 64, device="cuda")
        for _ in range(5):
            x.normal_()
            expected = right(x)
            session.run_into({"x": x}, {"y": y}, stream=stream)
            z = y * 1
            torch.testing.assert_close(z, expected, rtol=0, atol=0)
        stream.synchronize()


def test_tensors_that_do_not_fit_are_copied_or_refused(gpu):
    torch = pytest.importorskip("torch")
    base = torch.randn(9, 128, device="cuda")
    odd = base.flatten()[1 : 1 + 4 * 64].reshape(4, 64)
    strided = base[:4, ::2]
    with gpu.session() as session:
        for x in (odd, strided):
            for _ in range(3):
                np.testing.assert_array_equal(session.run({"x": x})["y"], right(x).cpu().numpy())
        y = torch.zeros(5, 64, device="cuda").flatten()[1 : 1 + 256].reshape(4, 64)
        session.run_into({"x": odd}, {"y": y})
        torch.testing.assert_close(y, right(odd), rtol=0, atol=0)
    with gpu.session(unfit="refuse") as session:
        with pytest.raises(ConfigError, match="an array cannot be used in place") as caught:
            session.run({"x": strided})
        assert caught.value.got == "an array that is not contiguous"
        with pytest.raises(ConfigError, match="an array cannot be filled in place"):
            session.run_into({"x": base[:4, :64].contiguous()}, {"y": y})


def test_cpu_tensors_are_read(gpu):
    torch = pytest.importorskip("torch")
    with gpu.session() as session:
        x = torch.randn(4, 64, requires_grad=True)
        np.testing.assert_array_equal(session.run({"x": x})["y"], right(x.detach().numpy()))


def test_bfloat16_goes_through_dlpack(gpu):
    torch = pytest.importorskip("torch")
    from trtsparse.runtime.arrays import DeviceArray, foreign_array
    from trtsparse.runtime.memory import Pool

    pool = Pool(gpu.cuda, "device")
    array = DeviceArray(pool.take(256), (8, 16), np.dtype(ml_dtypes.bfloat16), cuda=gpu.cuda)
    tensor = torch.from_dlpack(array)
    assert tensor.dtype == torch.bfloat16
    assert tuple(tensor.shape) == (8, 16)
    tensor.fill_(1.5)
    torch.cuda.synchronize()
    assert (array.numpy() == np.float32(1.5)).all()
    seen = foreign_array(tensor, cuda=gpu.cuda, stream=0)
    assert (seen.dtype, seen.address) == (array.dtype, array.address)
    del tensor, seen, array
    gc.collect()
    pool.close()


def test_an_array_of_another_library_is_read_through_dlpack_alone(gpu):
    cupy = pytest.importorskip("cupy")

    class Exporter:
        def __init__(self, array):
            self._array = array

        def __dlpack__(self, **arguments):
            return self._array.__dlpack__(**arguments)

        def __dlpack_device__(self):
            return self._array.__dlpack_device__()

    x = cupy.arange(4 * 64, dtype=cupy.float32).reshape(4, 64)
    with gpu.session() as session:
        for _ in range(4):
            np.testing.assert_array_equal(session.run({"x": Exporter(x)})["y"], right(x).get())


def test_pycuda_arrays_and_streams_are_taken(gpu):
    if gpu.cuda.name != "pycuda":
        pytest.skip("for PyCUDA")
    import pycuda.driver
    from pycuda import gpuarray

    token = gpu.cuda.enter()
    try:
        stream = pycuda.driver.Stream()
        values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
        x = gpuarray.to_gpu(values)
        with gpu.session() as session:
            y = session.run({"x": x}, stream=stream)["y"]
            np.testing.assert_array_equal(y.numpy(), right(values))
            del y
        del x
    finally:
        gpu.cuda.leave(token)


def test_the_calling_threads_device_is_left_as_it_was(gpu):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    before = runtime.cudaGetDevice()
    with gpu.session() as session:
        session.run({"x": np.zeros((4, 64), np.float32)})
    assert runtime.cudaGetDevice() == before


def test_device_memory_held_is_what_is_needed(gpu):
    rows, columns = 4096, 1024
    nbytes = rows * columns * 4
    engine = KernelEngine(gpu.kernels, columns=columns, rows=((rows, rows, rows),))
    with gpu.session(engine, contexts=1, scratch="pool") as session:
        x = np.ones((rows, columns), np.float32)
        for _ in range(4):
            session.run({"x": x})
        held = session.memory["device"].held_nbytes
        assert held == pytest.approx(3 * nbytes, rel=0.01)
