"""Defects known from ASP (NVIDIA/apex) and its issue threads; each name says what went wrong there."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from trtsparse.sparsity.pattern import Pattern
from trtsparse.torch import SparsePruner, prune_trained_model


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_a_subclass_of_a_known_layer_is_no_key_error():
    class Linear(nn.Linear):
        """As mmcv's and detectron2's wrappers."""

    class Conv2d(nn.Conv2d):
        """Likewise."""

    model = nn.Sequential(Conv2d(8, 8, 1), nn.Flatten(), Linear(8, 8))
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1))
    step(model, optimizer, torch.randn(2, 8, 1, 1))
    assert [weight.kind for weight in pruner.sparse_state().weights] == ["Conv2d", "Linear"]
    assert pruner.sparse_state().compliant


def test_a_three_dimensional_convolution_has_a_mask_that_is_not_none():
    model = nn.Conv3d(8, 4, 3)
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1))
    step(model, optimizer, torch.randn(1, 8, 3, 3, 3))
    assert (pruner.masks["weight"].unflatten(1, (2, 4)).sum(dim=2) == 2).all()
    assert pruner.sparse_state().compliant


def test_the_best_mask_in_two_dimensions_is_defined():
    weight = torch.tensor([[9.0, 9, 9, 1], [9, 9, 1, 9], [9, 1, 9, 9], [1, 9, 9, 9]])
    model = nn.Linear(4, 4, bias=False)
    model.weight.data = weight.clone()
    mask = SparsePruner(model, transposable=True).masks["weight"]
    assert (mask.sum(dim=0) == 2).all()
    assert (mask.sum(dim=1) == 2).all()
    assert (weight * mask).sum() == 72  # none of the ones


def test_bfloat16_does_not_bypass_the_check_of_the_length():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)).bfloat16()
    pruner = SparsePruner(model)
    assert list(pruner.masks) == ["1.weight"]
    assert pruner.sparse_state().weights[0].reason == "reduction of 6 is not a multiple of 4"


def test_two_models_in_one_process_know_nothing_of_each_other():
    models = [nn.Linear(8, 8), nn.Linear(16, 4)]
    optimizers = [torch.optim.Adam(model.parameters(), 0.1) for model in models]
    pruners = [
        SparsePruner(model, pattern=pattern)
        for model, pattern in zip(models, (Pattern(), Pattern(1, 4)), strict=True)
    ]
    for pruner, optimizer in zip(pruners, optimizers, strict=True):
        pruner.attach(optimizer)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, torch.randn(2, model.in_features))
    assert [pruner.sparse_state().weights[0].zeros for pruner in pruners] == [32, 48]
    pruners[0].remove()
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, torch.randn(2, model.in_features))
    assert [pruner.sparse_state().weights[0].compliant for pruner in pruners] == [False, True]


def test_masks_need_no_gpu():
    code = (
        "import torch\nfrom trtsparse.torch import SparsePruner\n"
        "assert not torch.cuda.is_available()\nassert SparsePruner(torch.nn.Linear(8, 8)).sparse_state().compliant\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)


def test_nothing_is_traced_so_control_flow_on_data_is_fine():
    class Twice(nn.Module):
        """Loops as often as the data say."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(int(x.abs().sum()) % 3 + 1):
                x = self.layer(x)
            return x if x.sum() > 0 else -x

    model = Twice()
    pruner = prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.01))
    step(model, optimizer, torch.randn(2, 8))
    assert pruner.sparse_state().compliant


def test_weights_saved_after_training_are_sparse_and_masks_are_not_all_true():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2))
    for _ in range(5):
        step(model, optimizer, torch.randn(2, 8, 5, 5))
    state = model.state_dict()
    assert torch.equal(state["0.weight"] != 0, state["0.weight_sparsity_mask"])
    assert state["0.weight_sparsity_mask"].float().mean() == 0.5


def test_pytorch_without_distributed_will_do():
    code = (
        "import sys\nsys.modules['torch.distributed.tensor'] = None\nimport torch\n"
        "from trtsparse.torch import prune_trained_model\nmodel = torch.nn.Linear(8, 8)\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\npruner = prune_trained_model(model, optimizer)\n"
        "model(torch.ones(1, 8)).sum().backward()\noptimizer.step()\nassert pruner.sparse_state().compliant"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["masks", "attach", "apply", "recompute", "sparse_state", "finalize", "remove"])
def test_every_method_that_is_written_about_exists(name):
    assert hasattr(SparsePruner, name)
    assert getattr(SparsePruner, name).__doc__
