"""Checkpoints of models with tied weights leave them sparse, whichever of the names they have."""

import copy
import io

import pytest
import torch
from torch import nn

from trtsparse.errors import PruneError
from trtsparse.torch import SparsePruner
from trtsparse.torch.masks import keep_mask


class Tied(nn.Module):
    """Two layers, and an embedding before or behind them, that share one weight; ``head`` does not."""

    def __init__(self, *, embedding_first):
        super().__init__()
        self.inner = nn.Module()
        if embedding_first:
            self.inner.table = nn.Embedding(8, 8)
        self.inner.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8, bias=False)
        if not embedding_first:
            self.inner.table = nn.Embedding(8, 8)
        self.inner.table.weight = self.two.weight = self.inner.one.weight
        self.head = nn.Linear(8, 4)


KEYS = ("inner.one.weight", "inner.table.weight", "two.weight")
MASK = "inner.one.weight_sparsity_mask"

ORDERS = pytest.mark.parametrize("embedding_first", [True, False])
NAMES = pytest.mark.parametrize("kept", [KEYS, *((key,) for key in KEYS), KEYS[1:]], ids="+".join)


def checkpoint(model, kept=KEYS):
    """The state through a file, of the names of the tied weight only some, as safetensors writes it."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return {key: value for key, value in torch.load(file).items() if key not in KEYS or key in kept}


def is_held(model):
    """The weight is zero exactly where its mask says so, and the same everywhere."""
    weight, mask = model.inner.one.weight, model.inner.one.weight_sparsity_mask
    return weight is model.two.weight and torch.equal(weight != 0, mask)


@ORDERS
@NAMES
@pytest.mark.parametrize("keep_pruned", [True, False])
def test_a_dense_checkpoint_gets_the_masks_of_its_own_values(embedding_first, kept, keep_pruned):
    dense = Tied(embedding_first=embedding_first)
    state = checkpoint(dense, kept)
    expected = SparsePruner(copy.deepcopy(dense)).masks
    model = Tied(embedding_first=embedding_first)
    pruner = SparsePruner(model, missing_masks="recompute", keep_pruned=keep_pruned)
    missing, unexpected = model.load_state_dict(state, strict=kept == KEYS)
    assert set(missing) == set(KEYS) - set(kept)
    assert unexpected == []
    assert pruner.sparse_state().compliant
    assert is_held(model)
    assert torch.equal(pruner.masks[KEYS[0]], expected[KEYS[0]])
    pruner.remove()
    assert torch.equal(model.two.weight, dense.two.weight) == keep_pruned


@ORDERS
@NAMES
def test_a_sparse_checkpoint_is_loaded_as_it_is(embedding_first, kept):
    source = Tied(embedding_first=embedding_first)
    SparsePruner(source)
    model = Tied(embedding_first=embedding_first)
    pruner = SparsePruner(model)
    model.load_state_dict(checkpoint(source, kept), strict=False)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    assert pruner.sparse_state().compliant
    assert is_held(model)


@ORDERS
@NAMES
def test_values_that_do_not_fit_the_mask_are_masked(embedding_first, kept):
    source = Tied(embedding_first=embedding_first)
    SparsePruner(source)
    state = checkpoint(source, kept)
    state.update({key: torch.ones(8, 8) for key in kept})
    model = Tied(embedding_first=embedding_first)
    SparsePruner(model, keep_pruned=True)
    model.load_state_dict(state, strict=False)
    assert torch.equal(model.two.weight, source.inner.one.weight_sparsity_mask.float())
    assert is_held(model)
    SparsePruner(model).remove()
    assert torch.equal(model.two.weight, torch.ones(8, 8))


@ORDERS
@pytest.mark.parametrize("keep_pruned", [True, False])
@pytest.mark.parametrize("has_mask", [True, False])
def test_values_that_differ_by_name_are_not_mixed(embedding_first, keep_pruned, has_mask):
    model, source = (Tied(embedding_first=embedding_first) for _ in range(2))
    SparsePruner(source)
    mask = source.inner.one.weight_sparsity_mask
    state = source.state_dict() if has_mask else Tied(embedding_first=embedding_first).state_dict()
    state.update({key: torch.randn(8, 8) for key in KEYS})
    last = state[[key for key in model.state_dict() if key in KEYS][-1]]
    pruner = SparsePruner(model, missing_masks="recompute", keep_pruned=keep_pruned)
    model.load_state_dict(state)
    mask = mask if has_mask else keep_mask(last, axis=1, pattern=pruner.pattern)
    assert torch.equal(pruner.masks[KEYS[0]], mask)
    assert torch.equal(model.two.weight, last * mask)
    pruner.remove()
    assert torch.equal(model.two.weight, last if keep_pruned else last * mask)


def test_what_was_kept_survives_a_load_that_unties():
    model = Tied(embedding_first=False)
    state = {key: torch.randn(value.shape) for key, value in Tied(embedding_first=False).state_dict().items()}
    pruner = SparsePruner(model, missing_masks="recompute", keep_pruned=True)
    model.load_state_dict(state, assign=True)
    assert pruner.sparse_state().weights[0].compliant
    pruner.remove()
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in KEYS)


@ORDERS
@NAMES
def test_a_dense_checkpoint_is_refused_by_any_name_and_nothing_is_loaded(embedding_first, kept):
    model = Tied(embedding_first=embedding_first)
    SparsePruner(model, exclude=["head"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PruneError) as caught:
        model.load_state_dict(checkpoint(Tied(embedding_first=embedding_first), kept), strict=False)
    order = [key for key in model.state_dict() if key in kept]
    assert str(caught.value) == (
        f"the checkpoint has a pruned weight without its mask\n  where: {order[0]}\n  expected: {MASK}\n"
        "  to fix: SparsePruner(..., missing_masks='recompute') chooses masks for the loaded weights"
    )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@ORDERS
def test_a_part_that_holds_two_of_the_uses_stays_sparse_too(embedding_first):
    dense = Tied(embedding_first=embedding_first).inner.state_dict()
    model = Tied(embedding_first=embedding_first)
    pruner = SparsePruner(model, missing_masks="recompute")
    model.inner.load_state_dict(dense)
    assert pruner.sparse_state().compliant
    assert is_held(model)


def test_a_checkpoint_of_other_parts_leaves_tied_weights_alone():
    model = Tied(embedding_first=True)
    before = model.two.weight.detach().clone()
    pruner = SparsePruner(model, keep_pruned=True)
    model.load_state_dict({"inner.one.bias": torch.ones(8)}, strict=False)
    pruner.remove()
    assert torch.equal(model.two.weight, before)


def test_copies_and_wrapped_models_stay_sparse_too():
    model = Tied(embedding_first=False)
    SparsePruner(model, missing_masks="recompute")
    copied = copy.deepcopy(model)
    dense = Tied(embedding_first=False)
    nn.DataParallel(copied).load_state_dict(nn.DataParallel(dense).state_dict())
    assert is_held(copied)
    assert SparsePruner(copied, missing_masks="recompute").sparse_state().compliant
    assert not torch.equal(model.two.weight, copied.two.weight)


@pytest.mark.parametrize("end", [SparsePruner.remove, SparsePruner.finalize])
def test_nothing_is_left_behind_when_the_masks_are_taken_off(end):
    model = Tied(embedding_first=False)
    keys = set(vars(model))
    end(SparsePruner(model))
    assert set(vars(model)) == keys
    dense = Tied(embedding_first=False)
    model.load_state_dict(dense.state_dict())
    assert torch.equal(model.two.weight, dense.two.weight)


class Pair(nn.Module):
    """Two parts with tied weights of their own, and a layer behind them."""

    def __init__(self):
        super().__init__()
        self.one = Tied(embedding_first=False)
        self.two = Tied(embedding_first=False)
        self.head = nn.Linear(8, 8)


@pytest.mark.parametrize("without", [f"two.{MASK}", "head.weight_sparsity_mask"])
@pytest.mark.parametrize("end", [SparsePruner.remove, SparsePruner.finalize])
def test_a_refused_load_leaves_nothing_behind_either(without, end):
    model = Pair()
    keys = set(vars(model))
    pruner = SparsePruner(model)
    state = model.state_dict()
    del state[without]
    with pytest.raises(PruneError, match="without its mask"):
        model.load_state_dict(state)
    end(pruner)
    assert set(vars(model)) == keys


def test_a_model_goes_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source = Tied(embedding_first=True)
    safetensors.save_model(source, tmp_path / "dense.safetensors")
    model = Tied(embedding_first=True)
    pruner = SparsePruner(model, missing_masks="recompute")
    safetensors.load_model(model, tmp_path / "dense.safetensors")
    assert is_held(model)
    assert pruner.sparse_state().compliant
    safetensors.save_model(model, tmp_path / "sparse.safetensors")
    again = Tied(embedding_first=True)
    SparsePruner(again)
    safetensors.load_model(again, tmp_path / "sparse.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
