"""``trtsparse prune``: make the weights N:M sparse by magnitude."""

from __future__ import annotations

import argparse

from trtsparse.cli import options as shared

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="IN", help="ONNX model")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="where to write; may be IN itself")
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="only tensors or nodes like this; repeatable"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="no tensors or nodes like this; repeatable"
    )
    parser.add_argument("--pattern", default="2:4", metavar="N:M", help="default: 2:4")
    shared.add_unknown_operators(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prune and print what changed."""
    from trtsparse.report.progress import progress_bar
    from trtsparse.sparsity.pattern import Pattern
    from trtsparse.sparsity.prune import prune

    with progress_bar("pruning") as progress:
        result = prune(
            options.model,
            output=options.output,
            include=options.include,
            exclude=options.exclude,
            pattern=Pattern.parse(options.pattern),
            allow_unknown_operators=options.allow_unknown_operators,
            progress=progress,
        )
    if options.json:
        shared.print_json(result.to_dict())
    else:
        from trtsparse.report.console import console, prune_table

        prune_table(result, out=console())
    return 0
