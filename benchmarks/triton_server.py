"""What serving through a trtsparse session costs in Triton, against a model.py that calls ONNX Runtime itself.

make triton-env
python benchmarks/triton_server.py [FOLDER OF THE ENVIRONMENT]

Both models are on one server, with the same configuration but for their names and one thread each, which leaves the
other core to the server and the clients; perf_analyzer measures them in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _results import Benchmark, ratios

import models
from trtsparse import OnnxModel, Profile, prune
from trtsparse.precision.specs import input_specs
from trtsparse.triton.export import export_triton
from trtsparse.triton.options import TritonOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.triton.environment import DEFAULT, Environment
from tests.triton.server import TritonServer

CONCURRENCY = (1, 8, 32)
RUNS = int(os.environ.get("RUNS", "7"))
WINDOW_MS = 1000
"""perf_analyzer averages three of them."""
CASES = {
    "magika": ("magika", {}, "bytes:1x2048:8x2048:32x2048"),
    "mlp 64-64-16": ("mlp", {"widths": (64, 64, 16)}, "input:1x64:8x64:32x64"),  # little but overhead
}
BY_HAND = '''"""The shortest correct model.py: joins the requests, calls ONNX Runtime, splits the results."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        (result,) = self.session.run([self.output], {self.input: joined})
        responses, start = [], 0
        for array in arrays:
            end = start + len(array)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, result[start:end])]))
            start = end
        return responses
'''


def main() -> None:
    """Measure every case at every concurrency."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=DEFAULT, help="of the environment (default: %(default)s)"
    )
    environment = Environment(parser.parse_args().folder)
    if not environment.complete:
        raise SystemExit(f"no Triton server in {environment.folder}: make triton-env")
    bench = Benchmark("triton_server")
    with tempfile.TemporaryDirectory() as folder:
        for case, (name, options, shapes) in CASES.items():
            place = Path(folder) / case.replace(" ", "-")
            data = _prepare(place, models.get(name, folder=folder, **options), shapes)
            with TritonServer(environment, place / "repository", place / "log") as server:
                for concurrency in CONCURRENCY:
                    _compare(bench, f"{case}, concurrency {concurrency}", environment, server, data, concurrency)
    bench.finish(("onnxruntime", "tritonclient"))


def _prepare(place: Path, model: Path, shapes: str) -> Path:
    """A repository with both models, and a file of requests."""
    place.mkdir()
    pruned = place / "pruned.onnx"
    prune(model, output=pruned)
    profile = Profile.parse(shapes)
    options = TritonOptions(backend="python", parameters={"threads": "1"})
    for name in ("session", "by-hand"):
        made = export_triton(pruned, place / "repository", name=name, profiles=[profile], options=options)
        if name == "by-hand":
            (made.folder / "model.py").write_text(BY_HAND)
    ((name, (_, _, largest)),) = profile.shapes.items()
    rng = np.random.default_rng(0)
    (spec,) = input_specs(OnnxModel.open(pruned))
    rows = [{name: rng.integers(0, 256, largest[1:]).astype(spec.dtype).tolist()} for _ in range(64)]
    data = place / "requests.json"
    data.write_text(json.dumps({"data": rows}))
    return data


def _compare(
    bench: Benchmark, case: str, environment: Environment, server: TritonServer, data: Path, concurrency: int
) -> None:
    pairs = []
    for run in range(RUNS + 1):
        names = ("session", "by-hand") if run % 2 else ("by-hand", "session")
        measured = {name: _throughput(environment, server, name, data, concurrency) for name in names}
        pairs.append((measured["session"], measured["by-hand"]))
    ours, theirs = ([pair[index] for pair in pairs[1:]] for index in (0, 1))  # the first run warms both up
    bench.add(case, "by hand, ONNX Runtime", theirs, "infer/s")
    bench.add(case, "through a session", ours, "infer/s")
    bench.add(case, "through a session against by hand", ratios(ours, theirs), "x", at_least=0.9)


def _throughput(environment: Environment, server: TritonServer, name: str, data: Path, concurrency: int) -> float:
    """Inferences a second, as perf_analyzer counts them."""
    report = data.with_name("report.csv")
    command = [
        str(environment.perf_analyzer),
        *("-m", name, "-u", server.grpc, "-i", "grpc", "-f", str(report)),
        *("--concurrency-range", str(concurrency), "--input-data", str(data)),
        *("--measurement-interval", str(WINDOW_MS), "--stability-percentage", "999", "--max-trials", "3"),
    ]
    variables = environment.variables(environment.perf_libraries)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=120)
    if done.returncode or not report.is_file():
        raise SystemExit(f"perf_analyzer failed: {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    with report.open(newline="") as file:
        (row,) = csv.DictReader(file)
    report.unlink()
    return float(row["Inferences/Second"])


if __name__ == "__main__":
    main()
