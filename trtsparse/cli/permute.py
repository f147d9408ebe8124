"""``trtsparse permute``: put channels into an order in which pruning loses less."""

from __future__ import annotations

import argparse

from trtsparse.cli import options as shared

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shared.add_files(parser)
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="keep more in weights like this; repeatable"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="leave weights like this alone; repeatable"
    )
    shared.add_pattern(parser)
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the search ends with the best so far; default: 60",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the outputs of both models (needs no ONNX Runtime)"
    )
    shared.add_unknown_operators(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Permute and print what that keeps."""
    from trtsparse.accuracy.permute import permute
    from trtsparse.report.progress import progress_bar
    from trtsparse.sparsity.pattern import Pattern

    with progress_bar("searching") as progress:
        result = permute(
            options.model,
            output=options.output,
            include=options.include,
            exclude=options.exclude,
            pattern=Pattern.parse(options.pattern),
            time_limit_s=options.time_limit,
            progress=progress,
            check=not options.no_check,
            allow_unknown_operators=options.allow_unknown_operators,
        )
    if options.json:
        shared.print_json(result.to_dict())
    else:
        from trtsparse.report.console import console
        from trtsparse.report.permute import permute_table

        permute_table(result, out=console())
    return 0
