"""CUDA graphs of one execution context: what to capture, when, and how many to keep."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from trtsparse.cuda.base import Cuda

__all__ = ["GraphCache"]

_SEEN_LIMIT = 64


class GraphCache:
    """Graphs by key: shapes, shape values and every address that a graph has inside it.

    A key is captured when it comes for the second time, after that execution was enqueued as usual: what comes once
    is not worth a graph, and libraries do work at the first execution of a shape that must not be captured.

    Args:
        cuda: The device.
        limit: How many graphs to keep.
    """

    def __init__(self, cuda: Cuda, limit: int) -> None:
        self._cuda = cuda
        self._limit = limit
        self._graphs: OrderedDict[Hashable, int] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, key: Hashable) -> int | None:
        """The graph of a key, now the most recently used."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def is_due(self, key: Hashable) -> bool:
        """Whether a key came before; it is noted."""
        if key in self._seen:
            del self._seen[key]
            return True
        self._seen[key] = None
        if len(self._seen) > _SEEN_LIMIT:
            self._seen.popitem(last=False)
        return False

    def capture(self, key: Hashable, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` enqueues, without executing it, in place of the least recently used graph if full.

        Raises:
            CudaError: The capture failed.
            EngineError: The library refused to execute while capturing.
        """
        if len(self._graphs) >= self._limit:
            self._evict()
        self._cuda.begin_capture(stream)
        try:
            enqueue()
        except BaseException:
            self._abandon(stream)
            raise
        self._graphs[key] = self._cuda.end_capture(stream)

    def _abandon(self, stream: int) -> None:
        from trtsparse.errors import CudaError

        try:
            self._cuda.destroy_graph(self._cuda.end_capture(stream))
        except CudaError:
            return  # ending a spoilt capture reports it once more

    def clear(self) -> None:
        """Destroy all."""
        self._seen.clear()
        while self._graphs:
            self._evict()

    def _evict(self) -> None:
        """Destroy the least recently used graph; one that is executing finishes first, as CUDA promises."""
        _, graph = self._graphs.popitem(last=False)
        self._cuda.destroy_graph(graph)
