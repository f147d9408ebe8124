"""Products with weights: what they have in common, and those of floating values, ``act(x W^T + b + c)``."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node, is_two_four
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.program import to_tensor
from trtsparse.errors import EngineError
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Configuration, Sparse

if TYPE_CHECKING:  # it makes these products
    from trtsparse.engines.cusparselt.products import Products

__all__ = ["HALVES", "Product", "Ready", "Used", "WeightProduct"]

HALVES = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
"""PyTorch's 16-bit types to ours."""
_ROWS_KEPT = 64
"""Numbers of rows whose plans a product keeps; graphs that were captured do not need them."""
Compute = Callable[..., Tensor]


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


@dataclass(frozen=True)
class Ready:
    """A product for one number of rows.

    Attributes:
        run: Computes it; takes what the kernel adds too.
        used: By what; None for types that have no kernels here.
        undo: Destroys plans and descriptors.
    """

    run: Compute
    used: Used | None
    undo: contextlib.ExitStack


class WeightProduct(ABC):
    """A product with a weight for any number of rows. Not thread-safe.

    Args:
        owner: What all products share.
        node: A "Linear" or "QuantizedLinear" node.
        weight: (N, K).

    Attributes:
        n: Output channels.
        k: Reduction length.
        compliant: Whether the weight is 2:4 along K.
        tensor: The weight's name.
        key: Its own among all products of a model.
        compressed: The compressed weight on the device; None before a sparse kernel needed it.
    """

    def __init__(self, owner: Products, node: Node, weight: np.ndarray) -> None:
        import torch

        self._torch, self._owner, self._node = torch, owner, node
        self.n, self.k = weight.shape
        self.tensor, self.key = node.inputs[1], node.outputs[0]
        self.compliant = self.key in owner.stored or is_two_four(weight)
        self.compressed: Tensor = None
        self._act = {"": None, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[node.attributes["act"]]
        self._ready: dict[int, Ready] = {}

    @abstractmethod
    def __call__(self, x: Tensor, *added: Tensor) -> Tensor:
        """(..., K) to (..., N); with what the node adds, if it adds something."""

    @property
    def used(self) -> list[Used]:
        """What runs, for each number of rows that is kept."""
        return [ready.used for ready in self._ready.values() if ready.used is not None]

    def _for_rows(self, rows: int, prepare: Callable[[contextlib.ExitStack], tuple[Compute, Used | None]]) -> Compute:
        """What was prepared for a number of rows, or is now."""
        found = self._ready.get(rows)
        if found is None:
            with contextlib.ExitStack() as undo:
                run, used = prepare(undo)
                found = self._ready[rows] = Ready(run, used, undo.pop_all())
            if len(self._ready) > _ROWS_KEPT:
                self._ready.pop(next(iter(self._ready))).undo.close()
        return found.run

    def _ask(self, gemm: Gemm) -> tuple[Gemm, Kernel | None]:
        """The kernel that is chosen for a product."""
        return gemm, self._owner.choose(gemm, self._fits(gemm))

    def _fits(self, gemm: Gemm) -> bool:
        """Whether a sparse kernel may be used for a product with the weight."""
        step = gemm.input_type.alignment
        return self.compliant and not (gemm.n % step or gemm.k % step)

    @contextlib.contextmanager
    def _telling(self, gemm: Gemm, kernel: Kernel) -> Iterator[None]:
        """Opening a kernel."""
        try:
            yield
        except Refused as refused:
            raise EngineError(
                "a chosen kernel does not exist",
                where=f"{self._node.name}: {gemm.key}",
                got=f"{kernel.kind} kernel {kernel.name}: {refused}",
                fix="delete the cache of tuning, or make the saved engine again, on this machine",
            ) from refused

    def _plan(
        self, gemm: Gemm, kernel: Kernel, undo: contextlib.ExitStack, weight: Callable[[], Tensor], **options: Any
    ) -> tuple[Any, Tensor]:
        """A sparse kernel, and the compressed weight."""
        problem = Sparse(gemm, device=self._owner.number, **options)
        undo.callback(problem.close)
        plan = problem.runner(Configuration(**kernel.parameters))
        undo.callback(plan.close)
        if self.compressed is None:
            self.compressed = self._owner.compress(problem, self.key, weight)
        return plan, self.compressed

    def _launching(self, gemm: Gemm, runner: Any, weight: Tensor, dtype: Any) -> Compute:
        """A kernel as a function of (rows, K) values, contiguous, that gives (rows, N) of a type.

        It takes values of that shape and type too, contiguous, where the kernel adds them.
        """
        torch, device = self._torch, self._owner.device
        nbytes = max(runner.workspace_nbytes, 1)

        def run(x: Tensor, added: Tensor | None = None) -> Tensor:
            if gemm.has_addend != (added is not None):
                raise EngineError(
                    "another kernel was chosen for a product than when its model was compiled",
                    where=f"{self._node.name}: {gemm.key}",
                    got=f"a kernel that adds {'a matrix' if gemm.has_addend else 'nothing'}",
                    expected=f"one that adds {'nothing' if gemm.has_addend else 'a matrix'}",
                    fix="open the engine again",
                )
            y = torch.empty((x.shape[0], self.n), dtype=dtype, device=device)
            workspace = torch.empty(nbytes, dtype=torch.uint8, device=device)
            runner.enqueue(
                x=x.data_ptr(),
                w=weight.data_ptr(),
                y=y.data_ptr(),
                c=0 if added is None else added.data_ptr(),
                workspace=workspace.data_ptr(),
                stream=torch.cuda.current_stream(device).cuda_stream,
            )
            return y

        return run

    def close(self) -> None:
        """Destroy plans and descriptors, free weights. Closing twice is harmless."""
        for ready in self._ready.values():
            ready.undo.close()
        self._ready.clear()
        self.compressed = None


class Product(WeightProduct):
    """``act(x W^T + b)``, or ``act(x W^T + b + c)``, of floating values.

    Args:
        owner: What all products share.
        node: A "Linear" node; it adds what it has as its fourth input.
        weight: (N, K).
        bias: (N,), or None.
    """

    def __init__(self, owner: Products, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__(owner, node, weight)
        self._array = weight
        self._dtype = to_tensor(weight[:0], floating=owner.floating).dtype
        self._bias = None if bias is None else self._moved(bias)
        # what a kernel may leave to a pass over its results
        self._left = "add" if len(node.inputs) > 3 else "gelu" if node.attributes["act"] == "gelu" else ""
        self._opaque = owner.opaques.enter(self.key, self._compute, columns=self.n, dtype=self._dtype)

    def _moved(self, array: np.ndarray) -> Tensor:
        return to_tensor(array, device=self._owner.device, floating=self._owner.floating)

    @functools.cached_property
    def weight(self) -> Tensor:
        """(N, K), on the device from when a kernel first needs it."""
        return self._moved(self._array)

    def __call__(self, x: Tensor, *added: Tensor) -> Tensor:
        """(..., K) to (..., N); what is added may be of any shape that goes with that."""
        if not added:
            return self._opaque(x)
        c = added[0].to(x.device, self._dtype)  # a constant may be on the host
        shape = (*x.shape[:-1], self.n)
        multiply: Compute = self._opaque
        if self._kernel_adds(x.shape[:-1].numel()):
            if self._torch.broadcast_shapes(c.shape, shape) == shape:
                return self._opaque(x, c.expand(shape))
            multiply = self._linear  # the sum has a larger shape
        return self._activated(multiply(x) + c)

    def _kernel_adds(self, rows: int) -> bool:
        """Whether what is chosen for a number of rows does so."""
        self._for_rows(rows, lambda undo: self._prepare(rows, undo))
        used = self._ready[rows].used
        return used is not None and used.kernel is not None and used.gemm.has_addend

    def _compute(self, x: Tensor, *added: Tensor) -> Tensor:
        rows = x.shape[0]
        return self._for_rows(rows, lambda undo: self._prepare(rows, undo))(x, *added)

    def _prepare(self, rows: int, undo: contextlib.ExitStack) -> tuple[Compute, Used | None]:
        dtype = HALVES.get(str(self._dtype))
        if dtype is None or not rows:
            return self._by_torch, None
        gemm, kernel = self._choose(rows, dtype)
        used = Used(self._node.name, self.tensor, gemm, kernel)
        if kernel is None:
            return self._by_torch, used
        with self._telling(gemm, kernel):
            run = self._open(gemm, kernel, undo)
        if gemm.activation or self._left == "add":
            return run, used
        return (lambda x: self._activated(run(x))), used

    def _choose(self, rows: int, dtype: str) -> tuple[Gemm, Kernel | None]:
        """The kernel, and what it does after the product.

        Not every kernel can do a GELU, and one that adds a matrix reads it. One that can, a GELU by the approximation
        with tanh, is taken where the others are not faster together with a pass of its own.
        """
        bias, act = "bias" if self._bias is not None else "", self._node.attributes["act"]

        def ask(*parts: str) -> tuple[Gemm, Kernel | None]:
            return self._ask(Gemm(rows, self.n, self.k, dtype, epilogue="_".join(filter(None, parts)) or "none"))

        if not self._left:
            return ask(bias, act)
        whole, plain = ask(bias, "add" if self._left == "add" else "", act), ask(bias)
        if whole[1] is None or plain[1] is None:
            return plain if whole[1] is None else whole
        return whole if whole[1].ms <= plain[1].ms + self._pass_ms(rows, dtype) else plain

    def _pass_ms(self, rows: int, dtype: str) -> float:
        """Milliseconds of what is left to do; a compiler makes one pass of a sum and its activation."""
        torch = self._torch
        work: dict[str, tuple[int, Compute]] = {
            "gelu": (1, torch.nn.functional.gelu),
            "add": (2, lambda y, c: torch.add(y, c, out=y)),
        }
        count, run = work[self._left]
        values = [torch.empty((rows, self.n), dtype=self._dtype, device=self._owner.device) for _ in range(count)]
        return self._owner.pass_ms(f"{self._left} {rows}x{self.n} {dtype}", lambda: run(*values))

    def _linear(self, x: Tensor) -> Tensor:
        return self._torch.nn.functional.linear(x, self.weight, self._bias)

    def _activated(self, y: Tensor) -> Tensor:
        return y if self._act is None else self._act(y)

    def _by_torch(self, x: Tensor) -> Tensor:
        """All of it, or what comes before a sum."""
        y = self._linear(x)
        return y if self._left == "add" else self._activated(y)

    def _open(self, gemm: Gemm, kernel: Kernel, undo: contextlib.ExitStack) -> Compute:
        bias = 0 if self._bias is None else self._bias.data_ptr()
        if kernel.kind == "sparse":
            plan, packed = self._plan(gemm, kernel, undo, lambda: self._moved(self._array), bias=bias)
            run = self._launching(gemm, plan, packed, self._dtype)
            missing = gemm.padded_m - gemm.m
            if not missing:
                return run
            pad = self._torch.nn.functional.pad
            return lambda *values: run(*(pad(value, (0, 0, 0, missing)) for value in values))[: gemm.m]
        algorithm = Algorithm(**kernel.parameters)
        problem = Dense(
            dense_form(gemm),
            bias=bias,
            fast_accumulation=algorithm.fast_accumulation,
            device=self._owner.number,
        )
        undo.callback(problem.close)
        return self._launching(gemm, problem.runner(algorithm), self.weight, self._dtype)

    def close(self) -> None:
        """See `WeightProduct`."""
        super().close()
        self.__dict__.pop("weight", None)
        self._bias = None
