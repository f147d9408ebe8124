"""`trtexec`: a command line of NVIDIA's trtexec in, the same report and files out.

What a run needs of numpy, ONNX, TensorRT is imported when the command line has been read, so that ``--help`` and
errors in it answer at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtsparse.errors import ConfigError, DeviceError, TrtSparseError, UnsupportedOptionError
from trtsparse.trtexec.blocks import builds, option_blocks
from trtsparse.trtexec.checks import check_writable, engine_of, no_gpu, wants_engine
from trtsparse.trtexec.device import find_gpus, print_device
from trtsparse.trtexec.help import help_text
from trtsparse.trtexec.library import installed_library, library_like, library_of
from trtsparse.trtexec.log import Library, Printer, Write, banner
from trtsparse.trtexec.options import TrtexecOptions
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.words import in_flags

if TYPE_CHECKING:
    import numpy as np

    from trtsparse.bench.records import Measurement
    from trtsparse.builder.engine import BuiltEngine
    from trtsparse.builder.plan import Flavour
    from trtsparse.builder.report import BuildReport
    from trtsparse.cuda.base import Cuda
    from trtsparse.trtexec.infer import Loaded

__all__ = ["TrtexecResult", "trtexec"]

_GRAPH_LOST = (
    "The specified --useCudaGraph flag has been ignored. The inference will be launched without using CUDA graph "
    "launch."
)
_SKIPPED = "Skipped inference phase since --skipInference is added."
_LACKING = 3
_GRAPH_LOST_SINCE_11 = "CUDA graph capture failed. The inference will be launched without using CUDA graph."


@dataclass(frozen=True)
class TrtexecResult:
    """What a run came to. Whatever was reached before an error is there.

    Attributes:
        exit_code: 0 passed, 1 failed, as trtexec's; 3 where this machine lacks what ``--engine=cusparselt`` needs.
        lines: The log, as it was printed.
        library: The TensorRT that the banner names.
        options: What was asked for; None where the command line could not be read.
        build: How the engine was built; None where none was.
        plan: The built plan; None where none was.
        plan_path: Where it was saved.
        measurement: None without inference.
        layers: What the engine tells about its layers, JSON, where it was asked for.
        files: The files that were written.
        error: Why it failed.
    """

    exit_code: int
    lines: tuple[str, ...] = field(repr=False)
    library: Library = field(default_factory=Library)
    options: TrtexecOptions | None = field(default=None, repr=False)
    build: BuildReport | None = field(default=None, repr=False)
    plan: bytes | None = field(default=None, repr=False)
    plan_path: Path | None = None
    measurement: Measurement | None = field(default=None, repr=False)
    layers: str | None = field(default=None, repr=False)
    files: tuple[Path, ...] = ()
    error: Exception | None = None

    @property
    def passed(self) -> bool:
        """The exit code is 0."""
        return self.exit_code == 0

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs of the last query; empty without inference."""
        return dict(self.measurement.outputs) if self.measurement is not None else {}


def trtexec(args: Sequence[str] | str, *, write: Write | None = None, cuda: str | Cuda = "auto") -> TrtexecResult:
    """Do what a command line of trtexec says. Errors do not raise: they are in the log and in the result.

    Args:
        args: Without the program's name; a string is split as a shell does.
        write: Gets each line of the log at once, as `trtsparse trtexec` prints it; None keeps them only.
        cuda: The CUDA binding, as for `trtsparse.Session`.

    Returns:
        The exit code, the log, and what was built and measured.

    Raises:
        KeyboardInterrupt: Ctrl-C; the log ends with the banner FAILED.

    Example:
        >>> result = trtexec("--onnx=m.onnx --sparsty=enable")
        >>> result.exit_code, result.error.fix
        (1, 'did you mean --sparsity?')
    """
    return _Run(args, Printer(write), cuda).result()


@dataclass
class _Run:
    """One run, and what it has come to so far."""

    args: Sequence[str] | str
    out: Printer
    cuda: str | Cuda
    argv: tuple[str, ...] = ()
    library: Library = field(default_factory=Library)
    options: TrtexecOptions | None = None
    built: BuiltEngine | None = None
    plan_path: Path | None = None
    measured: Measurement | None = None
    layers: str | None = None
    files: list[Path] = field(default_factory=list)
    started: bool = False

    def result(self) -> TrtexecResult:
        """Run."""
        error: Exception | None = None
        passed = False
        self.library = installed_library()
        try:
            self._split()
            passed = self._go()
        except TrtSparseError as failure:
            self._start()
            self.out.error(in_flags(str(failure)))
            error = failure
        except KeyboardInterrupt:
            self._start()
            self.out.error("Interrupted")
            self.out.plain(banner("FAILED", self.library, self.argv))
            raise
        except Exception as failure:
            self._start()
            if os.environ.get("TRTSPARSE_DEBUG"):
                raise
            self.out.error(
                f"Uncaught exception detected: {type(failure).__name__}: {failure}\n"
                "  to fix: this is a defect of trtsparse; run again with TRTSPARSE_DEBUG=1 and report the traceback"
            )
            error = failure
        if not passed or not (self.options and self.options.help):  # after --help trtexec says nothing more
            self.out.plain(banner("PASSED" if passed else "FAILED", self.library, self.argv))
        return TrtexecResult(
            exit_code=0 if passed else self._exit_code(error),
            lines=tuple(self.out.lines),
            library=self.library,
            options=self.options,
            build=self.built.report if self.built else None,
            plan=self.built.plan if self.built else None,
            plan_path=self.plan_path,
            measurement=self.measured,
            layers=self.layers,
            files=tuple(self.files),
            error=error,
        )

    def _exit_code(self, error: Exception | None) -> int:
        """Of a run that failed: trtexec's, but for the engine that it does not have."""
        own = self.options is not None and self.options.engine == "cusparselt"
        lacks = isinstance(error, TrtSparseError) and error.exit_code == _LACKING
        return _LACKING if own and lacks else 1

    def _split(self) -> None:
        self.argv = (self.args,) if isinstance(self.args, str) else tuple(str(word) for word in self.args)
        if isinstance(self.args, str):
            try:
                self.argv = tuple(shlex.split(self.args))
            except ValueError as error:
                raise ConfigError(
                    "the command line cannot be split into words",
                    got=f"{self.args}: {str(error).lower()}",
                    fix="close what is open, or give the words in a list",
                ) from error

    def _start(self) -> None:
        if not self.started:
            self.started = True
            self.out.plain(banner("RUNNING", self.library, self.argv))

    def _go(self) -> bool:
        options = self.options = parse(self.argv, installed=library_like(self.library))
        if options.help:
            self._start()
            self.out.plain(help_text(options.policy, engine=options.engine))
            return True
        self.out.verbose = options.reporting.verbose
        engine = engine_of(options)
        if engine != options.engine:
            self.options = options = parse(self.argv, installed=library_like(self.library), engine=engine)
        flavour = self._import_library(options)
        options = self.options
        self._start()
        for note in options.notes:
            (self.out.warning if note.severity == "W" else self.out.info)(note.text)
        if options.build.plan_version_only:
            return self._print_plan_version(options)
        self.out.info(option_blocks(options))
        self.out.info(_policy_line(options))
        check_writable(options)
        if options.engine == "cusparselt":
            return self._go_cusparselt(options)
        plan = self._get_plan(options, flavour)
        if options.build.skip_inference:
            if plan is not None and wants_engine(options):
                self._look_into(options, plan)
            self.out.info(_SKIPPED)
            return True
        return self._infer(options, plan)

    def _go_cusparselt(self, options: TrtexecOptions) -> bool:
        """All that follows where models are executed without TensorRT."""
        from trtsparse.trtexec import cusparselt
        from trtsparse.trtexec.build import telling

        out, build = self.out, options.build
        model = cusparselt.open_checked(options)
        if not self._find_device(options) and self.cuda == "auto":
            raise no_gpu(options, self.library)
        cusparselt.tell_versions(options, out, cuda=self.cuda)
        with telling(out, *cusparselt.WARNINGS):
            if options.inference.time_deserialize:
                cusparselt.time_saved(options, out, cuda=self.cuda)
                return True
            with contextlib.closing(cusparselt.load(model, options, out, cuda=self.cuda)) as loaded:
                if loaded.asked is not None or not build.skip_inference or wants_engine(options):
                    cusparselt.choose_kernels(loaded, options, out)
                if build.save_engine:
                    self.plan_path = cusparselt.save(loaded, build.save_engine, out)
                    self.files.append(self.plan_path)
                out.info(f"Loaded {loaded.engine.description}")
                if not build.skip_inference:
                    return self._measure(options, loaded)
                self._tell_engine(options, loaded)
                out.info(_SKIPPED)
                return True

    def _import_library(self, options: TrtexecOptions) -> Flavour:
        """Import the TensorRT that this run needs; its own version counts, not what its package says."""
        from trtsparse.builder.adapter import find_tensorrt
        from trtsparse.builder.plan import read_header

        load = options.build.load_engine
        if options.engine == "cusparselt":
            return "tensorrt"
        if load is not None:
            flavour: Flavour | None = read_header(load).flavour
            if options.build.plan_version_only:
                return flavour or "tensorrt"
        elif not builds(options):
            return "tensorrt"
        else:
            flavour = None
        found = library_of(find_tensorrt(flavour))
        if found != self.library:
            self.library = found
            self.options = parse(self.argv, installed=library_like(found))
        return "tensorrt_rtx" if found.name == "TensorRT-RTX" else "tensorrt"

    def _print_plan_version(self, options: TrtexecOptions) -> bool:
        from trtsparse.builder.plan import read_header

        if options.engine == "cusparselt":
            from trtsparse.trtexec.cusparselt import tell_saved

            tell_saved(options.build.load_engine or "", self.out)
            return True
        header = read_header(options.build.load_engine or "")
        name, number = str(header).split(" ")
        self.out.info(f"Plan was created with {name} version {number}")
        return True

    def _get_plan(self, options: TrtexecOptions, flavour: Flavour) -> bytes | str | None:
        """Build or load; None where an ONNX model runs as it is."""
        on_cpu = options.engine == "onnxruntime"
        if on_cpu and (options.build.sparsity != "disable" or options.build.precision not in ("fp32", "tf32")):
            self.out.warning(
                "ONNX Runtime executes the model as it is stored: precision and sparsity act on plans only"
            )
        if on_cpu and not builds(options):
            self.out.info(f"=== Device Information ===\nSelected Device: CPU ({os.cpu_count()} logical cores)")
            self.out.info("No plan is built: ONNX Runtime executes the model, and --saveEngine asks for none.")
            return None
        found = self._find_device(options)
        self.out.info()
        self.out.info(f"{self.library.name} version: {'.'.join(map(str, self.library.version[:3]))}")
        if options.build.load_engine is not None:
            plan: bytes | str = self._load(options.build.load_engine, flavour)
        else:
            plan = self._build(options, flavour, found and not on_cpu)
        runs_on_gpu = not on_cpu and (not options.build.skip_inference or wants_engine(options))
        if runs_on_gpu and not found and self.cuda == "auto":
            raise no_gpu(options, self.library)
        return plan

    def _find_device(self, options: TrtexecOptions) -> bool:
        gpus = find_gpus()
        found = print_device(self.out, gpus, device=options.system.device, listed=options.like > 8)
        if gpus and not found:
            raise DeviceError(
                "there is no such GPU", where="--device", got=options.system.device, expected=f"0 to {len(gpus) - 1}"
            )
        return found

    def _load(self, path: str, flavour: Flavour) -> str:
        from trtsparse.builder.plan import check_matches, read_header

        self.out.info(f"Loaded engine with size: {Path(path).stat().st_size / (1 << 20):.6g} MiB")
        header = read_header(path)
        check_matches(header, flavour, self.library.version, where=path, compatible=True)
        return path

    def _build(self, options: TrtexecOptions, flavour: Flavour, usable: bool) -> bytes:  # noqa: FBT001 - private
        from trtsparse.builder.engine import report_path
        from trtsparse.trtexec.build import build_plan

        with self._on_device(options, usable=usable):
            self.built = build_plan(options, self.out, flavour=flavour)
        if options.build.save_engine:
            self.plan_path = Path(options.build.save_engine)
            self.files += [self.plan_path, report_path(self.plan_path)]
        return self.built.plan

    def _on_device(self, options: TrtexecOptions, *, usable: bool) -> contextlib.AbstractContextManager[None]:
        """Build for the GPU that was named; the first one is current anyway."""
        if not usable or options.system.device == 0:
            return contextlib.nullcontext()
        from trtsparse.cuda.base import current, open_cuda

        return current(open_cuda(self.cuda, device=options.system.device))

    def _look_into(self, options: TrtexecOptions, plan: bytes | str) -> None:
        """What the engine tells, without running it."""
        from trtsparse.trtexec.build import telling
        from trtsparse.trtexec.infer import load_plan

        with (
            telling(self.out),
            contextlib.closing(load_plan(plan, options, self.out, cuda=self.cuda)) as loaded,
        ):
            self._tell_engine(options, loaded)

    def _tell_engine(self, options: TrtexecOptions, loaded: Loaded) -> None:
        from trtsparse.trtexec.outcome import print_engine, tell_layers

        with loaded.current():
            self.layers = tell_layers(loaded, options.reporting, self.out, self.files)
            print_engine(loaded, options.reporting, self.out)

    def _infer(self, options: TrtexecOptions, plan: bytes | str | None) -> bool:
        from trtsparse.trtexec.build import telling
        from trtsparse.trtexec.infer import load_onnx, load_plan, time_deserialize

        with telling(self.out):
            if options.inference.time_deserialize:
                if plan is None:
                    raise UnsupportedOptionError(
                        "only plans are deserialized",
                        where="--timeDeserialize",
                        got=f"--engine={options.engine}",
                        fix="leave --engine out, or --timeDeserialize",
                    )
                time_deserialize(plan, options, self.out, cuda=self.cuda)
                return True
            if options.engine == "onnxruntime":
                loaded = load_onnx(options.model.onnx or "", self.out)
            else:
                loaded = load_plan(plan or b"", options, self.out, cuda=self.cuda, model=_model(options))
            with contextlib.closing(loaded):
                return self._measure(options, loaded)

    def _measure(self, options: TrtexecOptions, loaded: Loaded) -> bool:
        from trtsparse.bench.measure import measure
        from trtsparse.report.progress import progress_bar
        from trtsparse.trtexec import outcome
        from trtsparse.trtexec.infer import bench_options, make_feeds
        from trtsparse.trtexec.report import print_performance

        reporting, out = options.reporting, self.out
        self._tell_engine(options, loaded)
        feeds = make_feeds(loaded, options, out)
        if reporting.wants_profile and not options.policy.separate_profile_run:
            out.info("Layers are timed in a run of their own, as with --separateProfileRun: both reports follow.")
        out.info("Starting inference")
        chosen = bench_options(options, on_gpu=loaded.cuda is not None)
        with progress_bar("measuring") as progress:
            self.measured = measured = measure(
                loaded.runnable, feeds, options=chosen, cuda=loaded.cuda or "auto", progress=progress
            )
        own_graphs = options.engine == "cusparselt"
        if options.policy.graphs and loaded.cuda is not None and not (measured.graphs or own_graphs):
            out.warning(_GRAPH_LOST if options.like < 11 else _GRAPH_LOST_SINCE_11)
        print_performance(out, measured, runs=reporting.average_runs, major=options.like)
        outcome.report_outputs(measured, feeds, reporting, out, self.files)
        outcome.report_layers(measured, reporting, out, self.files)
        return outcome.check_accuracy(loaded, options.inference, out)


def _policy_line(options: TrtexecOptions) -> str:
    if options.engine == "onnxruntime":
        return "Measured on the CPU: CUDA graph, data transfers and spin wait are about GPUs"
    return str(options.policy)


def _model(options: TrtexecOptions) -> Any:
    from trtsparse.files.model import OnnxModel

    return None if options.model.onnx is None or options.build.load_engine else OnnxModel.open(options.model.onnx)
