"""Several processes (gloo, on the CPU): all ranks have the same masks, and shards follow theirs."""

import copy
import functools
import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.utils.parametrizations import weight_norm

from trtsparse.errors import ConfigError, PruneError
from trtsparse.torch import SparsePruner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo"),
]


def run(works, processes):
    """Call each of ``works`` with the rank, in so many processes that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_enter, (works, processes, port), nprocs=processes)


def _enter(rank, works, processes, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        for work in works:
            work(rank)
            distributed.barrier()
    finally:
        distributed.destroy_process_group()


def network():
    return nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 8), nn.BatchNorm1d(8))


def train(model, optimizer, rank, steps=5):
    for step in range(steps):
        torch.manual_seed(100 * rank + step)  # each rank has data of its own
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()


def assert_same_everywhere(tensors):
    for name, tensor in tensors.items():
        others = [torch.empty_like(tensor, dtype=torch.float32) for _ in range(distributed.get_world_size())]
        distributed.all_gather(others, tensor.float())
        assert all(torch.equal(other, others[0]) for other in others), name


def _data_parallel(rank, *, wrap_first):
    torch.manual_seed(rank)  # other weights and so other masks on each rank, until DDP makes them equal
    model = network()
    pruner = None if wrap_first else SparsePruner(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    pruner = pruner or SparsePruner(wrapped)
    pruner.attach(optimizer := torch.optim.AdamW(wrapped.parameters(), 0.05))
    assert_same_everywhere(pruner.masks)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    train(wrapped, optimizer, rank)
    assert list(pruner.masks) == ["0.weight", "2.weight"]
    assert_same_everywhere(pruner.masks)
    assert_same_everywhere(dict(model.named_parameters()))
    assert pruner.sparse_state().compliant
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, before[name])
        assert not optimizer.state[model.get_parameter(name)]["exp_avg"][~mask].any()
    pruner.recompute()
    assert_same_everywhere(pruner.masks)


def test_four_processes_have_identical_masks_and_weights_whether_wrapped_first_or_last():
    run([functools.partial(_data_parallel, wrap_first=wrap_first) for wrap_first in (False, True)], 4)


def _fully_sharded(rank, *, shard_first):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 8), weight_norm(nn.Linear(8, 8)))
    expected = SparsePruner(copy.deepcopy(model)).masks
    pruner = None if shard_first else SparsePruner(model)
    mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
    for module in (model[0], model[2], model[3], model):
        fully_shard(module, mesh=mesh)
    pruner = pruner or SparsePruner(model)
    pruner.attach(optimizer := torch.optim.AdamW(model.parameters(), 0.05))
    train(model, optimizer, rank)
    assert torch.equal(pruner.masks["3.weight"], expected["3.weight"])  # of a parametrised weight: whole
    for name in ("0.weight", "2.weight"):
        mask, weight = pruner.masks[name], model.get_parameter(name)
        assert mask.to_local().shape == weight.to_local().shape != weight.shape
        assert torch.equal(mask.full_tensor(), expected[name])
        assert not optimizer.state[weight]["exp_avg"].to_local()[~mask.to_local()].any()
    assert pruner.sparse_state().compliant
    with pytest.raises(PruneError, match="a sharded model cannot be exported"):
        pruner.export_onnx(Path(tempfile.gettempdir(), "unused.onnx"), (torch.randn(1, 16),))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        assert whole["0.weight_sparsity_mask"].shape == (20, 16)
    sharded = {key: value.clone() for key, value in get_model_state_dict(model).items()}
    train(model, optimizer, rank, 2)
    set_model_state_dict(model, sharded)
    assert pruner.sparse_state().compliant
    pruner.recompute()
    with pytest.raises(PruneError) as caught:
        pruner.finalize()
    assert str(caught.value) == (
        "a weight that is parametrised and sharded cannot become a plain parameter\n  where: 'weight' of a Linear\n"
        "  to fix: load the full state_dict into a pruned model in one process, and finalize that"
    )
    train(model, optimizer, rank, 1)
    assert pruner.sparse_state().compliant
    pruner.remove()
    assert SparsePruner(model, exclude=["3"]).finalize().weights[0].compliant


def _flattened(_rank, *, original):
    from torch.distributed.fsdp import FullyShardedDataParallel

    pruner = SparsePruner(model := network())
    wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
    error, text = (PruneError, "use fully_shard instead") if original else (ConfigError, "updates none of the pruned")
    with pytest.raises(error, match=text):
        pruner.attach(torch.optim.SGD(wrapped.parameters()))


def test_fully_sharded_weights_have_sharded_masks_and_flattened_ones_are_refused():
    sharded = [functools.partial(_fully_sharded, shard_first=shard_first) for shard_first in (False, True)]
    flattened = [functools.partial(_flattened, original=original) for original in (False, True)]
    run(sharded + flattened, 2)
