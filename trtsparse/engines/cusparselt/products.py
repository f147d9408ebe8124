"""Products with weights, each by the kernel chosen for it: of cuSPARSELt, of cuBLASLt, or PyTorch's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trtsparse.engines.cusparselt.graph import Node
from trtsparse.engines.cusparselt.opaque import Opaques
from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.engines.cusparselt.product import Product, Used
from trtsparse.engines.cusparselt.program import Linear
from trtsparse.engines.cusparselt.quantized_product import QuantizedProduct
from trtsparse.files.protobuf import Buffer
from trtsparse.tune.choose import Choose, NotTuned, question
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.result import Kernel
from trtsparse.tune.sparse import Sparse

__all__ = ["Products"]

_REPETITIONS = 20


class Products:
    """Makes the products of a program; holds their weights on the GPU.

    Args:
        device: PyTorch's device.
        floating: PyTorch's type in which float32 values are computed; None: as the model has them. Products of
            float32 values are PyTorch's own: their sparse kernels take another pattern, 1:2.
        choose: Which kernel to use for a product.
        use_sparse: Whether it may be a sparse one.
        compressed: Weights that were compressed before, by the product's key.
        passes: Milliseconds of passes over results that were measured before, by what they do.

    Attributes:
        chosen: What ``choose`` answered, by its `trtsparse.tune.choose.question`; not what could not be tuned.
        passes: As above, with those that were measured since.
        number: The GPU's.
        opaques: What traced graphs call; current while they run.
    """

    def __init__(
        self,
        device: Any,
        floating: Any,
        choose: Choose,
        *,
        use_sparse: bool = True,
        compressed: Mapping[str, Buffer] | None = None,
        passes: Mapping[str, float] | None = None,
    ) -> None:
        self.device, self.floating = device, floating
        self.stored = compressed or {}
        self.opaques = Opaques()
        self.made: list[Product | QuantizedProduct] = []
        self._scalars: dict[float, Tensor] = {}
        self._used: tuple[Used, ...] = ()
        self.chosen: dict[str, Kernel | None] = {}
        self._not_tuned: set[str] = set()
        self.passes = dict(passes or {})
        self.number = getattr(device, "index", None) or 0
        self._choose, self._use_sparse = choose, use_sparse

    def __call__(self, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> Linear:
        """A product for a node; weights (N, K), bias (N,)."""
        kind = QuantizedProduct if node.op == "QuantizedLinear" else Product
        product = kind(self, node, weight, bias)
        self.made.append(product)
        return product

    def choose(self, gemm: Gemm, compliant: bool) -> Kernel | None:  # noqa: FBT001 - as it was given
        """The kernel for a product, remembered in ``chosen``; None for PyTorch's own.

        A product that could not be tuned has PyTorch's own too, as long as this object lives; a warning tells it.
        That is not in ``chosen``: an engine that is loaded from the saved form asks again.
        """
        compliant = compliant and self._use_sparse
        if gemm.key in self._not_tuned:
            return None
        try:
            kernel = self._choose(gemm, compliant)
        except NotTuned as failed:
            self._not_tuned.add(gemm.key)
            text = f"the product {gemm.key} could not be tuned, and PyTorch's own kernel may compute it: {failed}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return None
        self.chosen[question(gemm, compliant=compliant)] = kernel
        return kernel

    def pass_ms(self, name: str, work: Callable[[], Any]) -> float:
        """Milliseconds that some work after a product takes on the GPU, measured once for each name."""
        if name not in self.passes:
            self.passes[name] = _measure_ms(work)
        return self.passes[name]

    def scalar(self, value: float) -> Tensor:
        """A number on the device, one tensor for all who want it: a compiler sees that they compute alike.

        PyTorch multiplies by the inverse of a plain number, which rounds otherwise than a division.
        """
        if value not in self._scalars:
            torch = _torch()
            self._scalars[value] = torch.tensor(value, dtype=torch.float32, device=self.device)
        return self._scalars[value]

    def compress(self, problem: Sparse, key: str, weight: Callable[[], Tensor]) -> Tensor:
        """A compressed weight on the device, which serves every plan of a product.

        Args:
            problem: Any number of its rows.
            key: The product's.
            weight: Gives it, (N, K) on the device, where it was not compressed before.
        """
        torch = _torch()
        nbytes, scratch = problem.compressed_nbytes()
        stored = self.stored.get(key)
        if stored is not None and len(stored) == nbytes:
            return torch.tensor(np.frombuffer(stored, np.uint8), device=self.device)
        dense = weight()
        compressed = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        working = torch.empty(max(scratch, 1), dtype=torch.uint8, device=self.device)
        problem.compress(
            w=dense.data_ptr(),
            compressed=compressed.data_ptr(),
            scratch=working.data_ptr(),
            stream=torch.cuda.current_stream(self.device).cuda_stream,
        )
        return compressed

    @property
    def used(self) -> tuple[Used, ...]:
        """The kernels that run, for every number of rows that came up."""
        return self._used or tuple(used for product in self.made for used in product.used)

    def compressed(self) -> dict[str, bytes]:
        """The compressed weights that were made, by the product's key."""
        found = {}
        for product in self.made:
            if product.compressed is not None:
                found[product.key] = product.compressed.cpu().numpy().tobytes()
        return found

    def close(self) -> None:
        """Destroy plans and descriptors, free weights; ``used`` tells what there was."""
        self._used = self.used
        self.opaques.close()
        for product in self.made:
            product.close()
        self.made.clear()
        self._scalars.clear()


def _measure_ms(work: Callable[[], Any]) -> float:
    """From events around several repetitions."""
    torch = _torch()
    work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(_REPETITIONS):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / _REPETITIONS


def _torch() -> Any:
    import torch

    return torch
