"""Device and pinned memory: pools of reusable blocks with a limit, and numpy arrays in pinned memory."""

from __future__ import annotations

import ctypes
import math
import threading
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trtsparse.cuda.base import Cuda, current
from trtsparse.errors import CudaError, EngineError

__all__ = ["Block", "Pool", "PoolStats", "host_array", "host_view", "pinned_address", "size_class"]

_GRAIN = 512  # what CUDA aligns device memory to, at least
_STEPS = 8  # size classes between two powers of two: at most an eighth is wasted
_SHARED_BEFORE_SYNC = 8
_OUT_OF_MEMORY = ("memoryallocation", "out of memory", "out_of_memory")


def size_class(nbytes: int) -> int:
    """The size of the block that serves a request: a multiple of 512, in eight steps between two powers of two.

    Example:
        >>> [size_class(n) for n in (0, 1, 5000, 1_000_000)]
        [512, 512, 5120, 1048576]
    """
    grains = max(1, -(-nbytes // _GRAIN))
    step = max(1, (1 << (grains - 1).bit_length()) // (2 * _STEPS))
    return -(-grains // step) * step * _GRAIN


@dataclass(frozen=True)
class PoolStats:
    """What a pool holds.

    Attributes:
        held_nbytes: Obtained from CUDA and not given back.
        used_nbytes: The part of it that is lent out.
        peak_nbytes: The most that was ever held.
        limit_nbytes: The most that may be held; None: no limit.
        allocations: Calls to CUDA for more.
        reuses: Requests served by a block that was there.
        device_synchronizations: Waits for the whole device before blocks seen by other libraries were reused.
    """

    held_nbytes: int
    used_nbytes: int
    peak_nbytes: int
    limit_nbytes: int | None
    allocations: int
    reuses: int
    device_synchronizations: int


class Block:
    """Memory lent by a pool; goes back when `release` is called or nobody holds it any more.

    Attributes:
        address: Where it begins.
        nbytes: Its size, at least what was asked for.
    """

    __slots__ = ("__weakref__", "_pool", "address", "nbytes", "shared")

    def __init__(self, pool: Pool, address: int, nbytes: int) -> None:
        self._pool: Pool | None = pool
        self.address = address
        self.nbytes = nbytes
        self.shared = False
        """Another library may still use it on a stream that we do not know."""

    def release(self) -> None:
        """Give it back. Releasing twice is harmless."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(self.address, self.nbytes, shared=self.shared)

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self.release()


class Pool:
    """Blocks of one kind of memory, kept for reuse. Thread-safe; blocks may be released by the garbage collector.

    A block whose memory another library has seen (`Block.shared`) is reused only after the device was synchronised:
    that library may have work on it in a stream that nobody here knows. One synchronisation serves eight such blocks.

    Args:
        cuda: The device.
        kind: "device" or "pinned".
        limit_nbytes: The most to hold; None: no limit.
    """

    def __init__(self, cuda: Cuda, kind: Literal["device", "pinned"], *, limit_nbytes: int | None = None) -> None:
        self.closed = False
        self.kind = kind
        self._cuda = cuda
        self._obtain, self._free = (
            (cuda.allocate, cuda.free) if kind == "device" else (cuda.allocate_pinned, cuda.free_pinned)
        )
        self._limit = limit_nbytes
        self._lock = threading.Lock()
        # filled by finalizers, which may run inside the locked part of this very thread
        self._returned: deque[tuple[int, int, bool]] = deque()
        self._idle: dict[int, list[int]] = {}
        self._shared: dict[int, list[int]] = {}
        self._held = self._used = self._peak = self._allocations = self._reuses = self._synchronizations = 0

    def take(self, nbytes: int, *, exact: bool = False) -> Block:
        """Borrow a block.

        Args:
            nbytes: The least size.
            exact: Round up to 512 bytes only, for sizes that will not change.

        Raises:
            EngineError: The limit would be exceeded, or the pool is closed.
            CudaError: CUDA has no more memory.
        """
        size = max(_GRAIN, -(-nbytes // _GRAIN) * _GRAIN) if exact else size_class(nbytes)
        try:
            with self._lock:
                if self.closed:
                    raise EngineError(f"the pool of {self.kind} memory is closed")
                self._collect()
                address = self._reuse(size)
                if address is None:
                    address = self._allocate(size)
                self._used += size
                return Block(self, address, size)
        finally:
            self._settle()

    def give_back(self, address: int, nbytes: int, *, shared: bool = False) -> None:
        """Take a block back; called by `Block`, from any thread and at any time."""
        self._returned.append((address, nbytes, shared))
        if self.closed:
            self._settle()

    @property
    def stats(self) -> PoolStats:
        """What the pool holds now."""
        with self._lock:
            self._collect()
            return PoolStats(
                self._held, self._used, self._peak, self._limit,
                self._allocations, self._reuses, self._synchronizations,
            )  # fmt: skip

    def trim(self) -> None:
        """Free the blocks that nobody uses."""
        with self._lock:
            self._collect()
            self._trim()

    def close(self) -> None:
        """Free what is idle now, and what is lent out when it comes back. Closing twice is harmless."""
        self.closed = True
        self._settle()
        with self._lock:
            self._trim()
        self._settle()

    def _settle(self) -> None:
        """Account for what came back while the lock was held; after `close`, free it."""
        while self.closed and self._returned and self._lock.acquire(blocking=False):
            try:
                self._collect()
                self._trim()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            address, nbytes, shared = self._returned.popleft()
            (self._shared if shared else self._idle).setdefault(nbytes, []).append(address)
            self._used -= nbytes

    def _reuse(self, size: int) -> int | None:
        if not self._idle.get(size):
            waiting = len(self._shared.get(size, ()))
            full = self._limit is not None and self._held + size > self._limit
            if waiting >= _SHARED_BEFORE_SYNC or (waiting and full):
                self._unshare()
        found = self._idle.get(size)
        if not found:
            return None
        self._reuses += 1
        return found.pop()

    def _unshare(self) -> None:
        """After the device has finished, no stream of any library uses what was released before."""
        with current(self._cuda):
            self._cuda.synchronize_device()
        self._synchronizations += 1
        for size, addresses in self._shared.items():
            self._idle.setdefault(size, []).extend(addresses)
        self._shared.clear()

    def _allocate(self, size: int) -> int:
        if self._limit is not None and self._held + size > self._limit:
            self._trim()
            if self._held + size > self._limit:
                raise EngineError(
                    f"the limit of {self.kind} memory is reached",
                    where="limit_nbytes",
                    got=f"{self._held:,} bytes in use and {size:,} more asked for",
                    expected=f"at most {self._limit:,} bytes",
                    fix="raise the limit, release results earlier, or use fewer contexts",
                )
        with current(self._cuda):
            try:
                address = self._obtain(size)
            except CudaError as error:
                if not any(word in error.name.lower() for word in _OUT_OF_MEMORY) or not (self._idle or self._shared):
                    raise
                self._trim()
                address = self._obtain(size)
        self._allocations += 1
        self._held += size
        self._peak = max(self._peak, self._held)
        return address

    def _trim(self) -> None:
        if not any(self._idle.values()) and not any(self._shared.values()):
            return
        with current(self._cuda):
            if any(self._shared.values()):
                self._unshare()
            for size, addresses in self._idle.items():
                while addresses:
                    self._free(addresses.pop())
                    self._held -= size
        self._idle.clear()

    def __del__(self) -> None:
        if hasattr(self, "_held") and self._held and not self.closed:
            warnings.warn(
                f"a pool that holds {self._held:,} bytes of {self.kind} memory was not closed",
                ResourceWarning,
                stacklevel=2,
            )
            self.close()


class _Pinned:
    """What a numpy array in pinned memory keeps alive; numpy reads ``__array_interface__``."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.block = block
        nbytes = math.prod(shape) * dtype.itemsize
        self.__array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (block.address, False), "version": 3
        }  # fmt: skip


def host_array(pool: Pool, shape: tuple[int, ...], dtype: np.dtype[Any], *, block: Block | None = None) -> np.ndarray:
    """A numpy array in pinned memory, which it gives back when nobody holds it any more. Not initialised.

    Args:
        pool: Of kind "pinned".
        shape: The array's.
        dtype: The array's.
        block: The memory to use, by default new one from the pool.
    """
    owner = _Pinned(block or pool.take(math.prod(shape) * dtype.itemsize), shape, dtype)
    flat = np.asarray(owner)
    return flat.view(dtype).reshape(shape) if flat.size else np.empty(shape, dtype)


def pinned_address(array: np.ndarray) -> int | None:
    """The address of an array in pinned memory of ours that is contiguous; None for other arrays."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return array.ctypes.data if isinstance(base, _Pinned) and array.flags.c_contiguous else None


def host_view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A numpy array over host memory that someone else keeps alive."""
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes:
        return np.empty(shape, dtype)
    buffer = memoryview((ctypes.c_ubyte * nbytes).from_address(address))
    return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape)
