"""The JSON files, in the shapes of trtexec's own."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trtsparse.bench.records import LayerTime, Query
from trtsparse.trtexec.exports import outputs_json, profile_json, times_json

# keys of NVIDIA/TensorRT, samples/common/sampleReporting.cpp (exportJSONTrace), the same in 8.6, 10 and 11
TIMES = [
    "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
    "h2dMs", "computeMs", "d2hMs", "latencyMs",
]  # fmt: skip

milliseconds = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(st.lists(milliseconds, min_size=8, max_size=8), max_size=5))
def test_times_have_trtexecs_keys_and_the_measured_values(rows):
    queries = [Query(*sorted(row)) for row in rows]
    found = json.loads(times_json(queries))
    assert [list(record) for record in found] == [TIMES] * len(queries)
    for record, query in zip(found, queries, strict=True):
        assert record["startEnqMs"] == pytest.approx(query.start_enqueue_ms, abs=1e-6)
        assert record["endD2hMs"] == pytest.approx(query.end_d2h_ms, abs=1e-6)
        assert record["latencyMs"] == pytest.approx(query.latency_ms, abs=1e-6)


def test_times_are_laid_out_one_query_a_line():
    text = times_json([Query(0, 0.5, 0, 1, 1, 3, 3, 4), Query(4, 4.5, 4, 5, 5, 7, 7, 8)])
    head, first, second, tail = text.splitlines()
    assert (head, tail) == ("[", "]")
    assert first.startswith('  { "startEnqMs" : 0, "endEnqMs" : 0.5, ')
    assert second.startswith(', { "startEnqMs" : 4, ')
    assert second.endswith('"h2dMs" : 1, "computeMs" : 2, "d2hMs" : 1, "latencyMs" : 4 }')


def test_times_of_the_cpu_lack_what_was_not_measured():
    (found,) = json.loads(times_json([Query(1, 1, 1, 1, 1, 3, 3, 3)], place="cpu"))
    assert found == {"startComputeMs": 1, "endComputeMs": 3, "computeMs": 2, "latencyMs": 2}


def test_a_profile_counts_and_adds_up():
    layers = [LayerTime("a", (1.0, 2.0, 6.0)), LayerTime('b "x"\n', (1.0, 1.0, 1.0))]
    head, *rows = json.loads(profile_json(layers, count=3))
    assert head == {"count": 3}
    assert rows[0] == {"name": "a", "timeMs": 9.0, "averageMs": 3.0, "medianMs": 2.0, "percentage": 75.0}
    assert rows[1]["name"] == 'b "x"\n'
    assert [list(row) for row in rows] == [["name", "timeMs", "averageMs", "medianMs", "percentage"]] * 2


def test_a_profile_of_layers_that_took_no_time_has_no_percentages_of_nothing():
    assert json.loads(profile_json([LayerTime("a", (0.0,))], count=1))[1]["percentage"] == 0.0


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_,
     ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
)  # fmt: skip
@given(data=st.data())
def test_outputs_read_back_are_the_values_that_were_computed(dtype, data):
    dtype = np.dtype(dtype)
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if dtype.kind in "fiub":
        array = data.draw(arrays.arrays(dtype, shape))
    else:
        array = data.draw(arrays.arrays(np.uint8, shape)).astype(np.uint8).view(np.uint8).astype(dtype)
    (found,) = json.loads(outputs_json({"y": array}))
    assert found["dimensions"] == "x".join(map(str, shape))
    back = np.array(found["values"], np.float64 if dtype.kind not in "iub" else dtype).astype(dtype).reshape(shape)
    finite = array.astype(np.float64) if dtype.kind not in "iub" else array
    assert np.array_equal(back.astype(finite.dtype), finite, equal_nan=dtype.kind not in "iub")


def test_outputs_have_trtexecs_layout():
    assert outputs_json({"a": np.array([[1.5, -2]], np.float32), "b": np.array(7)}) == (
        "[\n"
        '  { "name" : "a"\n'
        '  , "dimensions" : "1x2"\n'
        '  , "values" : [ 1.5, -2 ]\n'
        "  }\n"
        ', { "name" : "b"\n'
        '  , "dimensions" : ""\n'
        '  , "values" : [ 7 ]\n'
        "  }\n"
        "]\n"
    )


def test_values_that_are_not_finite_can_be_read_back():
    (found,) = json.loads(outputs_json({"y": np.array([np.nan, np.inf, -np.inf, 1], np.float16)}))
    assert math.isnan(found["values"][0])
    assert found["values"][1:] == [math.inf, -math.inf, 1]


def test_texts_are_json_strings():
    (found,) = json.loads(outputs_json({"y": np.array(["a", 'b"'], object)}))
    assert found["values"] == ["a", 'b"']


def test_nothing_is_an_empty_list():
    assert json.loads(times_json([])) == json.loads(outputs_json({})) == []
