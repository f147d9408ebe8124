"""Convolutions, pooling and resizing as PyTorch calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import Step, Tensor, operator

__all__ = ["padding"]


def _functional() -> Any:
    import torch

    return torch.nn.functional


def padding(node: Node, size: list[int], kernel: list[int]) -> list[int]:
    """The pads of each spatial axis, as PyTorch's ``pad`` wants them: last axis first, before and after.

    Args:
        node: A convolution or pooling.
        size: Of the spatial axes.
        kernel: Of the spatial axes.
    """
    given, rank = node.attributes, len(size)
    pads = given.get("pads") or [0] * (2 * rank)
    mode = given.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank)
        for axis in range(rank):
            stride = (given.get("strides") or [1] * rank)[axis]
            reach = (kernel[axis] - 1) * (given.get("dilations") or [1] * rank)[axis] + 1
            total = max((-(-size[axis] // stride) - 1) * stride + reach - size[axis], 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (less, more) if mode == "SAME_UPPER" else (more, less)
    return list(itertools.chain.from_iterable((pads[axis], pads[axis + rank]) for axis in reversed(range(rank))))


def _symmetric(pads: list[int]) -> list[int] | None:
    """One pad for each axis, first axis first, where both ends are alike."""
    return pads[::2][::-1] if pads[::2] == pads[1::2] else None


def _with_pads(
    node: Node, x: Tensor, kernel: list[int], fill: float, compute: Callable[[Tensor, list[int]], Tensor]
) -> Tensor:
    """Pad within the operation where both ends are alike, before it where they are not."""
    pads = padding(node, list(x.shape[2:]), kernel)
    inside = _symmetric(pads)
    if inside is not None:
        return compute(x, inside)
    return compute(_functional().pad(x, pads, value=fill), [0] * len(kernel))


@operator("Conv")
def _conv(node: Node) -> Step:
    functional, given = _functional(), node.attributes

    def step(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        stride, dilation = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank

        def compute(padded: Tensor, pads: list[int]) -> Tensor:
            return convolve(padded, weight, bias, stride, pads, dilation, given.get("group", 1))

        return _with_pads(node, x, list(weight.shape[2:]), 0.0, compute)

    return step


@operator("ConvTranspose")
def _conv_transpose(node: Node) -> Step:
    functional, given = _functional(), node.attributes
    if given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or given.get("output_shape"):
        raise NotImplementedError("auto_pad and output_shape")
    around = given.get("pads") or []
    if around[: len(around) // 2] != around[len(around) // 2 :]:
        raise NotImplementedError("pads that differ at the two ends")

    def step(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        pads = around[:rank] or [0] * rank
        stride, dilation = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        more = given.get("output_padding") or [0] * rank
        return convolve(x, weight, bias, stride, pads, more, given.get("group", 1), dilation)

    return step


@operator("MaxPool", "AveragePool")
def _pool(node: Node) -> Step:
    functional, given = _functional(), node.attributes
    kernel = list(given["kernel_shape"])
    rank, largest = len(kernel), node.op == "MaxPool"
    if len(node.outputs) > 1:
        raise NotImplementedError("its indices")
    stride, up = given.get("strides") or [1] * rank, bool(given.get("ceil_mode", 0))
    dilation = given.get("dilations") or [1] * rank
    if largest:
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    else:
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
        if any(d != 1 for d in dilation):
            raise NotImplementedError("dilations")
    counted = bool(given.get("count_include_pad", 0))

    def compute(x: Tensor, pads: list[int]) -> Tensor:
        if largest:
            return pool(x, kernel, stride, pads, dilation, up)
        return pool(x, kernel, stride, pads, up, counted)

    def step(x: Tensor) -> Tensor:
        if not largest and not counted and _symmetric(padding(node, list(x.shape[2:]), kernel)) is None:
            raise NotImplementedError("average pooling with pads that differ at the two ends")
        return _with_pads(node, x, kernel, float("-inf") if largest else 0.0, compute)

    return step


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Step:
    def step(x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        return x.mean(dim=axes, keepdim=True) if node.op == "GlobalAveragePool" else x.amax(dim=axes, keepdim=True)

    return step
