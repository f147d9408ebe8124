"""Whole models, sparse against the best dense peers on a GPU: ``python benchmarks/gpu_end_to_end.py --limit-s 540``.

Each case (a model at one size, ``--case``) is measured in a process of its own, which may die: a variant that killed
it is left out, and the case begins anew while there is time. All variants of a case have the same pruned weights and
inputs, and run in turn. Variants that did not run are rows that say why. What each process found is kept beside the
results (``gpu_end_to_end-<case>.json``); ``--earlier`` takes such files of other calls on the same kind of GPU into
the table, and with ``--limit-s 0`` nothing else. What two calls measured of one case, 8 bits in a call of their own,
is put together. ``--device cpu`` tries out the whole way at tiny sizes, without our
engine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from _results import RESULTS, Benchmark, call, machine
from peers.cases import CASES, Case, float_model, give_up, int8_model, prepare
from peers.report import add_rows, merged

PACKAGES = (
    "torch", "triton", "onnxruntime", "nvmath-python", "nvidia-cusparselt-cu13", "nvidia-cublas", "nvidia-cudnn-cu13"
)  # fmt: skip
GRACE_S = 15.0
"""After its limit a process has so long to end by itself."""
LEAST_S = 45.0
"""With less there is no use in beginning a case."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--case", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--limit-s", type=float, default=540.0, help="for all cases (default: 540)")
    parser.add_argument("--compile-limit-s", type=float, default=100.0, help="for one variant (default: 100)")
    parser.add_argument("--rounds", type=int, default=7, help="in which all variants run in turn (default: 7)")
    parser.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="build these variants alone")
    parser.add_argument("--no-autotune", action="store_true", help="torch.compile in its default mode alone")
    parser.add_argument("--plain", action="store_true", help="our engines are not compiled by torch.compile")
    parser.add_argument("--profile", action="store_true", help="time the kernels of our engines")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try it out")
    parser.add_argument("--name", default="gpu_end_to_end", help="of the results' file (default: gpu_end_to_end)")
    parser.add_argument("--work", type=Path, help="folder in which models are kept for the next call")
    parser.add_argument("--tuned", type=Path, help="a cache of tuning to begin with")
    parser.add_argument("--earlier", type=Path, nargs="+", default=(), help="reports of cases measured before")
    for hidden in ("--measure", "--prepare"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


class Preparing:
    """Makes the cases' models one after another in processes of their own, on half of the processors.

    Args:
        cases: In this order, each one's INT8 form after it.
        folder: For files.
        tiny: Of a size to try out.
    """

    def __init__(self, cases: Sequence[Case], folder: Path, *, tiny: bool) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped, self._folder, self._tiny = False, folder, tiny
        self._jobs = [(case, form) for case in cases for form in (False, True) if case.int8_target or not form]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for case, int8 in self._jobs:
            if self._stopped:
                return
            job = {"case": case.name, "folder": str(self._folder), "tiny": self._tiny, "int8": int8}
            self._process = subprocess.Popen([sys.executable, __file__, "--prepare", json.dumps(job)])
            if self._process.wait() and not self._stopped:
                found = case.tiny() if self._tiny else case
                path = (int8_model if int8 else float_model)(found, self._folder)
                give_up(path, f"preparing {path.parent.name}/{path.name} failed")

    def stop(self) -> None:
        """End what is under way."""
        self._stopped = True
        while self._thread.is_alive():
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
            self._thread.join(0.2)


def prepare_here(job: dict[str, Any]) -> None:
    """What such a process does."""
    os.nice(10)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: max(1, len(cores) // 2)])
    case = next(case for case in CASES if case.name == job["case"])
    prepare(case.tiny() if job["tiny"] else case, Path(job["folder"]), int8=job["int8"])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in processes of its own; what killed one is left out in the next.

    Args:
        job: As `peers.session.Job` has it.

    Returns:
        What the last process found.
    """
    path, until = Path(job["report"]), time.monotonic() + job["limit_s"]
    skip: dict[str, str] = {}
    while True:
        path.unlink(missing_ok=True)
        left_s = until - time.monotonic()
        ended = _process({**job, "skip": dict(skip), "limit_s": left_s}, left_s + GRACE_S)
        report: dict[str, Any] = {"case": job["case"], "variants": {}, "notes": [], "working": ""}
        if path.exists():
            report = json.loads(path.read_text())
        working = report["working"]
        if ended:
            report["ended"] = f"{ended} during {working!r}" if working else ended
            print(f"{job['case']}: {report['ended']}", file=sys.stderr)
        if not ended or not working or working in skip or until - time.monotonic() < LEAST_S:
            report |= {"machine": machine(installed(PACKAGES)), "calls": [call()]}
            path.write_text(json.dumps(report, indent=1) + "\n")
            return report
        skip[working] = ended


def _process(job: dict[str, Any], timeout_s: float) -> str:
    """Run a process to its end; returns why it ended early, or ""."""
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return "the process took too long"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it started, which may have outlived it
        process.wait()
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}" if code else ""


def measure_all(options: argparse.Namespace, folder: Path, out: Path) -> list[dict[str, Any]]:
    """Measure the cases that were asked for, each with its share of the time."""
    until = time.monotonic() + options.limit_s
    if options.limit_s < LEAST_S:
        return []
    cases = [case for case in CASES if case.name in options.case]
    cache = out / f"{options.name}-tuning.json"
    if options.tuned:
        shutil.copyfile(options.tuned, cache)
    preparing = Preparing(cases, folder, tiny=options.device == "cpu")
    reports = []
    try:
        for position, case in enumerate(cases):
            left_s = until - time.monotonic()
            if left_s < LEAST_S:
                print(f"{case.name}: no time was left", file=sys.stderr)
                continue
            job = {
                "case": case.name, "folder": str(folder), "report": str(out / f"{options.name}-{case.name}.json"),
                "cache": str(cache), "limit_s": left_s * case.share / sum(one.share for one in cases[position:]),
                "compile_limit_s": options.compile_limit_s, "rounds": options.rounds, "device": options.device,
                "autotune": not options.no_autotune, "compiled": not options.plain, "profile": options.profile,
                "only": list(options.only),
            }  # fmt: skip
            reports.append(measure(job))
    finally:
        preparing.stop()
    return reports


def check_alike(reports: Sequence[dict[str, Any]]) -> None:
    """Refuse to mix GPUs and versions in one table."""
    found = {json.dumps(report["facts"], sort_keys=True) for report in reports if "facts" in report}
    if len(found) > 1:
        raise SystemExit(f"reports of different machines: {'; '.join(sorted(found))}")


def installed(names: Sequence[str]) -> tuple[str, ...]:
    """Those of some packages that are there."""
    found = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return tuple(name for name in names if name in found)


def main() -> None:
    """Measure and write."""
    options = arguments()
    if options.prepare:
        prepare_here(json.loads(options.prepare))
        return
    if options.measure:
        from peers.session import run

        run(json.loads(options.measure))
        return
    out = Path(os.environ.get("OUT") or RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    earlier = [json.loads(path.read_text()) for path in options.earlier]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measured: dict[str, dict[str, Any]] = {}
        for report in (*earlier, *measure_all(options, folder, out)):
            name = report["case"]
            measured[name] = merged(measured[name], report) if name in measured else report
    reports = [measured[case.name] for case in CASES if case.name in measured]
    if not reports:
        raise SystemExit("nothing was measured: the time is too short")
    check_alike(reports)
    bench = Benchmark(options.name)
    for report in reports:
        for note in report["notes"]:
            print(f"{report['case']}: {note}", file=sys.stderr)
        add_rows(bench, report)
    bench.finish(installed(PACKAGES))
    path = out / f"{options.name}.json"
    document = json.loads(path.read_text())
    document["machine"] = reports[-1]["machine"]  # the table may be made elsewhere, later
    document["calls"] = {report["case"]: report["calls"] for report in reports}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
