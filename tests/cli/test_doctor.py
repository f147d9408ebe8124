"""`trtsparse doctor`: tells what is there and what to type for the rest, and never fails."""

import json
import subprocess

import onnx

from trtsparse.builder import adapter
from trtsparse.cli import doctor
from trtsparse.cli.main import main
from trtsparse.errors import MissingDependencyError


def test_it_lists_packages_with_versions_or_what_to_type(capsys, monkeypatch):
    monkeypatch.setitem(doctor._PACKAGES, "no-such-package", "cuda")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"onnx                 {onnx.__version__}" in out
    assert "no-such-package      missing: pip install 'trtsparse[cuda]'" in out


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
