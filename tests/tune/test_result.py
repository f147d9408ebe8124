import json

import pytest
from hypothesis import given

from tests.tune import results
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import GemmResult


@given(results.results)
def test_a_result_survives_json(result):
    assert GemmResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_gain_is_the_median_of_the_rounds():
    result = GemmResult(Gemm(8, 8, 8), gains=(1.0, 9.0, 1.2))
    assert result.gain == 1.2
    assert result.to_dict()["gain"] == 1.2
    assert GemmResult(Gemm(8, 8, 8)).gain is None


@pytest.mark.parametrize(
    ("dense", "sparse", "kind"),
    [(2.0, 1.0, "sparse"), (1.0, 2.0, "dense"), (1.0, None, "dense"), (None, 1.0, "sparse")],
)
def test_the_choice_is_the_faster_kernel(dense, sparse, kind):
    assert results.result(Gemm(8, 8, 8), dense, sparse).choice.kind == kind


def test_without_kernels_there_is_no_choice():
    assert GemmResult(Gemm(8, 8, 8)).choice is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields.pop("gemm"),
        lambda fields: fields.update(dense=[]),
        lambda fields: fields.update(dense={**fields["dense"], "ms": "soon"}),
        lambda fields: fields.update(gains=["x"]),
        lambda fields: fields.update(gemm={**fields["gemm"], "dtype": "fp64"}),
        lambda fields: fields.update(skipped=[1]),
    ],
)
def test_what_is_no_result_is_refused(damage):
    fields = json.loads(json.dumps(results.result(Gemm(8, 8, 8)).to_dict()))
    damage(fields)
    with pytest.raises((KeyError, TypeError, ValueError)):
        GemmResult.from_dict(fields)
