"""The GPUs as the NVIDIA driver tells them, without any CUDA binding installed; and trtexec's block about them."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from trtsparse.trtexec.log import Printer

__all__ = ["Gpu", "find_gpus", "print_device"]

_ATTRIBUTES = {
    "clock_khz": 13,
    "multiprocessors": 16,
    "ecc": 32,
    "memory_clock_khz": 36,
    "bus_bits": 37,
    "major": 75,
    "minor": 76,
    "shared_nbytes": 81,
}
"""Numbers of CUdevice_attribute, which never change."""


@dataclass(frozen=True)
class Gpu:
    """What the driver says about one GPU.

    Attributes:
        name: Such as "NVIDIA H100 80GB HBM3".
        uuid: As nvidia-smi prints it.
        memory_nbytes: All of its memory.
        attributes: Figures by name: "multiprocessors", "major", "minor", "bus_bits", "ecc", "clock_khz",
            "memory_clock_khz", "shared_nbytes" (of shared memory of one multiprocessor).
    """

    name: str
    uuid: str
    memory_nbytes: int
    attributes: dict[str, int]

    @property
    def compute_capability(self) -> str:
        """Such as "9.0"."""
        return f"{self.attributes['major']}.{self.attributes['minor']}"


def find_gpus(driver: Any = None) -> tuple[Gpu, ...]:
    """Ask the driver for its GPUs; none where there is no driver.

    Args:
        driver: The driver's library; None to load the system's.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError:
            return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_describe(driver, index) for index in range(count.value))


def _describe(driver: Any, index: int) -> Gpu:
    device, nbytes = ctypes.c_int(), ctypes.c_size_t()
    name, uuid = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetUuid(ctypes.byref(uuid), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(nbytes), device)
    found = {}
    for attribute, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found[attribute] = value.value
    return Gpu(name.value.decode(errors="replace"), _uuid_text(bytes(uuid)), nbytes.value, found)


def _uuid_text(uuid: bytes) -> str:
    text = uuid.hex()
    return "-".join(("GPU", text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def print_device(out: Printer, gpus: tuple[Gpu, ...], *, device: int, listed: bool = True) -> bool:
    """Print the block "Device Information".

    Args:
        out: Where.
        gpus: From `find_gpus`.
        device: The number of the one that will be used.
        listed: List all GPUs and tell the chosen one's identifiers, as trtexec does since version 10.

    Returns:
        Whether it exists.
    """
    out.info("=== Device Information ===")
    if not gpus:
        out.info("Cannot find any available devices (GPUs)!")
        return False
    if listed:
        out.info("Available Devices: ")
        for index, gpu in enumerate(gpus):
            out.info(f'  Device {index}: "{gpu.name}" UUID: {gpu.uuid}')
    if not 0 <= device < len(gpus):
        out.info(f"Cannot find device ID {device}!")
        return False
    gpu = gpus[device]
    facts = gpu.attributes
    out.info(f"Selected Device: {gpu.name}")
    if listed:
        out.info(f"Selected Device ID: {device}\nSelected Device UUID: {gpu.uuid}")
    out.info(
        f"Compute Capability: {gpu.compute_capability}\n"
        f"SMs: {facts['multiprocessors']}\n"
        f"Device Global Memory: {gpu.memory_nbytes >> 20} MiB\n"
        f"Shared Memory per SM: {facts['shared_nbytes'] >> 10} KiB\n"
        f"Memory Bus Width: {facts['bus_bits']} bits (ECC {'enabled' if facts['ecc'] else 'disabled'})\n"
        f"Application Compute Clock Rate: {facts['clock_khz'] / 1e6:g} GHz\n"
        f"Application Memory Clock Rate: {facts['memory_clock_khz'] / 1e6:g} GHz"
    )
    out.info()
    out.info(
        "Note: The application clock rates do not reflect the actual clock rates that the GPU is "
        "currently running at."
    )
    return True
