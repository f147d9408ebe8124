"""``trtsparse doctor``: what is installed here, which GPUs there are, and what each part can do."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
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
    "nvmath-python": "cuda",
    "nvidia-cublas": "cuda",
    "nvidia-cusparselt-cu13": "cuda",
    "nvidia-ml-py": "cuda",
    "pycuda": "pycuda",
    "torch": "torch",
    "onnxscript": "torch",
    "tritonclient": "triton",
    "magika": "models",
    "rapidocr": "models",
}
_WIDTH = max(map(len, _PACKAGES))
_OLDEST = 8.0  # compute capability of the first GPUs with Sparse Tensor Cores
_SPARSE_GPU = "an NVIDIA GPU since Ampere (compute capability 8.0)"
_TUNER = ("cuda-python", "nvmath-python")
_TORCH_WITH_CUDA = "a PyTorch that is built for CUDA, see https://pytorch.org/get-started/locally"


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
        print(f"  {name:{_WIDTH}} {package['version'] or 'missing: ' + package['install']}")
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
    """What `run` prints, as JSON types. Imports what is installed; never raises for what is missing or broken."""
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
            "build (TensorRT)": _look(lambda: _builder("tensorrt", gpus)),
            "build (TensorRT-RTX)": _look(lambda: _builder("tensorrt_rtx", gpus)),
            "run (ONNX Runtime)": _look(_onnxruntime),
            "run (cusparselt)": _look(lambda: _cusparselt(gpus)),
            "tune, explain": _look(lambda: _tuner(gpus)),
            "trtsparse.torch": _look(_torch),
            "export-triton": _look(_triton),
        },
    }


def _package(name: str, extra: str | None) -> dict[str, str | None]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version: str | None = importlib.metadata.version(name)
        if version:  # None where the package's own record of itself is damaged
            return {"version": version, "install": None}
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


def _look(part: Callable[[], str]) -> str:
    """What a part can do; whatever a broken installation raises is what it says."""
    try:
        return part()
    except Exception as error:  # noqa: BLE001 - libraries raise anything while they are imported
        return f"no: {type(error).__name__}: {_first_line(error)}"


def _broken(module: str, error: object) -> str:
    """What is said of a library that is there and does not load; empty where it is not there."""
    if importlib.util.find_spec(module) is None:
        return ""
    return f"no: {module} is installed and cannot be imported ({_first_line(error)})"


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


def _builder(flavour: str, gpus: list[dict[str, str]]) -> str:
    from trtsparse.builder.adapter import find_tensorrt
    from trtsparse.builder.capabilities import Capabilities
    from trtsparse.errors import MissingDependencyError

    try:
        found = Capabilities.of(find_tensorrt(flavour))  # type: ignore[arg-type]
    except MissingDependencyError as error:
        return _broken(flavour, str(error.where or error.what).removeprefix(f"{flavour}: ")) or f"no: {error.fix}"
    if found.ahead_of_time:
        return f"yes, {found.name}: without a GPU too, for compute capabilities {', '.join(found.gpu_targets)}"
    return f"yes, {found.name}" if gpus else f"no: {found.name} needs an NVIDIA GPU to build"


def _onnxruntime() -> str:
    try:
        found: Any = importlib.import_module("onnxruntime")
    except Exception as error:  # noqa: BLE001 - as above
        return _broken("onnxruntime", error) or "no: pip install 'trtsparse[cpu]'"
    return f"yes, {found.__version__}: {', '.join(found.get_available_providers())}"


def _cusparselt(gpus: list[dict[str, str]]) -> str:
    """PyTorch is imported where it is all that could still be wrong: that takes seconds."""
    lacks = _lacks(gpus, "torch", *_TUNER)
    if lacks:
        return f"no: {lacks}"
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - as above
        return f"no: PyTorch cannot be imported ({_first_line(error)}): {_TORCH_WITH_CUDA}"
    if torch.version.cuda is None:
        return f"no: PyTorch {torch.__version__} cannot use GPUs: {_TORCH_WITH_CUDA}"
    return f"yes, on {_sparse_gpus(gpus)}, with PyTorch {torch.__version__} for CUDA {torch.version.cuda}"


def _torch() -> str:
    said = _needs("torch", "onnxscript")
    if said.startswith("yes"):
        try:
            importlib.import_module("torch").Tensor  # noqa: B018 - what a folder of that name has not
        except Exception as error:  # noqa: BLE001 - as above
            return f"no: PyTorch cannot be imported ({_first_line(error)})"
    return said


def _triton() -> str:
    """The client library is there in parts too: without gRPC it has no configurations."""
    from trtsparse.errors import MissingDependencyError
    from trtsparse.triton.protobuf import messages

    said = _needs("tritonclient")
    if said.startswith("no"):
        return said
    try:
        messages()
    except MissingDependencyError as error:
        reason = f" ({_first_line(error.where)})" if error.where else ""
        return f"no: {error.what}{reason}: {error.fix}"
    return said


def _tuner(gpus: list[dict[str, str]]) -> str:
    lacks = _lacks(gpus, *_TUNER)
    if not lacks:
        return f"yes, measured on {_sparse_gpus(gpus)}"
    return f"explain with times of other GPUs; to measure here: {lacks}"


def _needs(*packages: str) -> str:
    install = _install(packages)
    return f"no: {install}" if install else f"yes, {_named(packages[0])}"


def _lacks(gpus: list[dict[str, str]], *packages: str) -> str:
    """What is to be had first to use Sparse Tensor Cores with these packages; empty where all is there."""
    wanted = [] if _sparse_gpus(gpus) else [_SPARSE_GPU]
    install = _install(packages)
    return ", then ".join([*wanted, install] if install else wanted)


def _install(packages: Sequence[str]) -> str:
    """What installs those of the packages that are missing; empty where none is."""
    missing = sorted({str(_PACKAGES[name]) for name in packages if _package(name, None)["version"] is None})
    return f"pip install 'trtsparse[{','.join(missing)}]'" if missing else ""


def _named(package: str) -> str:
    return f"{package} {_package(package, None)['version']}"


def _sparse_gpus(gpus: list[dict[str, str]]) -> str:
    """The names of those that have Sparse Tensor Cores."""
    return ", ".join(gpu["name"] for gpu in gpus if _capability(gpu) >= _OLDEST)


def _capability(gpu: dict[str, str]) -> float:
    try:
        return float(gpu["compute_capability"])
    except ValueError:  # the driver does not say
        return 0.0
