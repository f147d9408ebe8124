"""The main job on a real model, on any machine: validate, prune, convert, build, run, compare.

    python -m models.demo -o FOLDER

Magika tells a file's type from its bytes; here it looks at this repository's own files.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import models
from models.packaged import magika_features, magika_labels
from trtsparse import BuildConfig, Profile, Session, build, prune, validate
from trtsparse.builder.engine import report_path
from trtsparse.errors import TrtSparseError
from trtsparse.precision.half import to_half
from trtsparse.report.build import build_table
from trtsparse.report.console import console, sparsity_table

__all__ = ["main"]

_PROFILE = "bytes:1x2048:8x2048:64x2048"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("build-demo"), help="folder for what is written")
    folder = parser.parse_args(arguments).output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _demonstrate(folder)
    except TrtSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _demonstrate(folder: Path) -> None:
    out = console()
    started = time.perf_counter()
    dense = models.get("magika")
    pruned, half, plan = (folder / name for name in ("magika-2to4.onnx", "magika-2to4-fp16.onnx", "magika.plan"))

    out.rule("1. validate the dense network")
    sparsity_table(validate(dense, shapes={"bytes": (1, 2048)}), out=out)

    out.rule("2. prune it 2:4 by magnitude, validate again")
    result = prune(dense, output=pruned)
    out.print(f"{result.zeroed:,} weights set to zero, every other byte unchanged: {pruned}")
    sparsity_table(validate(pruned, shapes={"bytes": (1, 2048)}), out=out)

    files = _own_files()
    features = magika_features(files)
    out.rule("3. convert it to FP16, compared with the original on real input")
    converted = to_half(pruned, precision="fp16", feeds=[{"bytes": features}])
    converted.model.save(half)
    out.print(f"largest error {converted.error:.2g}, limit {converted.limit:.2g}")
    out.print(f"{len(converted.kept)} nodes kept in FP32: {half}")

    out.rule("4. build a TensorRT-RTX engine that may use sparse kernels")
    config = BuildConfig(
        precision="fp16", sparsity="enable", profiles=(Profile.parse(_PROFILE),), flavour="tensorrt_rtx"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report lists them
        engine = build(half, config)
    engine.save(plan)
    build_table(engine.report, out=out)
    out.print(f"wrote {plan} ({engine.nbytes:,} bytes) and {report_path(plan)}")

    out.rule("5. classify this repository's files: dense FP32 against pruned FP16, on the CPU")
    _compare(_scores(dense, features), _scores(half, features), files, out)
    out.print(
        f"\nDone in {time.perf_counter() - started:.0f} s. A GPU from Ampere on would add: running the plan, with "
        "sparse kernels timed and chosen by TensorRT."
    )


def _own_files() -> list[Path]:
    root = Path(__file__).resolve().parent.parent
    kinds = ("*.py", "*.md", "*.toml", "*.json", "*.yaml", "Makefile", "LICENSE")
    places = (root, root / "trtsparse", root / "models", root / "tests" / "data")
    return sorted({path for place in places for kind in kinds for path in place.glob(kind) if path.is_file()})


def _scores(model: Path, features: Any) -> Any:
    with Session(model) as session:
        return session.run({"bytes": features})["target_label"]


def _compare(dense: Any, sparse: Any, files: list[Path], out: Any) -> None:
    labels = magika_labels()
    root = Path(__file__).resolve().parent.parent
    for path, before, after in zip(files, dense.argmax(axis=1), sparse.argmax(axis=1), strict=True):
        mark = "" if before == after else "   <- differs"
        out.print(f"{path.relative_to(root)!s:40} {labels[before]:12} {labels[after]:12}{mark}")
    agreement = np.mean(dense.argmax(axis=1) == sparse.argmax(axis=1))
    difference = np.abs(dense - sparse).max()
    out.print(f"agreement {agreement:.1%} of {len(files)} files, largest score difference {difference:.2g}")


if __name__ == "__main__":
    sys.exit(main())
