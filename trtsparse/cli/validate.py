"""``trtsparse validate``: exit code 0 when the model is as sparse as asked, else 1."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from trtsparse.sparsity.validate import SparsityReport

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="IN", help="ONNX model")
    parser.add_argument(
        "--require",
        type=float,
        metavar="SHARE",
        help="succeed when this share (0 to 1) of the work is eligible and compliant; default: every eligible weight",
    )
    parser.add_argument("--by", choices=("macs", "parameters", "sites"), help="what --require counts (default: macs)")
    parser.add_argument(
        "--precision",
        default="stored",
        choices=("stored", "fp32", "fp16", "bf16", "int8"),
        help="judge the values as they will be after conversion",
    )
    shared.add_pattern(parser)
    parser.add_argument(
        "--shapes", metavar="NAME:1x3x224x224,...", help="input shapes, to count the work of a dynamic model"
    )
    shared.add_unknown_operators(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Validate and print."""
    if options.by is not None and options.require is None:
        raise ConfigError("the option says what a required share counts", where="--by", fix="add --require SHARE")
    if options.require is not None and not 0 <= options.require <= 1:
        raise ConfigError("a share is a number from 0 to 1", where="--require", got=options.require)
    report, complete = _validated(options)
    by = options.by or "macs"
    total = {"macs": report.by_macs, "parameters": report.by_parameters, "sites": report.by_sites}[by]
    if options.require is not None and total is None:
        raise _unknown_work(report, complete=complete)
    if options.json:
        shared.print_json(report.to_dict())
    else:
        from trtsparse.report.console import console, sparsity_table

        sparsity_table(report, out=console(), complete=complete)
    if options.require is not None and total is not None:
        shared.say(f"{total.share:.1%} of {by} eligible and compliant, {options.require:.1%} required")
        return 0 if total.share >= options.require else 1
    if not report.by_sites.eligible:
        shared.say("not compliant: no weight is eligible for sparse kernels")
    else:
        shared.say("compliant" if report.compliant else "not compliant")
    return 0 if report.compliant else 1


def _validated(options: argparse.Namespace) -> tuple[SparsityReport, bool]:
    """The report, and whether every input has a shape."""
    from trtsparse.files.model import OnnxModel
    from trtsparse.report.progress import progress_bar
    from trtsparse.sparsity.pattern import Pattern
    from trtsparse.sparsity.validate import validate
    from trtsparse.tune.sites import dynamic_inputs

    shapes = shared.parse_shapes(options.shapes)
    pattern = Pattern.parse(options.pattern)
    model = OnnxModel.open(options.model)
    with progress_bar("validating") as progress:
        report = validate(
            model,
            precision=options.precision,
            pattern=pattern,
            shapes=shapes,
            allow_unknown_operators=options.allow_unknown_operators,
            progress=progress,
        )
    return report, not dynamic_inputs(model, shapes or {})


def _unknown_work(report: SparsityReport, *, complete: bool) -> ConfigError:
    from trtsparse.report.console import SIMPLIFY, unreached

    first = next(site for site in report.sites if site.macs is None)
    return ConfigError(
        "the work of the model is unknown where shapes are",
        where="--require",
        got=unreached(report) if complete else f"no shapes for {first.op} {first.node!r}",
        fix=f"{SIMPLIFY if complete else 'give --shapes'}, or count otherwise: --by parameters",
    )
