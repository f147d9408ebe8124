"""Products as one operator of PyTorch, so that graphs of its operators can be traced through them and compiled.

In a graph a product is known by its name in the model, not by the engine it belongs to: what a compiler made for one
engine, and keeps in its cache, serves the next one of that model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from trtsparse.engines.cusparselt.operators import Tensor
from trtsparse.errors import EngineError

__all__ = ["Opaque", "Opaques"]

Compute = Callable[..., Tensor]
_ALIGNED = 16  # bytes
_current: ContextVar[Mapping[str, Compute] | None] = ContextVar("products", default=None)


@functools.cache
def _operator() -> Any:
    """The operator; its name says which product is meant, its other arguments what the result looks like."""
    import torch

    def compute(x: Tensor, added: Tensor | None, name: str, columns: int, dtype: Any) -> Tensor:  # noqa: ARG001
        found = (_current.get() or {}).get(name)
        if found is None:
            raise EngineError(
                "a product was executed outside of its engine, or after that was closed",
                where=name,
                fix="open the engine again",
            )
        rows = [_aligned(value.reshape(-1, value.shape[-1])) for value in (x, added) if value is not None]
        return found(*rows).reshape((*x.shape[:-1], columns))

    def describe(x: Tensor, added: Tensor | None, name: str, columns: int, dtype: Any) -> Tensor:  # noqa: ARG001
        return x.new_empty((*x.shape[:-1], columns), dtype=dtype)

    schema = "(Tensor x, Tensor? added, str name, int columns, ScalarType dtype) -> Tensor"
    made = torch.library.custom_op("trtsparse::product", compute, mutates_args=(), schema=schema)
    made.register_fake(describe)
    return made


def _aligned(value: Tensor) -> Tensor:
    """At an address that every kernel takes, as PyTorch's own are; part of another value may be elsewhere."""
    return value.clone() if value.data_ptr() % _ALIGNED else value


class Opaques:
    """The products of one engine. Graphs that were traced through them run while they are `current`."""

    def __init__(self) -> None:
        self._computes: dict[str, Compute] = {}

    def enter(self, name: str, compute: Compute, *, columns: int, dtype: Any) -> Opaque:
        """Register a product; call `close` when done.

        Args:
            name: No other one of the engine has it.
            compute: (M, K), and (M, columns) where it adds such, to (M, columns) in memory of its own.
            columns: Of the result.
            dtype: PyTorch's type of the result.
        """
        self._computes[name] = compute
        return Opaque(self, name, columns, dtype)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Within it, in this thread, traced graphs compute by these products."""
        token = _current.set(self._computes)
        try:
            yield
        finally:
            _current.reset(token)

    def close(self) -> None:
        """Forget the products. Closing twice is harmless."""
        self._computes.clear()


@dataclass(frozen=True)
class Opaque:
    """A product that compilers call and do not look into; takes (..., K), gives (..., columns) and may add such.

    Attributes:
        owner: Where it is entered.
        name: Its own there.
        columns: Of the result.
        dtype: PyTorch's type of the result.
    """

    owner: Opaques
    name: str
    columns: int
    dtype: Any

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Compute."""
        added = None if added is None else added.contiguous()
        with self.owner.current():
            return _operator()(x.contiguous(), added, self.name, self.columns, self.dtype)
