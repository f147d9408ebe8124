"""Resize as PyTorch calls; where PyTorch picks other pixels than ONNX, they are picked one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import Picker, Step, Tensor, numbers, operator

__all__: list[str] = []

_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
}
_LINEAR = ("half_pixel", "pytorch_half_pixel", "align_corners")
_NEAREST = ("asymmetric", *_LINEAR)


@operator("Resize")
def _resize(node: Node) -> Step:
    given, pick = node.attributes, Picker()
    mode, place = given.get("mode", "nearest"), given.get("coordinate_transformation_mode", "half_pixel")
    rounding = given.get("nearest_mode", "round_prefer_floor")
    shifted = place in ("half_pixel", "pytorch_half_pixel")
    as_pytorch = rounding.startswith("round") if shifted else (place, rounding) == ("asymmetric", "floor")
    if node.opset < 11:
        raise NotImplementedError(f"the inputs that it has in opset {node.opset}")
    if place not in {"nearest": _NEAREST, "linear": _LINEAR}.get(mode, ()):
        raise NotImplementedError(f"mode {mode!r} with coordinates {place!r}")
    if mode == "linear" and given.get("antialias"):
        raise NotImplementedError("antialias")
    if given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError(f"keep_aspect_ratio_policy {given['keep_aspect_ratio_policy']!r}")

    def step(x: Tensor, _roi: Tensor = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        before = list(x.shape)
        after, factors = _target(before, given.get("axes") or list(range(x.dim())), scales, sizes)
        if mode == "linear":
            return _interpolated(x, after, factors if sizes is None else None, place)
        if as_pytorch and _is_repeated(before, after, factors, shifted=shifted):
            return _torch().nn.functional.interpolate(x, after[2:], mode="nearest")
        for axis in range(x.dim()):
            if before[axis] != after[axis] or factors[axis] != 1:
                at = _ROUNDINGS[rounding](_origins(before[axis], after[axis], factors[axis], place))
                x = pick(x, axis, at.clip(0, before[axis] - 1).astype(int).tolist())
        return x

    return step


def _torch() -> Any:
    import torch

    return torch


def _target(
    before: list[int], axes: list[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[int], list[float]]:
    """The size of each axis, and by how much it is larger."""
    after, factors = list(before), [1.0] * len(before)
    wanted = [] if sizes is None else numbers(sizes)
    for axis, size in zip(axes, wanted, strict=False):
        after[axis], factors[axis] = size, size / before[axis] if before[axis] else 1.0
    if not wanted and scales is not None:
        for axis, factor in zip(axes, scales.tolist(), strict=True):
            after[axis], factors[axis] = int(np.floor(np.float32(before[axis]) * np.float32(factor))), factor
    return after, factors


def _interpolated(x: Tensor, after: list[int], factors: list[float] | None, place: str) -> Tensor:
    """Linearly between pixels; by the factors, which need not be those of the sizes, if they are given."""
    rank = x.dim() - 2
    if rank not in (1, 2, 3) or after[:2] != list(x.shape[:2]):
        raise NotImplementedError(f"mode 'linear' from {list(x.shape)} to {after}")
    if place == "pytorch_half_pixel" and any(new == 1 != old for old, new in zip(x.shape, after, strict=True)):
        raise NotImplementedError("coordinates 'pytorch_half_pixel' to one pixel")
    to_corners = place == "align_corners"
    given = [None] * rank if factors is None or to_corners else factors[2:]
    # PyTorch's function takes the sizes or the factors, and rounds otherwise
    aten = _torch().ops.aten
    resize = (aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)[rank - 1]
    return resize(x, after[2:], to_corners, *given)


def _is_repeated(before: list[int], after: list[int], factors: list[float], *, shifted: bool) -> bool:
    """Whether each pixel becomes a whole number of them, or each of so many is taken: PyTorch's nearest ones."""
    if len(before) not in (3, 4, 5) or before[:2] != after[:2]:
        return False
    whole = [factor == int(factor) or (not shifted and (1 / factor).is_integer()) for factor in factors]
    exact = [size * factor == new for size, factor, new in zip(before, factors, after, strict=True)]
    return all(whole) and all(exact)


def _origins(before: int, after: int, factor: float, place: str) -> np.ndarray:
    """Where each pixel comes from, in float32 as ONNX Runtime computes it."""
    at: np.ndarray = np.arange(after, dtype=np.float32)
    scale, half = np.float32(factor), np.float32(0.5)
    if place == "align_corners":
        at = at * np.float32(before - 1) / np.float32(max(after - 1, 1))
    elif place == "asymmetric":
        at = at / scale
    elif place == "pytorch_half_pixel" and after == 1:
        at = np.zeros(1, np.float32)
    else:
        at = (at + half) / scale - half
    return at
