"""Power, energy and clock, with a stand-in for NVML: what is there, what is missing, and the arithmetic."""

import itertools
import sys
import threading
import time
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.cuda import MemoryCuda
from tests.doubles.kernels import KernelEngine, MemoryKernels
from trtsparse.bench import device, nvml
from trtsparse.bench.measure import BenchOptions, measure
from trtsparse.errors import DeviceError, MissingDependencyError


class NVMLError(Exception):
    pass


def make_pynvml(clock_ns, *, watts=300.0, counter=True, power=True, throttled=0x4, unknown=(), starts=True):
    """A module like ``pynvml`` for a GPU that takes constant power, by a clock."""
    module = types.ModuleType("pynvml")
    state = {"open": 0}

    def unsupported(*_args):
        raise NVMLError("Not Supported")

    def init():
        if not starts:
            raise NVMLError("Driver Not Loaded")
        state["open"] += 1

    def shutdown():
        state["open"] -= 1

    def find(bus):
        assert isinstance(bus, str)
        if bus in unknown:
            raise NVMLError("Not Found")
        return f"handle of {bus}"

    def of_handle(value):
        def tell(handle, *_args):
            assert str(handle).startswith("handle of ")
            assert state["open"] > 0
            return value() if callable(value) else value

        return tell

    module.__dict__.update(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, state=state, nvmlInit=init,
        nvmlShutdown=shutdown, nvmlDeviceGetHandleByPciBusId=find,
        nvmlDeviceGetTotalEnergyConsumption=(
            of_handle(lambda: clock_ns() * 1e-9 * watts * 1e3) if counter else unsupported
        ),
        nvmlDeviceGetPowerUsage=of_handle(watts * 1e3) if power else unsupported,
        nvmlDeviceGetClockInfo=of_handle(1755), nvmlDeviceGetMaxClockInfo=of_handle(1980),
        nvmlDeviceGetTemperature=of_handle(61),
        nvmlDeviceGetCurrentClocksEventReasons=unsupported,  # as with drivers before 535
        nvmlDeviceGetCurrentClocksThrottleReasons=of_handle(throttled),
    )  # fmt: skip
    return module


plain_start = nvml.Meter.start


def start_and_wait(meter):
    """Time in memory passes so quickly that the run might be over before the thread has looked."""
    plain_start(meter)
    while not meter._clock_mhz:
        time.sleep(1e-4)


@pytest.fixture
def measured(monkeypatch):
    """A measurement on the in-memory CUDA of a millisecond each, 50 of them or more."""

    def run(duration_s=0.6, **pynvml):
        cuda = MemoryCuda(order="late", log=False)
        module = make_pynvml(cuda.clock_ns, **pynvml)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.setattr(device, "_clock", cuda.clock_ns)
        monkeypatch.setattr(nvml.Meter, "start", start_and_wait)
        engine = KernelEngine(MemoryKernels(cuda), cycles=2_000_000)
        options = BenchOptions(duration_s=duration_s, warm_up_ms=10.0)
        found = measure(engine, {"x": np.ones((4, 64), np.float32)}, options=options, cuda=cuda)
        assert module.state["open"] == 0
        return found

    return run


def test_energy_comes_from_the_counter_and_clocks_with_it(measured):
    found = measured()
    assert found.energy.source == "counter"
    assert found.energy.mean_watts == pytest.approx(300)
    assert found.energy.joules == pytest.approx(300 * found.wall_s)
    assert found.energy.joules_per_query == pytest.approx(0.3, rel=0.05)  # a millisecond and a little
    assert found.clocks.start_mhz == found.clocks.end_mhz == 1755
    assert (found.clocks.max_mhz, found.clocks.temperature_c) == (1980, 61)
    assert found.clocks.slowed_by == ("power cap",)
    assert found.notes == ()


def test_without_a_counter_power_is_sampled(measured):
    found = measured(counter=False)
    assert found.energy.source == "power"
    assert found.energy.samples >= 2
    assert found.energy.mean_watts == pytest.approx(300)


def test_a_gpu_that_tells_nothing_is_said(measured):
    found = measured(counter=False, power=False)
    assert found.energy is None
    assert found.notes == ("no power and energy: this GPU tells neither",)
    assert found.clocks.end_mhz == 1755


def test_a_short_run_is_said_to_be_short(measured):
    found = measured(duration_s=0.1)
    assert found.energy is not None
    (note,) = found.notes
    assert note.startswith("power and energy come from 0.1")
    assert note.endswith(" s, which is little for sensors that are read now and then")


@pytest.mark.parametrize(
    ("pynvml", "note"),
    [
        ({"starts": False}, "no power and energy: NVML does not start; got: Driver Not Loaded"),
        ({"unknown": ("0000:00:00.0",)},
         "no power and energy: NVML does not know the GPU; where: 0000:00:00.0; got: Not Found"),
    ],
)  # fmt: skip
def test_an_nvml_that_does_not_work_is_said_and_the_rest_is_measured(measured, pynvml, note):
    found = measured(**pynvml)
    assert (found.energy, found.clocks) == (None, None)
    assert found.notes == (note,)
    assert len(found.queries) > 500


def test_a_library_that_is_missing_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError) as caught:
        nvml.open_sensors("0000:00:00.0")
    lines = str(caught.value).splitlines()
    assert lines[0] == "nvidia-ml-py is not installed"
    assert lines[-1] == "  to fix: pip install 'trtsparse[cuda]'"


def test_an_unknown_gpu_leaves_the_library_closed(monkeypatch):
    module = make_pynvml(lambda: 0, unknown=("0000:65:00.0",))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with pytest.raises(DeviceError) as caught:
        nvml.open_sensors("0000:65:00.0")
    assert str(caught.value) == "NVML does not know the GPU\n  where: 0000:65:00.0\n  got: Not Found"
    assert module.state["open"] == 0


def test_newer_libraries_tell_why_the_clock_is_low_by_another_name(monkeypatch):
    module = make_pynvml(lambda: 0)
    module.nvmlDeviceGetCurrentClocksEventReasons = lambda _handle: 0x1 | 0x20 | 0x40
    del module.nvmlDeviceGetCurrentClocksThrottleReasons
    monkeypatch.setitem(sys.modules, "pynvml", module)
    sensors = nvml.open_sensors("0000:00:00.0")
    assert sensors.slowed_by() == ("software thermal slowdown", "hardware thermal slowdown")
    sensors.close()


class Scripted:
    """Sensors that tell what a list says, one reading after another."""

    def __init__(self, readings):
        self.readings = list(readings)
        self.now_ns = 0

    def clock(self):
        return self.now_ns

    def joules(self):
        return None

    def watts(self):
        self.now_ns, watts = self.readings.pop(0)
        return watts

    def clock_mhz(self):
        return None

    max_clock_mhz = temperature_c = clock_mhz

    def slowed_by(self):
        return ()

    def close(self):
        pass


@given(st.lists(st.floats(1, 700), min_size=2, max_size=30), st.integers(1, 10**9))
def test_sampled_power_is_averaged_over_time(watts, step_ns):
    times = [step_ns * number for number in range(len(watts))]
    sensors = Scripted(zip(times, watts, strict=True))
    meter = nvml.Meter(sensors, clock=sensors.clock)
    for _ in watts:
        meter._sample()
    found = meter.energy(wall_s=2.0, queries=4)
    area = sum((a + b) / 2 for a, b in itertools.pairwise(watts))
    assert found.mean_watts == pytest.approx(area / (len(watts) - 1))
    assert found.joules == pytest.approx(2 * found.mean_watts)
    assert found.joules_per_query == pytest.approx(found.joules / 4)
    assert (found.samples, found.source) == (len(watts), "power")


@pytest.mark.parametrize("readings", [[], [(0, 300.0)], [(5, 300.0), (5, 300.0)]])
def test_readings_at_one_moment_give_no_power(readings):
    sensors = Scripted(readings)
    meter = nvml.Meter(sensors, clock=sensors.clock)
    for _ in readings:
        meter._sample()
    assert meter.energy(wall_s=1.0, queries=1) is None
    assert meter.clocks() is None


def test_stopping_before_starting_and_twice_is_harmless():
    sensors = Scripted([(0, 200.0), (10**9, 400.0)])
    meter = nvml.Meter(sensors, clock=sensors.clock)
    meter.stop()
    assert meter.clocks() is None
    start_and_wait(meter)
    meter.stop()
    meter.stop()
    assert meter.energy(wall_s=1.0, queries=1).mean_watts == 300
    assert meter.clocks().end_mhz is None


def test_sensors_that_are_slow_hold_nobody_up():
    release = threading.Event()

    class Slow(Scripted):
        def joules(self):
            assert release.wait(10)
            return super().joules()

    sensors = Slow([(0, 200.0), (10**9, 200.0)])
    meter = nvml.Meter(sensors, clock=sensors.clock)
    meter.start()  # would never return
    release.set()
    meter.stop()
    assert meter.energy(wall_s=1.0, queries=1).mean_watts == 200
