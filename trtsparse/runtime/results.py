"""Outputs of an execution on a GPU: where they go, and what the caller gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtsparse.engines.device import Shape
from trtsparse.errors import ConfigError, DtypeError, ShapeError
from trtsparse.precision.specs import TensorSpec, did_you_mean
from trtsparse.runtime.arrays import DeviceArray, Foreign, foreign_array
from trtsparse.runtime.lane import Copy, Lane, unfit_reason
from trtsparse.runtime.memory import Block, pinned_address

__all__ = ["Outputs", "check_names"]


class Outputs:
    """The outputs of one request: plan them, enqueue, finish after the stream has got there.

    Args:
        lane: That executes.
        shapes: Of all outputs, in order; -1 where only the data decides.
        wanted: Names to return; None: all.
        into: Arrays to fill, by name; the outputs that are not in it are not returned.
        on_device: Return device arrays.
        stream: The application's stream, or None.
    """

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
        self.addresses: list[int] = []
        self.copies: list[Copy] = []
        self._across: list[Copy] = []
        self._views: list[tuple[str, np.ndarray, np.ndarray | None]] = []
        self._arrays: dict[str, Any] = {}
        self._sized_late: list[tuple[int, str, bool]] = []
        self._allocated: dict[str, Block] = {}
        self._on_device = on_device
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
        buffer, nbytes = self._lane.outputs[index], self._nbytes(index, shape)
        address = buffer.device_address(self._lane, nbytes)
        self._lane.settle()
        view = buffer.pinned_view(self._lane, shape)
        self.addresses.append(address)
        if nbytes:
            self.copies.append((buffer.pinned.address, address, nbytes))  # type: ignore[union-attr]
        self._views.append((name, view, into))

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

        def allocate(output: str, nbytes: int) -> int:
            block = lane.resources.device_pool.take(nbytes)
            self._allocated[output] = block
            return block.address

        if lane.context is not None:
            lane.context.set_allocator(name, allocate)
        self.addresses.append(0)
        self._sized_late.append((index, name, returned))

    def _fill(self, index: int, name: str, shape: Shape, target: Any) -> None:
        lane, spec = self._lane, self._lane.outputs[index]
        cuda = lane.resources.cuda
        if -1 in shape:
            raise ConfigError(
                "an output's shape is known only after the execution", where=f"output {name!r}", fix="use run"
            )
        seen = target if isinstance(target, np.ndarray) else foreign_array(target, cuda=cuda, stream=lane.stream)
        if seen is None or seen.dtype != spec.dtype:
            got = type(target).__name__ if seen is None else str(seen.dtype)
            raise DtypeError("cannot fill an array", where=f"output {name!r}", got=got, expected=str(spec.dtype))
        if tuple(seen.shape) != shape:
            raise ShapeError("cannot fill an array", where=f"output {name!r}", got=tuple(seen.shape), expected=shape)
        if isinstance(seen, Foreign):
            self._fill_on_device(index, name, shape, seen)
        else:
            self._fill_on_host(index, name, shape, seen, target)
        self._arrays[name] = target

    def _fill_on_device(self, index: int, name: str, shape: Shape, target: Foreign) -> None:
        lane, nbytes = self._lane, self._nbytes(index, shape)
        stream = lane.stream if self._stream is None else self._stream
        if not target.contiguous:
            raise ConfigError("only a contiguous array can be filled", where=f"output {name!r}")
        lane.after(target.stream, stream)
        lane.hold(target.owner)
        unfit = unfit_reason(target, lane.resources.cuda.device)
        if unfit is None:
            self.addresses.append(target.address)
            return
        if lane.resources.options.unfit == "refuse":
            raise ConfigError("an array cannot be filled in place", where=f"{name!r}, unfit='refuse'", got=unfit)
        address = lane.outputs[index].device_address(lane, nbytes)
        self.addresses.append(address)
        self._across.append((target.address, address, nbytes))

    def _fill_on_host(self, index: int, name: str, shape: Shape, seen: np.ndarray, target: Any) -> None:
        if seen is not target or not seen.flags.writeable:
            raise ConfigError("the array cannot be written to", where=f"output {name!r}", got=type(target).__name__)
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
        self._lane.hold(seen)
        if nbytes:
            self.copies.append((pinned, address, nbytes))

    @property
    def sized_late(self) -> bool:
        """The shape of an output is known only after the execution."""
        return bool(self._sized_late)

    def enqueue_rest(self, stream: int) -> None:
        """Copies on the GPU, after the execution."""
        for target, source, nbytes in self._across:
            self._lane.resources.cuda.copy_across(target, source, nbytes, stream)

    def finish(self, stream: int) -> dict[str, Any]:
        """What the caller gets; the stream has got there, unless it is the application's.

        Raises:
            CudaError: A copy failed.
            EngineError: An output could not be allocated.
        """
        if self._sized_late:
            self._finish_late(stream)
        for name, view, into in self._views:
            if into is None:
                self._arrays[name] = view.copy()
            else:
                np.copyto(into, view)
        names = [buffer.name for buffer in self._lane.outputs]
        return {name: self._arrays[name] for name in names if name in self._arrays}

    def _finish_late(self, stream: int) -> None:
        """The shapes are known now: wrap the memory, or fetch it."""
        lane, context, cuda = self._lane, self._lane.context, self._lane.resources.cuda
        fetched = []
        for index, name, returned in self._sized_late:
            if context is None or not returned:
                continue
            shape = context.allocated_shape(name)
            if self._on_device:
                self._keep_device_array(index, name, shape, self._allocated[name])
                continue
            nbytes, view = self._nbytes(index, shape), lane.outputs[index].pinned_view(lane, shape)
            if nbytes:
                pinned = lane.outputs[index].pinned
                cuda.copy_out(pinned.address, self._allocated[name].address, nbytes, stream)  # type: ignore[union-attr]
            fetched.append((name, view, None))
        if fetched:
            cuda.synchronize(stream)
            self._views += fetched
        self._allocated = {}


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
