"""Products of int8 values with int8 weights: quantized, multiplied as integers, scaled back.

A sparse kernel does all that follows the product, but a GELU only where it gives INT8 for the next product. Those of
cuBLASLt give INT32, or INT8 with one scale, so that the rest is PyTorch's: one more pass over the result, which a
compiler fuses with what comes after it.
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
        node: A "QuantizedLinear" node, see `trtsparse.engines.cusparselt.quantized.quantize_products` and
            `trtsparse.engines.cusparselt.chains.chain_products`.
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
        y_scale = node.attributes.get("y_scale")
        self._y_scale = None if y_scale is None else owner.scalar(float(y_scale))
        self._steps = 1.0 if y_scale is None else 1 / float(y_scale)  # of the result, for 1
        kinds = {1: owner.floating or self._torch.float32, 10: self._torch.float16, 16: self._torch.bfloat16}
        self._to = kinds.get(node.attributes.get("to", 0))
        self._held: dict[tuple[bool, float, Any], Tensor] = {}
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
        """As QuantizeLinear does it unless it is done, with rows of zeros added up to a number."""
        steps = x if x.dtype == self._torch.int8 else self._rounded(x, self._x_scale)
        missing = rows - x.shape[0]
        return self._torch.nn.functional.pad(steps, (0, 0, 0, missing)) if missing else steps

    def _rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        return self._torch.round(x.float() / scale).clamp(-128, 127).to(self._torch.int8)

    def _prepare(self, rows: int, dtype: Any, undo: contextlib.ExitStack) -> tuple[Compute, Used | None]:
        if not rows:
            return self._finishing(lambda x: x.new_empty((0, self.n)).int(), rows, scaled=False), None
        gemm, kernel = self._choose(rows, dtype)
        used = Used(self._node.name, self.tensor, gemm, kernel)
        if kernel is None:
            return self._by_torch(rows), used
        with self._telling(gemm, kernel):
            self._kernels[rows] = self._open(gemm, kernel, undo)
        undo.callback(self._kernels.pop, rows)
        multiply = self._operator(gemm, dtype)
        return self._finishing(multiply, gemm.padded_m, scaled=gemm.out_dtype != "int32"), used

    # -- which kernel ------------------------------------------------------------------------------------------------

    def _choose(self, rows: int, dtype: Any) -> tuple[Gemm, Kernel | None]:
        """The kernel that is fastest together with what has to follow it."""
        integers = self._ask(Gemm(rows, self.n, self.k, "int8", "int32"))
        if not self._fits(integers[0]):
            return integers
        found = [self._ask(gemm) for gemm in self._scaling(rows, dtype)]
        # a dense one that scales gives INT8 with one scale: it only told how long it takes
        ways = [(gemm, kernel) for gemm, kernel in found if kernel is not None and kernel.kind == "sparse"]
        if integers[1] is not None:
            ways.append((integers[0], integers[1]))
        if len(ways) < 2:
            return ways[0] if ways else integers
        alone = min(ways, key=lambda way: way[1].ms)
        if not self._passes(alone[0]):
            return alone
        return min(ways, key=lambda way: way[1].ms + self._after_ms(way[0], rows, dtype))

    def _scaling(self, rows: int, dtype: Any) -> list[Gemm]:
        """The products that compute this one, or all but a GELU and rounding."""
        bias, act = "bias" if self._bias is not None else "", self._node.attributes["act"]
        forms = []
        if self._y_scale is not None:
            forms.append(("int8", (bias, act)))
        if str(dtype) in HALVES:
            forms.append((HALVES[str(dtype)], (bias, "" if act == "gelu" else act)))
        return [
            Gemm(rows, self.n, self.k, "int8", out, "_".join(filter(None, epilogue)) or "none")
            for out, epilogue in forms
        ]

    def _passes(self, gemm: Gemm) -> str:
        """What is left to do after a kernel, in a pass over its results; "" for nothing."""
        if gemm.out_dtype == "int32":
            return "scale"
        if gemm.out_dtype == "int8":
            return ""
        if self._node.attributes["act"] == "gelu":
            return "gelu"
        return "" if self._y_scale is None else "quantize"

    def _after_ms(self, gemm: Gemm, rows: int, dtype: Any) -> float:
        """Milliseconds of that; a compiler makes one pass of a GELU and rounding."""
        torch, what = self._torch, self._passes(gemm)
        if not what:
            return 0.0
        place = {"size": (rows, self.n), "device": self._owner.device}
        y, sums = torch.zeros(**place, dtype=dtype), torch.zeros(**place, dtype=torch.int32)
        work: dict[str, Callable[[], Any]] = {
            "scale": lambda: torch.mul(sums, self._scales, out=y),
            "gelu": lambda: torch.nn.functional.gelu(y),
            "quantize": lambda: y.to(torch.int8),
        }
        return self._owner.pass_ms(f"{what} {rows}x{self.n} {str(dtype).rpartition('.')[2]}", work[what])

    # -- what runs ---------------------------------------------------------------------------------------------------

    def _finishing(
        self, multiply: Callable[[Tensor], Tensor], padded: int, *, scaled: bool
    ) -> Callable[[Tensor], Tensor]:
        """Quantize before a product of so many rows, and do what it left to do.

        Args:
            multiply: From int8 to sums of products, or to values that lack a GELU at most.
            padded: Its rows.
            scaled: It gives such values, or int8 for the next product.
        """

        def run(x: Tensor) -> Tensor:
            y = multiply(self._quantize(x, padded))[: x.shape[0]]
            if y.dtype == self._torch.int8:
                return y
            if not scaled:
                y = y * self._scales
                y = y if self._bias is None else y + self._bias
            if self._act is not None and not (scaled and self._act is self._torch.relu):
                y = self._act(y)
            return y.to(self._to or x.dtype) if self._y_scale is None else self._rounded(y, self._y_scale)

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
            name = f"{self.key} {rows} {kind}"
            self._operators[rows, kind] = self._owner.opaques.enter(name, compute, columns=self.n, dtype=kind)
        return self._operators[rows, kind]

    def _open(self, gemm: Gemm, kernel: Kernel, undo: contextlib.ExitStack) -> Compute:
        """A kernel: (padded M, K) of int8 to (padded M, N) of what it gives."""
        if kernel.kind == "sparse":
            integers = lambda: self._moved(self._integers)  # noqa: E731 - a name for an argument
            runner, weight = self._plan(gemm, kernel, undo, integers, **self._factors(gemm))
        else:
            problem = Dense(dense_form(gemm), device=self._owner.number)
            undo.callback(problem.close)
            runner, weight = problem.runner(Algorithm(**kernel.parameters)), self._weight
        dtype = getattr(self._torch, gemm.output_type.numpy.name)
        return self._launching(gemm, runner, weight, dtype)

    def _factors(self, gemm: Gemm) -> dict[str, Any]:
        """What a kernel multiplies by and adds, in steps of the result where it gives these; addresses live on."""
        if gemm.out_dtype == "int32":
            return {}
        after_gelu = gemm.activation == "gelu"
        steps = self._steps if gemm.out_dtype == "int8" and not after_gelu else 1.0
        given: dict[str, Any] = {"alphas": self._address(self._scales, steps, self._torch.float32)}
        if self._bias is not None and gemm.has_bias:
            given["bias"] = self._address(self._bias, steps, getattr(self._torch, gemm.bias_type.numpy.name))
        if after_gelu:
            given["gelu_scale"] = self._steps
        return given

    def _address(self, values: Tensor, factor: float, dtype: Any) -> int:
        """Of values times a factor in some type, which live as long as this object."""
        key = (values is self._scales, factor, dtype)
        if key not in self._held:
            self._held[key] = (values * factor).to(dtype)
        return int(self._held[key].data_ptr())

    def close(self) -> None:
        """See `WeightProduct`."""
        super().close()
        for name in ("_weight", "_floats"):
            self.__dict__.pop(name, None)
        self._operators.clear()
        self._held.clear()
        self._x_scale = self._y_scale = self._scales = self._bias = None
