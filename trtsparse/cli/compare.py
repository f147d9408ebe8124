"""``trtsparse compare``: dense against sparse, measured in turn, and which one to ship."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from trtsparse.cli import options as shared

if TYPE_CHECKING:
    from trtsparse.bench.compare import Comparison

__all__ = ["configure", "run"]

_PRECISION: Final = "fp16"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="the dense ONNX model")
    parser.add_argument("--sparse", metavar="MODEL", help="the sparse one (default: MODEL, pruned by magnitude)")
    parser.add_argument(
        "--precision",
        help=f"of both (default: {_PRECISION}): with tensorrt as in `trtsparse build`; with cusparselt fp16, or bf16 "
        "as run, bench and trtexec have by default; onnxruntime runs the models as they are stored",
    )
    parser.add_argument(
        "--optimization-level",
        type=int,
        metavar="0..5",
        help="of both: with tensorrt as in `trtsparse build`; with cusparselt, from 4 on torch.compile fuses what "
        "surrounds the products",
    )
    parser.add_argument("--shapes", metavar="NAME:1x3x224x224,...", help="shapes of the inputs, which are random")
    parser.add_argument(
        "--engine", default="tensorrt", choices=("tensorrt", "cusparselt", "onnxruntime"), help="default: tensorrt"
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each is measured (default: 7)")
    parser.add_argument(
        "--duration", type=float, default=0.5, metavar="S", help="at least so many seconds a round (default: 0.5)"
    )
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Build, measure and print; 1 when the sparse engine is not faster, or runs no sparse kernel."""
    from trtsparse.bench.compare import compare
    from trtsparse.bench.options import BenchOptions
    from trtsparse.builder.config import BuildConfig
    from trtsparse.report.progress import progress_bar

    chosen = BenchOptions(duration_s=options.duration, warm_up_ms=100.0)
    with progress_bar("comparing") as progress:
        found = compare(
            options.model,
            sparse=options.sparse,
            config=BuildConfig(
                precision=options.precision or _PRECISION, optimization_level=options.optimization_level
            ),
            shapes=shared.parse_shapes(options.shapes),
            engine=options.engine,
            rounds=options.rounds,
            options=chosen,
            progress=progress,
        )
    if options.json:
        shared.print_json({**found.to_dict(), "model": options.model})
    else:
        _print(found)
    given = {"--precision": options.precision, "--optimization-level": options.optimization_level}
    for flag, value in given.items():
        if value is not None and options.engine == "onnxruntime":
            shared.say(f"note: {flag} changes nothing: ONNX Runtime runs the models as they are stored")
    if not found.runs_sparse:
        shared.say(f"note: {_why_dense(options)}")
    if found.random:
        shared.say(f"note: random numbers were fed to {', '.join(found.random)}")
    return 0 if found.ships_sparse else 1


def _why_dense(options: argparse.Namespace) -> str:
    if options.engine == "onnxruntime":
        return "ONNX Runtime has no sparse kernels: sparsity saves no time there"
    return f"`trtsparse validate {options.sparse or options.model}` says which weights are eligible and compliant"


def _print(found: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trtsparse.report.console import console

    out, table = console(), Table()
    for column in ("", "latency ms", "low", "high", "mJ a query"):
        table.add_column(column, justify="left" if not column else "right")
    for name, side in (("dense", found.dense), ("sparse", found.sparse)):
        energy = "-" if side.joules_per_query is None else f"{side.joules_per_query * 1e3:.4g}"
        table.add_row(name, *(f"{ms:.4g}" for ms in (side.latency_ms, side.low_ms, side.high_ms)), energy)
    out.print(table)
    difference = f"{found.output_error:.3g} of the largest value of {found.worst_output!r}"
    out.print(f"largest difference of an output: {escape(difference)}", soft_wrap=True)
    out.print(escape(found.verdict), soft_wrap=True)
