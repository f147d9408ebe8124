"""Masks hold under automatic mixed precision and `torch.compile`."""

import shutil

import pytest
import torch
from torch import nn

from trtsparse.torch import SparsePruner, prune_trained_model

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.utils.parametrizations.weight_norm(nn.Linear(32, 8)))


def assert_held(model, pruner, masks):
    assert {name: mask.sum().item() for name, mask in pruner.masks.items()} == {"0.weight": 256, "2.weight": 128}
    assert all(torch.equal(mask, masks[name]) for name, mask in pruner.masks.items())
    assert pruner.sparse_state().compliant
    assert torch.equal(model[0].weight != 0, masks["0.weight"])


def copies(pruner):
    return {name: mask.clone() for name, mask in pruner.masks.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [False, True])
def test_mixed_precision_with_a_scaler_that_skips_steps(device, fused):
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, fused=fused)
    pruner = prune_trained_model(model, optimizer)
    masks = copies(pruner)
    scaler = torch.amp.GradScaler(device, init_scale=1024, growth_interval=2)
    x = torch.randn(64, 16, device=device)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        if step == 5:
            model[0].bias.grad[0] = float("inf")
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[0].weight, before) == (step == 5)
        assert_held(model, pruner, masks)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_model_keeps_its_masks(device):
    model = network().to(device)
    compiled = torch.compile(model)
    pruner = SparsePruner(compiled)
    optimizer = torch.optim.SGD(compiled.parameters(), 0.05, momentum=0.9)
    pruner.attach(optimizer)
    masks = copies(pruner)
    x = torch.randn(64, 16, device=device)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = compiled(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert_held(model, pruner, masks)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_optimizer_step_keeps_masks_too(device):
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = prune_trained_model(model, optimizer)
    masks = copies(pruner)

    @torch.compile
    def step():
        optimizer.step()

    for _ in range(4):
        optimizer.zero_grad(set_to_none=False)
        model(torch.randn(64, 16, device=device)).square().mean().backward()
        before = model[0].weight.detach().clone()
        step()
        assert not torch.equal(model[0].weight, before)
        assert_held(model, pruner, masks)


@pytest.mark.gpu
@NEEDS_GPU
def test_masks_of_a_gpu_are_those_of_the_cpu_and_follow_the_model_there_and_back():
    model, other = (nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3)).half() for _ in range(2))
    on_gpu = SparsePruner(other.cuda(), missing_masks="recompute")
    other.load_state_dict(model.state_dict())
    pruner = SparsePruner(model)
    assert all(torch.equal(mask.cpu(), pruner.masks[name]) for name, mask in on_gpu.masks.items())
    optimizer = torch.optim.SGD(model.cuda().parameters(), 0.1, momentum=0.9)
    pruner.attach(optimizer)
    assert all(mask.is_cuda for mask in pruner.masks.values())
    model(torch.randn(2, 8, 9, 9, device="cuda").half()).float().square().mean().backward()
    optimizer.step()
    assert pruner.sparse_state().compliant
    model.cpu()
    assert pruner.sparse_state().compliant
    assert not any(mask.is_cuda for mask in pruner.masks.values())


@pytest.mark.gpu
@NEEDS_GPU
def test_a_training_step_captured_in_a_cuda_graph_keeps_masks():
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters(), 0.02, capturable=True)
    pruner = prune_trained_model(model, optimizer)
    masks = copies(pruner)
    x = torch.randn(64, 16, device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(x).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    before = model[0].weight.detach().clone()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(model[0].weight, before)
    assert_held(model, pruner, masks)
