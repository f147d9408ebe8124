"""Tensors that `fully_shard` or tensor parallelism spread over processes (DTensor), beside plain ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["following", "local", "whole"]


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory; a plain tensor is its own part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; for a sharded tensor a collective operation, so every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def following(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device of another of the same shape and sharded as it is; itself if it already is."""
    if tensor.device != other.device:
        tensor = tensor.to(other.device)
    if hasattr(other, "device_mesh") and not hasattr(tensor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = other
        # every process has all of it, so nothing is sent
        return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return tensor
