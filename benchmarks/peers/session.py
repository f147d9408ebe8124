"""One case in a process of its own: builds all variants, times them in turn, writes what it found as JSON.

The file is written again after each step, so that what is known survives the process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trtsparse.files import atomic
from trtsparse.tune.cache import Cache
from trtsparse.tune.choose import Chooser
from trtsparse.tune.explain import explain
from trtsparse.tune.measure import Options, Tuner

from .cases import (
    CASES,
    DENSE,
    DENSE_8,
    NOT_ASKED,
    SPARSE,
    SPARSE_8,
    Case,
    feeds,
    float_model,
    int8_model,
    is_small,
    wait_for,
)
from .execution import OutOfTime, Runnable, first_line, start_compiler, time_limit
from .networks import MERGEABLE, network_for
from .ours import Ours, saved_form
from .timing import CudaWatch, HostWatch, Plan, PowerMeter, Timed, gpu_sensors, interleaved
from .variants import AUTOTUNE, Outcome, Setting, build, variants

__all__ = ["Job", "Session", "run"]

_BOUND, _BOUND_8 = 0.2, 0.5
"""Errors above which a result is wrong: random weights leave no margin that trained ones have."""
_AFTER_S = 25.0
"""Left for what follows the timing: the saved form, the kernels."""
_FIRST = 3
"""So many peers come before our engines in 8 bits, whose model takes longest to make."""
_OVERHEAD_S = 0.15
"""Of a block: its events, the meter, the pause's jitter."""


@dataclass(frozen=True)
class Job:
    """What the process is told, as JSON.

    Attributes:
        case: Its name.
        folder: Where models are prepared.
        report: The file to write.
        cache: Of tuning.
        limit_s: In all.
        compile_limit_s: For one variant.
        rounds: Of timing.
        device: "cuda", or "cpu" to try out the program at a tiny size.
        autotune: Whether ``torch.compile`` gets its most thorough mode where the case wants that.
        compiled: Whether our engines are compiled.
        profile: Time the kernels of our engines too.
        skip: Variants that killed an earlier process, with the reason.
        only: Variants to build; empty: all.
    """

    case: str
    folder: str
    report: str
    cache: str
    limit_s: float
    compile_limit_s: float = 100.0
    rounds: int = 7
    device: str = "cuda"
    autotune: bool = True
    compiled: bool = True
    profile: bool = False
    skip: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def found(self) -> Case:
        """The case, tiny on a processor."""
        case = next(case for case in CASES if case.name == self.case)
        return case.tiny() if self.device == "cpu" else case


class Session:
    """Everything of one case; call `run`."""

    def __init__(self, job: Job) -> None:
        self.job, self.case = job, job.found()
        self.until = time.monotonic() + job.limit_s
        self.folder = Path(job.folder)
        self.outcomes: dict[str, Outcome] = {}
        shapes = [list(shape) for shape in self.case.shapes.values()]
        self.report: dict[str, Any] = {"case": job.case, "shapes": shapes, "facts": facts(), "notes": []}
        self.report |= {"working": "", "variants": {}}
        self.engines: dict[str, Ours] = {}
        self.instead: dict[str, Callable[[], Runnable]] = {}

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return self.until - time.monotonic()

    def run(self) -> None:
        """Measure."""
        torch.backends.cudnn.benchmark = True
        self.model = wait_for(float_model(self.case, self.folder), limit_s=self.left_s)
        self.arrays = feeds(self.case, self.model)
        with ExitStack() as stack:
            if self.job.device == "cuda":
                stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
            self.setting = self._setting()
            start_compiler(self.job.device)
            tuner = stack.enter_context(Tuner(Options(screen_s=20)))
            chooser = Chooser(tuner=tuner, cache=Cache(self.job.cache))
            self._build_all(self._ours(chooser), self._peers())
            self._time()
            self._after()
        self._write(working="")

    def _setting(self) -> Setting:
        separate = merged = network_for(self.case.recipe, self.model).to(self.job.device)
        if self.case.recipe in MERGEABLE:
            merged = network_for(self.case.recipe, self.model, merged=True).to(self.job.device)
        inputs = tuple(torch.from_numpy(self.arrays[name]).to(self.job.device) for name in separate.inputs)
        limit = min(self.job.compile_limit_s, self.left_s)
        return Setting(separate, merged, inputs, device=self.job.device, compile_limit_s=limit, group=self.case.group)

    # -- building ----------------------------------------------------------------------------------------------------

    def _ours(self, chooser: Chooser) -> dict[str, Callable[[], Runnable]]:
        """Our engines, sparse and dense."""
        use_sparse = {SPARSE: True, DENSE: False}
        if self.case.int8_target is not None:
            use_sparse |= {SPARSE_8: True, DENSE_8: False}

        def make(name: str) -> Runnable:
            source = self.model
            if name in (SPARSE_8, DENSE_8):
                source = wait_for(int8_model(self.case, self.folder), limit_s=max(self.left_s - self._reserve_s, 0))
            with time_limit(max(self.left_s - self._reserve_s, 1)):
                engine = Ours(
                    source, self.arrays, choose=chooser, compiled=self.job.compiled, use_sparse=use_sparse[name]
                )
                self.engines[name] = engine
                return engine.runnable()

        return {name: (lambda name=name: make(name)) for name in use_sparse}  # type: ignore[misc]

    def _peers(self) -> dict[str, Callable[[], Runnable]]:
        kinds = {"convolutions": self.case.convolutions, "eight bits": self.case.int8_target is not None}
        mode = AUTOTUNE if self.case.autotune and self.job.autotune else "default"
        found = variants(self.setting, kinds=kinds, mode=mode)
        if mode == AUTOTUNE:
            self.instead = variants(self.setting, kinds=kinds, mode="default")
        return found

    def _build_all(self, ours: dict[str, Callable[[], Runnable]], peers: dict[str, Callable[[], Runnable]]) -> None:
        """Ours and PyTorch's in turn, the most telling first; a model in 8 bits may not be there yet."""
        own, others = list(ours.items()), list(peers.items())
        queue = deque((*own[:2], *others[:_FIRST], *own[2:], *others[_FIRST:]))
        put_off: set[str] = set()
        while queue:
            name, make = queue.popleft()
            is_waiting = name in (SPARSE_8, DENSE_8) and not int8_model(self.case, self.folder).exists()
            if is_waiting and name not in put_off:
                put_off.add(name)
                queue.append((name, make))
                continue
            outcome = self._build(name, make)
            if name == DENSE and not self.job.only:
                self._step("explain", lambda: self._explain("predicted", None), limit_s=self.left_s - self._reserve_s)
            instead = name.replace("max-autotune", "default")
            if outcome.failure and instead != name and not self.job.only:
                queue.appendleft((instead, self.instead[instead]))

    def _build(self, name: str, make: Callable[[], Runnable]) -> Outcome:
        self._write(working=name)
        if name in self.job.skip or (self.job.only and name not in self.job.only):
            outcome = Outcome(failure=self.job.skip.get(name, NOT_ASKED))
        elif self.left_s < self._reserve_s + 1:
            outcome = Outcome(failure="no time was left to build it")
        else:
            self.setting.compile_limit_s = min(self.job.compile_limit_s, self.left_s - self._reserve_s)
            outcome = build(make, self.setting.reference, bound=_BOUND_8 if is_small(name) else _BOUND)
        self.outcomes[name] = outcome
        self.report["variants"][name] = outcome.to_dict()
        self._write(working="")
        return outcome

    @property
    def _reserve_s(self) -> float:
        """What timing the variants that there are, and one more, takes, with what follows it."""
        plan = Plan()
        count = 1 + sum(outcome.runnable is not None for outcome in self.outcomes.values())
        block = plan.block_s * 1.3 + plan.pause_s + _OVERHEAD_S
        return min(_AFTER_S + self.job.rounds * count * block, 0.6 * self.job.limit_s)

    # -- timing ------------------------------------------------------------------------------------------------------

    def _time(self) -> None:
        runs = {name: outcome.runnable.run for name, outcome in self.outcomes.items() if outcome.runnable}
        on_gpu = self.job.device == "cuda"
        sensors, why = gpu_sensors()
        if sensors is None:
            self.report["notes"].append(f"no energy: {why}")
        self._write(working="timing")
        timed = interleaved(
            runs,
            plan=Plan(
                rounds=self.job.rounds,
                block_s=0.4 if on_gpu else 0.02,
                pause_s=0.1 if on_gpu else 0.0,
                until=self.until - _AFTER_S,
            ),
            watch=CudaWatch() if on_gpu else HostWatch(),
            meter=PowerMeter(sensors),
        )
        if sensors is not None:
            sensors.close()
        for name, found in timed.items():
            self._note_times(name, found)

    def _note_times(self, name: str, found: Timed) -> None:
        if found.failure or not found.ms:
            self.report["variants"][name] = {"failure": found.failure or "no time was left to measure it"}
        else:
            self.report["variants"][name] |= {"ms": found.ms, "joules": found.joules}

    # -- what else there is ------------------------------------------------------------------------------------------

    def _after(self) -> None:
        dense = self.report["variants"][DENSE].get("ms")
        if dense:
            total_ms = statistics.median(dense)
            self._step("explain, given a time", lambda: self._explain("of the measured time", total_ms))
        if self.job.profile:
            self._step("kernels", self._kernels)
        if self.outcomes[SPARSE].runnable is None:
            return
        ours = self.engines[SPARSE]
        self._step("saved form", lambda: self._save(ours))

    def _explain(self, name: str, total_ms: float | None) -> None:
        """Our engines' gain as it is predicted."""
        shapes = {name: array.shape for name, array in self.arrays.items()}
        cache = Cache(self.job.cache)
        found = explain(self.model, shapes=shapes, dtype="bf16", total_ms=total_ms, cache=cache)
        totals = None if found.totals is None else asdict(found.totals)
        self.report.setdefault("explain", {}).update({"times": found.times, name: totals})

    def _kernels(self) -> None:
        built = [name for name, outcome in self.outcomes.items() if name in self.engines and outcome.runnable]
        self.report["kernels"] = {name: self.engines[name].kernels() for name in built}

    def _save(self, ours: Ours) -> None:
        self.report["saved"] = {}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            saved_form(ours, self.model, self.arrays, Path(folder), found=self.report["saved"])

    def _step(self, name: str, work: Callable[[], None], *, limit_s: float | None = None) -> None:
        """Something without which the report is still one."""
        if name in self.job.skip:
            self.report["notes"].append(f"no {name}: {self.job.skip[name]}")
            return
        self._write(working=name)
        try:
            with time_limit(max(self.left_s if limit_s is None else limit_s, 1.0)):
                work()
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - noted, whatever it is
            self.report["notes"].append(f"no {name}: {first_line(error)}")
        self._write(working="")

    def _write(self, *, working: str) -> None:
        self.report["working"] = working
        atomic.write(self.job.report, json.dumps(self.report, indent=1) + "\n")


def facts() -> dict[str, str | None]:
    """Which reports may stand in one table."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda}


def run(job: Mapping[str, Any]) -> None:
    """Measure a case."""
    Session(Job(**{**job, "only": tuple(job.get("only", ()))})).run()
