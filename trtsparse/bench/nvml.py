"""Power, energy and clock of a GPU, as NVML tells them (the package nvidia-ml-py)."""

from __future__ import annotations

import importlib
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from trtsparse.bench.records import Clocks, Energy
from trtsparse.errors import DeviceError, MissingDependencyError

__all__ = ["Meter", "Nvml", "Sensors", "open_sensors"]

_SAMPLE_EVERY_S = 0.02
_SLOWED_BY = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock",
}
"""NVML's bits of reasons for a lower clock, without "idle"."""


class Sensors(Protocol):
    """What one GPU tells; None for what it does not. Thread-safe."""

    def joules(self) -> float | None:
        """Energy since the driver was loaded."""

    def watts(self) -> float | None:
        """Power now, of the whole board."""

    def clock_mhz(self) -> int | None:
        """Of the multiprocessors, now."""

    def max_clock_mhz(self) -> int | None:
        """The most that it can be."""

    def temperature_c(self) -> int | None:
        """Of the GPU, now."""

    def slowed_by(self) -> tuple[str, ...]:
        """Why the clock is not higher now."""
        ...

    def close(self) -> None:
        """Let go of the library."""


class Nvml:
    """See `Sensors`.

    Args:
        library: The module ``pynvml``, initialised.
        handle: Its handle of a GPU.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def _ask(self, name: str, *args: Any) -> Any:
        """None where this GPU, driver or version of the library cannot tell."""
        function = getattr(self._library, name, None)
        if function is None:
            return None
        try:
            return function(self._handle, *args)
        except self._library.NVMLError:
            return None

    def joules(self) -> float | None:  # noqa: D102 - the protocol's text holds
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found / 1e3

    def watts(self) -> float | None:  # noqa: D102
        found = self._ask("nvmlDeviceGetPowerUsage")
        return None if found is None else found / 1e3

    def clock_mhz(self) -> int | None:  # noqa: D102
        return _whole(self._ask("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM))

    def max_clock_mhz(self) -> int | None:  # noqa: D102
        return _whole(self._ask("nvmlDeviceGetMaxClockInfo", self._library.NVML_CLOCK_SM))

    def temperature_c(self) -> int | None:  # noqa: D102
        return _whole(self._ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU))

    def slowed_by(self) -> tuple[str, ...]:  # noqa: D102
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers and libraries before 535
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return tuple(text for bit, text in _SLOWED_BY.items() if (bits or 0) & bit)

    def close(self) -> None:  # noqa: D102
        self._library.nvmlShutdown()


def _whole(found: Any) -> int | None:
    return None if found is None else int(found)


def open_sensors(pci_bus_id: str) -> Nvml:
    """The sensors of a GPU.

    Args:
        pci_bus_id: Where it is; CUDA's and NVML's numbers of GPUs differ.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        DeviceError: NVML does not start, or does not know the GPU.
    """
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise MissingDependencyError("nvidia-ml-py is not installed", extra="cuda", where=str(error)) from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise DeviceError("NVML does not start", got=str(error)) from error
    try:
        return Nvml(library, library.nvmlDeviceGetHandleByPciBusId(pci_bus_id))
    except library.NVMLError as error:
        library.nvmlShutdown()
        raise DeviceError("NVML does not know the GPU", where=pci_bus_id, got=str(error)) from error


class Meter:
    """Measures energy and clock between `start` and `stop`, in a thread: asking NVML may take milliseconds.

    By the GPU's energy counter; where there is none, power is sampled and summed up.

    Args:
        sensors: Of the GPU.
        clock: The host's, in nanoseconds.
    """

    def __init__(self, sensors: Sensors, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._sensors, self._clock = sensors, clock
        self._counted: list[tuple[int, float]] = []
        self._sampled: list[tuple[int, float]] = []
        self._clock_mhz: list[int | None] = []
        self._slowed_by: set[str] = set()
        self._temperature: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """The first counted query has finished. Returns at once."""
        self._thread = threading.Thread(target=self._watch, name="bench-power", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The last query is under way. Stopping twice, or before `start`, is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        thread.join()
        self._look()
        self._temperature = self._sensors.temperature_c()

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(_SAMPLE_EVERY_S):
            if not self._counted:
                self._sample()

    def _look(self) -> None:
        joules = self._sensors.joules()
        if joules is None:
            self._sample()
        else:
            self._counted.append((self._clock(), joules))
        self._slowed_by.update(self._sensors.slowed_by())
        self._clock_mhz.append(self._sensors.clock_mhz())

    def _sample(self) -> None:
        watts = self._sensors.watts()
        if watts is not None:
            self._sampled.append((self._clock(), watts))

    def energy(self, *, wall_s: float, queries: int) -> Energy | None:
        """What the counted queries took; None where the GPU told neither energy nor power.

        Args:
            wall_s: How long they took.
            queries: How many there were.
        """
        found = _mean_watts(self._counted, self._sampled)
        if found is None:
            return None
        watts, samples = found
        joules = watts * wall_s
        return Energy(joules, joules / queries, watts, samples, "counter" if self._counted else "power")

    def clocks(self) -> Clocks | None:
        """What was seen of the clock; None before `stop`."""
        if len(self._clock_mhz) < 2:
            return None
        return Clocks(
            start_mhz=self._clock_mhz[0],
            end_mhz=self._clock_mhz[-1],
            max_mhz=self._sensors.max_clock_mhz(),
            temperature_c=self._temperature,
            slowed_by=tuple(text for text in _SLOWED_BY.values() if text in self._slowed_by),
        )


def _mean_watts(counted: list[tuple[int, float]], sampled: list[tuple[int, float]]) -> tuple[float, int] | None:
    """Average power and the number of readings; samples are joined by straight lines."""
    if len(counted) > 1:
        (start, before), (end, after) = counted[0], counted[-1]
        return ((after - before) / (end - start) * 1e9, len(counted)) if end > start else None
    spent = sampled[-1][0] - sampled[0][0] if sampled else 0
    if spent <= 0:
        return None
    area = sum((b - a) * (left + right) / 2 for (a, left), (b, right) in itertools.pairwise(sampled))
    return area / spent, len(sampled)
