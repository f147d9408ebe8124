"""``trtsparse build``: an ONNX model in, a plan and its report out."""

from __future__ import annotations

import argparse
import re
import warnings
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from trtsparse.builder.config import BuildConfig

__all__ = ["configure", "run"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; each is a field of `trtsparse.BuildConfig`."""
    parser.add_argument("model", metavar="IN", help="ONNX model")
    parser.add_argument(
        "-o", "--output", metavar="PLAN", required=True, help="the plan; the report goes to PLAN.json"
    )
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "fp16", "bf16", "int8", "best"), help="default: fp32"
    )
    parser.add_argument(
        "--sparsity",
        default="enable",
        choices=("disable", "enable", "force"),
        help="enable: use sparse kernels for compliant weights (default); force: prune by magnitude first",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:MIN:OPT:MAX,...",
        help="an optimization profile, as in x:1x3x224x224:8x3x224x224:32x3x224x224; one shape alone is all three; "
        "repeat for several profiles",
    )
    _configure_precision(parser)
    _configure_builder(parser)
    shared.add_json(parser)


def _configure_precision(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--typing",
        default="auto",
        choices=("auto", "strong", "weak"),
        help="weak: builder flags, up to TensorRT 10; strong: convert the graph; auto: flags where they exist",
    )
    group.add_argument(
        "--int8-rest", choices=("fp32", "fp16"), help="what an INT8 build leaves is in (default: fp32)"
    )
    group.add_argument("--keep-fp32", action="append", default=[], metavar="NODE", help="not converted; repeatable")
    group.add_argument("--max-error", type=float, metavar="E", help="largest error of a converted model, relative")
    group.add_argument(
        "--samples",
        metavar="PATH",
        help=".npz or .npy files, or a folder of them: real inputs to compare, calibrate and infer the profile with",
    )
    group.add_argument(
        "--calibration", default="minmax", choices=("minmax", "entropy", "percentile"), help="INT8 ranges"
    )
    group.add_argument(
        "--random-calibration",
        action="store_true",
        help="INT8 without samples: enough to measure time, and nothing else",
    )
    group.add_argument("--include", action="append", default=[], metavar="GLOB", help="what force prunes; repeatable")
    group.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="what it does not; repeatable")


def _configure_builder(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("builder")
    group.add_argument("--flavour", choices=("tensorrt", "tensorrt_rtx"), help="default: the one installed")
    group.add_argument(
        "--compute-capability", action="append", default=[], metavar="CC", help="target, as 8.6; RTX; repeatable"
    )
    group.add_argument(
        "--memory-pool", action="append", default=[], metavar="POOL=SIZE", help="limit, as workspace=2G; repeatable"
    )
    group.add_argument("--optimization-level", type=int, metavar="0..5")
    group.add_argument("--timing-cache", metavar="FILE", help="kernel timings, read before and updated after")
    group.add_argument("--refit", choices=("all", "identical", "individual"))
    group.add_argument("--strip-plan", action="store_true", help="leave the weights out")
    group.add_argument("--version-compatible", action="store_true")
    group.add_argument("--hardware-compatible", choices=("ampere_plus", "same_compute_capability"))
    group.add_argument("--strict-nans", action="store_true")
    group.add_argument("--profiling-verbosity", choices=("none", "layer_names_only", "detailed"))
    group.add_argument("--max-aux-streams", type=int, metavar="N")
    group.add_argument("--builder-threads", type=int, metavar="N")
    group.add_argument("--plugin", action="append", default=[], metavar="LIBRARY", help="to load first; repeatable")


def run(options: argparse.Namespace) -> int:
    """Build, save, print."""
    from trtsparse.builder.build import build
    from trtsparse.builder.engine import check_apart, report_path
    from trtsparse.files.atomic import check_writable
    from trtsparse.files.model import OnnxModel

    config = _config(options)
    model = OnnxModel.open(options.model)
    check_apart(model, (options.output, report_path(options.output)))
    check_writable(options.output)  # before minutes of building, not after
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report has them
        engine = build(model, config, samples=options.samples or ())
    engine.save(options.output)
    if options.json:
        shared.print_json(engine.report.to_dict())
        return 0
    from trtsparse.report.build import build_table
    from trtsparse.report.console import console

    build_table(engine.report, out=console())
    print(f"wrote {options.output} ({engine.nbytes:,} bytes) and {report_path(options.output)}")
    return 0


def _config(options: argparse.Namespace) -> BuildConfig:
    from trtsparse.builder.config import BuildConfig, Profile

    return BuildConfig(
        precision=options.precision,
        typing=options.typing,
        int8_rest=options.int8_rest,
        calibration=options.calibration,
        random_calibration=options.random_calibration,
        keep_fp32=tuple(options.keep_fp32),
        max_error=options.max_error,
        sparsity=options.sparsity,
        prune_include=tuple(options.include),
        prune_exclude=tuple(options.exclude),
        profiles=tuple(Profile.parse(text) for text in options.shapes),
        flavour=options.flavour,
        compute_capabilities=tuple(options.compute_capability),
        memory_pools=dict(_pool(text) for text in options.memory_pool),
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        refit=options.refit,
        strip_plan=options.strip_plan,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        strict_nans=options.strict_nans,
        profiling_verbosity=options.profiling_verbosity,
        max_aux_streams=options.max_aux_streams,
        builder_threads=options.builder_threads,
        plugins=tuple(options.plugin),
    )


def _pool(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z_]+)=(\d+)([KMG]?)", text)
    if match is None:
        raise ConfigError("cannot read a memory limit", where="--memory-pool", got=text, expected="workspace=2G")
    return match[1], int(match[2]) * _UNITS[match[3]]
