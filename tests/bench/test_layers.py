"""Times of layers over several executions."""

from hypothesis import given
from hypothesis import strategies as st

from trtsparse.bench.layers import collect, profile_runs
from trtsparse.bench.options import BenchOptions


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.integers(1, 5))
def test_every_layer_has_a_time_from_every_execution(names, runs):
    found = collect([tuple((name, run * 100.0 + place) for place, name in enumerate(names)) for run in range(runs)])
    assert sorted(layer.name for layer in found) == sorted(names)
    assert {len(layer.times_ms) for layer in found} == {runs}
    for layer in found:
        first = layer.times_ms[0]
        assert layer.times_ms == tuple(first + 100.0 * run for run in range(runs))
        assert names[int(first)] == layer.name


def test_layers_keep_the_order_of_the_engine():
    assert [layer.name for layer in collect([(("b", 1.0), ("a", 1.0))] * 2)] == ["b", "a"]


def test_no_more_executions_are_profiled_than_were_measured_nor_over_a_thousand():
    assert profile_runs(BenchOptions(duration_s=1.0), query_ms=2.0) == 500
    assert profile_runs(BenchOptions(duration_s=100.0), query_ms=0.01) == 1000
    assert profile_runs(BenchOptions(duration_s=0.0, iterations=7), query_ms=1.0) == 7
    assert profile_runs(BenchOptions(), query_ms=0.0) == 1000
