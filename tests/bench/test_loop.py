"""When a run may stop, threads that fail, and a quiet interpreter."""

import gc
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.bench.loop import Pace, in_threads, quiet
from trtsparse.bench.options import BenchOptions


@given(st.integers(1, 30), st.floats(0, 0.2), st.floats(0, 100), st.floats(0.5, 20))
def test_a_run_has_enough_queries_and_enough_time(iterations, duration_s, warm_up_ms, step):
    pace = Pace(BenchOptions(iterations=iterations, duration_s=duration_s, warm_up_ms=warm_up_ms))
    starts = []
    while not pace.done:
        starts.append(len(starts) * step)
        pace.finished([starts[-1]])
    end = warm_up_ms + duration_s * 1e3
    counted = [start for start in starts if start >= warm_up_ms]
    assert len(counted) >= iterations
    assert starts[-1] >= end
    assert len(counted) == iterations or starts[-2] < end  # and no more than that


def test_a_round_counts_when_all_its_streams_are_warm():
    pace = Pace(BenchOptions(iterations=1, duration_s=0.0, warm_up_ms=10.0))
    pace.finished([])
    pace.finished([9.0, 11.0])
    assert not pace.is_warm
    assert not pace.done
    pace.finished([12.0, 10.0])
    assert pace.is_warm
    assert pace.done


def test_the_end_of_the_warm_up_is_told_once_and_progress_now_and_then():
    told, shown = [], []
    pace = Pace(
        BenchOptions(iterations=1, duration_s=0.2, warm_up_ms=100.0),
        on_warm=lambda: told.append(1),
        progress=lambda done, total: shown.append((done, total)),
    )
    for start in range(0, 400, 10):
        pace.finished([float(start)])
    assert told == [1]
    assert shown == [(n, 300) for n in (50, 100, 150, 200, 250, 300, 300)]


def test_one_work_is_done_in_this_thread():
    assert in_threads([lambda _stop: threading.current_thread()]) == [threading.current_thread()]


def test_works_are_done_side_by_side_and_their_results_keep_the_order():
    barrier = threading.Barrier(3, timeout=10)

    def work(number):
        return lambda _stop: (barrier.wait(), number)[1]

    assert in_threads([work(number) for number in range(3)]) == [0, 1, 2]


def test_when_one_work_fails_the_others_are_told_and_the_error_is_raised():
    def fail(_stop):
        raise ValueError("broken")

    stopped = []
    with pytest.raises(ValueError, match="broken"):
        in_threads([lambda stop: stopped.append(stop.wait(10)), fail])
    assert stopped == [True]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_before_afterwards(enabled):
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with quiet():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
