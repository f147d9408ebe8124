"""What a measurement found, and the same as plain data."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Clocks, Energy, LayerTime, Measurement, Query

MARKS = st.lists(st.floats(0, 1e5), min_size=8, max_size=8)


@given(MARKS)
def test_latency_is_copies_and_execution_without_the_waiting_between(marks):
    found = Query(*sorted(marks))
    assert found.latency_ms == found.h2d_ms + found.compute_ms + found.d2h_ms
    assert min(found.enqueue_ms, found.h2d_ms, found.compute_ms, found.d2h_ms) >= 0


def test_a_layer_knows_its_total_average_and_median():
    layer = LayerTime("conv", (1.0, 2.0, 6.0))
    assert (layer.total_ms, layer.average_ms, layer.median_ms) == (9.0, 3.0, 2.0)


@pytest.fixture
def measurement():
    return Measurement(
        engine="tensorrt",
        description="m.plan in TensorRT 10.13.3 on GPU 0",
        place="gpu",
        options=BenchOptions(percentiles=(50,)),
        queries=tuple(Query(i, i + 0.01, i, i + 0.1, i + 0.1, i + 0.9, i + 0.9, i + 1) for i in range(4)),
        warm_up_queries=7,
        warm_up_ms=201.5,
        wall_s=0.004,
        graphs=True,
        cuda="cuda-python",
        shapes={"x": (2, 3)},
        random=("x",),
        layers=(LayerTime("conv", (0.5, 0.7)),),
        profile_queries=2,
        energy=Energy(2.0, 0.5, 300.0, 2, "counter"),
        clocks=Clocks(1980, 1755, 1980, 61, ("power cap",)),
        outputs={"y": np.zeros((2, 4), np.float16)},
        notes=("be careful",),
    )


def test_everything_is_in_the_json(measurement):
    found = json.loads(json.dumps(measurement.to_dict()))
    assert found["schema"] == "trtsparse.bench/1"
    assert found["throughput_qps"] == 1000
    assert found["times"]["latency"]["median_ms"] == pytest.approx(1.0)
    assert found["times"]["compute"]["percentiles_ms"] == {"p50": pytest.approx(0.8)}
    assert found["layers"] == [
        {"name": "conv", "total_ms": pytest.approx(1.2), "average_ms": pytest.approx(0.6), "median_ms": 0.6}
    ]
    assert found["energy"] == {
        "joules": 2.0, "joules_per_query": 0.5, "mean_watts": 300.0, "samples": 2, "source": "counter"
    }  # fmt: skip
    assert found["clocks"]["slowed_by"] == ["power cap"]
    assert found["inputs"] == {"x": {"shape": [2, 3], "random": True}}
    assert found["outputs"] == {"y": {"shape": [2, 4], "dtype": "float16"}}
    assert (found["count"], found["warm_up_queries"], found["graphs"]) == (4, 7, True)
    assert (found["warnings"], found["notes"]) == ([], ["be careful"])
    assert found["options"]["percentiles"] == [50]
    assert "queries" not in found


def test_single_queries_are_in_the_json_when_asked_for(measurement):
    found = measurement.to_dict(queries=True)["queries"]
    assert [query["start_h2d_ms"] for query in found] == [0, 1, 2, 3]
    assert set(found[0]) == set(Query.__dataclass_fields__)
