"""``trtsparse doctor``: what is installed here, which GPUs there are, and what each part can do."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

from trtsparse._version import __version__
from trtsparse.cli import options as shared

__all__ = ["configure", "diagnose", "run"]

_PACKAGES = {
    "numpy": None,
    "onnx": None,
    "onnx-graphsurgeon": None,
    "polygraphy": None,
    "onnxruntime": "cpu",
    "tensorrt": "tensorrt",
    "tensorrt-rtx-cu13": "rtx",
    "cuda-python": "cuda",
    "cuda-core": "cuda",
    "pycuda": "pycuda",
    "torch": "torch",
    "tritonclient": "triton",
    "magika": "models",
    "rapidocr": "models",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Look and print; always exit code 0."""
    facts = diagnose()
    if options.json:
        shared.print_json(facts)
        return 0
    print(f"trtsparse {facts['trtsparse']}, Python {facts['python']}, {facts['platform']}")
    for name, package in facts["packages"].items():
        print(f"  {name:20} {package['version'] or 'missing: ' + package['install']}")
    print("GPUs")
    for gpu in facts["gpus"]:
        print(f"  {gpu['name']}, compute capability {gpu['compute_capability']}, driver {gpu['driver']}")
    if not facts["gpus"]:
        print("  none: models can be validated, pruned, converted, built with TensorRT-RTX, and run on the CPU")
    print("What each part can do here")
    for part, text in facts["parts"].items():
        print(f"  {part:20} {text}")
    return 0


def diagnose() -> dict[str, Any]:
    """What `run` prints, as JSON types. Imports TensorRT if it is installed; never raises for what is missing."""
    gpus = _gpus()
    return {
        "schema": "trtsparse.doctor/1",
        "trtsparse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: _package(name, extra) for name, extra in _PACKAGES.items()},
        "gpus": gpus,
        "parts": {
            "validate, prune": "yes",
            "build (TensorRT)": _builder("tensorrt", gpus),
            "build (TensorRT-RTX)": _builder("tensorrt_rtx", gpus),
            "run (ONNX Runtime)": _onnxruntime(),
        },
    }


def _package(name: str, extra: str | None) -> dict[str, str | None]:
    try:
        return {"version": importlib.metadata.version(name), "install": None}
    except importlib.metadata.PackageNotFoundError:
        return {"version": None, "install": f"pip install 'trtsparse[{extra}]'" if extra else f"pip install {name}"}


def _gpus() -> list[dict[str, str]]:
    """The GPUs that the driver's own tool lists."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.count(",") == 3]
    return [dict(zip(("name", "compute_capability", "driver", "memory"), row, strict=True)) for row in rows]


def _builder(flavour: str, gpus: list[dict[str, str]]) -> str:
    from trtsparse.builder.adapter import find_tensorrt
    from trtsparse.builder.capabilities import Capabilities
    from trtsparse.errors import MissingDependencyError

    try:
        found = Capabilities.of(find_tensorrt(flavour))  # type: ignore[arg-type]
    except MissingDependencyError as error:
        return f"no: {error.fix}"
    if found.ahead_of_time:
        return f"yes, {found.name}: without a GPU too, for compute capabilities {', '.join(found.gpu_targets)}"
    return f"yes, {found.name}" if gpus else f"no: {found.name} needs an NVIDIA GPU to build"


def _onnxruntime() -> str:
    try:
        import onnxruntime
    except ImportError:
        return "no: pip install 'trtsparse[cpu]'"
    return f"yes, {onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
