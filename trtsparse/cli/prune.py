"""``trtsparse prune``: make the weights N:M sparse, by magnitude or with calibration data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtsparse.sparsity.prune import PruneResult

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shared.add_files(parser)
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="only tensors or nodes like this; repeatable"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="no tensors or nodes like this; repeatable"
    )
    shared.add_pattern(parser)
    _configure_calibration(parser)
    shared.add_unknown_operators(parser)
    shared.add_json(parser)


def _configure_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keeping accuracy without training (needs ONNX Runtime)")
    group.add_argument(
        "--method",
        choices=("magnitude", "wanda", "sparsegpt"),
        default="magnitude",
        help="how to choose what is dropped; sparsegpt keeps most accuracy; default: magnitude",
    )
    group.add_argument(
        "--calibration",
        metavar="PATH",
        help="real inputs: a folder of .npz files, of <input>/*.npy, or of *.npy for a single input",
    )
    group.add_argument("--samples", type=int, metavar="N", help="use at most N of the files; default: 128")
    group.add_argument("--seed", type=int, metavar="N", help="of the choice of files; default: 0")
    group.add_argument("--device", metavar="NAME", help="cpu, or cuda with PyTorch, for the linear algebra")
    group.add_argument("--keep-biases", action="store_true", help="leave biases as they are")
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="X",
        help="leave layers dense until the outputs move by at most X of their root mean square, such as 0.01",
    )


def run(options: argparse.Namespace) -> int:
    """Prune and print what changed."""
    from trtsparse.report.progress import progress_bar

    with progress_bar("pruning") as progress:
        result = _pruned(options, progress)
    if options.json:
        shared.print_json(result.to_dict())
    else:
        from trtsparse.accuracy.prune import CalibratedResult
        from trtsparse.report.console import console, prune_table
        from trtsparse.report.layers import layer_table

        out = console()
        prune_table(result, out=out)
        if isinstance(result, CalibratedResult):
            layer_table(result, out=out)
    return 0


def _pruned(options: argparse.Namespace, progress: Callable[[int, int], None]) -> PruneResult:
    from trtsparse.accuracy.calibration import Calibration
    from trtsparse.accuracy.prune import prune
    from trtsparse.sparsity.pattern import Pattern

    given = {name: getattr(options, name) for name in ("samples", "seed", "device")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.calibration is None:
        for name in (*given, *(("keep_biases",) if options.keep_biases else ()), *_max_drop(options)):
            raise ConfigError("the option needs calibration data", where=f"--{name.replace('_', '-')}",
                              fix="add --calibration PATH")  # fmt: skip
        calibration = None
    else:
        calibration = Calibration(options.calibration, biases=not options.keep_biases, **given)
    pattern = Pattern.parse(options.pattern)
    if options.max_drop is not None:
        from trtsparse.accuracy.sensitivity import Limit, prune_within

        return prune_within(
            options.model,
            limit=Limit(options.max_drop),
            output=options.output,
            include=options.include,
            exclude=options.exclude,
            pattern=pattern,
            method=options.method,
            calibration=calibration,
            allow_unknown_operators=options.allow_unknown_operators,
            progress=progress,
        )
    return prune(
        options.model,
        output=options.output,
        include=options.include,
        exclude=options.exclude,
        pattern=pattern,
        method=options.method,
        calibration=calibration,
        allow_unknown_operators=options.allow_unknown_operators,
        progress=progress,
    )


def _max_drop(options: argparse.Namespace) -> tuple[str, ...]:
    return () if options.max_drop is None else ("max_drop",)
