"""A prunable layer as a matrix product: its weight as matrices (B, R, C), its input as rows (B, N, C).

R outputs each add up C products; groups are along C. B is 1 but for a MatMul with a stack of weights. A Conv's
columns are its kernel's positions times its input channels, channels last, so that a group is consecutive columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.trace import Constant, Quantization, Scope, trace
from trtsparse.sparsity.weights import WEIGHT_INPUTS, WeightSite

__all__ = ["Layer", "StoredMatrix", "open_layer"]

_ELEMENTS = 1 << 22  # of the rows unfolded at once
_INT4 = {"int4": (-8, 7), "uint4": (0, 15)}


@dataclass(frozen=True)
class StoredMatrix:
    """How a stored tensor becomes the matrices that its node multiplies with.

    Attributes:
        stored: The stored shape.
        order: The stored axes in the order in which the node sees them; those of length 1 come last.
        seen: The shape that the node sees.
        matrix: The order of the seen axes that makes the matrices.
        shape: (B, R, C).
        dtype: The stored type.
        quantization: For quantized integers.
    """

    stored: tuple[int, ...]
    order: tuple[int, ...]
    seen: tuple[int, ...]
    matrix: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    quantization: Quantization | None = None

    def read(self, stored: np.ndarray) -> np.ndarray:
        """The matrices, float64, dequantized."""
        values = stored.astype(np.float64)
        if self.quantization is not None:
            values = (values - self.quantization.zero_point) * self.quantization.scale
        seen = values.transpose(self.order).reshape(self.seen)
        matrices: np.ndarray = np.ascontiguousarray(seen.transpose(self.matrix)).reshape(self.shape)
        return matrices

    def write(self, matrices: np.ndarray) -> np.ndarray:
        """What to store for these matrices, rounded to the stored type; the inverse of `read`."""
        seen = matrices.reshape([self.seen[i] for i in self.matrix]).transpose(np.argsort(self.matrix))
        values = seen.reshape([self.stored[i] for i in self.order]).transpose(np.argsort(self.order))
        if self.quantization is not None:
            name = self.dtype.name
            low, high = _INT4[name] if name in _INT4 else (np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
            values = np.clip(np.rint(values / self.quantization.scale) + self.quantization.zero_point, low, high)
        with np.errstate(over="ignore"):
            rounded: np.ndarray = np.ascontiguousarray(values).astype(self.dtype)
        return rounded

    def same_columns(self, other: StoredMatrix) -> bool:
        """True when both see the same matrices, so that moments of their inputs may be added."""
        return self.shape == other.shape and np.array_equal(self._indices(), other._indices())

    def _indices(self) -> np.ndarray:
        plain = np.arange(math.prod(self.stored)).reshape(self.stored)
        seen = plain.transpose(self.order).reshape(self.seen)
        indices: np.ndarray = seen.transpose(self.matrix).reshape(-1)
        return indices


@dataclass(frozen=True)
class Layer:
    """One use of a weight by one node.

    Attributes:
        site: What the walk found.
        node: The node.
        scope: The graph that it is in.
        input: The value that the weight is multiplied with.
        weights: How the weight is stored.
        rows_first: The node sees (.., R, C), not (.., C, R).
        first: The weight is the node's first operand.
    """

    site: WeightSite
    node: onnx.NodeProto
    scope: Scope
    input: str
    weights: StoredMatrix
    rows_first: bool = True
    first: bool = False

    @property
    def unfolding(self) -> tuple[object, ...]:
        """Layers that read one input and agree here have the same rows."""
        kernel = self.weights.seen[2:] if self.node.op_type == "Conv" else ()
        attributes = sorted(a.SerializeToString() for a in self.node.attribute if a.name in _GEOMETRY)
        stack = self.weights.seen[:-2] if self.node.op_type == "MatMul" else ()
        return self.input, self.node.op_type, self.first, kernel, stack, tuple(attributes)

    def rows(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """The rows (B, N, C) that an input brings, in pieces that bound the memory."""
        if self.node.op_type == "Conv":
            yield from _unfolded(values, self.node, self.weights.seen[2:])
            return
        if self.node.op_type == "Gemm":
            transposed = _integer(self.node, "transB" if self.first else "transA", 0)
            yield (values.T if bool(transposed) != self.first else values)[None]
            return
        if values.ndim == 1:
            values = values[None, :]
        elif self.first:
            values = values.swapaxes(-1, -2)
        yield _stacked(values, self.weights.seen[:-2])


_GEOMETRY = {"auto_pad", "dilations", "kernel_shape", "pads", "strides", "transA", "transB"}


def open_layer(model: OnnxModel, scope: Scope, node: onnx.NodeProto, site: WeightSite) -> Layer | str:
    """A site as a layer, or why it cannot be one, in words.

    Args:
        model: Where the constants are.
        scope: The graph of the node.
        node: The site's node.
        site: An eligible site.
    """
    found = {i: trace(model, scope, node.input[i]) for i in WEIGHT_INPUTS.get(node.op_type, ()) if node.input[i]}
    index, constant = next(((i, c) for i, c in found.items() if isinstance(c, Constant)), (1, None))
    if node.op_type not in ("Conv", "Gemm", "MatMul") or constant is None:
        return f"inputs of {node.op_type} cannot be calibrated"
    first = index == 0 and node.op_type != "Conv"
    transposed = bool(_integer(node, "transA" if first else "transB", 0))
    rows_first = node.op_type == "Conv" or first != transposed
    weights = _stored_matrix(node, constant, rows_first=rows_first)
    if isinstance(weights, str):
        return weights
    other = node.input[0 if node.op_type == "Conv" else 1 - index]
    return Layer(site, node, scope, other, weights, rows_first, first)


def _stored_matrix(node: onnx.NodeProto, constant: Constant, *, rows_first: bool) -> StoredMatrix | str:
    stored, seen = tuple(constant.tensor.dims), constant.shape
    order = [axis for axis, dim in zip(constant.axes, seen, strict=True) if dim != 1 and axis is not None]
    long = [dim for dim in seen if dim != 1]
    if len(set(order)) != len(long) or sorted(order) != [i for i, dim in enumerate(stored) if dim != 1]:
        return "a reshape between the stored tensor and the node merges or splits axes"
    order += [i for i, dim in enumerate(stored) if dim == 1]
    rank = len(seen)
    if node.op_type == "Conv":
        matrix, shape = (0, *range(2, rank), 1), (1, seen[0], math.prod(seen[1:]))
    else:
        last = (rank - 2, rank - 1) if rows_first else (rank - 1, rank - 2)
        matrix, shape = (*range(rank - 2), *last), (math.prod(seen[:-2]), seen[last[0]], seen[last[1]])
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(constant.tensor.data_type))
    return StoredMatrix(stored, tuple(order), seen, matrix, shape, dtype, constant.quantization)


def _stacked(values: np.ndarray, stack: tuple[int, ...]) -> np.ndarray:
    """A MatMul's input (.., N, C) as (B, n, C): the rows that meet each of a stack of weights."""
    count = math.prod(stack)
    if count == 1:
        return values.reshape(1, -1, values.shape[-1])
    batch = np.broadcast_shapes(values.shape[:-2], stack)
    values = np.broadcast_to(values, (*batch, *values.shape[-2:]))
    dims = (1,) * (len(batch) - len(stack)) + stack
    own = [i for i, dim in enumerate(dims) if dim != 1]
    shared = [i for i, dim in enumerate(dims) if dim == 1]
    moved = values.transpose((*own, *shared, len(dims), len(dims) + 1))
    rows: np.ndarray = moved.reshape(count, -1, values.shape[-1])
    return rows


def _unfolded(values: np.ndarray, node: onnx.NodeProto, kernel: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The rows of a convolution: for every output position the inputs under the kernel, channels last."""
    rank = len(kernel)
    strides, dilations = (_integers(node, name, [1] * rank) for name in ("strides", "dilations"))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(node, values.shape[2:], reach, strides)
    padded = np.pad(values, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
    windows = windows[steps]
    places = (0, *range(2, 2 + 2 * rank), 1)  # batch, positions, kernel, channels
    windows = windows.transpose(places)
    columns = math.prod(kernel) * values.shape[1]
    positions = math.prod(windows.shape[1 : 1 + rank])
    lines = max(1, _ELEMENTS * windows.shape[1] // max(positions * columns, 1))  # of the first axis of positions
    for image in windows:
        for start in range(0, len(image), lines):
            yield image[start : start + lines].reshape(1, -1, columns)


def _pads(
    node: onnx.NodeProto, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    rank = len(sizes)
    auto = next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")
    if auto == "NOTSET":
        pads = _integers(node, "pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * rank
    missing = [
        max((-(-size // step) - 1) * step + k - size, 0) for size, k, step in zip(sizes, reach, strides, strict=True)
    ]
    return [(n // 2, n - n // 2) if auto == "SAME_UPPER" else (n - n // 2, n // 2) for n in missing]


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _integers(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), default)
