"""The lanes of a session: lent to one request at a time, made when needed, replaced when broken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from trtsparse.errors import EngineError
from trtsparse.runtime.lane import Lane

__all__ = ["Flying", "Lanes"]


class Flying(Protocol):
    """A submitted request that holds a lane."""

    def finish(self) -> None:
        """Wait for it, keep its result, and give the lane back. Finishing twice is harmless."""


class Lanes:
    """Lends lanes. Thread-safe.

    Who asks for one while all are taken finishes the oldest submitted request, whose result is kept for its owner;
    if none was submitted, other threads hold the lanes for the length of a call, and this one waits.

    Args:
        make: Makes a lane for a profile.
        limit: The most lanes.
        exclusive: Two lanes cannot have one profile.
        description: For messages.
    """

    def __init__(self, make: Callable[[int], Lane], *, limit: int, exclusive: bool, description: str) -> None:
        self._make = make
        self._limit = limit
        self._exclusive = exclusive
        self._description = description
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._idle: list[Lane] = []
        self._profiles: list[int] = []  # of all lanes, idle or lent
        self._lent = 0
        self._flying: deque[Flying] = deque()
        self.closed = False
        self.replaced = 0

    def __len__(self) -> int:
        return len(self._profiles)

    def acquire(self, profiles: tuple[int, ...]) -> Lane:
        """Borrow a lane for the first of some profiles that is to be had.

        Raises:
            EngineError: The session is closed.
        """
        while True:
            with self._lock:
                idle = self._idle
                if idle and idle[-1].profile == profiles[0] and not self.closed:  # nearly always
                    self._lent += 1
                    return idle.pop()
                if self.closed:
                    raise EngineError("the session is closed", where=self._description, fix="open another one")
                lane = self._take_idle(profiles)
                if lane is not None:
                    return lane
                profile = self._room_for(profiles)
                if profile is not None:
                    unsuited = self._idle.pop(0) if len(self._profiles) >= self._limit else None
                    if unsuited is not None:
                        self._profiles.remove(unsuited.profile)
                    self._profiles.append(profile)
                    self._lent += 1
                    break
                oldest = self._oldest()
            if oldest is not None:
                oldest.finish()
        return self._create(profile, unsuited)

    def _oldest(self) -> Flying | None:
        """The oldest submitted request; waits for a change where there is none. The lock is held."""
        if self._flying:
            return self._flying.popleft()
        self._waiting += 1
        try:
            self._changed.wait()
        finally:
            self._waiting -= 1
        return None

    def _tell(self) -> None:
        """Wake who waits for a change. The lock is held."""
        if self._waiting:
            self._changed.notify_all()

    def _take_idle(self, profiles: tuple[int, ...]) -> Lane | None:
        idle = self._idle
        for profile in profiles:
            for i in range(len(idle) - 1, -1, -1):  # the last used first: its buffers are warm
                if idle[i].profile == profile:
                    self._lent += 1
                    return idle.pop(i)
        return None

    def _room_for(self, profiles: tuple[int, ...]) -> int | None:
        """A profile that a new lane may have now, if need be in place of an idle one."""
        if len(self._profiles) >= self._limit and not self._idle:
            return None
        return next((p for p in profiles if not (self._exclusive and p in self._profiles)), None)

    def _create(self, profile: int, unsuited: Lane | None) -> Lane:
        try:
            if unsuited is not None:
                unsuited.close()
            return self._make(profile)
        except BaseException:
            self._forget(profile)
            raise

    def _forget(self, profile: int) -> None:
        with self._lock:
            self._profiles.remove(profile)
            self._lent -= 1
            self._tell()

    def release(self, lane: Lane) -> None:
        """Give a lane back."""
        with self._lock:
            self._idle.append(lane)
            self._lent -= 1
            if self._waiting:
                self._changed.notify_all()

    def discard(self, lane: Lane) -> None:
        """Give back a lane whose execution failed; another one takes its place when it is needed."""
        self.replaced += 1
        try:
            lane.close()
        finally:
            self._forget(lane.profile)

    def launched(self, request: Flying) -> None:
        """Note a submitted request."""
        with self._lock:
            self._flying.append(request)
            self._tell()

    def landed(self, request: Flying) -> None:
        """Forget a submitted request that was finished."""
        with self._lock:
            if request in self._flying:
                self._flying.remove(request)

    def close(self) -> None:
        """Finish what is under way, then close all lanes. Waiting threads are told that the session is closed."""
        with self._lock:
            self.closed = True
            self._tell()
        while True:
            with self._lock:
                if not self._flying and not self._lent:
                    idle, self._idle = self._idle, []
                    self._profiles.clear()
                    break
                oldest = self._oldest()
            if oldest is not None:
                oldest.finish()
        for lane in idle:
            lane.close()
