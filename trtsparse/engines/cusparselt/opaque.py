"""Products as one operator of PyTorch, so that graphs of its operators can be traced through them and compiled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.errors import EngineError

__all__ = ["Opaque"]

_numbers = itertools.count()
_made: dict[int, Callable[[Tensor], Tensor]] = {}


@functools.cache
def _operator() -> Any:
    """The operator; its number says which product is meant, its other arguments what the result looks like."""
    import torch

    def compute(x: Tensor, number: int, columns: int, dtype: Any) -> Tensor:  # noqa: ARG001
        found = _made.get(number)
        if found is None:
            raise EngineError("a product was executed after its engine was closed", fix="open the engine again")
        return found(x.reshape(-1, x.shape[-1])).reshape((*x.shape[:-1], columns))

    def describe(x: Tensor, number: int, columns: int, dtype: Any) -> Tensor:  # noqa: ARG001
        return x.new_empty((*x.shape[:-1], columns), dtype=dtype)

    schema = "(Tensor x, int number, int columns, ScalarType dtype) -> Tensor"
    made = torch.library.custom_op("trtsparse::product", compute, mutates_args=(), schema=schema)
    made.register_fake(describe)
    return made


@dataclass(frozen=True)
class Opaque:
    """A product that compilers call and do not look into.

    Attributes:
        number: Its own.
        columns: Of the result.
        dtype: PyTorch's type of the result.
    """

    number: int
    columns: int
    dtype: Any

    @classmethod
    def enter(cls, compute: Callable[[Tensor], Tensor], *, columns: int, dtype: Any) -> Opaque:
        """Register what computes (M, K) to (M, columns), in memory of its own; call `close` when done.

        The product itself takes (..., K) and gives (..., columns).
        """
        number = next(_numbers)
        _made[number] = compute
        return cls(number, columns, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute."""
        return _operator()(x.contiguous(), self.number, self.columns, self.dtype)

    def close(self) -> None:
        """Forget it. Closing twice is harmless."""
        _made.pop(self.number, None)
