"""The process that runs kernels, and may be killed by one: ``python -m trtsparse.tune.worker [GPU]``.

It reads one JSON document a line from standard input, each a product to tune, and writes one a line for everything it
finds out. Whenever a kernel is touched its name is written, so that whoever reads knows what the process died of.

Events: ``ready`` or ``unavailable`` once; then for each job ``candidates``, any number of ``start``, ``screened``,
``checked``, ``refused`` (the library has no such kernel) and ``skipped``, one ``raced``, and ``done``; or ``broken``
as the last one when the device is lost, or ``failed`` when the product cannot be opened at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trtsparse.errors import DeviceError, MissingDependencyError
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.library import Candidate, Library, Problem

__all__ = ["serve"]

Say = Callable[[dict[str, Any]], None]
BROKEN = 3
"""Exit code when the device is lost to this process."""


def serve(library: Library, lines: Iterable[str], say: Say) -> int:
    """Tune what the lines ask for.

    Args:
        library: The kernels.
        lines: Jobs; see `trtsparse.tune.measure`.
        say: Takes each event.

    Returns:
        An exit code: 0, or `BROKEN`.
    """
    say({"event": "ready", "facts": library.facts()})
    for line in lines:
        job = json.loads(line)
        if not _serve_job(library, job, say):
            return BROKEN
    return 0


def _serve_job(library: Library, job: dict[str, Any], say: Say) -> bool:
    """Tune one product; False when the device is lost."""
    try:
        problem = library.open(Gemm(**job["gemm"]))
    except Exception as error:  # noqa: BLE001 - whatever it is belongs into the report
        say({"event": "failed", "reason": _words(error)})
        return library.healthy()
    try:
        return _Job(library, problem, job, say).run()
    finally:
        with contextlib.suppress(Exception):  # on a lost device nothing can be freed
            problem.close()


class _Job:
    """One product: everything is screened, the fastest are checked, those that pass race."""

    def __init__(self, library: Library, problem: Problem, job: dict[str, Any], say: Say) -> None:
        self.library, self.problem, self.say = library, problem, say
        self.known: dict[str, float] = job["screened"]
        self.skip: set[str] = set(job["skip"])
        self.refused: set[str] = set(job["refused"])
        self.give_up: set[str] = set(job["give_up"])
        self.finalists: int = job["finalists"]
        self.rounds: int = job["rounds"]
        self.screen_until: float = time.monotonic() + job["screen_s"]
        self.screened: dict[Candidate, float] = {}
        self.stage = self.working = ""
        self.broken = False

    def run(self) -> bool:
        """Do it; False when the device is lost."""
        plain = self.problem.candidates()
        self.say({"event": "candidates", "candidates": [_named(one) for one in plain]})
        self._screen(plain)
        variants = [
            form
            for one in self._fastest("sparse", self.finalists)
            for form in self.problem.variants(one)
            if form.form not in self.refused
        ]
        if variants and not self.broken:
            self.say({"event": "candidates", "candidates": [_named(one) for one in variants]})
            self._screen(variants)
        if not self.broken:
            self._race([*self._checked("dense"), *self._checked("sparse")])
        if not self.broken:
            self.say({"event": "done", "facts": self.problem.facts()})
        return not self.broken

    def _screen(self, candidates: Iterable[Candidate]) -> None:
        for one in candidates:
            if one.key in self.known:
                self.screened[one] = self.known[one.key]
            elif one.key not in self.skip and one.kind not in self.give_up and not self.broken:
                self._screen_one(one)

    def _screen_one(self, one: Candidate) -> None:
        if time.monotonic() > self.screen_until and self._fastest(one.kind):
            self.say({"event": "skipped", "key": one.key, "reason": "not tried: no time left"})
            return
        taken = self._tried("screen", one, lambda: self.problem.screen(one))
        if taken is not None:
            self.screened[one] = taken
            self.say({"event": "screened", "key": one.key, "ms": taken})

    def _fastest(self, kind: str, count: int | None = None) -> list[Candidate]:
        found = sorted((ms, at, one) for at, (one, ms) in enumerate(self.screened.items()) if one.kind == kind)
        return [one for _, _, one in found[:count]]

    def _checked(self, kind: str) -> list[Candidate]:
        """The fastest that compute what they should."""
        passed: list[Candidate] = []
        for one in self._fastest(kind):
            if len(passed) == self.finalists or self.broken:
                break
            if one.key in self.skip:
                continue
            check = self._tried("check", one, lambda one=one: self.problem.check(one))  # type: ignore[misc]
            if check is not None:
                self.say({
                    "event": "checked", "key": one.key, "passed": check.passed, "error": check.error,
                    "bound": check.bound, "largest": check.largest,
                })  # fmt: skip
                if check.passed:
                    passed.append(one)
        return passed

    def _race(self, finalists: list[Candidate]) -> None:
        """Those that can, until they can together."""
        while finalists and not self.broken:
            times = self._tried("race", finalists[0], lambda some=finalists: self._raced(some))  # type: ignore[misc]
            if times is not None:
                self.say({"event": "raced", "times": times})
                return
            finalists = [one for one in finalists if one.key != self.working]

    def _raced(self, finalists: list[Candidate]) -> dict[str, list[float]]:
        times = self.problem.race(finalists, self.rounds, lambda one: self._start("race", one))
        return {one.key: taken for one, taken in zip(finalists, times, strict=True)}

    def _start(self, stage: str, one: Candidate) -> None:
        if (stage, one.key) != (self.stage, self.working):
            self.stage, self.working = stage, one.key
            self.say({"event": "start", "stage": stage, "key": one.key})

    def _tried(self, stage: str, one: Candidate, work: Callable[[], Any]) -> Any:
        """The result, or None after having said what happened."""
        self._start(stage, one)
        try:
            return work()
        except Refused as error:
            self.say({"event": "refused", "key": self.working, "reason": _words(error)})
        except Exception as error:  # noqa: BLE001 - whatever a kernel does belongs into the report
            self.broken = not self.library.healthy()
            self.say({"event": "broken" if self.broken else "skipped", "key": self.working, "reason": _words(error)})
        return None


def _named(one: Candidate) -> dict[str, Any]:
    return {"kind": one.kind, "name": one.name, "form": one.form, "parameters": one.parameters}


def _words(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str]) -> int:
    """Serve a GPU, by default the first."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like an event

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    try:
        from trtsparse.cuda.base import open_cuda
        from trtsparse.tune.cuda_library import CudaLibrary

        library = CudaLibrary(open_cuda("cuda-python", device=int(arguments[0]) if arguments else 0))
    except (DeviceError, MissingDependencyError) as error:
        facts = {"what": error.what, "where": str(error.where or ""), "got": str(error.got or "")}
        say({"event": "unavailable", "kind": type(error).__name__, "facts": facts})
        return error.exit_code
    return serve(library, sys.stdin, say)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a lost device can hang the libraries' own clean-up
