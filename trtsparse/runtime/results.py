"""Outputs of an execution on a GPU: where they go, and what the caller gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtsparse.engines.device import Shape
from trtsparse.errors import ConfigError, DtypeError, FeedError, ShapeError
from trtsparse.precision.specs import TensorSpec, did_you_mean
from trtsparse.runtime.arrays import DeviceArray, Foreign, foreign_array, is_fitting, unfit_reason
from trtsparse.runtime.lane import Copy, Lane
from trtsparse.runtime.memory import Block, pinned_address

__all__ = ["Filled", "Outputs", "check_names"]


class Outputs:
    """The outputs of one request: where each goes, and what the caller gets once the stream has got there.

    Attributes:
        addresses: Of all outputs, in order; 0 for those that are allocated when their size is known.
        copies: To pinned memory, after the execution.
        across: To other places on the GPU, after the execution.
        sized_late: The shape of an output is known only after the execution.

    Args:
        lane: That executes.
        shapes: Of all outputs, in order; -1 where only the data decides.
        wanted: Names to return; None: all.
        into: Arrays to fill, by name; the outputs that are not in it are not returned.
        on_device: Return device arrays.
        stream: The application's stream, or None.
    """

    __slots__ = (
        "_allocated", "_arrays", "_lane", "_late", "_on_device", "_stream", "_views",
        "across", "addresses", "copies", "sized_late",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        shapes: tuple[Shape, ...],
        *,
        wanted: frozenset[str] | None,
        into: Mapping[str, Any] | None,
        on_device: bool,
        stream: int | None,
    ) -> None:
        self._lane = lane
        self._stream = stream
        self._on_device = on_device
        self.addresses: list[int] = []
        self.copies: list[Copy] = []
        self.across: list[Copy] = []
        self.sized_late = False
        self._views: list[tuple[str, np.ndarray, np.ndarray | None]] = []
        self._arrays: dict[str, Any] = {}  # in the order of the outputs
        for index, (buffer, shape) in enumerate(zip(lane.outputs, shapes, strict=True)):
            name = buffer.name
            if into is not None and name in into:
                self._fill(index, name, shape, into[name])
            elif into is not None or (wanted is not None and name not in wanted):
                self._drop(index, name, shape)
            elif -1 in shape:
                self._allocate_late(index, name, returned=True)
            elif on_device:
                self._make_device_array(index, name, shape)
            else:
                self._stage(index, name, shape)

    def _nbytes(self, index: int, shape: Shape) -> int:
        return math.prod(shape) * self._lane.outputs[index].dtype.itemsize

    def _drop(self, index: int, name: str, shape: Shape) -> None:
        if -1 in shape:
            self._allocate_late(index, name, returned=False)
        else:
            self.addresses.append(self._lane.outputs[index].device_address(self._lane, self._nbytes(index, shape)))

    def _stage(self, index: int, name: str, shape: Shape, into: np.ndarray | None = None) -> None:
        """Through pinned memory to the host."""
        lane = self._lane
        lane.settle()
        buffer = lane.outputs[index]
        view = buffer.pinned_view(lane, shape)
        nbytes = view.nbytes
        address = buffer.device_address(lane, nbytes)
        self.addresses.append(address)
        if nbytes:
            self.copies.append((buffer.pinned_address, address, nbytes))
        self._views.append((name, view, into))
        self._arrays[name] = into

    def _make_device_array(self, index: int, name: str, shape: Shape) -> None:
        lane = self._lane
        block = lane.resources.device_pool.take(self._nbytes(index, shape))
        self.addresses.append(block.address)
        self._keep_device_array(index, name, shape, block)

    def _keep_device_array(self, index: int, name: str, shape: Shape, block: Block) -> None:
        dtype = self._lane.outputs[index].dtype
        cuda = self._lane.resources.cuda
        self._arrays[name] = DeviceArray(block, shape, dtype, cuda=cuda, stream=self._stream)

    def _allocate_late(self, index: int, name: str, *, returned: bool) -> None:
        lane = self._lane
        if not self.sized_late:
            self.sized_late = True
            self._allocated: dict[str, Block] = {}
            self._late: list[tuple[int, str, bool]] = []

        def allocate(output: str, nbytes: int) -> int:
            block = lane.resources.device_pool.take(nbytes)
            self._allocated[output] = block
            return block.address

        if lane.context is not None:
            lane.context.set_allocator(name, allocate)
        self.addresses.append(0)
        self._late.append((index, name, returned))
        if returned:
            self._arrays[name] = None

    def _fill(self, index: int, name: str, shape: Shape, target: Any) -> None:
        """Into an array of the caller; the usual one, on the GPU and fitting, is dealt with here."""
        lane, cuda = self._lane, self._lane.resources.cuda
        stream = lane.stream if self._stream is None else self._stream
        seen: Any = target if isinstance(target, np.ndarray) else foreign_array(target, cuda=cuda, stream=stream)
        if seen is None or seen.dtype != lane.outputs[index].dtype or seen.shape != shape:
            raise self._cannot_fill(index, name, shape, target, seen)
        if type(seen) is Foreign:
            if not seen.writable:
                raise _not_writable(name, target)
            if seen.stream is not None and seen.stream != stream:
                lane.after(seen.stream, stream)
            lane.held[id(seen.owner)] = seen.owner
            if is_fitting(seen, cuda.device):
                self.addresses.append(seen.address)
            else:
                self._copy_to(index, name, shape, seen)
        else:
            self._fill_on_host(index, name, shape, seen, target)
        self._arrays[name] = target

    def _cannot_fill(self, index: int, name: str, shape: Shape, target: Any, seen: Any) -> FeedError | ConfigError:
        where, dtype = f"output {name!r}", self._lane.outputs[index].dtype
        if seen is None or seen.dtype != dtype:
            got = type(target).__name__ if seen is None else str(seen.dtype)
            return DtypeError("cannot fill an array", where=where, got=got, expected=str(dtype))
        if -1 in shape:
            return ConfigError("an output's shape is known only after the execution", where=where, fix="use run")
        return ShapeError("cannot fill an array", where=where, got=seen.shape, expected=shape)

    def _copy_to(self, index: int, name: str, shape: Shape, target: Foreign) -> None:
        """Through memory of ours to an array on a GPU that does not fit."""
        lane = self._lane
        if not target.contiguous:
            raise ConfigError("only a contiguous array can be filled", where=f"output {name!r}")
        if lane.resources.options.unfit == "refuse":
            unfit = unfit_reason(target, lane.resources.cuda.device)
            raise ConfigError("an array cannot be filled in place", where=f"{name!r}, unfit='refuse'", got=unfit)
        nbytes = self._nbytes(index, shape)
        staged = lane.outputs[index].device_address(lane, nbytes)
        self.addresses.append(staged)
        self.across.append((target.address, staged, nbytes))

    def _fill_on_host(self, index: int, name: str, shape: Shape, seen: np.ndarray, target: Any) -> None:
        if seen is not target or not seen.flags.writeable:
            raise _not_writable(name, target)
        pinned = pinned_address(seen)
        if pinned is None:
            if self._stream is not None:
                raise ConfigError(
                    "an array in ordinary host memory is filled when the stream was synchronised",
                    where=f"output {name!r}, stream=",
                    fix="leave stream out, or give an array of Session.host_array or a device array",
                )
            self._stage(index, name, shape, seen)
            return
        nbytes = self._nbytes(index, shape)
        address = self._lane.outputs[index].device_address(self._lane, nbytes)
        self.addresses.append(address)
        self._lane.held[id(seen)] = seen
        if nbytes:
            self.copies.append((pinned, address, nbytes))

    def finish(self, stream: int) -> dict[str, Any]:
        """What the caller gets; the stream has got there, unless it is the application's.

        Raises:
            CudaError: A copy failed.
            EngineError: An output could not be allocated.
        """
        if self.sized_late:
            self._finish_late(stream)
        for name, view, into in self._views:
            if into is None:
                self._arrays[name] = view.copy()
            else:
                np.copyto(into, view)
        return self._arrays

    def _finish_late(self, stream: int) -> None:
        """The shapes are known now: wrap the memory, or fetch it."""
        lane, context, cuda = self._lane, self._lane.context, self._lane.resources.cuda
        fetched = []
        for index, name, returned in self._late:
            if context is None or not returned:
                continue
            shape = context.allocated_shape(name)
            if self._on_device:
                self._keep_device_array(index, name, shape, self._allocated[name])
                continue
            nbytes, view = self._nbytes(index, shape), lane.outputs[index].pinned_view(lane, shape)
            if nbytes:
                cuda.copy_out(lane.outputs[index].pinned_address, self._allocated[name].address, nbytes, stream)
            fetched.append((name, view, None))
        if fetched:
            cuda.synchronize(stream)
            self._views += fetched
        self._allocated = {}


class Filled:
    """The outputs of a request that had nothing to plan: arrays of the caller, filled in place."""

    __slots__ = ("_into",)
    sized_late = False

    def __init__(self, into: Mapping[str, Any]) -> None:
        self._into = into

    def finish(self, _stream: int) -> dict[str, Any]:
        """What the caller gets."""
        return dict(self._into)


def _not_writable(name: str, target: Any) -> ConfigError:
    return ConfigError("the array cannot be written to", where=f"output {name!r}", got=type(target).__name__)


def check_names(names: Sequence[str], known: Sequence[TensorSpec]) -> None:
    """Refuse the name of an output that is not there.

    Raises:
        ConfigError: It is named, with the nearest that is there.
    """
    listed = [spec.name for spec in known]
    for name in names:
        if name not in listed:
            raise ConfigError(
                "the model has no such output",
                where="outputs",
                got=repr(name),
                expected=", ".join(map(repr, listed)),
                fix=did_you_mean(name, listed),
            )
