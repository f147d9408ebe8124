"""What the NVIDIA driver tells, by a driver of our own."""

import ctypes

import pytest

from trtsparse.trtexec.device import find_gpus

ATTRIBUTES = {75: 8, 76: 9, 16: 128, 81: 100 << 10, 37: 384, 32: 1, 13: 2_520_000, 36: 10_501_000}


class Driver:
    """Answers as libcuda does: 0 for success, results through pointers."""

    def __init__(self, count=2, code=0):
        self.count, self.code = count, code

    def cuInit(self, _flags):  # noqa: N802 - the driver's name
        return self.code

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        name.value = f"GPU number {device.value - 10}".encode()[: size - 1]
        return 0

    def cuDeviceGetUuid(self, uuid, device):  # noqa: N802
        ctypes.memmove(uuid._obj, bytes(range(device.value, device.value + 16)), 16)
        return 0

    def cuDeviceTotalMem_v2(self, nbytes, _device):  # noqa: N802
        nbytes._obj.value = 24 << 30
        return 0

    def cuDeviceGetAttribute(self, value, number, _device):  # noqa: N802
        value._obj.value = ATTRIBUTES[number]
        return 0


def test_gpus_are_described_by_the_driver():
    first, second = find_gpus(Driver())
    assert (first.name, second.name) == ("GPU number 0", "GPU number 1")
    assert first.uuid == "GPU-0a0b0c0d-0e0f-1011-1213-141516171819"
    assert first.compute_capability == "8.9"
    assert first.memory_nbytes == 24 << 30
    assert first.attributes["multiprocessors"] == 128
    assert first.attributes["clock_khz"] == 2_520_000


@pytest.mark.parametrize("driver", [Driver(count=0), Driver(code=100)])
def test_a_driver_without_gpus_has_none(driver):
    assert find_gpus(driver) == ()


@pytest.mark.gpu
def test_the_real_driver_tells_what_nvml_tells():
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        told = {
            pynvml.nvmlDeviceGetUUID(handle): (
                pynvml.nvmlDeviceGetName(handle),
                "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            )
            for handle in handles
        }
    finally:
        pynvml.nvmlShutdown()
    found = {gpu.uuid: (gpu.name, gpu.compute_capability) for gpu in find_gpus()}
    assert found
    assert found.items() <= told.items()
