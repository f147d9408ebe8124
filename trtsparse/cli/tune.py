"""``trtsparse tune``: dense against sparse kernels on the GPU at hand, for a model or for single products."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError

if TYPE_CHECKING:
    import os

    from trtsparse.tune.gemm import Gemm

__all__ = ["configure", "run"]

_DTYPES = ("fp16", "bf16", "int8", "fp8_e4m3", "tf32")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="ONNX model whose eligible weights are tuned")
    parser.add_argument(
        "--gemm", action="append", default=[], metavar="M,N,K", help="a product instead of a model; repeatable"
    )
    parser.add_argument(
        "--shapes", metavar="NAME:1x3x224x224,...", help="shapes of the model's inputs, where they are dynamic"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *_DTYPES),
        help="default: auto, as the weights are stored; fp16 for FP32 ones and for products",
    )
    parser.add_argument("--out-dtype", default="", metavar="TYPE", help="of the products' output (default: as usual)")
    parser.add_argument("--epilogue", default="none", metavar="NAME", help="of the products, as bias_relu")
    parser.add_argument("--limit-s", type=float, metavar="S", help="begin no product after so many seconds")
    parser.add_argument("--fresh", action="store_true", help="measure again what earlier runs have measured")
    parser.add_argument("--cache", metavar="FILE", help="where results are kept (default: the user's cache folder)")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Tune and print; 1 when there is nothing to tune."""
    work = _work(options)
    from trtsparse.report.progress import progress_bar
    from trtsparse.tune.cache import Cache, CacheWarning
    from trtsparse.tune.tune import tune

    with progress_bar("tuning") as progress, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CacheWarning)
        result = tune(
            work,
            shapes=shared.parse_shapes(options.shapes),
            dtype=options.dtype,
            cache=Cache(options.cache),
            fresh=options.fresh,
            limit_s=options.limit_s,
            progress=progress,
        )
    for warning in told:
        if issubclass(warning.category, CacheWarning):
            shared.say(f"warning: {warning.message}")
    if options.json:
        shared.print_json(result.to_dict())
    else:
        from trtsparse.report.console import console
        from trtsparse.report.tune import tune_table

        tune_table(result, out=console())
    if not result.rows and not result.missing:
        why = "no weight of the model is eligible for sparse kernels (trtsparse validate says why)"
        if result.unknown:
            why = "with these shapes no product of an eligible weight has a known size above zero"
        shared.say(f"nothing to tune: {why}")
        return 1
    return 0


def _work(options: argparse.Namespace) -> str | os.PathLike[str] | list[Gemm]:
    if bool(options.model) == bool(options.gemm):
        raise ConfigError(
            "give either a model or products", where="tune", expected="trtsparse tune MODEL, or --gemm M,N,K"
        )
    if options.model:
        if options.out_dtype or options.epilogue != "none":
            raise ConfigError(
                "a model's products have no epilogue", where="--out-dtype, --epilogue", fix="use --gemm"
            )
        return str(options.model)
    if options.shapes:
        raise ConfigError("shapes are those of a model's inputs", where="--shapes", fix="leave them out with --gemm")
    from trtsparse.tune.gemm import Gemm

    dtype = "fp16" if options.dtype == "auto" else options.dtype
    return [
        Gemm.parse(text, dtype=dtype, out_dtype=options.out_dtype, epilogue=options.epilogue) for text in options.gemm
    ]
