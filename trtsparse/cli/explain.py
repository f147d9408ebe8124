"""``trtsparse explain``: why each layer is or is not sparse, and what that gains."""

from __future__ import annotations

import argparse
import warnings

from trtsparse.cli import options as shared

__all__ = ["configure", "run"]

_DTYPES = ("fp32", "fp16", "bf16", "int8", "fp8_e4m3", "tf32")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="ONNX model")
    parser.add_argument(
        "--report", metavar="PLAN.json", help="what `trtsparse build` wrote beside the plan: tells what was chosen"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="times of another GPU than the one at hand, as h100: its table, or an estimate"
    )
    parser.add_argument(
        "--shapes",
        metavar="NAME:1x3x224x224,...",
        help="shapes of dynamic inputs (default: those of the report's profile)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *_DTYPES),
        help="default: auto, as the report says or the weights are stored; fp16 for FP32 ones",
    )
    parser.add_argument(
        "--total-ms", type=float, metavar="MS", help="measured time of the dense engine, for the totals"
    )
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Explain and print."""
    from trtsparse.report.progress import progress_bar
    from trtsparse.tune.cache import CacheWarning
    from trtsparse.tune.explain import explain

    with progress_bar("measuring") as progress, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CacheWarning)
        found = explain(
            options.model,
            shapes=shared.parse_shapes(options.shapes),
            gpu=options.gpu,
            report=options.report,
            dtype=options.dtype,
            total_ms=options.total_ms,
            progress=progress,
        )
    for warning in told:
        if issubclass(warning.category, CacheWarning):
            shared.say(f"warning: {warning.message}")
    if options.json:
        shared.print_json(found.to_dict())
        return 0
    from trtsparse.report.console import console
    from trtsparse.report.explain import explain_table

    explain_table(found, out=console())
    return 0
