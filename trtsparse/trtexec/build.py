"""From trtexec's options to a plan: the configuration, the build itself, and what is printed about it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trtsparse.builder.advanced import Advanced
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning, Profile
from trtsparse.builder.engine import BuiltEngine, report_path
from trtsparse.builder.plan import Flavour
from trtsparse.builder.precision import stored_precision
from trtsparse.builder.report import BuildReport
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import RandomCalibrationWarning
from trtsparse.precision.specs import TensorSpec, did_you_mean, input_specs
from trtsparse.trtexec.exports import dims
from trtsparse.trtexec.log import Printer
from trtsparse.trtexec.options import ShapeRange, TrtexecOptions
from trtsparse.trtexec.report import number
from trtsparse.trtexec.values import find
from trtsparse.trtexec.words import in_flags

__all__ = ["build_plan", "make_config", "telling"]

_MIB = 1 << 20
_TIMINGS = 8  # trtexec's default; TensorRT's own is 1
_LEVELS = {"INFO": "info", "WARNING": "warning", "ERROR": "error", "INTERNAL_ERROR": "error", "CRITICAL": "error"}


def build_plan(options: TrtexecOptions, out: Printer, *, flavour: Flavour) -> BuiltEngine:
    """Build, print what was built and how, and save if asked for.

    Args:
        options: The command line.
        out: Where to print.
        flavour: The library to build with.

    Raises:
        TrtSparseError: As `trtsparse.build` and `BuiltEngine.save`.
    """
    if options.model.onnx is None:
        raise ConfigError("no model is given", expected="--onnx=<file>, or --loadEngine=<file>")
    model = OnnxModel.open(options.model.onnx)
    config = make_config(options, model, out, flavour=flavour)
    with telling(out):
        engine = build(model, config)
    _print_build(out, engine.report)
    out.info(f"Engine built in {number(engine.report.build_seconds)} sec.")
    out.info(f"Created engine with size: {number(engine.nbytes / _MIB)} MiB")
    if options.build.save_engine:
        path = engine.save(options.build.save_engine)
        out.info(f"Saved engine to {path} and the build report to {report_path(path)}")
    return engine


def make_config(
    options: TrtexecOptions, model: OnnxModel, out: Printer, *, flavour: Flavour | None = None
) -> BuildConfig:
    """The configuration of a build as trtexec's flags ask for it.

    Args:
        options: The command line.
        model: Its inputs decide which shapes are needed.
        out: Where to say which shapes were made up.
        flavour: The library to build with.

    Raises:
        ConfigError: Shapes do not fit the model, or options exclude each other.
    """
    asked, system = options.build, options.system
    precision, rest = asked.precision, asked.int8_rest
    stored = stored_precision(model)
    if asked.strongly_typed or (precision == "tf32" and stored != "fp32"):
        precision = stored if stored != "fp32" else "tf32"  # type: ignore[assignment]
        rest = "fp32" if precision == "int8" else None
    said = any(word.startswith("--profilingVerbosity") for word in options.argv)
    return BuildConfig(
        precision=precision,
        typing="strong" if asked.strongly_typed else "auto",
        int8_rest=rest,
        random_calibration=asked.random_calibration and precision == "int8",
        keep_fp32=_nodes(model, asked.keep_fp32),
        sparsity=asked.sparsity,
        profiles=_profiles(options, input_specs(model), out),
        flavour=flavour,
        memory_pools=dict(asked.memory_pools),
        optimization_level=asked.optimization_level,
        timing_cache=asked.timing_cache,
        refit="all" if asked.refit else None,
        strip_plan=asked.strip_plan,
        version_compatible=asked.version_compatible,
        exclude_lean_runtime=asked.exclude_lean_runtime,
        hardware_compatible=asked.hardware_compatible,
        profiling_verbosity=asked.profiling_verbosity if said else None,
        max_aux_streams=asked.max_aux_streams,
        plugins=tuple(dict.fromkeys((*system.plugins, *system.plugins_to_serialize))),
        advanced=_advanced(options, precision, flavour),
    )


def _advanced(options: TrtexecOptions, precision: str, flavour: Flavour | None) -> Advanced:
    asked = options.build
    flags = dict.fromkeys(asked.builder_flags, True)
    if not asked.tf32 and precision != "fp32":
        flags["TF32"] = False
    attributes: dict[str, int | str | tuple[str, ...]] = dict(asked.builder_settings)
    if flavour == "tensorrt":
        attributes.setdefault("avg_timing_iterations", _TIMINGS)
    if asked.runtime_platform:
        attributes["runtime_platform"] = asked.runtime_platform
    if options.system.plugins_to_serialize:
        attributes["plugins_to_serialize"] = options.system.plugins_to_serialize
    return Advanced(
        flags=flags,
        attributes=attributes,
        parser_flags=asked.parser_flags,
        tactic_sources=asked.tactic_sources,
        preview_features=asked.preview_features,
        input_types=tuple(found.dtype for found in asked.input_formats),
        output_types=tuple(found.dtype for found in asked.output_formats),
        shape_value=1,
    )


def _nodes(model: OnnxModel, patterns: Sequence[str]) -> tuple[str, ...]:
    """The nodes that patterns stand for; a pattern that fits none stays, so that the build refuses it."""
    names = [node.name for node in model.proto.graph.node]
    found = {pattern: [name for name in names if find({pattern: True}, name)] for pattern in patterns}
    return tuple(dict.fromkeys(name for pattern, hits in found.items() for name in (hits or [pattern])))


def _profiles(options: TrtexecOptions, specs: Sequence[TensorSpec], out: Printer) -> tuple[Profile, ...]:
    dynamic = [spec for spec in specs if spec.shape is None or any(isinstance(dim, str) for dim in spec.shape)]
    names = [spec.name for spec in specs]
    given = options.build.profiles
    for profile in given:
        for pattern in profile:
            if not any(find({pattern: True}, name) for name in names):
                raise ConfigError(
                    f'Cannot find input tensor with name "{pattern}" in the network inputs!',
                    expected=", ".join(map(repr, names)),
                    fix=did_you_mean(pattern, names) or "Please make sure the input tensor names are correct.",
                )
    holding = [spec for spec in specs if _may_hold_shape(spec) and any(find(p, spec.name) for p in given)]
    if any(given) and not dynamic and not holding:
        raise ConfigError(
            "Static model does not take explicit shapes since the shape of inference tensors will be determined by "
            "the model itself",
            where=options.model.onnx,
            got=", ".join(sorted({name for profile in given for name in profile})),
            fix="leave the shapes out",
        )
    if not dynamic and not holding:
        return ()
    return tuple(_profile(profile, dynamic, holding, out) for profile in given or ({},))


def _profile(
    given: Mapping[str, ShapeRange], dynamic: Sequence[TensorSpec], holding: Sequence[TensorSpec], out: Printer
) -> Profile:
    shapes: dict[str, ShapeRange] = {}
    for spec in (*dynamic, *holding):
        triple = find(given, spec.name)
        if triple is None and spec.shape is not None and spec not in holding:
            shape = tuple(1 if isinstance(dim, str) else dim for dim in spec.shape)
            out.warning(
                f"Dynamic dimensions required for input: {spec.name}, but no shapes were provided. Automatically "
                f"overriding shape to: {dims(shape)}"
            )
            triple = (shape, shape, shape)
        if triple is not None:
            shapes[spec.name] = triple
    return Profile(shapes)


def _may_hold_shape(spec: TensorSpec) -> bool:
    """A short vector of integers, whose values the network may read as a shape."""
    return spec.dtype.kind in "iu" and spec.shape is not None and len(spec.shape) <= 1


@contextlib.contextmanager
def telling(out: Printer, *more: type[Warning]) -> Iterator[None]:
    """Print what TensorRT says and what this package warns of, while the block runs.

    Args:
        out: Where.
        more: Other warnings to print.
    """
    library = logging.getLogger("trtsparse.tensorrt")
    handler, level = _Forward(out), library.level
    told: tuple[type[Warning], ...] = (BuildWarning, RandomCalibrationWarning, *more)
    with warnings.catch_warnings():
        for category in told:
            warnings.simplefilter("always", category)
        show = warnings.showwarning

        def tell(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, told):
                out.warning(in_flags(str(message)))
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = tell
        library.addHandler(handler)
        library.setLevel(1 if out.verbose else logging.DEBUG)
        try:
            yield
        finally:
            library.removeHandler(handler)
            library.setLevel(level)


class _Forward(logging.Handler):
    """Writes TensorRT's messages as trtexec does: "[I] [TRT] text"."""

    def __init__(self, out: Printer) -> None:
        super().__init__(level=0)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        words = record.args if isinstance(record.args, tuple) else ()
        level, text = (str(words[0]), str(words[1])) if len(words) == 2 else (record.levelname, record.getMessage())
        write = getattr(self._out, _LEVELS.get(level, "detail"))
        write(f"[TRT] {text.rstrip()}")


def _print_build(out: Printer, report: BuildReport) -> None:
    """What trtexec does not say: how the precision was reached, and which weights are sparse."""
    precision = report.precision
    if precision.way != "as is" or precision.asked != precision.reached:
        error = "" if precision.error is None else f", error {precision.error:.2g} of the output range"
        kept = f", {len(precision.kept)} nodes stay in FP32" if precision.kept else ""
        out.info(
            f"Precision: {precision.asked} asked, {precision.reached} reached by {_way(precision.way)}{error}{kept}"
        )
    if report.sparsity == "disable":
        return
    eligible = [row for row in report.sites if row.eligible]
    compliant = [row for row in eligible if row.compliant]
    out.info(
        f"Sparsity: {len(report.sites)} weight sites, {len(eligible)} eligible, {len(compliant)} of these compliant, "
        f"{_chosen(report)}"
    )
    for row in report.sites:
        columns = {"compliant": row.compliant, "eligible": row.eligible, "chosen": row.chosen}
        told = ", ".join(f"{name}: {_word(value)}" for name, value in columns.items())
        out.detail(f"Sparsity of {row.node}: {told}{f' ({row.reason})' if row.reason else ''}")


def _way(way: str) -> str:
    words = {"as is": "the model's own types", "flags": "builder flags"}
    return words.get(way, way.replace("converted graph", "converting the graph"))


def _chosen(report: BuildReport) -> str:
    chosen = [row.chosen for row in report.sites if row.compliant and row.eligible]
    if any(value == "decided at load" for value in chosen):
        return "which run sparse is decided when the engine is loaded"
    if any(value is None for value in chosen):
        return "which run sparse is not known"
    return f"{len(report.chosen)} chosen"


def _word(value: object) -> str:
    return value if isinstance(value, str) else "not known" if value is None else "yes" if value else "no"
