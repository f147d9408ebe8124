"""How long masks hold: while training, recomputing, converting and copying, until they are finalized or removed."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.torch.networks import BLOCKS, Network, steps
from trtsparse.errors import ConfigError, PruneError
from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch import SparsePruner, prune_trained_model
from trtsparse.torch.masked import masked_weights


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
