"""Timing several things in turn: milliseconds by events on the GPU, joules by its own meter."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trtsparse.bench.nvml import Sensors, open_sensors
from trtsparse.cuda.base import open_cuda
from trtsparse.errors import CudaError, DeviceError, MissingDependencyError

__all__ = ["CudaWatch", "HostWatch", "Plan", "PowerMeter", "Timed", "gpu_sensors", "interleaved"]

_LOOK_EVERY_S = 0.005
_WARM_UP = 0.25
"""Share of a block that runs before its first event: the clock follows the load."""


class Watch(Protocol):
    """Times work."""

    def seconds(self, run: Callable[[], None], count: int, *, warm_up: int) -> float:
        """What ``count`` runs take, after ``warm_up`` others, enqueued back to back."""
        ...


class CudaWatch:
    """By events on PyTorch's current stream."""

    def seconds(self, run: Callable[[], None], count: int, *, warm_up: int) -> float:
        """See `Watch`."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(warm_up):
            run()
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class HostWatch:
    """By the host's clock, for work that is done when the call returns."""

    def seconds(self, run: Callable[[], None], count: int, *, warm_up: int) -> float:
        """See `Watch`."""
        for _ in range(warm_up):
            run()
        start = time.perf_counter()
        for _ in range(count):
            run()
        return time.perf_counter() - start


class PowerMeter:
    """Mean power between `start` and `stop`.

    A GPU's energy counter moves ten times a second or so: power is what it grew by from the first to the last of
    its steps. Where there is no counter, power is read as often and averaged.

    Args:
        sensors: Of the GPU; None: there is no meter.
        clock: In seconds.
    """

    def __init__(self, sensors: Sensors | None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._sensors, self._clock = sensors, clock
        self._steps: list[tuple[float, float]] = []
        self._watts: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self._steps, self._watts = [], []
        self._stop.clear()
        if self._sensors is not None:
            self._thread = threading.Thread(target=self._look, name="power", daemon=True)
            self._thread.start()

    def stop(self) -> float | None:
        """End; returns watts, None where nothing tells them."""
        thread, self._thread = self._thread, None
        if thread is None:
            return None
        self._stop.set()
        thread.join()
        return mean_watts(self._steps, self._watts)

    def _look(self) -> None:
        sensors = self._sensors
        while sensors is not None and not self._stop.wait(_LOOK_EVERY_S):
            joules = sensors.joules()
            if joules is None:
                watts = sensors.watts()
                self._watts += [] if watts is None else [watts]
            elif not self._steps or joules != self._steps[-1][1]:
                self._steps.append((self._clock(), joules))


def mean_watts(steps: list[tuple[float, float]], watts: list[float]) -> float | None:
    """Of the moments at which a counter of joules was seen to have moved, else of readings of power.

    Example:
        >>> mean_watts([(0.0, 5.0), (0.5, 10.0), (1.0, 360.0), (1.5, 710.0)], [])
        700.0
    """
    seen = steps[1:]  # the first is where the counter stood, not when it got there
    if len(seen) > 1:
        (start, before), (end, after) = seen[0], seen[-1]
        return (after - before) / (end - start)
    return statistics.mean(watts) if watts else None


def gpu_sensors() -> tuple[Sensors | None, str]:
    """The sensors of GPU 0, and why there are none."""
    try:
        return open_sensors(open_cuda().pci_bus_id()), ""
    except (MissingDependencyError, DeviceError, CudaError) as error:
        return None, str(error).splitlines()[0]


@dataclass(frozen=True)
class Plan:
    """How to time.

    Attributes:
        rounds: In each, everything runs once, in another order.
        block_s: What one thing runs for in a round, at least.
        pause_s: Between things, so that one does not heat the GPU for the next.
        until: By the clock of `interleaved`; a round that would end later is not begun, but the first one is.
    """

    rounds: int = 7
    block_s: float = 0.4
    pause_s: float = 0.1
    until: float = math.inf


@dataclass
class Timed:
    """What was measured of one thing, a value for each round.

    Attributes:
        ms: Milliseconds of a run.
        joules: Energy of a run; None where nothing tells it.
        failure: Why it was given up; "" where it was not.
    """

    ms: list[float] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)
    failure: str = ""


def interleaved(
    runs: Mapping[str, Callable[[], None]],
    *,
    plan: Plan,
    watch: Watch,
    meter: PowerMeter | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Timed]:
    """Time several things in turn, round by round; what fails is left out from then on.

    Args:
        runs: What enqueues one run, by name.
        plan: For how long.
        watch: Times a block.
        meter: Of power.
        clock: What ``plan.until`` is of.
        sleep: Pauses.
    """
    found = {name: Timed() for name in runs}
    counts: dict[str, int] = {}
    meter = meter or PowerMeter(None)
    longest = 0.0
    for number in range(plan.rounds):
        began = clock()
        if number and began + longest > plan.until:
            break
        names = [name for name in runs if not found[name].failure]
        if not names:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sleep(plan.pause_s)
            try:
                if name not in counts:
                    once = watch.seconds(runs[name], 3, warm_up=3) / 3
                    counts[name] = max(1, math.ceil(plan.block_s / max(once, 1e-6)))
                _block(found[name], runs[name], counts[name], watch, meter)
            except Exception as error:  # noqa: BLE001 - the others go on
                found[name].failure = f"{type(error).__name__}: {str(error)[:160]}"
        longest = max(longest, clock() - began)
    return found


def _block(timed: Timed, run: Callable[[], None], count: int, watch: Watch, meter: PowerMeter) -> None:
    meter.start()
    try:
        seconds = watch.seconds(run, count, warm_up=math.ceil(_WARM_UP * count)) / count
    finally:
        watts = meter.stop()
    timed.ms.append(seconds * 1e3)
    timed.joules.append(None if watts is None else watts * seconds)
