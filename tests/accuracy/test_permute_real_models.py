"""Channel permutation on trained and generated networks: nothing changes but what pruning keeps."""

import numpy as np
import pytest

from models import get
from models.packaged import magika_features, magika_model, ppocr_det_model, ppocr_input, ppocr_rec_model
from tests.accuracy.permuting import assert_unchanged, layout_of
from tests.helpers import arrays
from trtsparse.accuracy.permute import permute
from trtsparse.precision.compare import compare_models
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate

SMALL = {
    "resnext50": {"width": 16, "groups": 2, "width_per_group": 16, "image_size": 32, "num_classes": 8},
    "bert-base": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "vocabulary": 50},
    "vit-base": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "image_size": 32, "num_classes": 8},
    "llm-block": {"blocks": 2, "hidden": 32, "intermediate": 64},
    "mlp": {"widths": (16, 32, 32, 8)},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def packaged(find):
    try:
        return find()
    except ImportError as error:
        pytest.skip(str(error))


def real_feeds(name):
    if name == "magika":
        return [{"bytes": magika_features([__file__])}]
    return [{"x": ppocr_input(name.removeprefix("ppocr-"), seed=seed)} for seed in range(2)]


TRAINED = {"magika": magika_model, "ppocr-det": ppocr_det_model, "ppocr-rec": ppocr_rec_model}


@pytest.mark.parametrize("name", SMALL)
def test_generated_networks_compute_the_same_with_all_channels_shuffled(name, folder):
    path = get(name, folder=folder, **SMALL[name])
    assert assert_unchanged(path, tolerance=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_generated_networks_keep_more(name, folder):
    path = get(name, folder=folder, **SMALL[name])
    result = permute(path, time_limit_s=3)
    assert result.kept_before < result.kept_after <= result.kept_bound
    assert compare_models(path, result.model, feeds=random_feeds(path, seed=3)).error < 1e-4
    assert_groups_keep_at_least_as_much(path, result)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_compute_the_same_on_real_inputs(name):
    path = packaged(TRAINED[name])
    assert assert_unchanged(path, feeds=real_feeds(name), tolerance=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_keep_more(name, tmp_path):
    path = packaged(TRAINED[name])
    result = permute(path, output=tmp_path / "p.onnx", time_limit_s=4)
    assert result.kept_before + 0.002 < result.kept_after <= result.kept_bound
    assert result.error < 1e-3
    assert_groups_keep_at_least_as_much(path, result)
    assert compare_models(path, result.model, feeds=real_feeds(name)).error < 1e-3
    assert (tmp_path / "p.onnx").stat().st_size == path.stat().st_size


def assert_groups_keep_at_least_as_much(path, result):
    before, after = arrays(prune(path).model), arrays(prune(result.model).model)
    for group in result.groups:
        kept = [
            sum(float(np.abs(weights[name]).sum(dtype=np.float64)) for name in group.weights if name in weights)
            for weights in (before, after)
        ]
        assert kept[0] <= kept[1] * (1 + 1e-6), group.weights


@pytest.mark.parametrize("name", ["ppocr-det", "ppocr-rec"])
def test_all_eligible_weights_of_ppocr_are_covered_or_have_a_reason(name):
    path = packaged(TRAINED[name])
    layout = layout_of(path)
    covered = {piece.site.tensor for channels in layout.channels for piece in channels.pieces}
    named = {tensor for tensor, _ in layout.left_alone}
    eligible = {site.tensor for site in validate(path).sites if site.eligible}
    assert covered | named == eligible
    assert not covered & named
    assert len(covered) >= len(eligible) - 2


def test_residual_streams_of_resnext_are_one_group_each(folder):
    layout = layout_of(get("resnext50", folder=folder, **SMALL["resnext50"]))
    streams = [channels for channels in layout.channels if len(channels.pieces) > 2]
    assert [channels.axis.size for channels in streams] == [64, 128, 256, 512]
    grouped = [channels for channels in layout.channels if "conv3" in channels.pieces[0].site.tensor]
    assert len(grouped) == 2 * 13  # two groups in every block; those of the first stage have four channels only
