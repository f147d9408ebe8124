"""Capsules of every version, and what their producers refuse; producers are made by hand."""

import ctypes
import sys

import ml_dtypes
import numpy as np
import pytest

from trtsparse.errors import DtypeError, FeedError
from trtsparse.runtime import dlpack

_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


class Versioned:
    """Exports an array in a versioned capsule, as libraries written for DLPack 1 do; counts what was given back."""

    def __init__(self, values, *, flags=0, major=1, device=(1, 0)):
        self.values, self.device, self.returned = values, device, 0
        self.asked = []
        self._plain = dlpack.make_capsule(values.ctypes.data, values.shape, values.dtype, device=device, owner=values)
        managed = dlpack._Managed.from_address(dlpack._pointer(self._plain, b"dltensor"))
        self._deleter = dlpack._Deleter(self._return)
        self._managed = dlpack._Versioned(major, 0, None, self._deleter, flags, managed.tensor)

    def _return(self, _address):
        self.returned += 1

    def __dlpack__(self, **options):
        self.asked.append(options)
        return _new_capsule(ctypes.addressof(self._managed), b"dltensor_versioned", None)

    def __dlpack_device__(self):
        return self.device


def test_a_versioned_capsule_is_asked_for_read_and_given_back():
    value = Versioned(VALUES, device=(2, 3))
    tensor = dlpack.export(value, stream=7)
    assert value.asked == [{"max_version": (1, 0), "stream": 7}]
    assert (tensor.address, tensor.shape, tensor.dtype) == (VALUES.ctypes.data, (3, 4), VALUES.dtype)
    assert (tensor.device, tensor.writable) == ((2, 3), True)
    assert tensor.strides in (None, (4, 1))
    assert value.returned == 0
    del tensor
    assert value.returned == 1


@pytest.mark.parametrize(("flags", "writable"), [(0, True), (1, False), (2, False), (3, False), (4, True)])
def test_what_is_read_only_or_a_copy_is_not_written_to(flags, writable):
    assert dlpack.export(Versioned(VALUES, flags=flags)).writable == writable


def test_a_version_that_nobody_knows_is_refused_and_given_back():
    value = Versioned(VALUES, major=2)
    with pytest.raises(DtypeError) as caught:
        dlpack.export(value)
    assert str(caught.value) == "a DLPack capsule is too new\n  got: version 2.0\n  expected: 1"
    del caught
    assert value.returned == 1


class Old:
    """A producer from before versions; ``error`` is what it raises."""

    def __init__(self, values, *, device=(1, 0), error=None):
        self.values, self.device, self.error = values, device, error

    def __dlpack__(self, *, stream=None):
        if self.error:
            raise self.error
        pointer = self.values.ctypes.data
        return dlpack.make_capsule(
            pointer, self.values.shape, self.values.dtype, device=self.device, owner=self.values
        )

    def __dlpack_device__(self):
        return self.device


def test_a_producer_without_versions_is_asked_again_without():
    assert dlpack.export(Old(VALUES), stream=3).address == VALUES.ctypes.data


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_a_producer_that_refuses_is_quoted(error):
    for read in (dlpack.export, dlpack.on_host):
        with pytest.raises(FeedError) as caught:
            read(Old(VALUES, error=error("not today")))
        assert type(caught.value) is FeedError
        assert str(caught.value) == "an array is not exported by its library\n  got: Old: not today"


@pytest.mark.parametrize(
    "dtype", [np.float32, np.bool_, np.int8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
def test_host_memory_of_any_type_is_seen_without_a_copy_and_kept_alive(dtype, shape):
    values = np.ones(shape, dtype)
    references = sys.getrefcount(values)
    found = dlpack.on_host(Old(values))
    assert (found.dtype, found.shape) == (values.dtype, shape)
    np.testing.assert_array_equal(found, values)
    if values.size:
        assert np.shares_memory(found, values)
        assert sys.getrefcount(values) > references
    del found
    assert sys.getrefcount(values) == references


def test_host_memory_that_is_not_contiguous_is_seen_where_it_is():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12.0).reshape(3, 4).bfloat16().t()[1:]
    found = dlpack.on_host(tensor)
    assert (found.dtype, found.flags.writeable) == (ml_dtypes.bfloat16, False)
    assert found.tolist() == tensor.tolist()


def test_what_is_elsewhere_is_not_read_on_the_host():
    with pytest.raises(FeedError) as caught:
        dlpack.on_host(Old(VALUES, device=(4, 1)))
    assert str(caught.value) == (
        "an array is not in host memory\n  got: Old on DLPack's device (4, 1)\n  to fix: copy it there before"
    )


def test_a_producer_that_does_not_know_where_it_is_is_quoted():
    class Nowhere(Old):
        def __dlpack_device__(self):
            raise ValueError("unknown device type meta")

    with pytest.raises(FeedError) as caught:
        dlpack.on_host(Nowhere(VALUES, error=RuntimeError("not today")))
    assert str(caught.value) == "an array is not exported by its library\n  got: Nowhere: unknown device type meta"
