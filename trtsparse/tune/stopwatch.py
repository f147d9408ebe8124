"""Times of kernels by CUDA events, captured in graphs so that the host's launches do not count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from trtsparse.cuda.base import Cuda

__all__ = ["Enqueue", "Stopwatch"]

Enqueue = Callable[[int], None]
"""Enqueues a kernel once, on the set of operands of this number; numbers count up without end."""

_LONG_MS, _MOST = 1.5, 64
_FIRST = 2


class Stopwatch:
    """Times what is enqueued on a stream; call `close` when done.

    Args:
        cuda: The device, current in this thread.
        stream: Where everything is enqueued.
    """

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._start, self._end = cuda.create_event(timing=True), cuda.create_event(timing=True)

    def quick(self, enqueue: Enqueue, *, enough_ms: float) -> float:
        """A quick time in milliseconds.

        Args:
            enqueue: Of the kernel.
            enough_ms: A kernel that takes three times as long is not looked at more closely.
        """
        enqueue(0)
        self._cuda.synchronize(self._stream)  # the kernel is loaded, and has shown whether it works
        rough = self._rough(enqueue)
        if rough > 3 * enough_ms:
            return rough
        with self._graph(enqueue, rough) as graph:
            return min(self._replayed(*graph) for _ in range(3))

    def race(
        self, kernels: Sequence[Enqueue], rounds: int, *, before: Callable[[int], None] = lambda _: None
    ) -> list[list[float]]:
        """Times of each kernel in each round, taken in turn after a warm-up.

        Args:
            kernels: In this order.
            rounds: How many.
            before: Called with a kernel's position whenever it is about to run.
        """
        with contextlib.ExitStack() as undo:
            graphs = []
            for at, enqueue in enumerate(kernels):
                before(at)
                graphs.append(undo.enter_context(self._graph(enqueue, self._rough(enqueue))))
            times: list[list[float]] = [[] for _ in kernels]
            for _ in range(rounds + 1):
                for at, graph in enumerate(graphs):
                    before(at)
                    times[at].append(self._replayed(*graph))
        return [taken[1:] for taken in times]

    def _rough(self, enqueue: Enqueue) -> float:
        """Milliseconds of one launch, the host's part included."""
        self._cuda.record(self._start, self._stream)
        for at in range(_FIRST):
            enqueue(at)
        return self._stop() / _FIRST

    def _replayed(self, graph: int, count: int) -> float:
        """Milliseconds of one of the launches in a graph."""
        self._cuda.record(self._start, self._stream)
        self._cuda.launch(graph, self._stream)
        return self._stop() / count

    def _stop(self) -> float:
        self._cuda.record(self._end, self._stream)
        self._cuda.synchronize_event(self._end)
        return self._cuda.elapsed_ms(self._start, self._end)

    @contextlib.contextmanager
    def _graph(self, enqueue: Enqueue, rough_ms: float) -> Iterator[tuple[int, int]]:
        """A graph of enough launches that it takes a while, and their number."""
        count = int(min(max(_LONG_MS / max(rough_ms, 1e-3), 2), _MOST))
        self._cuda.begin_capture(self._stream)
        try:
            for at in range(count):
                enqueue(at)
        except BaseException:
            with contextlib.suppress(Exception):
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        graph = self._cuda.end_capture(self._stream)
        try:
            yield graph, count
        finally:
            self._cuda.destroy_graph(graph)

    def close(self) -> None:
        """Destroy the events."""
        self._cuda.destroy_event(self._start)
        self._cuda.destroy_event(self._end)
