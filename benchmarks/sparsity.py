"""Validate and prune: against the memory's speed, against Polygraphy, against the file's size.

python benchmarks/sparsity.py            # needs about 10 GB of free disk in the temporary folder
python benchmarks/sparsity.py --quick    # leaves out the files of 1 GB and more
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from _results import Benchmark, interleaved, ratios, seconds
from onnx import TensorProto, helper, numpy_helper

from trtsparse.sparsity.pattern import count_groups, prune_array
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate

POLYGRAPHY_RUNS = 7  # each takes seconds
CASES = {
    "linear, contiguous axis": ((8192, 8192), 1),
    "linear, strided axis": ((8192, 8192), 0),
    "3x3 convolution": ((7168, 1024, 3, 3), 1),
}


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the files of 1 GB and more")
    quick = parser.parse_args().quick
    bench = Benchmark("sparsity")
    with tempfile.TemporaryDirectory() as folder:
        against_polygraphy(bench, Path(folder))
        against_size(bench, Path(folder), [0.1] if quick else [0.1, 1, 4])
    against_memory(bench)
    bench.finish(("polygraphy",))


def against_memory(bench: Benchmark) -> None:
    """Arrays far larger than the caches, against one numpy pass over the same bytes."""
    random = np.random.default_rng(0)
    for dtype in (np.float32, np.float16):
        for name, (shape, axis) in CASES.items():
            dense = random.standard_normal(shape, dtype=np.float32).astype(dtype)
            compliant = dense.copy()
            pruning = seconds(lambda axis=axis, compliant=compliant: prune_array(compliant, axis=axis))  # type: ignore[misc]
            case = f"{np.dtype(dtype).name}, {name}"
            for kind, weights in (("dense", dense), ("compliant", compliant)):
                bits = weights.view(f"i{weights.dtype.itemsize}")
                plain, ours = interleaved(
                    lambda bits=bits: np.max(bits),  # type: ignore[misc]
                    lambda weights=weights, axis=axis: count_groups(weights, axis=axis),  # type: ignore[misc]
                    9,
                )
                bench.add(case, f"count, {kind}: speed against np.max", ratios(plain, ours), "x", at_least=0.5)
            bench.add(case, "prune", dense.nbytes / pruning / 1e9, "GB/s")


def against_polygraphy(bench: Benchmark, folder: Path) -> None:
    """The same files through both libraries' functions, in one process."""
    from polygraphy.tools.sparse import SparsityPruner

    dense, compliant = folder / "dense.onnx", folder / "compliant.onnx"
    onnx.save(linear_model(1, 1024, 1024), dense)
    prune(dense, output=compliant)
    theirs, ours = interleaved(
        lambda: SparsityPruner(onnx.load(compliant)).check(), lambda: validate(compliant), POLYGRAPHY_RUNS
    )
    bench.add("1M weights", "validate: times Polygraphy's inspect sparsity", ratios(theirs, ours), "x", at_least=1000)
    theirs, ours = interleaved(
        lambda: SparsityPruner(onnx.load(dense)).prune(), lambda: prune(dense), POLYGRAPHY_RUNS
    )
    metric = "prune in memory: times Polygraphy's surgeon prune"
    bench.add("1M weights", metric, ratios(theirs, ours), "x", at_least=500)
    written = [seconds(lambda: prune(dense, output=folder / "ours.onnx")) for _ in range(21)][1:]
    bench.add("1M weights", "prune to a file, flushed to disk", written, "s")


def against_size(bench: Benchmark, folder: Path, sizes: list[float]) -> None:
    """Time and memory of whole commands, against reading the file; weights are external data."""
    for gigabytes in sizes:
        model = folder / f"{gigabytes}.onnx"
        write_external(model, gigabytes)
        data = model.with_suffix(".onnx.data")
        case = f"{gigabytes} GB external data"
        validating = [sys.executable, "-m", "trtsparse", "validate", str(model), "--json"]
        reading = ["sh", "-c", f"cat {data} >/dev/null"]
        ours, plain = interleaved(lambda c=validating: _quiet(c), lambda c=reading: _quiet(c), 5)  # type: ignore[misc]
        bench.add(case, "whole `trtsparse validate` command", ours, "s")
        target = 3 if gigabytes == 1 else None
        bench.add(case, "the same against `cat file`", ratios(ours, plain), "x", at_most=target)
        largest = 4096 * 4096 * 4 / 1e6
        for verb, call in (("validate", f"validate({str(model)!r})"), ("prune", _prune_call(model))):
            usage = _usage(verb, call)
            bench.add(case, f"{verb}: seconds in the process", usage["seconds"], "s")
            bench.add(case, f"{verb}: peak memory", usage["megabytes"], "MB", at_most=300 + 3 * largest)
        shutil.rmtree(_pruned_folder(model))
        model.unlink()
        data.unlink()


def linear_model(layers: int, inputs: int, outputs: int) -> onnx.ModelProto:
    """A chain of Gemm nodes with random weights."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((outputs, inputs), dtype=np.float32), f"w{i}")
        for i in range(layers)
    ]
    nodes = [helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"gemm{i}", transB=1) for i in range(layers)]
    ends = (
        helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, inputs]),
        helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [1, outputs]),
    )
    graph = helper.make_graph(nodes, "chain", [ends[0]], [ends[1]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def write_external(path: Path, gigabytes: float) -> None:
    """A chain of 4096 x 4096 layers whose weights are written straight to the data file."""
    nbytes = 4096 * 4096 * 4
    layers = max(round(gigabytes * 1e9 / nbytes), 1)
    model = linear_model(1, 4, 4)
    del model.graph.node[:], model.graph.initializer[:]
    layer = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    with path.with_suffix(".onnx.data").open("wb") as file:
        for i in range(layers):
            file.write(layer.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[4096, 4096])
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.name}.data", "offset": str(i * nbytes), "length": str(nbytes)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
            model.graph.initializer.append(tensor)
            model.graph.node.append(helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"gemm{i}", transB=1))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4096
    model.graph.output[0].name = f"x{layers}"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4096
    path.write_bytes(model.SerializeToString())


def _pruned_folder(model: Path) -> Path:
    return model.parent / f"{model.stem}-pruned"


def _prune_call(model: Path) -> str:
    _pruned_folder(model).mkdir(exist_ok=True)
    return f"prune({str(model)!r}, output={str(_pruned_folder(model) / 'm.onnx')!r})"


def _usage(verb: str, call: str) -> dict[str, float]:
    """Seconds of a call and the peak memory of a process that makes it."""
    code = (
        f"import json, time\nfrom trtsparse import {verb}\n"
        f"start = time.perf_counter()\n{call}\nseconds = time.perf_counter() - start\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(json.dumps({'seconds': seconds, 'megabytes': int(peak) * 1024 / 1e6}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usage: dict[str, float] = json.loads(done.stdout)
    return usage


def _quiet(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=False)


if __name__ == "__main__":
    main()
