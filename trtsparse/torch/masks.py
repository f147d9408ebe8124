"""N:M masks of tensors, on whatever device they are: the same elements as `trtsparse.sparsity.pattern` chooses."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from trtsparse.errors import PatternError
from trtsparse.sparsity.kernels import checked_axis, two_axis_candidates
from trtsparse.sparsity.pattern import TWO_FOUR, Pattern

__all__ = ["apply_mask", "is_compliant", "keep_mask", "keep_mask_two_axes", "nonzero"]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCKS = 1 << 16  # M x M blocks scored at a time: 90 scores each


def keep_mask(weight: Tensor, *, axis: int, pattern: Pattern = TWO_FOUR) -> Tensor:
    """The elements that magnitude pruning keeps: the N largest of each group.

    Args:
        weight: Any shape and device; a floating-point type. Not changed, and no gradient is recorded.
        axis: The reduction axis.
        pattern: N:M.

    Returns:
        A bool tensor of the same shape on the same device with exactly N True per group. Of equal magnitudes the
        lower index is kept; NaN counts as larger than any number.

    Raises:
        PatternError: The axis does not exist or its length is not a multiple of M, or the type is another.

    Example:
        >>> keep_mask(torch.tensor([1.0, -3, 2, 2]), axis=0).tolist()
        [False, True, True, False]
    """
    axis = checked_axis(weight.shape, axis, pattern.m)
    magnitude = _grouped(_magnitude(weight), axis, pattern.m)
    kept = _kept(magnitude.movedim(axis + 1, 0).contiguous(), pattern.n)
    return kept.movedim(0, axis + 1).reshape(weight.shape).contiguous()


def keep_mask_two_axes(weight: Tensor, *, axes: tuple[int, int], pattern: Pattern = TWO_FOUR) -> Tensor:
    """The elements to keep so that the pattern holds along both axes, with the largest sum of magnitudes.

    Every M x M block gets the best of the 0/1 matrices with N ones in each row and column (90 of them for 2:4).

    Args:
        weight: As in `keep_mask`.
        axes: Two different axes, each a multiple of M long.
        pattern: N:M with M at most 4.

    Returns:
        A bool tensor of the same shape on the same device.

    Raises:
        PatternError: As in `keep_mask`, or M is larger than 4.

    Example:
        >>> kept = keep_mask_two_axes(torch.arange(16.0).reshape(4, 4), axes=(0, 1))
        >>> kept.sum(dim=0).tolist(), kept.sum(dim=1).tolist()
        ([2, 2, 2, 2], [2, 2, 2, 2])
    """
    m = pattern.m
    candidates = torch.from_numpy(two_axis_candidates(m, pattern.n)).to(weight.device)
    first, second = (checked_axis(weight.shape, axis, m) for axis in axes)
    _bits(weight)  # refuses other types
    moved = weight.detach().movedim((first, second), (-2, -1))
    blocks = _grouped(_grouped(moved, moved.ndim - 1, m), moved.ndim - 2, m).transpose(-3, -2)
    magnitude = blocks.to(torch.float32).abs().reshape(-1, m * m)
    largest = torch.finfo(torch.float32).max / (m * m)  # stands for inf and NaN, so that sums stay finite
    magnitude = magnitude.nan_to_num(nan=largest, posinf=largest).clamp(max=largest)
    scores = candidates.to(torch.float32).T
    best = torch.cat([(piece @ scores).argmax(dim=1) for piece in torch.split(magnitude, _BLOCKS)])
    kept = candidates[best].reshape(blocks.shape).transpose(-3, -2).reshape(moved.shape)
    return kept.movedim((-2, -1), (first, second)).contiguous()


def apply_mask(values: Tensor, mask: Tensor) -> None:
    """Set the elements where ``mask`` is False to zero, in place; infinities and NaN leave nothing behind.

    Args:
        values: A floating-point tensor; no gradient is recorded.
        mask: bool, the same shape; it may be on another device.

    Raises:
        PatternError: The values are of another type.

    Example:
        >>> values = torch.tensor([1.0, float("nan")])
        >>> apply_mask(values, torch.tensor([True, False]))
        >>> values.tolist()
        [1.0, 0.0]
    """
    bits = _bits(values)
    bits.bitwise_and_(mask.to(bits).neg_())  # all bits or none: ten times as fast as masked_fill_ on a CPU


def is_compliant(weight: Tensor, *, axis: int, pattern: Pattern = TWO_FOUR) -> bool:
    """True when no group along the axis has more than N non-zeros, as `nonzero` tells them.

    Args:
        weight: Any shape, type and device.
        axis: The reduction axis.
        pattern: N:M.

    Raises:
        PatternError: The axis does not exist or its length is not a multiple of M.

    Example:
        >>> is_compliant(torch.tensor([1.0, 0, 2, 0]), axis=0)
        True
    """
    axis = checked_axis(weight.shape, axis, pattern.m)
    counts = _grouped(nonzero(weight), axis, pattern.m).sum(dim=axis + 1, dtype=torch.uint8)
    return not bool((counts > pattern.n).any())


def nonzero(weight: Tensor) -> Tensor:
    """True where an element is not zero; -0.0 is zero, NaN is not. Any type, with 8-bit floats."""
    return _magnitude(weight) != 0 if weight.is_floating_point() else weight != 0


def _bits(weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise PatternError("weights of this type cannot be pruned", got=weight.dtype, expected="a float type")
    return weight.detach().view(_BITS[weight.element_size()])


def _magnitude(weight: Tensor) -> Tensor:
    """Integers in the order of magnitude: the bits of a float without its sign."""
    bits = _bits(weight)
    return bits & torch.iinfo(bits.dtype).max


def _grouped(values: Tensor, axis: int, m: int) -> Tensor:
    """The same elements with an axis of groups and, behind it, one of the elements in each."""
    shape = values.shape
    return values.reshape(*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])


def _kept(magnitude: Tensor, n: int) -> Tensor:
    """Which of ``(m, ...)`` are among the n largest; each pair is compared once, and fewer than n may win.

    `torch.topk` would not do: it does not say which of equal elements it takes.
    """
    beaten = torch.zeros(magnitude.shape, dtype=torch.uint8, device=magnitude.device)
    for first, second in itertools.combinations(range(len(magnitude)), 2):
        wins = magnitude[first] >= magnitude[second]
        beaten[second] += wins
        beaten[first] += ~wins
    return beaten < n
