"""The numbers of a weight site: dequantized magnitudes, other precisions, pieces that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import (
    GroupCount,
    Pattern,
    apply_mask,
    count_groups,
    is_compliant,
    keep_mask,
    keep_mask_two_axes,
)
from trtsparse.sparsity.pattern import prune_array as prune_magnitudes
from trtsparse.sparsity.trace import Quantization
from trtsparse.sparsity.weights import WeightSite

__all__ = ["PRECISIONS", "count_site", "is_site_compliant", "pack_int4", "prune_values", "unpack_int4"]

PRECISIONS = ("stored", "fp32", "fp16", "bf16", "int8")
_SLAB = 1 << 22  # elements handled at once where numbers have to be computed


def count_site(model: OnnxModel, site: WeightSite, *, pattern: Pattern, precision: str = "stored") -> GroupCount:
    """Count a site's violating groups in the values that the given precision would have.

    Args:
        model: The model that the site was found in.
        site: A constant whose axis is known.
        pattern: N:M.
        precision: "stored", or what the weights will be converted to. "int8" means symmetric, per output channel.
    """
    return count_groups(_judged(model, site, precision), axis=site.axis, pattern=pattern)


def is_site_compliant(model: OnnxModel, site: WeightSite, *, pattern: Pattern) -> bool:
    """True when no group of the stored values is violating; quicker than `count_site` when one is."""
    return is_compliant(_judged(model, site, "stored"), axis=site.axis, pattern=pattern)


def _judged(model: OnnxModel, site: WeightSite, precision: str) -> np.ndarray:
    """The values whose zeros count: at the given precision, or less the zero point."""
    if site.ref is None:
        raise ConfigError("the weight is not constant", where=f"node {site.node!r}")
    values = model.read(site.ref)
    if site.ref.packed:
        values = unpack_int4(values, site)
    if site.quantization is not None:
        if np.any(site.quantization.zero_point):
            values = np.subtract(values.astype(np.int16), site.quantization.zero_point, dtype=np.int16)
    else:
        values = _converted(values, precision, site.output_axis)
    return values


def prune_values(
    values: np.ndarray, *, axes: tuple[int, ...], pattern: Pattern, quantization: Quantization | None = None
) -> int:
    """Prune an array in place by magnitude along one or two axes; quantized values by dequantized magnitude.

    Args:
        values: C-contiguous and writable; 4-bit types unpacked.
        axes: The reduction axes of all sites of the tensor, one or two.
        pattern: N:M.
        quantization: For quantized integers; what is pruned becomes the zero point.

    Returns:
        How many elements became zero.

    Raises:
        PatternError: See `trtsparse.sparsity.pattern.prune_array`.
    """
    if quantization is None or _orders_like_stored(quantization, axes):
        if len(axes) == 1:
            return prune_magnitudes(values, axis=axes[0], pattern=pattern)
        return sum(
            apply_mask(values[slab], keep_mask_two_axes(values[slab], axes=(axes[0], axes[1]), pattern=pattern))
            for slab in _slabs(values.shape, pattern)
        )
    return sum(
        _prune_quantized(values[slab], axes, pattern, _slice_of(quantization, slab))
        for slab in _slabs(values.shape, pattern)
    )


def unpack_int4(packed: np.ndarray, site: WeightSite) -> np.ndarray:
    """4-bit integers as ONNX packs them (two a byte, the first in the low half) to an array of the site's shape."""
    signed = site.dtype == "int4"
    halves = np.stack((packed & 0x0F, packed >> 4), axis=-1).reshape(-1)
    size = int(np.prod(site.shape))
    values: np.ndarray = halves[:size].view(ml_dtypes.int4 if signed else ml_dtypes.uint4).reshape(site.shape)
    return values


def pack_int4(values: np.ndarray) -> np.ndarray:
    """The inverse of `unpack_int4`: uint8 ``((size + 1) // 2,)``."""
    halves = values.reshape(-1).view(np.uint8) & 0x0F
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    return halves[0::2] | halves[1::2] << 4


def _converted(values: np.ndarray, precision: str, output_axis: int) -> np.ndarray:
    """Values as they will be after conversion: half types round small ones to zero, INT8 many more."""
    if precision in ("stored", "fp32") or str(values.dtype) not in ("float32", "float64", "float16", "bfloat16"):
        return values
    if precision == "int8":
        others = tuple(axis for axis in range(values.ndim) if axis != output_axis)
        largest = np.max(np.abs(values), axis=others, keepdims=True).astype(np.float32)
        scale = np.where(largest > 0, largest / 127, 1)
        return np.rint(values / scale).astype(np.int8)
    if precision not in PRECISIONS:
        raise ConfigError("unknown precision", got=precision, expected=", ".join(PRECISIONS))
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if precision == "fp16" else ml_dtypes.bfloat16)


def _orders_like_stored(quantization: Quantization, axes: tuple[int, ...]) -> bool:
    """True when the stored integers' magnitudes order every group as the numbers do."""
    return not np.any(quantization.zero_point) and all(quantization.scale.shape[axis] == 1 for axis in axes)


def _prune_quantized(values: np.ndarray, axes: tuple[int, ...], pattern: Pattern, quantization: Quantization) -> int:
    centred = values.astype(np.float32) - quantization.zero_point
    magnitude = np.abs(centred * quantization.scale)
    if len(axes) == 1:
        mask = keep_mask(magnitude, axis=axes[0], pattern=pattern)
    else:
        mask = keep_mask_two_axes(magnitude, axes=(axes[0], axes[1]), pattern=pattern)
    dropped = ~mask & (centred != 0)
    np.copyto(values, np.broadcast_to(quantization.zero_point, values.shape).astype(values.dtype), where=dropped)
    return int(np.count_nonzero(dropped))


def _slice_of(quantization: Quantization, slab: tuple[slice, ...]) -> Quantization:
    def part(value: np.ndarray) -> np.ndarray:
        index = tuple(slice(None) if value.shape[i] == 1 else wanted for i, wanted in enumerate(slab))
        return value[index]

    return Quantization(part(quantization.scale), part(quantization.zero_point))


def _slabs(shape: tuple[int, ...], pattern: Pattern) -> Iterator[tuple[slice, ...]]:
    """Pieces of the array along its longest axis, whole groups each, so that temporaries stay small."""
    size = int(np.prod(shape))
    axis = max(range(len(shape)), key=lambda i: shape[i])
    step = max(shape[axis] * _SLAB // max(size, 1), 1)
    step = -(-step // pattern.m) * pattern.m
    for start in range(0, shape[axis], step):
        yield tuple(slice(start, start + step) if i == axis else slice(None) for i in range(len(shape)))
