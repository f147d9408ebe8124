import json
import warnings

import pytest

import models
from tests.helpers import matmul, random
from tests.tune.scripted import FACTS, command
from trtsparse.errors import ConfigError, DeviceError
from trtsparse.files.model import OnnxModel
from trtsparse.tune.cache import Cache, CacheWarning
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Options, Tuner
from trtsparse.tune.tune import tune

GOOD = {"dense 0": 3.0, "dense 1": 2.0, "sparse config 0": 1.0}
GEMM = Gemm(64, 64, 256)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "tune.json")


def tuner(script=None):
    return Tuner(Options(rounds=3, timeout_s=20), command=command(script or GOOD))


def tuned(work, cache, script=None, **options):
    with tuner(script) as made:
        return tune(work, cache=cache, tuner=made, **options)


def test_each_product_is_tuned_once(cache):
    result = tuned([GEMM, Gemm(8, 64, 256), GEMM], cache)
    assert [row.gemm for row in result.rows] == [GEMM, Gemm(8, 64, 256)]
    assert result.facts == FACTS
    assert (result.cached, result.missing, result.sites, result.model, result.totals) == (0, (), (), "", None)
    assert result.find(GEMM).gain == pytest.approx(2.0)
    assert result.find(Gemm(9, 9, 9)) is None


def test_the_kernel_to_run_is_sparse_only_for_a_compliant_weight(cache):
    result = tuned([GEMM], cache)
    assert result.kernel(GEMM, compliant=True).kind == "sparse"
    assert result.kernel(GEMM, compliant=False).kind == "dense"
    assert result.kernel(Gemm(9, 9, 9), compliant=True) is None


def test_a_model_gives_a_row_a_product_and_a_total_of_its_sites(cache):
    path = models.get("bert-base", layers=2, hidden=64, heads=2, intermediate=128, vocabulary=50)
    result = tuned(path, cache, shapes={"input_ids": (2, 16), "token_type_ids": (2, 16)}, dtype="bf16")
    assert len(result.sites) == 12
    assert {row.gemm for row in result.rows} == {Gemm(32, 64, 64), Gemm(32, 128, 64), Gemm(32, 64, 128)}
    assert result.totals == pytest.approx((12 * 2.02, 12 * 1.01))
    assert result.model == str(path)


def test_a_result_is_one_json_document(cache):
    document = tuned(OnnxModel.open(matmul(random(8, 16))), cache).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["schema"] == "trtsparse.tune/1"
    assert document["sites"] == [
        {
            "node": "matmul",
            "op": "MatMul",
            "tensor": "w",
            "m": 2,
            "n": 16,
            "k": 8,
            "dtype": "fp16",
            "count": 1,
            "exact": True,
        }
    ]
    assert document["totals"] == {"dense_ms": 2.02, "best_ms": 1.01}
    assert [row["gain"] for row in document["rows"]] == [pytest.approx(2.0)]


def test_what_is_known_is_not_measured_again(cache):
    first = tuned([GEMM], cache)
    again = tuned([GEMM, Gemm(8, 64, 256)], cache, {"dense 0": 9.0})
    assert again.find(GEMM) == first.find(GEMM)
    assert again.find(Gemm(8, 64, 256)).dense.ms == pytest.approx(9.09)
    assert again.cached == 1


def test_fresh_measures_again_and_replaces_what_was_known(cache):
    tuned([GEMM], cache)
    assert tuned([GEMM], cache, {"dense 0": 9.0}, fresh=True).cached == 0
    assert cache.load(FACTS).results[GEMM].dense.ms == pytest.approx(9.09)


def test_a_killer_is_remembered_by_the_next_run(cache):
    script = {**GOOD, "sparse config 1": "crash", "sparse config 0 stream_k": "refuse"}
    assert tuned([GEMM], cache, script).rows[0].restarts == 1
    second = tuned([Gemm(8, 64, 256)], cache, script).rows[0]
    assert (second.restarts, dict(second.refused)) == (0, {})
    assert second.skipped == (("sparse config 1", "killed by SIGKILL (with 64x64x256 bf16->bf16)"),)


def test_fresh_tries_again_what_failed(cache):
    tuned([GEMM], cache, {**GOOD, "sparse config 1": "crash"})
    (row,) = tuned([GEMM], cache, {**GOOD, "sparse config 1": 0.5}, fresh=True).rows
    assert (row.sparse.name, row.skipped) == ("config 1", ())
    assert cache.load(FACTS).lessons["bf16->bf16"].killers == {}


def test_a_crash_with_one_product_is_no_reason_to_lose_the_others(cache):
    with tuner({**GOOD, "sparse config 1": "crash", "sparse config 2": "hang"}) as made:
        made.options = Options(rounds=3, timeout_s=3)
        result = tune([GEMM, Gemm(8, 64, 256), Gemm(16, 64, 256)], cache=cache, tuner=made)
    assert [row.restarts for row in result.rows] == [2, 0, 0]
    assert all(row.sparse.name == "config 0" for row in result.rows)


def test_products_for_which_there_is_no_time_are_named(cache):
    result = tuned([GEMM, Gemm(8, 64, 256)], cache, limit_s=-1.0)
    assert (result.rows, result.missing) == ((), (GEMM, Gemm(8, 64, 256)))
    assert result.to_dict()["missing"][0] == GEMM.to_dict()


def test_what_could_not_be_opened_is_told_and_tried_again_the_next_time(cache):
    (row,) = tuned([GEMM], cache, {**GOOD, "open": "raise"}).rows
    assert row.facts == {"failed": "not now"}
    assert tuned([GEMM], cache).cached == 0


def test_progress_counts_products(cache):
    seen = []
    tuned([GEMM, Gemm(8, 64, 256)], cache, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_cache_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning) as told:
        result = tuned([GEMM, Gemm(8, 64, 256)], Cache(tmp_path / "file" / "tune.json"))
    assert len(result.rows) == 2
    (warning,) = told
    assert str(warning.message).startswith("results of tuning are not kept: cannot make the cache folder\n")


def test_without_a_gpu_that_is_said(cache):
    with pytest.raises(DeviceError):
        tuned([GEMM], cache, {"unavailable": "device"})


def test_a_model_without_eligible_weights_needs_no_gpu(cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tuned(OnnxModel.open(matmul(random(6, 16))), cache, {"unavailable": "device"})
    assert (result.rows, result.sites, result.facts) == ((), (), {})


def test_shapes_that_are_missing_are_asked_for_before_anything_runs(cache):
    with pytest.raises(ConfigError, match="the size of a product depends on shapes that are not known"):
        tuned(OnnxModel.open(matmul(random(8, 16), rows="rows")), cache, {"unavailable": "device"})
