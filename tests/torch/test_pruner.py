"""What `SparsePruner` prunes and leaves alone, what it says about it, and how it ends."""

import copy
import gc
import json
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trtsparse.errors import ConfigError, PruneError
from trtsparse.sparsity import pattern as reference
from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch import SparsePruner, prune_trained_model
from trtsparse.torch.masked import masked_weights


class Block(nn.Module):
    """Two layers and a sum."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Network(nn.Module):
    """A convolution, two blocks and a head."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.conv = nn.Conv2d(width, width, 3)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.blocks(self.conv(self.stem(x).relu()).mean((2, 3))))


def steps(model, optimizer, count=3, **to):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, **to)).square().sum().backward()
        optimizer.step()


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
BLOCKS = [f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("first", "second")]


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
    pruner = trained(
        nn.Linear(16, 8)[:1] if False else nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), pattern=pattern
    )
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


def test_recomputing_chooses_among_kept_weights_only():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 3, 2, 1]])
    pruner = SparsePruner(model)
    with torch.no_grad():
        model.weight[0, 0] = 0.5
    pruner.recompute()
    assert model.weight.tolist() == [[0.5, 3, 0, 0]]


def test_pruned_values_that_were_kept_may_win_when_masks_are_recomputed():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 3, 2, 1]])
    pruner = SparsePruner(model, keep_pruned=True)
    assert model.weight.tolist() == [[4, 3, 0, 0]]
    with torch.no_grad():
        model.weight[0, 0] = 0.5
    pruner.recompute()
    assert model.weight.tolist() == [[0, 3, 2, 0]]
    assert pruner.masks["weight"].tolist() == [[False, True, True, False]]
    pruner.remove()
    assert model.weight.tolist() == [[0.5, 3, 2, 1]]
    assert list(model.state_dict()) == ["weight"]


def test_a_recomputed_mask_is_held_by_optimizers_that_were_attached():
    model = Network()
    pruner = prune_trained_model(model, optimizer := torch.optim.Adam(model.parameters(), 0.1))
    steps(model, optimizer)
    nn.init.normal_(model.head.weight)
    pruner.recompute()
    mask = pruner.masks["head.weight"].clone()
    steps(model, optimizer)
    assert torch.equal(model.head.weight != 0, mask)


def test_finalize_leaves_a_plain_sparse_model():
    model = Network()
    names, types = list(model.state_dict()), {type(module) for module in model.modules()}
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    steps(model, optimizer)
    state = pruner.finalize()
    assert state.compliant
    assert not any(weight.masked for weight in state.weights)
    assert list(model.state_dict()) == names
    assert {type(module) for module in model.modules()} == types
    assert not list(masked_weights(model))
    assert not any(vars(module)["_load_state_dict_pre_hooks"] for module in model.modules())
    steps(model, optimizer)  # dense training again
    assert not pruner.sparse_state().compliant
    pruner.finalize()
    pruner.remove()
    with pytest.raises(ConfigError) as caught:
        pruner.attach(optimizer)
    assert str(caught.value) == (
        "the pruner has no masks any more\n  to fix: make another SparsePruner for the model"
    )


def test_remove_without_kept_values_leaves_weights_as_they_are():
    model = Network()
    pruner = SparsePruner(model)
    pruner.remove()
    assert pruner.sparse_state().compliant
    assert not any("mask" in key for key in model.state_dict())
    assert list(SparsePruner(model, pattern=Pattern(1, 4)).masks) == ["conv.weight", *BLOCKS, "head.weight"]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_weight_stays_masked_whatever_its_parts_do(kind):
    model = nn.Sequential(nn.Linear(8, 8), getattr(parametrizations, kind)(nn.Linear(8, 8)))
    pruner = prune_trained_model(model, optimizer := torch.optim.Adam(model.parameters(), 0.05))
    assert list(pruner.masks) == ["0.weight", "1.weight"]
    mask = pruner.masks["1.weight"].clone()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        assert torch.equal(model[1].weight != 0, mask)
    assert torch.equal(pruner.masks["1.weight"], mask)
    pruner.recompute()
    assert (pruner.masks["1.weight"].sum(dim=1) == 4).all()
    expected = model.eval()(x := torch.randn(2, 8))  # spectral_norm improves its estimate while training
    pruner.finalize()
    assert type(model[1]) is nn.Linear
    assert isinstance(model[1].weight, nn.Parameter)
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.bias", "1.weight"]


def test_removing_the_mask_of_a_parametrised_weight_leaves_its_parametrization():
    model = parametrizations.weight_norm(nn.Linear(8, 8))
    before = model.weight.detach().clone()
    pruner = SparsePruner(model)
    assert not torch.equal(model.weight, before)
    pruner.remove()
    assert torch.equal(model.weight, before)
    assert len(model.parametrizations.weight) == 1


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_older_weight_norm_is_sparse_in_its_direction():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    model(torch.randn(4, 8))
    assert torch.equal(model[0].weight != 0, pruner.masks["0.weight_v"])


def test_attention_keeps_its_masks_with_packed_and_separate_projections():
    for options in ({}, {"kdim": 12, "vdim": 16}):
        attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        pruner = prune_trained_model(attention, optimizer := torch.optim.AdamW(attention.parameters(), 0.05))
        query = torch.randn(2, 3, 8)
        key, value = torch.randn(2, 3, options.get("kdim", 8)), torch.randn(2, 3, options.get("vdim", 8))
        for _ in range(3):
            attention(query, key, value)[0].square().sum().backward()
            optimizer.step()
        state = pruner.sparse_state()
        assert state.compliant
        assert all(w.zeros * 2 == w.parameters for w in state.weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_pruned_and_held(dtype):
    model = Network().to(dtype)
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9))
    steps(model, optimizer, dtype=dtype)
    assert pruner.sparse_state().compliant
    assert {weight.dtype for weight in pruner.sparse_state().weights} == {str(dtype).removeprefix("torch.")}


def test_masks_follow_a_change_of_type():
    model = Network()
    pruner = SparsePruner(model)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    model.to(torch.bfloat16)
    assert all(mask.dtype == torch.bool and torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    assert pruner.sparse_state().compliant


def test_a_frozen_weight_is_pruned_and_stays():
    model = Network()
    model.head.requires_grad_(requires_grad=False)
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1))
    steps(model, optimizer)
    assert pruner.sparse_state().compliant


def test_a_copy_of_a_pruned_model_has_masks_of_its_own():
    model = Network()
    SparsePruner(model)
    copied = copy.deepcopy(model)
    pruner = prune_trained_model(copied, optimizer := torch.optim.SGD(copied.parameters(), 0.1, momentum=0.9))
    for name, mask in pruner.masks.items():
        assert mask.data_ptr() != SparsePruner(model).masks[name].data_ptr()
    steps(copied, optimizer)
    assert pruner.sparse_state().compliant
    pruner.finalize()
    copied.load_state_dict(Network().state_dict())
    with pytest.raises(PruneError, match="without its mask"):
        model.load_state_dict(Network().state_dict())
    assert SparsePruner(model).sparse_state().compliant
    assert [w.masked for w in SparsePruner(model).sparse_state().weights] == [False] + [True] * 6


def test_a_copy_of_a_parametrised_model_can_be_finalized_alone():
    model = parametrizations.weight_norm(nn.Linear(8, 8))
    SparsePruner(model)
    copied = copy.deepcopy(model)
    SparsePruner(copied).finalize()
    assert torch.equal(copied.weight, model.weight)
    assert type(copied) is nn.Linear
    assert len(model.parametrizations.weight) == 2


def test_an_averaged_model_stays_compliant():
    model = Network()
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    for _ in range(3):
        steps(model, optimizer, 1)
        averaged.update_parameters(model)
    state = SparsePruner(averaged.module).sparse_state()
    assert state.compliant
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in SparsePruner(averaged.module).masks.items())


def test_a_second_pruner_keeps_the_masks_that_a_model_has():
    model = Network()
    first = prune_trained_model(model, torch.optim.SGD(model.parameters()))
    masks = {name: mask.clone() for name, mask in first.masks.items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    second = prune_trained_model(model, optimizer)
    steps(model, optimizer)
    assert all(torch.equal(mask, masks[name]) for name, mask in second.masks.items())
    assert second.sparse_state().compliant
    nn.init.ones_(model.head.weight)
    third = SparsePruner(model, keep_pruned=True, missing_masks="recompute")
    assert third.sparse_state().compliant
    model.load_state_dict(Network().state_dict())
    assert third.sparse_state().compliant
    third.remove()
    assert model.head.weight.all()
    prune_trained_model(model, optimizer)
    with pytest.raises(PruneError) as caught:
        SparsePruner(model, pattern=Pattern(1, 4))
    assert str(caught.value) == (
        "the weight already has a mask\n  where: 'conv.weight'\n  got: 2:4 along axes (1,)\n"
        "  expected: 1:4 along axes (1,)\n  to fix: call remove() of the pruner that made it"
    )


def test_a_pruner_that_is_not_kept_still_holds_and_leaves_nothing_behind():
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    prune_trained_model(model, optimizer)
    gc.collect()
    steps(model, optimizer)
    assert SparsePruner(model).sparse_state().compliant
    gone = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert gone() is None
