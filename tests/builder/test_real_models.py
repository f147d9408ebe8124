"""Real networks and full-size generators become TensorRT-RTX plans in every precision, with the limit stated.

What the limits are: the error that conversion may have on the inputs given, relative to an output's range. Random
inputs and one-shot quantization are a hard case; the limits say what was asked for, not what is good.
"""

import warnings

import numpy as np
import pytest

import models
from models.packaged import magika_features, ppocr_input
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, Profile
from trtsparse.precision.feeds import random_feeds

pytestmark = pytest.mark.slow

# name -> fixed shapes, dynamic shapes
SHAPES = {
    "magika": ("bytes:4x2048", "bytes:1x2048:4x2048:16x2048"),
    "ppocr-det": ("x:1x3x192x320", "x:1x3x96x160:1x3x192x320:2x3x384x640"),
    "ppocr-rec": ("x:1x3x48x320", "x:1x3x48x160:1x3x48x320:4x3x48x640"),
    "bert-base": ("input_ids:1x32,token_type_ids:1x32", "input_ids:1x16:2x32:4x64,token_type_ids:1x16:2x32:4x64"),
    "resnext50": ("input:1x3x224x224", "input:1x3x224x224:2x3x224x224:8x3x224x224"),
}
LIMITS = {"fp32": None, "fp16": 0.1, "bf16": 0.5, "int8": 0.9}


@pytest.fixture(autouse=True)
def needs_rtx():
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("magika")
    pytest.importorskip("rapidocr")


def samples(name, path):
    if name == "magika":
        files = sorted((models.__path__[0] + "/" + leaf) for leaf in ("mlp.py", "llm.py", "vit.py", "bert.py"))
        return [{"bytes": magika_features(files)}]
    if name.startswith("ppocr"):
        return [{"x": ppocr_input(name.removeprefix("ppocr-"), seed=seed)} for seed in range(2)]
    shapes = {key: triple[1] for key, triple in Profile.parse(SHAPES[name][0]).shapes.items()}
    return random_feeds(path, shapes=shapes)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_real_network_builds_with_fixed_and_dynamic_shapes(name, precision):
    path = models.get(name)
    limit = LIMITS[precision]
    for text in SHAPES[name] if precision in ("fp32", "fp16") else SHAPES[name][:1]:
        config = BuildConfig(
            precision=precision,
            max_error=limit,
            sparsity="enable",
            profiles=(Profile.parse(text),),
            flavour="tensorrt_rtx",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dense weights: sparsity has nothing to do, as the report says
            engine = build(path, config, samples=samples(name, path))
        report = engine.report
        assert report.flavour == "tensorrt_rtx"
        assert report.precision.reached == precision
        assert len(report.sites) > 2
        if limit is None:
            assert report.precision.error is None
        else:
            assert report.precision.limit == limit
            assert np.isfinite(report.precision.error)
            assert report.precision.error <= limit
