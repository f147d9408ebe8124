import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.tune.bounds import amdahl, totals
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.gpus import GPUS
from trtsparse.tune.rest import Rest, Work
from trtsparse.tune.rows import SiteRow

H100 = GPUS["h100"]
NOTHING = Rest(Work(), Work())


def row(dense_ms=1.0, gain=1.5, *, compliant=True, chosen="unknown", spread=0.0, bodies=()):
    return SiteRow(
        "n", "MatMul", "w", (8, 8), compliant, eligible=True, chosen=chosen, gemm=Gemm(8, 8, 8), dense_ms=dense_ms,
        sparse_ms=dense_ms / gain, low=gain * (1 - spread), high=gain * (1 + spread),
        bodies=bodies,
    )  # fmt: skip


def total(rows, rest=NOTHING, peaks=H100, total_ms=None):
    return totals(rows, rest, peaks, dtype="fp16", total_ms=total_ms)


rows = st.lists(
    st.builds(
        row, st.floats(1e-4, 1e3), st.floats(0.3, 3), compliant=st.booleans(),
        chosen=st.sampled_from([True, False, "unknown", "decided at load"]), spread=st.floats(0, 0.3),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip
works = st.builds(Work, st.integers(0, 10**9), st.integers(0, 10**13), st.integers(0, 500))


@given(rows, works, works, st.none() | st.floats(0.1, 1e5), st.sampled_from([None, *GPUS.values()]))
def test_the_bounds_are_in_order_and_within_what_kernels_gain(found, fused, unfused, total_ms, gpu):
    result = total(found, Rest(fused, unfused), gpu, total_ms)
    best = max(one.high for one in found)
    for gain in (result.now, result.pruned):
        assert gain.lower <= gain.expected * (1 + 1e-12)
        assert gain.expected <= gain.upper * (1 + 1e-12)
        assert gain.upper <= max(best, 1.0) * (1 + 1e-9)
        assert gain.expected >= 1
    assert result.now.expected <= result.pruned.expected
    assert 0 < result.share <= 1
    assert result.pruned_ms <= result.now_ms <= result.dense_ms * (1 + 1e-12)


@given(rows, st.floats(1.0, 50.0))
def test_a_measured_total_is_amdahls_law(found, factor):
    dense = sum(one.dense_ms for one in found)
    result = total(found, total_ms=dense * factor)
    saved = dense - result.pruned_ms
    assert result.pruned.expected == pytest.approx(dense * factor / (dense * factor - saved))
    assert result.share == pytest.approx(1 / factor)


def test_only_what_is_compliant_and_not_chosen_dense_counts_now():
    found = total([row(), row(compliant=False), row(compliant=None), row(chosen=False), row(chosen=True)])
    assert found.dense_ms == 5.0
    assert found.now_ms == pytest.approx(5 - 2 / 3)
    assert found.pruned_ms == pytest.approx(5 - 5 / 3)
    assert found.now.expected == pytest.approx(5 / (5 - 2 / 3))


def test_sparse_kernels_that_are_slower_are_not_used():
    assert total([row(gain=0.5), row(gain=1.01)]).pruned.expected == 1.0


def test_of_a_branching_the_branch_that_takes_longer_counts():
    found = [
        row(1.0), row(2.0, bodies=("If_1.0",)), row(3.0, bodies=("If_1.0",)), row(4.0, bodies=("If_1.1",)),
        row(8.0, bodies=("Loop_2.0",)), row(16.0, bodies=("Loop_2.0", "If_1.0")),
        row(32.0, bodies=("Loop_2.0", "If_1.1")),
    ]  # fmt: skip
    assert total(found).dense_ms == 1 + (2 + 3) + (8 + 32)
    assert total(found).now.expected == pytest.approx(1.5)


def test_a_branch_without_sparse_kernels_that_takes_longer_gains_nothing():
    found = [row(1.0, gain=2.0, bodies=("If_0.0",)), row(2.0, compliant=False, bodies=("If_0.1",))]
    assert (total(found).dense_ms, total(found).now_ms) == (2.0, 2.0)


def test_the_rest_lowers_the_gain_and_bounds_it():
    rest = Rest(Work(elements=10**8), Work(elements=10**9))
    found = total([row(dense_ms=1.0, gain=2.0)], rest)
    alone = total([row(dense_ms=1.0, gain=2.0)])
    assert found.rest_ms == pytest.approx(2e8 / (3350e6 * 0.8))
    assert found.rest_most_ms == pytest.approx(10 * found.rest_ms)
    assert found.now.lower < found.now.expected < found.now.upper == alone.now.expected == 2.0


def test_without_peaks_the_rest_may_be_as_much_again():
    found = total([row(gain=2.0)], peaks=None)
    assert (found.rest_ms, found.now.upper, found.now.expected) == (None, 2.0, 2.0)
    assert found.now.lower == pytest.approx(2 / 1.5)


def test_a_total_that_is_shorter_than_its_parts_is_taken_as_these():
    assert total([row(gain=2.0)], total_ms=0.1).now.expected == 2.0


def test_without_times_there_are_no_totals():
    assert total([SiteRow("n", "Conv", "w", (8,), compliant=True, eligible=True)]) is None
    assert total([]) is None


@given(st.floats(1e-3, 1e6), st.floats(0, 1))
def test_amdahl_is_finite(whole, share):
    assert 1 <= amdahl(whole, whole * share) <= 100.0001
