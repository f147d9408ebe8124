"""Calibrated pruning of trained networks that come inside packages."""

import sys
from pathlib import Path

import pytest

from models.packaged import magika_features, magika_model, ppocr_input, ppocr_read, ppocr_rec_model, ppocr_text
from trtsparse.accuracy.prune import prune
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models
from trtsparse.precision.ort import runner
from trtsparse.sparsity.validate import validate


@pytest.fixture(scope="module")
def files():
    """Inputs of Magika, half to calibrate with and half to compare on."""
    folder = Path(sys.modules["json"].__file__).parent.parent
    paths = sorted(path for path in folder.glob("*.py") if path.stat().st_size > 100)[:32]
    return [{"bytes": magika_features(paths[i : i + 4])} for i in range(0, 32, 4)]


@pytest.mark.slow
def test_sparsegpt_moves_magika_s_answers_less_than_magnitude(files):
    dense = OnnxModel.open(magika_model())
    calibrated = prune(dense, method="sparsegpt", calibration=files[:4])
    assert validate(calibrated.model).by_sites.compliant == 2
    assert all(layer.method == "sparsegpt" and layer.error < layer.magnitude_error for layer in calibrated.layers)
    moved = [compare_models(dense, model, feeds=files[4:]).error for model in (calibrated.model, prune(dense).model)]
    assert moved[0] < moved[1]


@pytest.mark.slow
def test_a_recogniser_that_magnitude_wrecks_still_reads_after_sparsegpt():
    """With 13 of its 51 layers pruned, to save time; the benchmark prunes all."""
    data = [{"x": ppocr_input("rec", seed=100 + seed)} for seed in range(8)]
    dense = OnnxModel.open(ppocr_rec_model())
    layers = ["Conv.2?", "Conv.3?"]
    models = {
        "dense": dense,
        "magnitude": prune(dense, include=layers).model,
        "sparsegpt": prune(dense, method="sparsegpt", calibration=data, include=layers).model,
    }
    right = {}
    for name, model in models.items():
        run = runner(model)
        texts = [ppocr_read(run({"x": ppocr_input("rec", seed=seed)})["fetch_name_0"])[0] for seed in range(8)]
        right[name] = sum(text == ppocr_text(seed) for seed, text in enumerate(texts))
    assert right["sparsegpt"] >= right["dense"] - 1
    assert right["magnitude"] <= right["dense"] // 2
