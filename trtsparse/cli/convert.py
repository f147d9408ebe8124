"""``trtsparse convert``: a float32 model as a typed FP16 or BF16 graph, or quantized to INT8, without building it."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from trtsparse.precision.converted import Converted

__all__ = ["configure", "run"]

_SCHEMA = "trtsparse.convert/1"
_INT8 = ("calibration", "random_calibration", "int8_rest", "quantize_outputs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shared.add_files(parser)
    parser.add_argument("--precision", required=True, choices=("fp16", "bf16", "int8"))
    parser.add_argument(
        "--samples",
        metavar="PATH",
        help=".npz or .npy files, or a folder of them: real inputs to compare and calibrate with (default: random "
        "ones, which INT8 takes with --random-calibration only)",
    )
    parser.add_argument("--shapes", metavar="NAME:1x3x224x224,...", help="shapes of random inputs")
    parser.add_argument("--keep-fp32", action="append", default=[], metavar="NODE", help="not converted; repeatable")
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="E",
        help="of an output, relative to its range; nodes stay in FP32 until it is met (default: 0.1, INT8 0.2)",
    )
    group = parser.add_argument_group("INT8")
    group.add_argument(
        "--calibration", choices=("minmax", "entropy", "percentile"), help="of ranges; default: minmax"
    )
    group.add_argument("--random-calibration", action="store_true", help="enough to measure time, and nothing else")
    group.add_argument("--int8-rest", choices=("fp32", "fp16"), help="what is not quantized (default: fp32)")
    group.add_argument(
        "--quantize-outputs", action="store_true", help="also outputs of layers that no quantized layer reads"
    )
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, save and print what came out; 1 when the model is less accurate than asked."""
    from trtsparse.files.atomic import check_writable
    from trtsparse.report.console import console
    from trtsparse.report.convert import converted_lines

    _check(options)
    check_writable(options.output)  # before minutes of measuring, not after
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = _convert(options)
    found.model.save(options.output)
    for warning in told:
        shared.say(f"warning: {warning.message}")
    if options.json:
        shared.print_json({"schema": _SCHEMA, "model": options.model, "output": options.output, **found.to_dict()})
    else:
        console().print(converted_lines(found, options.output), markup=False, soft_wrap=True)
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in _INT8:
        if getattr(options, name) and options.precision != "int8":
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError("an option is about INT8", where=flag, got=f"--precision {options.precision}")
    if options.shapes and options.samples:
        raise ConfigError(
            "shapes are those of random inputs", where="--shapes", fix="leave out --shapes or --samples"
        )
    if options.random_calibration and options.samples:
        raise ConfigError(
            "calibration is either random or not",
            where="--random-calibration",
            fix="leave out --random-calibration or --samples",
        )
    if options.precision == "int8" and not (options.random_calibration or options.samples):
        raise ConfigError(
            "INT8 needs real inputs to calibrate with",
            where="--samples",
            expected="a folder of .npz or .npy files, some hundred inputs",
            fix="--random-calibration is enough to measure time",
        )


def _convert(options: argparse.Namespace) -> Converted:
    from trtsparse.files.model import OnnxModel
    from trtsparse.precision.feeds import read_feeds
    from trtsparse.precision.half import to_half
    from trtsparse.precision.int8 import to_int8
    from trtsparse.precision.specs import input_specs

    model, feeds = OnnxModel.open(options.model), None
    if options.samples is not None:
        inputs = input_specs(model)
        feeds = read_feeds(options.samples, input_name=inputs[0].name if len(inputs) == 1 else "")
    given: dict[str, Any] = {"keep_fp32": options.keep_fp32, "shapes": shared.parse_shapes(options.shapes)}
    if options.max_error is not None:
        given["max_error"] = options.max_error
    if options.precision != "int8":
        return to_half(model, precision=options.precision, feeds=feeds, **given)
    return to_int8(
        model,
        calibration="random" if options.random_calibration else feeds,
        method=options.calibration or "minmax",
        rest=options.int8_rest or "fp32",
        quantize_outputs=options.quantize_outputs,
        **given,
    )
