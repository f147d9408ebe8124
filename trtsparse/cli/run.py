"""``trtsparse run``: execute a plan or an ONNX model once on given inputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trtsparse.cli import options as shared
from trtsparse.errors import ConfigError, ModelError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="PLAN_OR_ONNX", help="what to run; recognised by its content")
    shared.add_inputs(parser)
    parser.add_argument("--random", action="store_true", help="random arrays for the inputs that are not given")
    parser.add_argument("--shapes", metavar="NAME:1x3x224x224,...", help="shapes of random inputs")
    shared.add_engine(parser)
    parser.add_argument("-o", "--output", metavar="OUT.npz", help="write the outputs' arrays")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run and print what came out."""
    from trtsparse.bench.feeds import random_inputs
    from trtsparse.runtime.session import Session

    if options.output:
        _check_apart(options.model, options.output)
    feeds = shared.read_inputs(options.input)
    with Session(options.model, engine=options.engine) as session:
        if options.random:
            shapes = shared.parse_shapes(options.shapes)
            feeds = {**random_inputs(options.model, session.engine, given=feeds, shapes=shapes), **feeds}
        elif options.shapes:
            raise ConfigError("shapes are those of random inputs", where="--shapes", fix="add --random")
        results = session.run(feeds)
    summary = {name: _summary(array) for name, array in results.items()}
    if options.output:
        _write(Path(options.output), results)
    if options.json:
        shared.print_json({"schema": "trtsparse.run/1", "model": options.model, "outputs": summary})
    else:
        for name, facts in summary.items():
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    return 0


def _check_apart(model: str, output: str) -> None:
    """Refuse an output that would replace the model or its data files, before anything is run."""
    from trtsparse.builder.engine import check_apart
    from trtsparse.files.copies import same_file
    from trtsparse.files.model import OnnxModel

    if same_file(Path(model), Path(output)):
        raise ConfigError("the output would replace the model", where=output, fix="name another file")
    try:
        opened = OnnxModel.open(model)
    except ModelError:
        return  # a plan or a saved engine, which have no data files, or what the session will refuse
    check_apart(opened, [output])


def _summary(array: Any) -> dict[str, Any]:
    """Shape, type and the range of the values; the mean is None where their sum is beyond float64."""
    import numpy as np

    facts: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.size and np.issubdtype(array.dtype, np.number):
        finite = array[np.isfinite(array)].astype(np.float64)
        if finite.size:
            with np.errstate(over="ignore"):
                mean = float(finite.mean())
            facts |= {"min": float(finite.min()), "max": float(finite.max())}
            facts["mean"] = mean if np.isfinite(mean) else None
        facts["non_finite"] = int(array.size - finite.size)
    return facts


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """As np.savez, which takes neither every name nor text without pickling it."""
    import zipfile

    import numpy as np

    from trtsparse.files import atomic

    with atomic.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            plain = array.astype(np.str_) if array.dtype.hasobject else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
