import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tune.results import result
from trtsparse.errors import ConfigError
from trtsparse.tune import shipped
from trtsparse.tune.gemm import Gemm

FACTS = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.1"}


def table(*results):
    return shipped.make("h100", "2026-01-02", FACTS, results)


def test_a_table_survives_its_file(tmp_path):
    made = table(result(Gemm(64, 8, 8)), result(Gemm(16, 8, 8)), result(Gemm(16, 8, 8, "int8")))
    shipped.write(tmp_path / "h100.json", made)
    read = shipped.load(tmp_path / "h100.json")
    assert read == made
    assert list(read.results) == sorted(made.results)
    assert json.loads((tmp_path / "h100.json").read_text())["schema"] == "trtsparse.tune-table/1"


def test_a_table_leaves_out_what_only_matters_to_who_tuned(tmp_path):
    long = result(Gemm(8, 8, 8), skipped=(("sparse config 3", "it crashed"),), refused={"no": 3}, restarts=2)
    shipped.write(tmp_path / "t.json", table(long, result(Gemm(9, 8, 8), sparse_ms=None)))
    (kept,) = shipped.load(tmp_path / "t.json").results.values()
    assert (kept.skipped, kept.refused, kept.restarts) == ((), {}, 0)
    assert (kept.gain, kept.dense, kept.sparse) == (long.gain, long.dense, long.sparse)


def test_a_result_says_where_it_was_measured():
    found = table(result(Gemm(16, 8, 8))).find(Gemm(16, 8, 8))
    assert found.source == "measured on NVIDIA H100 80GB HBM3"
    assert found.sparse.parameters


def test_an_epilogue_that_was_not_measured_counts_as_none():
    made = table(result(Gemm(16, 8, 8)), result(Gemm(16, 8, 8, epilogue="bias"), 5.0))
    assert made.find(Gemm(16, 8, 8, epilogue="bias")).dense.ms == 5.0
    assert made.find(Gemm(16, 8, 8, epilogue="relu")).dense.ms == 2.0


def test_rows_between_two_measured_numbers_are_interpolated():
    made = table(
        result(Gemm(16, 8, 8), 1.0, 1.0), result(Gemm(64, 8, 8), 4.0, 2.0), result(Gemm(256, 8, 8), 40.0, 20.0)
    )
    found = made.find(Gemm(32, 8, 8))
    assert (found.dense.ms, found.sparse.ms) == (pytest.approx(2.0), pytest.approx(2**0.5))
    assert found.gain == pytest.approx(2**0.5)
    assert found.source == "interpolated from 16 and 64 rows on NVIDIA H100 80GB HBM3"
    assert (found.dense.name, found.dense.parameters) == ("interpolated", {})


@pytest.mark.parametrize(
    "gemm",
    [
        Gemm(8, 8, 8), Gemm(512, 8, 8), Gemm(32, 16, 8), Gemm(32, 8, 16), Gemm(32, 8, 8, "fp16"),
        Gemm(32, 8, 8, "int8", "int32"),
    ],
)  # fmt: skip
def test_what_lies_outside_is_not_made_up(gemm):
    assert table(result(Gemm(16, 8, 8)), result(Gemm(64, 8, 8)), result(Gemm(16, 8, 8, "int8"))).find(gemm) is None


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(17, 4095))
def test_interpolated_times_lie_between_their_neighbours(fewer, more, rows):
    made = table(result(Gemm(16, 8, 8), fewer, fewer / 2), result(Gemm(4096, 8, 8), more, more / 1.5))
    found = made.find(Gemm(rows, 8, 8))
    slack = 1e-9
    assert min(fewer, more) * (1 - slack) <= found.dense.ms <= max(fewer, more) * (1 + slack)
    assert 1.5 * (1 - slack) <= found.gain <= 2.0 * (1 + slack)
    assert found.dense.low < found.dense.ms < found.dense.high


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"), ("Tesla T4", "t4"), ("Orin", "orin"),
    ],
)  # fmt: skip
def test_gpus_are_called_what_people_call_them(gpu, name):
    assert shipped.short_name(gpu) == name


def test_a_missing_table_is_told_with_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    shipped.write(tmp_path / "h100.json", table(result(Gemm(8, 8, 8))))
    assert shipped.names() == ("h100",)
    assert shipped.load("h100").name == "h100"
    with pytest.raises(ConfigError) as caught:
        shipped.load("h300")
    assert str(caught.value) == (
        "no such table of tuned kernels\n  where: h300\n  got: No such file or directory\n  expected: h100"
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "KeyError: 'schema'"),
        ('{"schema": "x"}', "ValueError: its schema is 'x'"),
        ("[]", "TypeError: list indices must be integers or slices, not str"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, what):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        shipped.load(path)
    assert str(caught.value) == f"not a table of tuned kernels\n  where: {path}\n  got: {what}"


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_tables_are_whole_and_right(name):
    made = shipped.load(name)
    assert made.name == name == shipped.short_name(made.facts["gpu"])
    assert {"gpu", "compute_capability", "driver", "cublaslt", "cusparselt"} == set(made.facts)
    for gemm, found in made.results.items():
        assert found.dense.error <= found.dense.bound, gemm.key
        assert found.sparse.error <= found.sparse.bound, gemm.key
        assert 0.2 < found.gain < 4, gemm.key
        assert len(bytes.fromhex(found.dense.parameters["data"])) == 64
