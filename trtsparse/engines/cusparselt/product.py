"""``act(x W^T + b)`` by the kernel chosen for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.opaque import Opaque
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.program import to_tensor
from trtsparse.errors import EngineError
from trtsparse.sparsity.pattern import TWO_FOUR, is_compliant
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Configuration, Sparse

if TYPE_CHECKING:  # it makes these products
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["Product", "Used"]

_NAMES = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}


@dataclass(frozen=True)
class Used:
    """What runs for one product.

    Attributes:
        node: The node's name.
        tensor: The weight's name.
        gemm: Its shape and types.
        kernel: The kernel; None: PyTorch's own choice.
    """

    node: str
    tensor: str
    gemm: Gemm
    kernel: Kernel | None


class Product:
    """``act(x W^T + b)`` for any number of rows. Not thread-safe.

    Args:
        owner: What all products share.
        node: A "Linear" node.
        weight: (N, K).
        bias: (N,), or None.
    """

    def __init__(self, owner: Products, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
        import torch

        self._torch, self._owner, self._node = torch, owner, node
        self.n, self.k = weight.shape
        self.compliant = self.k % TWO_FOUR.m == 0 and is_compliant(np.ascontiguousarray(weight), axis=1)
        self._weight = self._typed(weight)
        self._dense_weight: Tensor = None
        self.bias = None if bias is None else self._typed(bias).to(owner.device)
        self._act = {"": None, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[node.attributes["act"]]
        self.compressed: Tensor = None
        self.tensor = node.inputs[1]
        self._ready: dict[int, Callable[[Tensor], Tensor]] = {}
        self._undo = contextlib.ExitStack()
        self.used: list[Used] = []
        self._opaque = Opaque.enter(self._compute, columns=self.n, dtype=self._weight.dtype)
        self._undo.callback(self._opaque.close)

    def _typed(self, array: np.ndarray) -> Tensor:
        """On the CPU."""
        value = to_tensor(array)
        wanted = self._owner.floating
        return value.to(wanted) if wanted is not None and value.dtype == self._torch.float32 else value

    @property
    def weight(self) -> Tensor:
        """(N, K), on the device from when a kernel first needs it."""
        if self._dense_weight is None:
            self._dense_weight = self._weight.to(self._owner.device)
        return self._dense_weight

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N)."""
        return self._opaque(x)

    def _compute(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        ready = self._ready.get(rows)
        if ready is None:
            ready = self._ready[rows] = self._prepare(rows)
        return ready(x)

    def _prepare(self, rows: int) -> Callable[[Tensor], Tensor]:
        dtype = _NAMES.get(str(self._weight.dtype))
        if dtype is None:
            return self._by_torch
        gemm, kernel = self._choose(rows, dtype)
        self.used.append(Used(self._node.name, self.tensor, gemm, kernel))
        if kernel is None:
            return self._by_torch
        try:
            run = self._sparse(gemm, kernel) if kernel.kind == "sparse" else self._dense(gemm, kernel)
        except Refused as refused:
            raise EngineError(
                "a chosen kernel does not exist",
                where=f"{self._node.name}: {gemm.key}",
                got=f"{kernel.kind} kernel {kernel.name}: {refused}",
                fix="tune on this machine",
            ) from refused
        if self._act is None or gemm.activation:
            return run
        act = self._act
        return lambda x: act(run(x))

    def _choose(self, rows: int, dtype: str) -> tuple[Gemm, Kernel | None]:
        """The kernel, and what of the activation it does too.

        Not every kernel can do a GELU. One that can, by the approximation with tanh, is taken where the others are
        not faster together with a GELU of its own.
        """
        bias, act = "bias" if self.bias is not None else "", self._node.attributes["act"]
        fused = self._ask(rows, dtype, "_".join(filter(None, (bias, act))))
        if act != "gelu":
            return fused
        plain = self._ask(rows, dtype, bias)
        if fused[1] is None or plain[1] is None:
            return plain if fused[1] is None else fused
        y = self._torch.empty((rows, self.n), dtype=self._weight.dtype, device=self._owner.device)
        alone_ms = self._owner.pass_ms(f"gelu {rows}x{self.n} {dtype}", lambda: self._torch.nn.functional.gelu(y))
        return fused if fused[1].ms <= plain[1].ms + alone_ms else plain

    def _ask(self, rows: int, dtype: str, epilogue: str) -> tuple[Gemm, Kernel | None]:
        gemm = Gemm(rows, self.n, self.k, dtype, epilogue=epilogue or "none")
        step = gemm.input_type.alignment
        aligned = not (gemm.n % step or gemm.k % step)
        return gemm, self._owner.choose(gemm, self.compliant and aligned)

    def _by_torch(self, x: Tensor) -> Tensor:
        y = self._torch.nn.functional.linear(x, self.weight, self.bias)
        return y if self._act is None else self._act(y)

    def _dense(self, gemm: Gemm, kernel: Kernel) -> Callable[[Tensor], Tensor]:
        algorithm = Algorithm(**kernel.parameters)
        problem = Dense(
            dense_form(gemm),
            bias=0 if self.bias is None else self.bias.data_ptr(),
            fast_accumulation=algorithm.fast_accumulation,
        )
        self._undo.callback(problem.close)
        return self._runner(gemm, problem.runner(algorithm), self.weight, gemm.m)

    def _sparse(self, gemm: Gemm, kernel: Kernel) -> Callable[[Tensor], Tensor]:
        problem = Sparse(gemm, bias=0 if self.bias is None else self.bias.data_ptr())
        self._undo.callback(problem.close)
        plan = problem.runner(Configuration(**kernel.parameters))
        self._undo.callback(plan.close)
        if self.compressed is None:
            self.compressed = self._owner.compress(problem, self.tensor, lambda: self._weight)
        return self._runner(gemm, plan, self.compressed, gemm.padded_m)

    def _runner(self, gemm: Gemm, runner: Any, weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        torch, device, floating = self._torch, self._owner.device, self._weight.dtype
        nbytes = runner.workspace_nbytes

        def run(x: Tensor) -> Tensor:
            x = x.contiguous()
            if rows != gemm.m:
                x = torch.nn.functional.pad(x, (0, 0, 0, rows - gemm.m))
            y = torch.empty((rows, self.n), dtype=floating, device=device)
            workspace = torch.empty(max(nbytes, 1), dtype=torch.uint8, device=device)
            runner.enqueue(
                x=x.data_ptr(),
                w=weight.data_ptr(),
                y=y.data_ptr(),
                workspace=workspace.data_ptr(),
                stream=torch.cuda.current_stream(device).cuda_stream,
            )
            return y[: gemm.m]

        return run

    def close(self) -> None:
        """Destroy plans and descriptors."""
        self._undo.close()
        self._ready.clear()
