"""Timing in turn, with work that takes no time and meters that tell what a test says."""

import pytest

from benchmarks.peers.timing import Plan, PowerMeter, gpu_sensors, interleaved, mean_watts
from trtsparse.errors import DeviceError


class FakeWatch:
    """Runs take what they say; counts what ran, in order."""

    def __init__(self, seconds):
        self.taken, self.now, self.blocks = seconds, 0.0, []

    def seconds(self, run, count, *, warm_up):
        name = run()
        self.blocks.append((name, count))
        self.now += self.taken[name] * (count + warm_up)
        return self.taken[name] * count


class FakeMeter(PowerMeter):
    def __init__(self, watts):
        super().__init__(None)
        self.told = iter(watts)

    def stop(self):
        return next(self.told)


def measure(seconds, *, plan, meter=None, runs=None):
    watch = FakeWatch(seconds)
    runs = runs or {name: (lambda name=name: name) for name in seconds}
    quiet = {"sleep": lambda _: None, "clock": lambda: watch.now}
    return interleaved(runs, plan=plan, watch=watch, meter=meter, **quiet), watch


def test_each_runs_once_a_round_in_rotated_order_for_as_long():
    found, watch = measure({"a": 0.1, "b": 0.01}, plan=Plan(rounds=3, block_s=0.4))
    assert watch.blocks == [
        *(("a", 3), ("a", 4)),  # an estimate first
        *(("b", 3), ("b", 40)),
        *(("b", 40), ("a", 4)),
        *(("a", 4), ("b", 40)),
    ]
    assert found["a"].ms == pytest.approx([100.0] * 3)
    assert found["b"].ms == pytest.approx([10.0] * 3)


def test_energy_is_that_of_one_run():
    found, _ = measure({"a": 0.1}, plan=Plan(rounds=2), meter=FakeMeter([500.0, None]))
    assert found["a"].joules == [pytest.approx(50.0), None]


def test_no_round_begins_that_would_end_too_late():
    plan = Plan(rounds=9, block_s=1.0, until=4.0)
    found, _ = measure({"a": 1.0}, plan=plan)
    assert 1 <= len(found["a"].ms) < 9
    late, _ = measure({"a": 1.0}, plan=Plan(rounds=9, block_s=1.0, until=-1.0))
    assert len(late["a"].ms) == 1, "the first round is measured in any case"


def test_what_fails_is_left_out_and_the_others_go_on():
    calls = []

    def failing():
        calls.append("b")
        if len(calls) > 2:
            raise RuntimeError("illegal instruction")
        return "b"

    runs = {"a": lambda: "a", "b": failing}
    found, _ = measure({"a": 0.1, "b": 0.1}, plan=Plan(rounds=4), runs=runs)
    assert len(found["a"].ms) == 4
    assert found["b"].failure == "RuntimeError: illegal instruction"
    assert len(calls) == 3


def test_power_is_what_a_counter_grew_by_between_its_steps():
    steps = [(0.03, 10.0), (0.1, 20.0), (0.2, 90.0), (0.3, 160.0)]
    assert mean_watts(steps, []) == pytest.approx(700.0)
    assert mean_watts(steps[:2], [300.0, 500.0]) == 400.0, "too few steps: readings of power"
    assert mean_watts(steps[:2], []) is None


def test_a_meter_reads_a_counter_in_its_own_thread():
    class Sensors:
        def __init__(self):
            self.read = 0

        def joules(self):
            self.read += 1
            return float(self.read // 2)

        def watts(self):
            raise AssertionError("there is a counter")

    meter = PowerMeter(Sensors())
    meter.start()
    while meter._sensors.read < 8:
        pass
    watts = meter.stop()
    assert watts is not None
    assert watts > 0
    assert PowerMeter(None).stop() is None


def test_without_a_gpu_there_are_no_sensors_and_a_reason(monkeypatch):
    def none(*_args, **_options):
        raise DeviceError("there is no GPU", got="0 GPUs")

    monkeypatch.setattr("benchmarks.peers.timing.open_cuda", none)
    sensors, why = gpu_sensors()
    assert sensors is None
    assert why == "there is no GPU"
