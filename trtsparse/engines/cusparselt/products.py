"""Products with weights, each by the kernel chosen for it: of cuSPARSELt, of cuBLASLt, or PyTorch's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.program import Linear, to_tensor
from trtsparse.errors import EngineError
from trtsparse.sparsity.pattern import TWO_FOUR, is_compliant
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Configuration, Sparse

__all__ = ["Choose", "Product", "Products", "Used"]

Choose = Callable[[Gemm, bool], "Kernel | None"]
"""The kernel for a product, given whether its weight is 2:4 compliant; None: PyTorch's own."""
_NAMES = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
_ELIGIBLE = 16  # bytes: what every dim of a sparse product is a multiple of


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


class Products:
    """Makes the products of a program; holds their weights on the GPU.

    Args:
        device: PyTorch's device.
        floating: PyTorch's type in which float32 values are computed; None: as the model has them. Products of
            float32 values are PyTorch's own: their sparse kernels take another pattern, 1:2.
        choose: Which kernel to use for a product.
        compressed: Weights that were compressed before, by the tensor's name.
    """

    def __init__(
        self, device: Any, floating: Any, choose: Choose, *, compressed: Mapping[str, bytes] | None = None
    ) -> None:
        self.device, self.floating, self.choose = device, floating, choose
        self.stored = compressed or {}
        self.made: list[Product] = []

    def __call__(self, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> Linear:
        """A product for a node; weights (N, K), bias (N,)."""
        product = Product(self, node, weight, bias)
        self.made.append(product)
        return product

    @property
    def used(self) -> tuple[Used, ...]:
        """The kernels that run, for every number of rows that came up."""
        return tuple(used for product in self.made for used in product.used)

    def compressed(self) -> dict[str, bytes]:
        """The compressed weights that were made, by the tensor's name."""
        found = {}
        for product in self.made:
            if product.compressed is not None:
                found[product.tensor] = product.compressed.cpu().numpy().tobytes()
        return found

    def close(self) -> None:
        """Destroy plans and descriptors."""
        for product in self.made:
            product.close()


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
        self.weight = self._on_device(weight)
        self.bias = None if bias is None else self._on_device(bias)
        self._act = {"": None, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[node.attributes["act"]]
        self.compressed: Tensor = None
        self.tensor = node.inputs[1]
        self._ready: dict[int, Callable[[Tensor], Tensor]] = {}
        self._undo = contextlib.ExitStack()
        self.used: list[Used] = []

    def _on_device(self, array: np.ndarray) -> Tensor:
        value = to_tensor(array)
        if self._owner.floating is not None and value.dtype == self._torch.float32:
            value = value.to(self._owner.floating)
        return value.to(self._owner.device)

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N)."""
        rows = x.shape[0]
        ready = self._ready.get(rows)
        if ready is None:
            ready = self._ready[rows] = self._prepare(rows)
        return ready(x)

    def _prepare(self, rows: int) -> Callable[[Tensor], Tensor]:
        dtype = _NAMES.get(str(self.weight.dtype))
        if dtype is None:
            return self._by_torch
        act = self._node.attributes["act"]
        fused = "_".join(
            part for part in ("bias" if self.bias is not None else "", act if act == "relu" else "") if part
        )
        gemm = Gemm(rows, self.n, self.k, dtype, epilogue=fused or "none")
        kernel = self._owner.choose(gemm, self.compliant and self._fits(gemm))
        self.used.append(Used(self._node.name, self._node.inputs[1], gemm, kernel))
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
        if act == "gelu":
            return lambda x: self._torch.nn.functional.gelu(run(x))
        return run

    def _fits(self, gemm: Gemm) -> bool:
        step = gemm.input_type.alignment
        return not (gemm.n % step or gemm.k % step)

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
            self.compressed = self._compress(problem)
        return self._runner(gemm, plan, self.compressed, gemm.padded_m)

    def _compress(self, problem: Sparse) -> Tensor:
        """One compressed weight serves every plan of a type."""
        torch, device = self._torch, self._owner.device
        nbytes, scratch = problem.compressed_nbytes()
        stored = self._owner.stored.get(self.tensor)
        if stored is not None and len(stored) == nbytes:
            return torch.frombuffer(bytearray(stored), dtype=torch.uint8).to(device)
        compressed = torch.empty(nbytes, dtype=torch.uint8, device=device)
        working = torch.empty(max(scratch, 1), dtype=torch.uint8, device=device)
        problem.compress(
            w=self.weight.data_ptr(),
            compressed=compressed.data_ptr(),
            scratch=working.data_ptr(),
            stream=torch.cuda.current_stream(device).cuda_stream,
        )
        return compressed

    def _runner(self, gemm: Gemm, runner: Any, weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        torch, device, floating = self._torch, self._owner.device, self.weight.dtype
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
