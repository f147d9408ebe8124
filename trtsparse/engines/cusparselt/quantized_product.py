"""Products of int8 values with int8 weights: quantized, multiplied as integers, scaled back.

A sparse kernel does all that follows the product but a GELU. cuBLASLt's give INT32 only, or INT8, so that the rest is
PyTorch's: one more pass over the result, which a compiler fuses with what comes after it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.opaque import Opaque
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.product import HALVES, Used, WeightProduct
from trtsparse.engines.cusparselt.program import to_tensor
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel

if TYPE_CHECKING:  # it makes these products
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["QuantizedProduct"]

Compute = Callable[[Tensor], Tensor]
_ROWS = 16  # what kernels of 8-bit values want multiples of
_LEAST_ROWS, _ALIGNED = 32, 8  # of PyTorch's own: more than 16 rows, other dims multiples of 8


class QuantizedProduct(WeightProduct):
    """``act(quantized(x) W^T * scales + b)`` for any number of rows. Not thread-safe.

    Args:
        owner: What all products share.
        node: A "QuantizedLinear" node, see `trtsparse.engines.cusparselt.quantized.quantize_products`.
        weight: (N, K), int8.
        bias: (N,), or None.

    Attributes:
        n: Output channels.
        k: Reduction length.
        compliant: Whether the weight is 2:4 along K.
        tensor: The weight's name.
        compressed: The compressed weight on the device; None before a sparse kernel needed it.
        used: What runs, for each number of rows that came up.
    """

    def __init__(self, owner: Products, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__(owner, node, weight)
        self._integers = weight
        self._x_scale = owner.scalar(float(node.attributes["x_scale"]))
        scales = node.attributes["w_scale"].astype(np.float64) * node.attributes["x_scale"]
        self._scales = self._moved(scales.astype(np.float32))
        self._bias = None if bias is None else self._moved(bias.astype(np.float32))
        kinds = {1: owner.floating or self._torch.float32, 10: self._torch.float16, 16: self._torch.bfloat16}
        self._to = kinds.get(node.attributes.get("to", 0))
        self._held: list[Tensor] = []
        self._kernels: dict[int, Compute] = {}
        self._operators: dict[tuple[int, Any], Opaque] = {}

    def _moved(self, array: np.ndarray) -> Tensor:
        return to_tensor(array, device=self._owner.device)

    @functools.cached_property
    def _weight(self) -> Tensor:
        """(N, K), on the device from when a dense kernel first needs it."""
        return self._moved(self._integers)

    @functools.cached_property
    def _floats(self) -> Tensor:
        return self._weight.float()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the type of ``x`` unless the node names another one."""
        flat, dtype = x.reshape(-1, self.k), self._to or x.dtype
        rows = flat.shape[0]
        y = self._for_rows(rows, lambda undo: self._prepare(rows, dtype, undo))(flat)
        return y.reshape((*x.shape[:-1], self.n))

    def _quantize(self, x: Tensor, rows: int) -> Tensor:
        """As QuantizeLinear does it, with rows of zeros added up to a number."""
        steps = self._torch.round(x.float() / self._x_scale).clamp(-128, 127).to(self._torch.int8)
        missing = rows - x.shape[0]
        return self._torch.nn.functional.pad(steps, (0, 0, 0, missing)) if missing else steps

    def _prepare(self, rows: int, dtype: Any, undo: contextlib.ExitStack) -> tuple[Compute, Used | None]:
        gemm, kernel = self._choose(rows, dtype)
        used = Used(self._node.name, self.tensor, gemm, kernel)
        if kernel is None:
            return self._by_torch(rows), used
        with self._telling(gemm, kernel):
            self._kernels[rows] = self._open(gemm, kernel, undo)
        undo.callback(self._kernels.pop, rows)
        multiply = self._operator(gemm, dtype)
        return self._finishing(multiply, gemm.padded_m, scaled=not gemm.output_type.exact), used

    # -- which kernel ------------------------------------------------------------------------------------------------

    def _choose(self, rows: int, dtype: Any) -> tuple[Gemm, Kernel | None]:
        """The kernel that is fastest together with what has to follow it."""
        integers = self._ask(Gemm(rows, self.n, self.k, "int8", "int32"))
        if str(dtype) not in HALVES:
            return integers
        act = self._node.attributes["act"]
        parts = ("bias" if self._bias is not None else "", "relu" if act == "relu" else "")
        epilogue = "_".join(filter(None, parts)) or "none"
        whole = self._ask(Gemm(rows, self.n, self.k, "int8", HALVES[str(dtype)], epilogue))
        if whole[1] is None or whole[1].kind != "sparse":  # a dense one gives INT8: it only told how long it takes
            return integers
        if integers[1] is None or self._is_faster(whole[1], integers[1], rows, dtype):
            return whole
        return integers

    def _is_faster(self, whole: Kernel, integers: Kernel, rows: int, dtype: Any) -> bool:
        """Whether a kernel of floating values takes less time than one of integers and the pass that scales them.

        A GELU is a pass of its own after the one, and part of that pass after the other.
        """
        has_gelu = self._node.attributes["act"] == "gelu"
        if whole.ms <= integers.ms and not has_gelu:
            return True
        torch, device = self._torch, self._owner.device
        y = torch.zeros((rows, self.n), dtype=dtype, device=device)
        name, pass_ms = f"{rows}x{self.n} {HALVES[str(dtype)]}", self._owner.pass_ms
        gelu_ms = pass_ms(f"gelu {name}", lambda: torch.nn.functional.gelu(y)) if has_gelu else 0.0
        sums = torch.zeros((rows, self.n), dtype=torch.int32, device=device)
        scaling_ms = pass_ms(f"scale {name}", lambda: torch.mul(sums, self._scales, out=y))
        return whole.ms + gelu_ms <= integers.ms + scaling_ms

    # -- what runs ---------------------------------------------------------------------------------------------------

    def _finishing(
        self, multiply: Callable[[Tensor], Tensor], padded: int, *, scaled: bool
    ) -> Callable[[Tensor], Tensor]:
        """Quantize before a product of so many rows, and do what it left to do.

        Args:
            multiply: From int8 to sums of products, or to values that lack a GELU at most.
            padded: Its rows.
            scaled: It gives such values.
        """

        def run(x: Tensor) -> Tensor:
            y = multiply(self._quantize(x, padded))[: x.shape[0]]
            if not scaled:
                y = y * self._scales
                y = y if self._bias is None else y + self._bias
            if self._act is not None and not (scaled and self._act is self._torch.relu):
                y = self._act(y)
            return y.to(self._to or x.dtype)

        return run

    def _by_torch(self, rows: int) -> Callable[[Tensor], Tensor]:
        """By PyTorch's product of integers, or of the same numbers as float32 where it has none for such dims."""
        if self.n % _ALIGNED or self.k % _ALIGNED:
            linear, weight = self._torch.nn.functional.linear, self._floats
            return self._finishing(lambda x: linear(x.float(), weight), rows, scaled=False)
        product, transposed = self._torch._int_mm, self._weight.T  # noqa: SLF001 - it has no other name
        padded = max(-(-rows // _ROWS) * _ROWS, _LEAST_ROWS)
        return self._finishing(lambda x: product(x.contiguous(), transposed), padded, scaled=False)

    def _operator(self, gemm: Gemm, dtype: Any) -> Opaque:
        """A kernel as one operator, which compiled code keeps: what was destroyed meanwhile is prepared again."""
        rows, kind = gemm.m, getattr(self._torch, gemm.output_type.numpy.name)

        def compute(x: Tensor) -> Tensor:
            self._for_rows(rows, lambda undo: self._prepare(rows, dtype, undo))
            return self._kernels[rows](x)

        if (rows, kind) not in self._operators:
            self._operators[rows, kind] = Opaque.enter(compute, columns=self.n, dtype=kind)
        return self._operators[rows, kind]

    def _open(self, gemm: Gemm, kernel: Kernel, undo: contextlib.ExitStack) -> Compute:
        """A kernel: (padded M, K) of int8 to (padded M, N) of what it gives."""
        if kernel.kind == "sparse":
            alphas = 0 if gemm.output_type.exact else self._scales.data_ptr()
            integers = lambda: self._moved(self._integers)  # noqa: E731 - a name for an argument
            runner, weight = self._plan(gemm, kernel, undo, integers, bias=self._bias_for(gemm), alphas=alphas)
        else:
            problem = Dense(dense_form(gemm), device=self._owner.number)
            undo.callback(problem.close)
            runner, weight = problem.runner(Algorithm(**kernel.parameters)), self._weight
        dtype = getattr(self._torch, gemm.output_type.numpy.name)
        return self._launching(runner, weight, (gemm.padded_m, self.n), dtype)

    def _bias_for(self, gemm: Gemm) -> int:
        """The address of the bias in the type that a product wants, which lives as long as this object; 0 without."""
        if self._bias is None or not gemm.has_bias:
            return 0
        bias = self._bias.to(getattr(self._torch, gemm.bias_type.numpy.name))
        self._held.append(bias)
        return int(bias.data_ptr())

    def close(self) -> None:
        """See `WeightProduct`."""
        super().close()
        for name in ("_weight", "_floats"):
            self.__dict__.pop(name, None)
        for operator in self._operators.values():
            operator.close()
        self._operators.clear()
        self._held.clear()
        self._x_scale = self._scales = self._bias = None
