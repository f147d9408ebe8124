"""Time products in a child process that bad kernels may kill; what it reported is kept, and the next goes on."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtsparse.errors import DeviceError, EngineError, MissingDependencyError
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.lessons import Lessons
from trtsparse.tune.process import Child, Died
from trtsparse.tune.result import GemmResult, Kernel

__all__ = ["WORKER", "Options", "Tuner"]

WORKER = (sys.executable, "-m", "trtsparse.tune.worker")


@dataclass(frozen=True)
class Options:
    """How thoroughly to look.

    Attributes:
        finalists: Of each kind, how many of the fastest kernels are checked and timed carefully; of so many sparse
            ones all split-K forms are tried.
        rounds: Careful times of each, taken in turn.
        crashes: After so many kernels of one kind in a row that killed the process, the rest of that kind is left;
            after so many that did once they had been looked at, all of it.
        timeout_s: What one kernel may take.
        screen_s: After so long no further kernels are looked at, once there is one of each kind.
        start_s: What the process may take to start, and to make the operands of a product.
    """

    finalists: int = 3
    rounds: int = 15
    crashes: int = 3
    timeout_s: float = 10.0
    screen_s: float = 60.0
    start_s: float = 120.0


@dataclass
class _State:
    """What is known of a product so far."""

    gemm: Gemm
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    screened: dict[str, float] = field(default_factory=dict)
    checks: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    in_a_row: Counter[str] = field(default_factory=Counter)
    later: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    working: str = ""
    stage: str = ""
    restarts: int = 0

    def note(self, what: str, event: dict[str, Any]) -> None:
        """Keep what an event says."""
        key = event.get("key", "")
        if what == "candidates":
            self.candidates |= {f"{one['kind']} {one['name']}": one for one in event["candidates"]}
        elif what == "start":
            self.working, self.stage = key, event["stage"]
        elif what == "screened":
            self.screened[key] = float(event["ms"])
            self.in_a_row[_kind(key)] = 0
        elif what == "checked":
            self.checks[key] = event
            if not event["passed"]:
                self.skipped[key] = f"wrong result: error {event['error']:.2g}, bound {event['bound']:.2g}"
        elif what in ("skipped", "refused"):
            (self.skipped if what == "skipped" else self.refused)[key] = str(event["reason"])
        elif what == "raced":
            self.times = event["times"]
        else:
            self.facts = event["facts"] if what == "done" else {"failed": str(event["reason"])}

    def forms(self) -> Iterator[tuple[str, bool]]:
        """The form of each kernel that was tried, and whether the library refused it."""
        for key, one in self.candidates.items():
            if key in self.refused or key in self.screened:
                yield one["form"], key in self.refused

    def left_after(self, key: str, crashes: int) -> dict[str, str]:
        """Count a kernel's crash; those that are not tried, or not used, after so many, and why."""
        kind = _kind(key)
        others = [other for other in self.candidates if _kind(other) == kind and other not in self.skipped]
        others = [other for other in others if other not in self.refused]
        if self.stage == "screen":
            self.in_a_row[kind] += 1
            why = f"not tried: {crashes} before it crashed"
            left = [other for other in others if other not in self.screened]
            return dict.fromkeys(left, why) if self.in_a_row[kind] >= crashes else {}
        self.later[kind] += 1
        if self.later[kind] < crashes:
            return {}
        self.screened = {other: ms for other, ms in self.screened.items() if _kind(other) != kind}
        return dict.fromkeys(others, f"not used: {crashes} crashed after they had been timed")

    def job(self, options: Options, refused: Iterable[str]) -> dict[str, Any]:
        """What the child is asked; ``refused``: forms that it need not try."""
        crashes = (*self.in_a_row.items(), *self.later.items())
        given_up = sorted({kind for kind, count in crashes if count >= options.crashes})
        return {
            "gemm": self.gemm.to_dict(), "screened": self.screened, "skip": [*self.skipped, *self.refused],
            "refused": sorted(refused), "give_up": given_up, "finalists": options.finalists,
            "rounds": options.rounds, "screen_s": max(self.began + options.screen_s - time.monotonic(), 0.0),
        }  # fmt: skip


class Tuner:
    """Tunes products one after another; a context manager that ends its process.

    Args:
        options: How thoroughly.
        device: The GPU's number.
        command: The child, which gets that number as its last argument; it speaks as `trtsparse.tune.worker` does.

    Attributes:
        restarts: How often the child was started again after a kernel had killed it.
        lessons: By types of values, such as "bf16->bf16".
    """

    def __init__(self, options: Options | None = None, *, device: int = 0, command: Sequence[str] = WORKER) -> None:
        self.options = options or Options()
        self.restarts = 0
        self._command = (*command, str(device))
        self._child: Child | None = None
        self._facts: dict[str, str] = {}
        self.lessons: dict[str, Lessons] = {}

    def __enter__(self) -> Tuner:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def facts(self) -> dict[str, str]:
        """Names and versions that times depend on.

        Raises:
            MissingDependencyError: cuBLASLt, cuSPARSELt or their binding is not installed.
            DeviceError: There is no GPU, or not one that can do this.
            EngineError: The process does not start.
        """
        if not self._facts:
            self._started()
        return self._facts

    def tune(self, gemm: Gemm) -> GemmResult:
        """Find the best kernels of a product.

        Raises:
            MissingDependencyError, DeviceError, EngineError: As in `facts`.
        """
        state = _State(gemm)
        lessons = self.lessons.setdefault(gemm.types, Lessons())
        state.skipped |= lessons.killers
        while not self._attempt(state, lessons):
            state.restarts += 1
        self.restarts += state.restarts
        lessons.learn_refusals(state.forms())
        return _result(state)

    def learn(self, lessons: Mapping[str, Lessons]) -> None:
        """Take in what earlier runs on this device learned."""
        for types, known in lessons.items():
            self.lessons.setdefault(types, Lessons()).merge(known)

    def _started(self) -> Child:
        if self._child is None:
            child = Child(self._command)
            try:
                event = child.receive(self.options.start_s)
            except Died as died:
                child.close()
                raise EngineError(
                    "the tuning process does not start", where=" ".join(self._command), got=str(died)
                ) from None
            if event["event"] == "unavailable":
                child.close()
                raise _unavailable(event)
            self._child, self._facts = child, event["facts"]
        return self._child

    def _attempt(self, state: _State, lessons: Lessons) -> bool:
        """Have the child work on a product until it is done; False when it died meanwhile."""
        child = self._started()
        state.working = ""
        try:
            child.send(state.job(self.options, lessons.refused))
            while True:
                event = child.receive(self.options.timeout_s if state.working else self.options.start_s)
                if self._note(state, event):
                    return True
        except Died as died:
            self.close()
            return self._blame(state, str(died), lessons)

    def _note(self, state: _State, event: dict[str, Any]) -> bool:
        """Keep what an event says; True for the last one."""
        what = event["event"]
        if what == "broken":
            raise Died(str(event["reason"]))
        state.note(what, event)
        return what in ("done", "failed")

    def _blame(self, state: _State, how: str, lessons: Lessons) -> bool:
        """Skip the kernel that the process died of; True when there is nobody to blame and no use in going on."""
        key = state.working
        if not key:
            state.facts = {"failed": f"the tuning process died: {how}"}
            return True
        state.skipped[key] = how
        state.screened.pop(key, None)
        left = state.left_after(key, self.options.crashes)
        state.skipped |= left
        if _kind(key) == "sparse":  # dense names mean other kernels elsewhere
            lessons.killers |= {key: f"{how} (with {state.gemm.key})"}
            lessons.killers |= left if state.stage == "screen" else {}
        return False

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _kind(key: str) -> str:
    return key.partition(" ")[0]


def _unavailable(event: dict[str, Any]) -> DeviceError | MissingDependencyError:
    facts = {name: text or None for name, text in event["facts"].items()}
    if event["kind"] == "MissingDependencyError":
        return MissingDependencyError(str(facts["what"]), extra="cuda", where=facts["where"])
    return DeviceError(
        str(facts["what"]),
        where=facts["where"],
        got=facts["got"],
        expected="an NVIDIA GPU of compute capability 8.0 or newer, and its driver",
        fix="tune on a machine with such a GPU",
    )


def _result(state: _State) -> GemmResult:
    dense, sparse = _best(state, "dense"), _best(state, "sparse")
    gains: tuple[float, ...] = ()
    if dense and sparse:
        pairs = zip(state.times[f"dense {dense.name}"], state.times[f"sparse {sparse.name}"], strict=True)
        gains = tuple(slow / fast for slow, fast in pairs)
    return GemmResult(
        gemm=state.gemm,
        dense=dense,
        sparse=sparse,
        gains=gains,
        defaults=_defaults(state),
        tried=len(state.screened),
        skipped=tuple(sorted(state.skipped.items())),
        refused=dict(Counter(state.refused.values())),
        restarts=state.restarts,
        facts=state.facts,
    )


def _best(state: _State, kind: str) -> Kernel | None:
    raced = {key: times for key, times in state.times.items() if _kind(key) == kind}
    if not raced:
        return None
    key = min(raced, key=lambda one: statistics.median(raced[one]))
    times, check = raced[key], state.checks[key]
    found = state.candidates[key]
    return Kernel(
        found["kind"], found["name"], found["parameters"],
        ms=statistics.median(times), low=min(times), high=max(times),
        error=check["error"], bound=check["bound"],
    )  # fmt: skip


def _defaults(state: _State) -> dict[str, float]:
    """Times of what each library would take itself: the first candidate of its kind."""
    first = {kind: next((key for key in state.candidates if _kind(key) == kind), "") for kind in ("dense", "sparse")}
    return {kind: state.screened[key] for kind, key in first.items() if key in state.screened}
