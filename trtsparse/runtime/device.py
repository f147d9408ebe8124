"""Executes the requests of a session on a GPU."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trtsparse.cuda.base import Cuda, current
from trtsparse.engines.device import DeviceEngine
from trtsparse.errors import ConfigError, CudaError, DeviceError, FeedError, UnsupportedOptionError
from trtsparse.precision.specs import check_named
from trtsparse.runtime.arrays import Foreign, foreign_array, is_fitting
from trtsparse.runtime.feeds import FeedReader
from trtsparse.runtime.lane import NO_COPIES, Copy, Lane, Resources, SharedScratch, attempt
from trtsparse.runtime.lanes import Lanes
from trtsparse.runtime.memory import Pool, PoolStats, host_array
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.results import Filled, Outputs, check_names

__all__ = ["DeviceRequest", "DeviceRunner"]


class DeviceRunner:
    """An engine on a GPU with contexts, streams and buffers. Thread-safe.

    Args:
        engine: Loaded on the device of ``cuda``.
        cuda: The device.
        options: How to use it.

    Raises:
        DeviceError: The engine is on another device.
        UnsupportedOptionError: An option that the provider, the version or the plan cannot do.
        CudaError: CUDA does not make a stream, or has no memory.
    """

    def __init__(self, engine: DeviceEngine, cuda: Cuda, options: SessionOptions) -> None:
        self.closed = False
        if engine.device != cuda.device:
            raise DeviceError(
                "the engine is loaded on another GPU",
                where="device",
                got=f"GPU {engine.device}",
                expected=f"GPU {cuda.device}",
                fix=f"open the session with device={engine.device}, or load the plan on GPU {cuda.device}",
            )
        if options.graphs and not cuda.graphs:
            raise UnsupportedOptionError(
                "this CUDA provider has no CUDA graphs", where="graphs=True", got=cuda.name, expected="cuda-python"
            )
        self._cuda = cuda
        self._engine = engine
        self._names = frozenset(spec.name for spec in engine.outputs)
        self._warned = threading.Lock()
        self._intake = 0
        graphs = cuda.graphs if options.graphs is None else options.graphs
        self._resources = Resources(
            engine,
            cuda,
            options,
            Pool(cuda, "device", limit_nbytes=options.device_limit_nbytes),
            Pool(cuda, "pinned", limit_nbytes=options.pinned_limit_nbytes),
            graphs=graphs and engine.can_capture,
            on_capture_failure=self._without_graphs,
        )
        self._lanes = Lanes(
            lambda profile: Lane(self._resources, profile),
            limit=options.contexts,
            exclusive=engine.exclusive_profiles,
            description=engine.description,
        )
        try:
            with current(cuda):
                self._prepare(options)
        except BaseException:
            self.close()
            raise

    def _prepare(self, options: SessionOptions) -> None:
        engine, cuda = self._engine, self._cuda
        if options.weights_nbytes is not None:
            engine.set_weights_budget(options.weights_nbytes)
        self._intake = cuda.create_stream()
        self._read = FeedReader(engine, cuda, intake=self._intake)
        if options.scratch == "shared":
            nbytes = max(engine.scratch_nbytes(profile) for profile in range(len(engine.profiles)))
            self._resources.scratch = SharedScratch(cuda, self._resources.device_pool.take(nbytes, exact=True))

    def current(self) -> contextlib.AbstractContextManager[None]:
        """The device is current in this thread during the block."""
        return current(self._cuda)

    @property
    def memory(self) -> dict[str, PoolStats]:
        """Statistics of the pools, "device" and "pinned"."""
        return {"device": self._resources.device_pool.stats, "pinned": self._resources.pinned_pool.stats}

    @property
    def contexts(self) -> int:
        """How many execution contexts there are now."""
        return len(self._lanes)

    @property
    def contexts_replaced(self) -> int:
        """How many were replaced after an execution had failed."""
        return self._lanes.replaced

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """A numpy array in pinned memory."""
        with current(self._cuda):
            return host_array(self._resources.pinned_pool, shape, dtype)

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
        on_device: bool = False,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Execute once; see `trtsparse.runtime.session.Session.run`."""
        cuda, lanes = self._cuda, self._lanes
        token = cuda.enter()
        try:
            on = None if stream is None else cuda.stream_of(stream)
            lane, pending = self._launch(feeds, outputs, into, on_device=on_device, stream=on)
            try:
                if on is None:
                    cuda.synchronize(lane.stream)
                    lane.finished()
                elif pending.sized_late:
                    cuda.synchronize(on)
                result = pending.finish(lane.stream if on is None else on)
            except BaseException:
                lanes.discard(lane)
                raise
            lanes.release(lane)
            return result
        finally:
            cuda.leave(token)

    def submit(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
        on_device: bool = False,
    ) -> DeviceRequest:
        """Enqueue one execution; see `trtsparse.runtime.session.Session.submit`."""
        cuda = self._cuda
        token = cuda.enter()
        try:
            lane, pending = self._launch(feeds, outputs, into, on_device=on_device, stream=None)
            try:
                cuda.record(lane.done, lane.stream)
            except BaseException:
                self._lanes.discard(lane)
                raise
            request = DeviceRequest(cuda, self._lanes, lane, pending)
            self._lanes.launched(request)
            return request
        finally:
            cuda.leave(token)

    def _launch(
        self, feeds: Mapping[str, Any], outputs: Any, into: Any, *, on_device: bool, stream: int | None
    ) -> tuple[Lane, Outputs | Filled]:
        """Check, borrow a lane, enqueue everything on it."""
        if into is not None:
            check_named(into, self._engine.outputs)
        names = outputs if into is None else into
        if names is not None and not self._names.issuperset(names):
            check_names(tuple(names), self._engine.outputs)
        arrays, key, profiles = self._read(feeds)
        lane = self._lanes.acquire(profiles)
        at = lane.stream if stream is None else stream
        try:
            lane.begin(at)
            shapes = lane.layout(key, arrays)
            pending: Outputs | Filled | None = None
            if into is not None:
                pending = self._replay(lane, key, arrays, shapes, into, at)
            if pending is None:
                wanted = None if outputs is None else frozenset(outputs)
                pending = planned = Outputs(
                    lane, shapes, wanted=wanted, into=into, on_device=on_device, stream=stream
                )
                self._enqueue(lane, key, arrays, planned, at)
            if stream is not None:
                lane.finish_later(stream)
        except BaseException as error:
            self._take_back(lane, at, error)
            raise
        return lane, pending

    def _take_back(self, lane: Lane, stream: int, error: BaseException) -> None:
        """A request was refused, or failed, after some of it may have been enqueued on a stream."""
        if isinstance(error, (FeedError, ConfigError)):
            with contextlib.suppress(CudaError):
                lane.finish_later(stream)  # the next one must not write where copies of this one still go
                self._lanes.release(lane)
                return
        if stream != lane.stream:
            attempt(partial(self._cuda.synchronize, stream))  # what was enqueued there uses the lane's buffers
        self._lanes.discard(lane)

    def _replay(
        self, lane: Lane, key: Any, arrays: list[Any], shapes: tuple[Any, ...], into: Mapping[str, Any], stream: int
    ) -> Filled | None:
        """Launch the graph of this very request, if everything lies on the GPU where it lay before.

        Nothing here is needed but for speed: the rest takes longer than a launch. What fits is known from the graph,
        whose key has the addresses; what the arrays are must be looked at again.
        """
        if not self._resources.graphs or self._resources.scratch is not None:
            return None
        seen = list(arrays)
        for spec, shape in zip(self._engine.outputs, shapes, strict=True):
            target = into.get(spec.name)
            if target is None or type(target) is np.ndarray:
                return None
            array = foreign_array(target, cuda=self._cuda, stream=stream)
            if type(array) is not Foreign or array.dtype != spec.dtype or array.shape != shape or not array.writable:
                return None
            seen.append(array)
        for array in seen:
            if type(array) is not Foreign or not array.contiguous:
                return None
        graph = lane.graphs.find((key, tuple([array.address for array in seen]), NO_COPIES))
        if graph is None:
            return None
        for array in seen:
            if array.stream is not None and array.stream != stream:
                lane.after(array.stream, stream)
            lane.held[id(array.owner)] = array.owner
        self._cuda.launch(graph, stream)
        return Filled(into)

    def _enqueue(self, lane: Lane, key: Any, arrays: list[Any], pending: Outputs, stream: int) -> None:
        """Place the inputs, those on the GPU that fit where they are, and enqueue the execution."""
        addresses: list[int] = []
        copies: list[Copy] = []
        for index, array in enumerate(arrays):
            if type(array) is Foreign and is_fitting(array, self._cuda.device):
                if array.stream is not None and array.stream != stream:
                    lane.after(array.stream, stream)
                lane.held[id(array.owner)] = array.owner
                addresses.append(array.address)
                continue
            address, copy = lane.place(index, array, stream)
            addresses.append(address)
            if copy is not None:
                copies.append(copy)
        addresses += pending.addresses
        capture = self._resources.graphs and not pending.sized_late
        lane.enqueue(key, arrays, tuple(addresses), (tuple(copies), tuple(pending.copies)), stream, capture)
        for target, source, nbytes in pending.across:
            self._cuda.copy_across(target, source, nbytes, stream)

    def _without_graphs(self, error: Exception) -> None:
        """Go on without graphs, and say so once."""
        with self._warned:
            first, self._resources.graphs = self._resources.graphs, False
        if first:
            warnings.warn(
                f"CUDA graphs cannot be captured here; executing without them: {error}", RuntimeWarning, stacklevel=6
            )

    def close(self) -> None:
        """Finish what is under way and free everything. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        cuda, resources = self._cuda, self._resources
        frees: list[Callable[[], None]] = [self._lanes.close]
        if resources.scratch is not None:
            scratch = resources.scratch
            frees += [scratch.block.release, lambda: cuda.destroy_event(scratch.event)]
        if self._intake:
            intake = self._intake
            frees += [lambda: cuda.synchronize(intake), lambda: cuda.destroy_stream(intake)]
        frees += [resources.device_pool.close, resources.pinned_pool.close]
        with current(cuda):
            failures = [error for error in map(_attempt, frees) if error is not None]
        if failures:
            raise failures[0]


def _attempt(free: Callable[[], None]) -> Exception | None:
    """Free the rest as well when one thing fails."""
    try:
        free()
    except Exception as error:  # noqa: BLE001 - raised again by the caller
        return error
    return None


class DeviceRequest:
    """A submitted request, as `trtsparse.runtime.requests.Request` wants it. Thread-safe."""

    def __init__(self, cuda: Cuda, lanes: Lanes, lane: Lane, pending: Outputs | Filled) -> None:
        self._cuda, self._lanes = cuda, lanes
        self._lane: Lane | None = lane
        self._pending: Outputs | Filled | None = pending
        self._lock = threading.Lock()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None

    def finish(self) -> None:
        """Wait for it, keep its result, and give the lane back. Finishing twice is harmless."""
        with self._lock:
            lane, pending = self._lane, self._pending
            if lane is None or pending is None:
                return
            token = self._cuda.enter()
            try:
                self._cuda.synchronize_event(lane.done)
                lane.finished()
                self._result = pending.finish(lane.stream)
            except BaseException as error:  # noqa: BLE001 - kept for `result`
                self._error = error
                self._lanes.discard(lane)
            else:
                self._lanes.release(lane)
            finally:
                self._lane = self._pending = None
                self._lanes.landed(self)
                self._cuda.leave(token)

    def done(self) -> bool:
        """Whether `result` would return at once."""
        with self._lock:
            if self._lane is None:
                return True
            with current(self._cuda):
                return self._cuda.event_done(self._lane.done)

    def result(self) -> dict[str, Any]:
        """The outputs, or the error raised."""
        self.finish()
        if self._error is not None:
            raise self._error
        return self._result or {}
