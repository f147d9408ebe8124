"""Masks are saved and loaded with the model."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trtsparse.errors import PruneError
from trtsparse.torch import SparsePruner, prune_trained_model
from trtsparse.torch.masked import masked_weights


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), parametrizations.weight_norm(nn.Linear(16, 8)), nn.Linear(8, 4))


def saved(value):
    """The value after a way through a file, as ``torch.load`` gives it by default."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


def train(model, optimizer, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_resuming_from_a_checkpoint_goes_on_as_if_nothing_had_been():
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(5)
        model = network()
        prune_trained_model(model, optimizer := torch.optim.AdamW(model.parameters(), 0.05))
        train(model, optimizer, range(3))
        if interrupted:
            checkpoint = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            torch.manual_seed(6)  # other weights, other masks
            model = network()
            prune_trained_model(model, optimizer := torch.optim.AdamW(model.parameters(), 0.05))
            assert not same(model.state_dict(), checkpoint["model"])
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            assert same(model.state_dict(), checkpoint["model"])
        train(model, optimizer, range(3, 6))
        runs.append(model.state_dict())
    assert same(*runs)
    assert [key for key in runs[0] if "mask" in key] == [
        "0.weight_sparsity_mask", "2.parametrizations.weight.1.mask", "3.weight_sparsity_mask",
    ]  # fmt: skip


def test_masks_are_bool_and_load_without_pickled_classes():
    model = network()
    SparsePruner(model)
    state = saved(model.state_dict())
    assert {value.dtype for key, value in state.items() if "mask" in key} == {torch.bool}


def test_a_dense_checkpoint_is_refused_with_what_to_do():
    dense = network().state_dict()
    model = network()
    SparsePruner(model)
    for strict in (True, False):
        with pytest.raises(PruneError) as caught:
            model.load_state_dict(dense, strict=strict)
        assert str(caught.value) == (
            "the checkpoint has a pruned weight without its mask\n  where: 0.weight\n"
            "  expected: 0.weight_sparsity_mask\n"
            "  to fix: SparsePruner(..., missing_masks='recompute') chooses masks for the loaded weights"
        )


def test_a_dense_checkpoint_gets_masks_of_its_own_on_request():
    trained = network()
    dense = saved(trained.state_dict())
    expected = SparsePruner(trained).masks
    model = network()
    pruner = SparsePruner(model, missing_masks="recompute")
    assert not same(pruner.masks, expected)
    model.load_state_dict(dense)
    assert same(pruner.masks, expected)
    assert torch.equal(model[0].weight, trained[0].weight)
    assert torch.equal(model[2].weight, trained[2].weight)
    assert pruner.sparse_state().compliant
    model.load_state_dict(trained.state_dict())  # with masks: nothing to choose
    assert same(pruner.masks, expected)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_replaces_masks_in_place_or_by_assignment(assign):
    source = network()
    SparsePruner(source)
    model = network()
    pruner = SparsePruner(model)
    model.load_state_dict(saved(source.state_dict()), assign=assign)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach(optimizer)
    train(model, optimizer, range(3))
    assert same(pruner.masks, SparsePruner(source).masks)
    assert pruner.sparse_state().compliant


def test_parts_and_wrapped_models_load_too():
    source = network()
    SparsePruner(source)
    model = network()
    SparsePruner(model)
    model[0].load_state_dict(source[0].state_dict())
    assert same(model[0].state_dict(), source[0].state_dict())
    with pytest.raises(PruneError, match="without its mask"):
        model[0].load_state_dict(nn.Linear(8, 16).state_dict())
    nn.DataParallel(model).load_state_dict(nn.DataParallel(source).state_dict())
    assert same(model.state_dict(), source.state_dict())
    head = {key: value for key, value in source.state_dict().items() if key.startswith("3.")}
    assert model.load_state_dict(head, strict=False).missing_keys == [
        key for key in model.state_dict() if not key.startswith("3.")
    ]


def test_loading_another_part_keeps_what_was_kept():
    model = network()
    before = model[0].weight.detach().clone()
    pruner = SparsePruner(model, keep_pruned=True)
    model.load_state_dict({"3.bias": torch.zeros(4)}, strict=False)
    pruner.remove()
    assert torch.equal(model[0].weight, before)


def test_weights_that_do_not_fit_their_masks_are_masked_when_loaded():
    model = network()
    pruner = SparsePruner(model, keep_pruned=True)
    state = model.state_dict()
    state["0.weight"] = torch.ones(16, 8)
    model.load_state_dict(state)
    assert pruner.sparse_state().compliant
    pruner.recompute()  # the values kept before loading are gone
    assert model[0].weight.sum() == 64


def test_a_mask_of_another_pattern_is_refused():
    model = nn.Linear(8, 4)
    SparsePruner(model)
    state = model.state_dict()
    state["weight_sparsity_mask"] = torch.tensor([[True] * 4 + [False] * 4] * 4)
    with pytest.raises(PruneError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == (
        "a mask does not hold the pattern\n  where: 'weight_sparsity_mask' of a Linear\n"
        "  expected: 2:4 along axis 1\n  to fix: load a checkpoint that was saved with the same pattern"
    )


def test_a_checkpoint_is_sparse_at_every_step():
    model = network()
    prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    for seed in range(3):
        train(model, optimizer, [seed])
        state = saved(model.state_dict())
        for name in ("0.weight", "3.weight"):
            assert torch.equal(state[name] != 0, state[f"{name}_sparsity_mask"])


def test_a_whole_pickled_model_still_knows_its_masks():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    SparsePruner(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert [weight.module for weight in masked_weights(loaded)] == list(loaded)
    with pytest.raises(PruneError, match="without its mask"):
        loaded.load_state_dict(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).state_dict())
    SparsePruner(loaded).finalize()
    loaded.load_state_dict(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).state_dict())


def test_a_weight_that_changed_its_shape_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    pruner = SparsePruner(model)
    model[0].weight = nn.Parameter(model[0].weight.detach().flatten())
    with pytest.raises(PruneError) as caught:
        pruner.apply()
    assert str(caught.value) == (
        "a pruned weight has changed its shape\n  where: 'weight' of a Linear\n  got: (64,)\n  expected: (8, 8)\n"
        "  to fix: FullyShardedDataParallel flattens weights: use fully_shard instead"
    )
