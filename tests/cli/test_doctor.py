"""`trtsparse doctor`: tells what is there and what to type for the rest, and never fails."""

import importlib.metadata
import json
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest

from trtsparse.builder import adapter
from trtsparse.cli import doctor
from trtsparse.cli.main import main
from trtsparse.errors import MissingDependencyError
from trtsparse.triton import protobuf


def test_it_lists_packages_with_versions_or_what_to_type(capsys, monkeypatch):
    monkeypatch.setitem(doctor._PACKAGES, "no-such-package", "cuda")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"onnx                   {onnx.__version__}" in out
    assert "no-such-package        missing: pip install 'trtsparse[cuda]'" in out


def test_json_holds_the_same_facts(capsys):
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "trtsparse.doctor/1"
    assert document["packages"]["onnx"] == {"version": onnx.__version__, "install": None}
    assert document["parts"]["validate, prune"] == "yes"


def test_without_tensorrt_it_says_what_to_install(monkeypatch):
    def missing(_flavour):
        raise MissingDependencyError("cannot be imported", extra="rtx")

    monkeypatch.setattr(adapter, "find_tensorrt", missing)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert doctor.diagnose()["parts"]["build (TensorRT-RTX)"] == "no: pip install 'trtsparse[rtx]'"


def test_gpus_are_read_from_the_driver(monkeypatch):
    line = "NVIDIA H100 80GB HBM3, 9.0, 580.159.04, 81559 MiB\n"
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=line, stderr="")
    )
    assert doctor.diagnose()["gpus"] == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "compute_capability": "9.0",
            "driver": "580.159.04",
            "memory": "81559 MiB",
        }
    ]


def test_a_broken_driver_is_no_gpu(monkeypatch):
    def fails(*_, **__):
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", fails)
    assert doctor.diagnose()["gpus"] == []


AMPERE = "NVIDIA A100-SXM4-40GB, 8.0, 580.159.04, 40960 MiB"
TURING = "Tesla T4, 7.5, 580.159.04, 15360 MiB"
EVERYTHING = ("torch", "onnxscript", "cuda-python", "nvmath-python", "tritonclient")


@pytest.fixture
def machine(monkeypatch):
    """What `diagnose` says of the parts of a machine with such GPUs, packages and PyTorch."""

    def parts(*gpus, installed=(), torch=None):
        def version(name):
            if name in installed:
                return "2.0"
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(doctor, "_gpus", lambda: [_gpu(line) for line in gpus])
        monkeypatch.setattr(doctor.importlib.metadata, "version", version)
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(protobuf, "messages", lambda: None)
        return doctor.diagnose()["parts"]

    return parts


def _gpu(line):
    names = ("name", "compute_capability", "driver", "memory")
    return dict(zip(names, line.split(", "), strict=True))


def _torch(cuda):
    return SimpleNamespace(__version__="2.11.0", version=SimpleNamespace(cuda=cuda), Tensor=None)


def test_every_package_of_the_extras_for_gpus_and_pytorch_is_listed():
    listed = {name: extra for name, extra in doctor._PACKAGES.items() if extra in ("cuda", "torch")}
    assert listed == {
        **dict.fromkeys(
            ("cuda-python", "cuda-core", "nvmath-python", "nvidia-cublas", "nvidia-cusparselt-cu13", "nvidia-ml-py"),
            "cuda",
        ),
        **dict.fromkeys(("torch", "onnxscript"), "torch"),
    }


def test_on_a_bare_machine_each_part_says_what_to_get(machine):
    parts = machine()
    gpu = "an NVIDIA GPU since Ampere (compute capability 8.0)"
    assert parts["run (cusparselt)"] == f"no: {gpu}, then pip install 'trtsparse[cuda,torch]'"
    assert parts["tune, explain"] == (
        f"explain with times of other GPUs; to measure here: {gpu}, then pip install 'trtsparse[cuda]'"
    )
    assert parts["trtsparse.torch"] == "no: pip install 'trtsparse[torch]'"
    assert parts["export-triton"] == "no: pip install 'trtsparse[triton]'"


def test_only_what_is_missing_is_to_be_installed(machine):
    parts = machine(AMPERE, installed=("torch", "cuda-python"))
    assert parts["run (cusparselt)"] == parts["tune, explain"].replace(
        "explain with times of other GPUs; to measure here", "no"
    )
    assert parts["run (cusparselt)"] == "no: pip install 'trtsparse[cuda]'"
    assert parts["trtsparse.torch"] == "no: pip install 'trtsparse[torch]'"


@pytest.mark.parametrize("line", [TURING, "An old GPU, [N/A], 390.1, 1 MiB"])
def test_an_older_gpu_has_no_sparse_tensor_cores(machine, line):
    parts = machine(line, installed=EVERYTHING, torch=_torch("13.0"))
    assert parts["run (cusparselt)"] == "no: an NVIDIA GPU since Ampere (compute capability 8.0)"


def test_with_everything_each_part_says_yes(machine):
    parts = machine(TURING, AMPERE, installed=EVERYTHING, torch=_torch("13.0"))
    assert parts["run (cusparselt)"] == "yes, on NVIDIA A100-SXM4-40GB, with PyTorch 2.11.0 for CUDA 13.0"
    assert parts["tune, explain"] == "yes, measured on NVIDIA A100-SXM4-40GB"
    assert parts["trtsparse.torch"] == "yes, torch 2.0"
    assert parts["export-triton"] == "yes, tritonclient 2.0"


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        (_torch(None), "PyTorch 2.11.0 cannot use GPUs"),
        (None, "PyTorch cannot be imported (import of torch halted; None in sys.modules)"),
    ],
)
def test_a_pytorch_that_cannot_use_gpus_is_not_enough(machine, torch, why):
    said = machine(AMPERE, installed=EVERYTHING, torch=torch)["run (cusparselt)"]
    assert said == f"no: {why}: a PyTorch that is built for CUDA, see https://pytorch.org/get-started/locally"


def test_a_pytorch_that_is_broken_is_no_pytorch(machine):
    said = machine(installed=EVERYTHING, torch=None)["trtsparse.torch"]
    assert said == "no: PyTorch cannot be imported (import of torch halted; None in sys.modules)"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Makes a module that is found first, and raises while it is imported."""

    def make(name, statement):
        for known in [known for known in sys.modules if known.partition(".")[0] == name.partition(".")[0]]:
            monkeypatch.delitem(sys.modules, known)
        folder = tmp_path.joinpath(*name.split("."))
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()  # a package: else an installed one is found first
        (folder / "__init__.py").write_text(statement)
        monkeypatch.syspath_prepend(tmp_path)

    return make


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("onnxruntime", "run (ONNX Runtime)"),
        ("tensorrt", "build (TensorRT)"),
        ("tensorrt_rtx", "build (TensorRT-RTX)"),
    ],
)
@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_library_that_is_broken_says_why(broken, module, part, error):
    broken(module, f"raise {error}('libcuda.so.1: too old\\nand more')")
    said = doctor.diagnose()["parts"][part]
    assert said == f"no: {module} is installed and cannot be imported (libcuda.so.1: too old)"


def test_whatever_a_library_raises_is_told(broken, capsys):
    broken("tensorrt", "raise ZeroDivisionError('by zero')")
    assert main(["doctor"]) == 0
    assert "  build (TensorRT)     no: ZeroDivisionError: by zero\n" in capsys.readouterr().out


def test_a_client_library_without_grpc_is_not_enough(broken, monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _name: "2.0")
    broken("tritonclient.grpc", "raise RuntimeError('The installation does not include grpc support.')")
    assert doctor.diagnose()["parts"]["export-triton"] == (
        "no: Triton's client library cannot be imported (tritonclient.grpc: The installation does not include grpc "
        "support.): pip install 'trtsparse[triton]'"
    )


def test_a_package_whose_record_is_damaged_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _name: None)
    assert doctor.diagnose()["packages"]["numpy"] == {"version": None, "install": "pip install numpy"}
