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
from trtsparse.engines.cusparselt.product import Used
from trtsparse.engines.cusparselt.program import to_tensor
from trtsparse.errors import EngineError
from trtsparse.sparsity.pattern import TWO_FOUR, is_compliant
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Configuration, Sparse

if TYPE_CHECKING:  # it makes these products
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["QuantizedProduct"]

_NAMES = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
_ROWS = 16  # what kernels of 8-bit values want multiples of
_LEAST_ROWS, _ALIGNED = 32, 8  # of PyTorch's own: more than 16 rows, other dims multiples of 8
_SCALES = 1024


@functools.lru_cache(maxsize=_SCALES)
def _scalar(value: float, device: str) -> Tensor:
    """A scale on a device, the same tensor for all that read one value: a compiler sees that they quantize it alike.

    PyTorch multiplies by the inverse of a plain number, which rounds otherwise than QuantizeLinear's division.
    """
    import torch

    return torch.tensor(value, dtype=torch.float32, device=device)


class QuantizedProduct:
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
        import torch

        self._torch, self._owner, self._node = torch, owner, node
        self.n, self.k = weight.shape
        self.compliant = self.k % TWO_FOUR.m == 0 and is_compliant(np.ascontiguousarray(weight), axis=1)
        self.tensor = node.inputs[1]
        self.compressed: Tensor = None
        self.used: list[Used] = []
        self._integers = weight
        self._x_scale = _scalar(float(node.attributes["x_scale"]), str(owner.device))
        scales = node.attributes["w_scale"].astype(np.float64) * node.attributes["x_scale"]
        self._scales = self._on_device(scales.astype(np.float32))
        self._bias = None if bias is None else self._on_device(bias.astype(np.float32))
        self._act = {"": None, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[node.attributes["act"]]
        self._to = {10: torch.float16, 16: torch.bfloat16}.get(node.attributes.get("to", 0))
        self._ready: dict[int, Callable[[Tensor], Tensor]] = {}
        self._held: list[Tensor] = []
        self._undo = contextlib.ExitStack()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return to_tensor(array).to(self._owner.device)

    @functools.cached_property
    def _weight(self) -> Tensor:
        """(N, K), on the device from when a dense kernel first needs it."""
        return self._on_device(self._integers)

    @functools.cached_property
    def _floats(self) -> Tensor:
        return self._weight.float()

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N), in the type of ``x`` unless the node names another one."""
        rows = x.shape[0]
        ready = self._ready.get(rows)
        if ready is None:
            ready = self._ready[rows] = self._prepare(rows, self._to or x.dtype)
        return ready(x)

    def _quantize(self, x: Tensor, rows: int) -> Tensor:
        """As QuantizeLinear does it, with rows of zeros added up to a number."""
        steps = self._torch.round(x.float() / self._x_scale).clamp(-128, 127).to(self._torch.int8)
        missing = rows - x.shape[0]
        return self._torch.nn.functional.pad(steps, (0, 0, 0, missing)) if missing else steps

    def _prepare(self, rows: int, dtype: Any) -> Callable[[Tensor], Tensor]:
        gemm, kernel = self._choose(rows, dtype)
        self.used.append(Used(self._node.name, self.tensor, gemm, kernel))
        if kernel is None:
            return self._by_torch(rows)
        try:
            multiply = self._sparse(gemm, kernel) if kernel.kind == "sparse" else self._dense(gemm, kernel)
        except Refused as refused:
            raise EngineError(
                "a chosen kernel does not exist",
                where=f"{self._node.name}: {gemm.key}",
                got=f"{kernel.kind} kernel {kernel.name}: {refused}",
                fix="tune on this machine",
            ) from refused
        return self._finishing(multiply, gemm.padded_m, scaled=not gemm.output_type.exact)

    # -- which kernel ------------------------------------------------------------------------------------------------

    def _choose(self, rows: int, dtype: Any) -> tuple[Gemm, Kernel | None]:
        """The kernel that is fastest together with what has to follow it."""
        integers = self._ask(rows, "int32", "none")
        if str(dtype) not in _NAMES:
            return integers
        act = self._node.attributes["act"]
        parts = ("bias" if self._bias is not None else "", "relu" if act == "relu" else "")
        whole = self._ask(rows, _NAMES[str(dtype)], "_".join(filter(None, parts)) or "none")
        if whole[1] is None or whole[1].kind != "sparse":  # a dense one gives INT8: it only told how long it takes
            return integers
        if integers[1] is None or self._is_faster(whole[1], integers[1], rows, dtype):
            return whole
        return integers

    def _ask(self, rows: int, out_dtype: str, epilogue: str) -> tuple[Gemm, Kernel | None]:
        gemm = Gemm(rows, self.n, self.k, "int8", out_dtype, epilogue)
        step = gemm.input_type.alignment
        aligned = not (gemm.n % step or gemm.k % step)
        return gemm, self._owner.choose(gemm, self.compliant and aligned)

    def _is_faster(self, whole: Kernel, integers: Kernel, rows: int, dtype: Any) -> bool:
        """Whether a kernel of floating values takes less time than one of integers and the pass that scales them.

        A GELU is a pass of its own after the one, and part of that pass after the other.
        """
        has_gelu = self._node.attributes["act"] == "gelu"
        if whole.ms <= integers.ms and not has_gelu:
            return True
        torch, device = self._torch, self._owner.device
        y = torch.zeros((rows, self.n), dtype=dtype, device=device)
        name, pass_ms = f"{rows}x{self.n} {_NAMES[str(dtype)]}", self._owner.pass_ms
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

    def _dense(self, gemm: Gemm, kernel: Kernel) -> Callable[[Tensor], Tensor]:
        problem = Dense(dense_form(gemm))
        self._undo.callback(problem.close)
        return self._opaque(gemm, problem.runner(Algorithm(**kernel.parameters)), self._weight)

    def _sparse(self, gemm: Gemm, kernel: Kernel) -> Callable[[Tensor], Tensor]:
        alphas = 0 if gemm.output_type.exact else self._scales.data_ptr()
        problem = Sparse(gemm, bias=self._bias_for(gemm), alphas=alphas)
        self._undo.callback(problem.close)
        plan = problem.runner(Configuration(**kernel.parameters))
        self._undo.callback(plan.close)
        if self.compressed is None:
            self.compressed = self._owner.compress(problem, self.tensor, lambda: to_tensor(self._integers))
        return self._opaque(gemm, plan, self.compressed)

    def _bias_for(self, gemm: Gemm) -> int:
        """The address of the bias in the type that a product wants, which lives as long as this object; 0 without."""
        if self._bias is None or not gemm.has_bias:
            return 0
        bias = self._bias.to(getattr(self._torch, gemm.bias_type.numpy.name))
        self._held.append(bias)
        return int(bias.data_ptr())

    def _stream(self) -> int:
        return int(self._torch.cuda.current_stream(self._owner.device).cuda_stream)

    def _opaque(self, gemm: Gemm, runner: Any, weight: Tensor) -> Opaque:
        """A kernel as one operator: (padded M, K) of int8 to (padded M, N) of what the kernel gives."""
        torch, device = self._torch, self._owner.device
        kinds = {"int32": torch.int32, "bf16": torch.bfloat16, "fp16": torch.float16}
        dtype, nbytes = kinds[gemm.out_dtype], max(runner.workspace_nbytes, 1)

        def run(x: Tensor) -> Tensor:
            y = torch.empty((gemm.padded_m, self.n), dtype=dtype, device=device)
            workspace = torch.empty(nbytes, dtype=torch.uint8, device=device)
            runner.enqueue(
                x=x.data_ptr(), w=weight.data_ptr(), y=y.data_ptr(), workspace=workspace.data_ptr(),
                stream=self._stream(),
            )  # fmt: skip
            return y

        made = Opaque.enter(run, columns=self.n, dtype=dtype)
        self._undo.callback(made.close)
        return made

    def close(self) -> None:
        """Destroy plans and descriptors. Closing twice is harmless."""
        self._undo.close()
        self._ready.clear()
