"""What `SparsePruner` prunes and leaves alone, and what it says about it."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.torch.networks import BLOCKS, Block, Network
from trtsparse.errors import ConfigError, PruneError
from trtsparse.sparsity import pattern as reference
from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch import SparsePruner, prune_trained_model


def trained(model, **options):
    """Prune, train a little, and return the pruner."""
    pruner = SparsePruner(model, **options)
    pruner.attach(optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    for _ in range(3):
        model(torch.randn(2, 8)).square().sum().backward()
        optimizer.step()
    return pruner


def masked(model, **options):
    return list(SparsePruner(model, **options).masks)


GROUPED = "grouped convolution (group = 2): TensorRT never uses sparse kernels"


def test_everything_eligible_is_pruned_by_magnitude_and_nothing_else_changes():
    model = Network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pruner = SparsePruner(model)
    assert list(pruner.masks) == ["conv.weight", *BLOCKS, "head.weight"]
    for name, parameter in model.named_parameters():
        expected = before[name].numpy().copy()
        if name in pruner.masks:
            reference.prune_array(expected, axis=1)
            np.testing.assert_array_equal(pruner.masks[name].numpy(), expected != 0)
        np.testing.assert_array_equal(parameter.detach().numpy(), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["blocks.*"]}, BLOCKS),
        ({"include": ["blocks"]}, BLOCKS),
        ({"include": ["blocks.0"]}, BLOCKS[:2]),
        ({"include": ["*.first.weight", "head"]}, [BLOCKS[0], BLOCKS[2], "head.weight"]),
        ({"include": [nn.Conv2d]}, ["conv.weight"]),
        ({"exclude": [nn.Linear]}, ["conv.weight"]),
        ({"exclude": [Block]}, ["conv.weight", "head.weight"]),
        ({"exclude": ["head.weight", "conv", "blocks.1"]}, BLOCKS[:2]),
        ({"include": ["blocks"], "exclude": ["*second*"]}, [BLOCKS[0], BLOCKS[2]]),
    ],
)
def test_weights_are_chosen_by_globs_and_classes(options, expected):
    assert masked(Network(), **options) == expected


def test_weights_are_chosen_by_layers_themselves():
    model = Network()
    assert masked(model, include=[model.blocks, model.head], exclude=[model.blocks[0].second]) == [
        BLOCKS[0], *BLOCKS[2:], "head.weight",
    ]  # fmt: skip


def test_excluding_attention_excludes_its_projections():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert masked(model, exclude=[nn.MultiheadAttention]) == ["1.weight"]


def test_wrappers_are_looked_through():
    model = Network()
    assert masked(nn.DataParallel(torch.compile(model)), include=["head"]) == ["head.weight"]
    assert sorted(key for key in model.state_dict() if "mask" in key) == ["head.weight_sparsity_mask"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"exclude": ["haed"]},
            ConfigError,
            (
                "no weight or layer is meant by this\n  where: exclude\n  got: haed\n  expected: for example head\n"
                "  to fix: give names with the wildcards * and ?, layers of this model, or classes of its layers"
            ),
        ),
        (
            {"include": [nn.Conv3d]},
            ConfigError,
            (
                "no weight or layer is meant by this\n  where: include\n  got: Conv3d\n"
                "  expected: for example blocks.0.first, blocks.0.first.weight, blocks.0.second\n"
                "  to fix: give names with the wildcards * and ?, layers of this model, or classes of its layers"
            ),
        ),
        (
            {"include": [nn.Linear(4, 4)]},
            ConfigError,
            (
                "no weight or layer is meant by this\n  where: include\n  got: Linear\n"
                "  expected: for example blocks.0.first, blocks.0.first.weight, blocks.0.second\n"
                "  to fix: give names with the wildcards * and ?, layers of this model, or classes of its layers"
            ),
        ),
        (
            {"include": ["stem"]},
            PruneError,
            (
                "the weight cannot be pruned\n  where: 'stem.weight'\n  got: reduction of 3 is not a multiple of 4\n"
                "  to fix: leave it out of `include`"
            ),
        ),
        (
            {"include": ["ste*"]},
            PruneError,
            (
                "no weight of the model can be pruned\n  got: stem.weight: reduction of 3 is not a multiple of 4; "
                "conv.weight: not included; blocks.0.first.weight: not included; "
                "blocks.0.second.weight: not included; blocks.1.first.weight: not included"
            ),
        ),
        (
            {"missing_masks": "ignore"},
            ConfigError,
            "an argument is wrong\n  where: missing_masks\n  got: 'ignore'\n  expected: 'error' or 'recompute'",
        ),
        (
            {"pattern": "2:4"},
            ConfigError,
            (
                "an argument is wrong\n  where: pattern\n  got: '2:4'\n"
                "  expected: a trtsparse.Pattern, such as Pattern(2, 4)"
            ),
        ),
        (
            {"include": "head"},
            ConfigError,
            "one choice where a list belongs\n  where: include\n  got: 'head'\n  to fix: include=[...]",
        ),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_and_the_model_left_alone(options, error, message):
    model = Network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        SparsePruner(model, **options)
    assert str(caught.value) == message
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_weights_is_refused():
    with pytest.raises(PruneError) as caught:
        SparsePruner(nn.ReLU())
    assert str(caught.value) == "no weight of the model can be pruned\n  got: no weights"


@pytest.mark.parametrize("prune", [SparsePruner, lambda model: prune_trained_model(model, None)])
def test_what_is_no_module_is_refused(prune):
    with pytest.raises(ConfigError) as caught:
        prune("resnet50")
    assert str(caught.value) == (
        "an argument is wrong\n  where: model\n  got: 'resnet50'\n  expected: a torch.nn.Module"
    )


def test_tied_weights_are_pruned_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Embedding(8, 8))
    model[1].weight = model[2].weight = model[0].weight
    pruner = prune_trained_model(model, optimizer := torch.optim.Adam(model.parameters(), 0.1))
    assert list(pruner.masks) == ["0.weight"]
    state = pruner.sparse_state()
    assert [(w.name, w.tied, w.zeros) for w in state.weights] == [("0.weight", ("1.weight", "2.weight"), 32)]
    for _ in range(3):
        model[1](model[0](torch.randn(2, 8))).square().sum().backward()
        optimizer.step()
    assert model[1].weight is model[0].weight
    assert pruner.sparse_state().compliant


def test_a_tied_weight_is_masked_where_it_is_eligible_first_seen_or_not():
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12, bias=False))
    model[1].weight = model[0].weight
    assert masked(model) == ["1.weight"]
    with pytest.raises(PruneError):
        masked(nn.Sequential(nn.Embedding(12, 8)))
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12, bias=False), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    pruner = SparsePruner(model, exclude=[nn.Embedding])
    assert [w.reason for w in pruner.sparse_state().weights] == ["excluded as 0.weight", ""]


class Transposed(nn.Module):
    """Multiplies by the transpose."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight


def test_a_weight_tied_along_different_axes_is_refused():
    first = nn.Linear(8, 8)
    model = nn.Sequential(first, Transposed(first.weight), nn.Linear(8, 4))
    layers = {Transposed: {"weight": 0}}
    with pytest.raises(PruneError) as caught:
        SparsePruner(model, layers=layers)
    assert str(caught.value) == (
        "tied weights are used along different axes\n  where: '0.weight', '1.weight'\n"
        "  got: axis 1 in Linear, axis 0 in Transposed\n  to fix: exclude it: exclude=['0.weight']"
    )
    assert masked(model, layers=layers, exclude=["0.weight"]) == ["2.weight"]
    assert list(model[0].state_dict()) == ["weight", "bias"]


def test_a_layer_of_ones_own_is_pruned_along_its_axis():
    model = Transposed(nn.Parameter(torch.randn(8, 3)))
    pruner = trained(model, layers={Transposed: {"weight": 0}})
    assert (pruner.masks["weight"].sum(dim=0) == 4).all()
    assert pruner.sparse_state().compliant


@pytest.mark.parametrize("pattern", [Pattern(1, 2), Pattern(1, 4), Pattern(2, 8)])
def test_other_patterns_hold_too(pattern):
    pruner = trained(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), pattern=pattern)
    assert pruner.sparse_state().compliant
    assert all(w.zeros == w.parameters * (1 - pattern.n / pattern.m) for w in pruner.sparse_state().weights)


def test_transposable_masks_hold_along_both_axes():
    pruner = trained(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 4)), transposable=True)
    first, second, third = pruner.sparse_state().weights
    assert (first.axes, first.compliant, first.zeros) == ((1, 0), True, 48)
    assert second.reason == "6 outputs are not a multiple of 4: no transposable mask"
    assert third.reason == "reduction of 6 is not a multiple of 4"
    weight = pruner.model[0].weight.detach().numpy()
    assert reference.is_compliant(weight, axis=0)
    assert reference.is_compliant(weight, axis=1)


def test_the_state_tells_eligible_masked_and_compliant_apart():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(6, 4), nn.Conv2d(8, 8, 1, groups=2))
    with torch.no_grad():
        model[1].weight[:, 1::2] = 0
    state = SparsePruner(model, exclude=["1"]).sparse_state()
    assert [(w.name, w.eligible, w.masked, w.compliant, w.zeros, w.parameters, w.reason) for w in state.weights] == [
        ("0.weight", True, True, True, 32, 64, ""),
        ("1.weight", True, False, True, 16, 32, "excluded"),
        ("2.weight", False, False, None, 0, 24, "reduction of 6 is not a multiple of 4"),
        ("3.weight", False, False, False, 0, 32, GROUPED),
    ]
    assert state.compliant
    assert str(state).splitlines() == [
        "weight    layer   shape    zeros  eligible  compliant  reason",
        "0.weight  Linear  8x8      50.0%  True      True",
        "1.weight  Linear  4x8      50.0%  True      True       excluded",
        "2.weight  Linear  4x6      0.0%   False                reduction of 6 is not a multiple of 4",
        f"3.weight  Conv2d  8x4x1x1  0.0%   False     False      {GROUPED}",
    ]
    document = json.loads(json.dumps(state.to_dict()))
    assert document["schema"] == "trtsparse.torch-state/1"
    assert document["compliant"] is True
    assert document["weights"][0] == {
        "name": "0.weight", "tied": [], "kind": "Linear", "shape": [8, 8], "axes": [1], "dtype": "float32",
        "parameters": 64, "zeros": 32, "eligible": True, "masked": True, "compliant": True, "reason": "",
    }  # fmt: skip


def test_a_weight_that_other_code_changed_is_reported_and_mended_by_apply():
    model = Network()
    pruner = SparsePruner(model)
    nn.init.ones_(model.head.weight)
    assert not pruner.sparse_state().compliant
    pruner.apply()
    assert pruner.sparse_state().compliant
    assert model.head.weight.sum() == model.head.weight.numel() / 2


def test_a_lazy_layer_is_reported_without_values():
    state = SparsePruner(nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(4))).sparse_state()
    assert (state.weights[1].parameters, state.weights[1].compliant) == (0, None)
    assert state.weights[1].reason == "no values yet: run the model once first"
