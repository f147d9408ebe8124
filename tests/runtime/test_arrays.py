"""Device arrays and those of other libraries, on the in-memory CUDA; consumers read the protocols by hand."""

import gc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.errors import ConfigError, DtypeError, FeedError
from trtsparse.runtime import dlpack
from trtsparse.runtime.arrays import DeviceArray, Foreign, _torch_view, array_on_host, foreign_array
from trtsparse.runtime.memory import Pool, host_view
from trtsparse.runtime.session import Session

DTYPES = [
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


@pytest.fixture
def pool(cuda):
    made = Pool(cuda, "device")
    yield made
    gc.collect()
    made.close()


def device_array(pool, cuda, values, *, stream=None):
    array = DeviceArray(pool.take(values.nbytes), values.shape, values.dtype, cuda=cuda, stream=stream)
    host_view(array.address, values.shape, values.dtype)[...] = values
    return array


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2), (5,)])
def test_a_capsule_says_what_the_array_is(pool, cuda, dtype, shape):
    values = np.ones(shape, dtype)
    array = device_array(pool, cuda, values)
    tensor = dlpack.read_capsule(array.__dlpack__())
    assert (tensor.address, tensor.shape, tensor.dtype) == (array.address, shape, values.dtype)
    assert tensor.device == array.__dlpack_device__() == (2, 0)
    if values.size:
        assert tensor.strides in (None, tuple(s // values.itemsize for s in values.strides))
    del array, tensor


def test_numpy_reads_a_capsule_over_host_memory():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)

    class OnHost:
        def __dlpack__(self, **_options):
            return dlpack.make_capsule(values.ctypes.data, (3, 4), values.dtype, device=(1, 0), owner=values)

        def __dlpack_device__(self):
            return 1, 0

    found = np.from_dlpack(OnHost())
    np.testing.assert_array_equal(found, values)
    assert np.shares_memory(found, values)


def test_the_consumer_keeps_the_memory_until_it_is_done(pool, cuda):
    array = device_array(pool, cuda, np.ones(8, np.float32))
    tensor = dlpack.read_capsule(array.__dlpack__())
    del array
    assert pool.stats.used_nbytes == 512
    del tensor
    assert pool.stats.used_nbytes == 0


def test_a_capsule_that_nobody_took_lets_go(pool, cuda):
    capsule = device_array(pool, cuda, np.ones(8, np.float32)).__dlpack__()
    assert pool.stats.used_nbytes == 512
    del capsule
    assert pool.stats.used_nbytes == 0


def test_a_capsule_is_taken_once(pool, cuda):
    capsule = device_array(pool, cuda, np.ones(8, np.float32)).__dlpack__()
    dlpack.read_capsule(capsule)
    with pytest.raises(DtypeError, match="not a DLPack capsule that can be read"):
        dlpack.read_capsule(capsule)


def test_types_that_dlpack_lacks_are_refused():
    with pytest.raises(DtypeError) as caught:
        dlpack.make_capsule(0, (), np.dtype("M8[s]"), device=(1, 0), owner=None)
    assert str(caught.value) == "DLPack has no such data type\n  got: datetime64[s]"


def test_a_copy_is_refused_and_so_is_another_device(pool, cuda):
    array = device_array(pool, cuda, np.ones(8, np.float32))
    for options in ({"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**options)
    array.__dlpack__(dl_device=(2, 0), copy=False, max_version=(1, 1))
    with pytest.raises(ValueError, match="is copied"):
        array.__array__(copy=False)


def test_the_interface_says_what_the_array_is(pool, cuda):
    array = device_array(pool, cuda, np.ones((2, 3), np.float16))
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3), "typestr": "<f2", "data": (array.address, False), "strides": None, "version": 3,
        "stream": None,
    }  # fmt: skip
    with_stream = device_array(pool, cuda, np.ones((2, 3), np.float16), stream=0)
    assert with_stream.__cuda_array_interface__["stream"] == 1
    assert not hasattr(device_array(pool, cuda, np.ones(2, ml_dtypes.bfloat16)), "__cuda_array_interface__")
    assert repr(array) == "<DeviceArray float16 (2, 3) on GPU 0>"
    assert (array.nbytes, array.device) == (12, 0)


def test_numpy_gets_a_copy(pool, cuda):
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    array = device_array(pool, cuda, values)
    np.testing.assert_array_equal(np.asarray(array), values)
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    assert device_array(pool, cuda, np.empty((0, 3), np.int32)).numpy().shape == (0, 3)


def test_a_consumers_stream_waits_for_the_stream_that_writes(pool, cuda):
    ours, theirs = cuda.create_stream(), cuda.create_stream()
    steps = []
    cuda.submit(ours, lambda: steps.append("written"))
    array = device_array(pool, cuda, np.ones(4, np.float32), stream=ours)
    capsule = array.__dlpack__(stream=theirs)
    cuda.submit(theirs, lambda: steps.append("read"))
    cuda.synchronize(theirs)
    assert steps == ["written", "read"]
    waits = cuda.counts["wait"]
    array.__dlpack__(stream=ours)
    array.__dlpack__(stream=-1)
    assert cuda.counts["wait"] == waits
    array.__dlpack__()
    assert cuda.counts["wait"] == waits + 1
    del capsule
    for stream in (ours, theirs):
        cuda.synchronize(stream)
        cuda.destroy_stream(stream)
    cuda.synchronize(1)


def test_memory_that_others_have_seen_is_marked(pool, cuda):
    for export in (lambda a: a.__dlpack__(), lambda a: a.__cuda_array_interface__):
        array = device_array(pool, cuda, np.ones(4, np.float32))
        assert not array._block.shared
        export(array)
        assert array._block.shared
    assert device_array(pool, cuda, np.ones(4, np.float32), stream=5)._block.shared


class Interface:
    """An array of a library with ``__cuda_array_interface__`` alone."""

    def __init__(self, array, **changes):
        plain = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.address, False), "version": 3,
            "strides": None, "stream": None,
        }  # fmt: skip
        self.__cuda_array_interface__ = {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "contiguous", "stream"),
    [
        ({}, True, None),
        ({"stream": 7}, True, 7),
        ({"stream": 1}, True, 1),
        ({"strides": (16, 4)}, True, None),
        ({"strides": (32, 4)}, False, None),
        ({"strides": (4, 8)}, False, None),
        ({"version": 2}, True, 1),
        ({"version": 2, "stream": 9}, True, 1),
    ],
)
def test_arrays_with_the_interface_are_seen(pool, cuda, changes, contiguous, stream):
    array = device_array(pool, cuda, np.ones((2, 4), np.float32))
    value = Interface(array, **changes)
    seen = foreign_array(value, cuda=cuda, stream=3)
    assert seen == Foreign(array.address, (2, 4), np.dtype(np.float32), 0, contiguous, stream, value)


def test_arrays_with_dlpack_are_seen_and_told_which_stream_reads(pool, cuda):
    array = device_array(pool, cuda, np.ones((2, 4), np.float32))
    asked = []

    class Exporter:
        def __dlpack__(self, *, stream=None):
            asked.append(stream)
            return array.__dlpack__()

        def __dlpack_device__(self):
            return 2, 0

    seen = foreign_array(Exporter(), cuda=cuda, stream=3)
    assert asked == [3]
    assert (seen.address, seen.shape, seen.device, seen.contiguous) == (array.address, (2, 4), 0, True)
    assert seen.stream is None


def test_host_arrays_of_other_libraries_become_numpy(cuda):
    class Exporter:
        def __init__(self):
            self.values = np.arange(3)

        def __dlpack__(self, **options):
            return self.values.__dlpack__(**options)

        def __dlpack_device__(self):
            return 1, 0

    exporter = Exporter()
    assert np.shares_memory(foreign_array(exporter, cuda=cuda, stream=3), exporter.values)
    assert foreign_array([1, 2], cuda=cuda, stream=3) is None


def test_an_array_that_cannot_be_written_to_is_seen_as_such(pool, cuda):
    array = device_array(pool, cuda, np.ones((2, 4), np.float32))
    for read_only in (True, False):
        seen = foreign_array(Interface(array, data=(array.address, read_only)), cuda=cuda, stream=3)
        assert seen.writable == (not read_only)


def test_the_default_stream_is_named_as_dlpack_does(pool, cuda):
    array = device_array(pool, cuda, np.ones(4, np.float32))
    asked = []

    class Exporter:
        def __dlpack__(self, *, stream=None):
            asked.append(stream)
            return array.__dlpack__()

        def __dlpack_device__(self):
            return 2, 0

    foreign_array(Exporter(), cuda=cuda, stream=0)
    assert asked == [1]


class NamesOnly:
    """Stands for the torch module: each data type is its name; the current stream is 7."""

    _C = SimpleNamespace(_cuda_getCurrentRawStream=lambda _index: 7)

    def __getattr__(self, name):
        return name


class OnGpu:
    """What is asked of a PyTorch tensor on a GPU."""

    dtype, is_cuda, shape, layout = "float32", True, (2, 4), "strided"

    def __init__(self, address, *, negated=None):
        self.address, self.negated = address, negated

    def get_device(self):
        return 0

    def is_neg(self):
        return self.negated is not None

    def resolve_neg(self):
        return self.negated

    def is_contiguous(self):
        return True

    def data_ptr(self):
        if not self.address:
            raise RuntimeError("Cannot access data pointer")
        return self.address


def test_a_tensor_whose_sign_is_yet_to_be_changed_is_read_changed_and_not_written_to(cuda):
    view, kind = _torch_view(NamesOnly()), np.dtype(np.float32)
    plain, changed = OnGpu(256), OnGpu(512)
    same = {"shape": (2, 4), "dtype": kind, "device": 0, "contiguous": True, "stream": 7}
    assert view(plain, cuda, 3) == Foreign(256, owner=plain, writable=True, **same)
    assert view(OnGpu(256, negated=changed), cuda, 3) == Foreign(512, owner=changed, writable=False, **same)


def test_a_tensor_without_memory_is_refused(cuda):
    with pytest.raises(FeedError) as caught:
        _torch_view(NamesOnly())(OnGpu(0), cuda, 3)
    assert str(caught.value) == (
        "a tensor has no memory that can be read\n  got: strided: Cannot access data pointer"
    )


def test_lazy_operations_of_pytorch_are_done_before_a_tensor_is_read_on_the_host():
    torch = pytest.importorskip("torch")
    values = torch.complex(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).conj()
    for tensor in (values.imag, values[:, :1].imag, values):
        assert tensor.is_neg() or tensor.is_conj()
        assert array_on_host(tensor).tolist() == tensor.tolist()
    assert array_on_host(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
    plain = torch.ones(2)
    assert array_on_host(plain).ctypes.data == plain.data_ptr()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"layout": "sparse_coo"},
            FeedError,
            "an array is not exported by its library\n  got: Tensor: {}",
        ),
        ({"dtype": "complex64"}, DtypeError, "numpy has no such data type\n  got: torch.complex64"),
        (
            {"device": "meta"},
            ConfigError,
            "a tensor is on a device that is no GPU\n  got: meta\n  expected: cuda or cpu",
        ),
    ],
    ids=["layout", "type", "device"],
)
def test_tensors_that_cannot_be_read_are_refused(cuda, options, kind, text):
    torch = pytest.importorskip("torch")
    made = {name: value if name == "device" else getattr(torch, value) for name, value in options.items()}
    with Session(KernelEngine(MemoryKernels(cuda), columns=8), cuda=cuda) as session:
        assert session.run({"x": torch.ones(4, 8)})["y"].shape == (4, 8)
        with pytest.raises(kind) as caught:
            session.run({"x": torch.zeros(4, 8, **made)})
    assert str(caught.value) == text.format("Can't export tensors with layout other than torch.strided")
