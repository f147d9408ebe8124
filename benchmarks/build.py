"""What `trtsparse.build` costs over TensorRT's own API, on the same models with the same settings.

python benchmarks/build.py

Conversion to FP16 is not part of the comparison and is reported apart.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import warnings
from pathlib import Path

import tensorrt_rtx as trt
from _results import Benchmark, interleaved, ratios, seconds

import models
from trtsparse import BuildConfig, Profile, prune
from trtsparse.builder.build import build
from trtsparse.precision.half import to_half

CASES = {
    "magika": "bytes:1x2048:8x2048:32x2048",
    "ppocr-det": "x:1x3x192x320:1x3x384x640:1x3x768x1280",
    "resnext50": "input:1x3x224x224:8x3x224x224:32x3x224x224",
}
RUNS = 7


def main() -> None:
    """Build every model both ways, in turn."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bench = Benchmark("build")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name, shapes in CASES.items():
            sparse = Path(folder) / f"{name}.onnx"
            prune(models.get(name), output=sparse)
            _compare(bench, f"{name}, FP32", sparse, shapes)
            half = Path(folder) / f"{name}-fp16.onnx"
            converting = seconds(functools.partial(_convert, sparse, half))
            bench.add(f"{name}, FP16", "conversion, for comparison", converting, "s")
            _compare(bench, f"{name}, FP16 (converted before)", half, shapes)
    bench.finish(("tensorrt-rtx-cu13", "onnxruntime"))


def _convert(source: Path, target: Path) -> None:
    to_half(source, precision="fp16", max_error=1e9).model.save(target)


def _compare(bench: Benchmark, case: str, model: Path, shapes: str) -> None:
    profile = Profile.parse(shapes)
    stored = "fp16" if "fp16" in model.name else "fp32"
    config = BuildConfig(precision=stored, sparsity="enable", profiles=(profile,), flavour="tensorrt_rtx")  # type: ignore[arg-type]
    ours, raw = interleaved(lambda: build(model, config), lambda: _raw(model, profile), RUNS)
    bench.add(case, "raw API", raw, "s")
    bench.add(case, "trtsparse.build against the raw API", ratios(ours, raw), "x", at_most=1.05)


def _raw(model: Path, profile: Profile) -> bytes:
    """The shortest correct build with TensorRT's own API."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise SystemExit(f"{model}: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.clear_flag(trt.BuilderFlag.TF32)  # as precision="fp32" and typed FP16 builds have it
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    ranges = builder.create_optimization_profile()
    for name, triple in profile.shapes.items():
        ranges.set_shape(name, *triple)
    config.add_optimization_profile(ranges)
    return bytes(builder.build_serialized_network(network, config))


if __name__ == "__main__":
    main()
