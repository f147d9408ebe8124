import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.doubles import installed
from trtsparse.builder.adapter import find_tensorrt
from trtsparse.errors import ConfigError, MissingDependencyError


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)


def test_importing_the_builder_imports_no_tensorrt():
    code = (
        "import sys, trtsparse.builder.build; print({'tensorrt', 'tensorrt_rtx', 'onnxruntime'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("version", "name"), [("10.13.3", "tensorrt"), ("rtx-1.7.1", "tensorrt_rtx")])
def test_whichever_is_installed_is_found(version, name):
    with installed(version) as module:
        assert find_tensorrt() is module
        assert find_tensorrt(name) is module


def test_tensorrt_comes_before_rtx(monkeypatch):
    both = {name: types.SimpleNamespace(Builder=object) for name in ("tensorrt", "tensorrt_rtx")}
    for name, module in both.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert find_tensorrt() is both["tensorrt"]
    assert find_tensorrt("tensorrt_rtx") is both["tensorrt_rtx"]


def test_a_package_without_its_library_is_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace())
    rtx = types.SimpleNamespace(Builder=object)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert find_tensorrt() is rtx


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_the_extra_and_both_reasons_are_named():
    with pytest.raises(MissingDependencyError) as error:
        find_tensorrt()
    assert str(error.value) == (
        "neither TensorRT nor TensorRT-RTX can be imported\n"
        "  where: tensorrt: import of tensorrt halted; None in sys.modules; "
        "tensorrt_rtx: import of tensorrt_rtx halted; None in sys.modules\n"
        "  to fix: pip install 'trtsparse[rtx]'"
    )
    assert error.value.exit_code == 3


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("prefer", "name", "extra"), [("tensorrt", "TensorRT", "tensorrt"), ("tensorrt_rtx", "TensorRT-RTX", "rtx")]
)
def test_the_flavour_asked_for_is_the_one_named(prefer, name, extra):
    with pytest.raises(MissingDependencyError) as error:
        find_tensorrt(prefer)
    assert str(error.value) == (
        f"{name} cannot be imported\n"
        f"  where: {prefer}: import of {prefer} halted; None in sys.modules\n"
        f"  to fix: pip install 'trtsparse[{extra}]'"
    )


def test_an_unknown_flavour_is_refused():
    with pytest.raises(ConfigError) as error:
        find_tensorrt("trt")
    assert str(error.value) == "flavour has no such value\n  got: 'trt'\n  expected: 'tensorrt', 'tensorrt_rtx'"
