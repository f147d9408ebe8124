"""Which TensorRT a banner names, told without importing it."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.doubles import VERSIONS, installed
from trtsparse.trtexec.library import installed_library, library_like, library_of
from trtsparse.trtexec.log import Library


@pytest.fixture
def nothing_imported(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tensorrt", "tensorrt_rtx")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_imported_library_tells_its_version(version):
    with installed(version) as trt:
        found = installed_library()
        assert found == library_of(trt)
        assert ".".join(map(str, found.version)) == trt.__version__
        assert found.name == ("TensorRT-RTX" if version.startswith("rtx") else "TensorRT")
        like, reason = library_like(found)
    assert like == (8 if version.startswith("8") else 10 if version.startswith("10") else 11)
    assert reason == f"{found} is installed"


@pytest.mark.usefixtures("nothing_imported")
@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"tensorrt": "10.13.3.9"}, Library("TensorRT", (10, 13, 3, 9))),
        ({"tensorrt-cu12": "8.6.1.post1"}, Library("TensorRT", (8, 6, 1))),
        ({"tensorrt-rtx-cu13": "1.7.1.116"}, Library("TensorRT-RTX", (1, 7, 1, 116))),
        ({"tensorrt-rtx-cu13": "1.7.1.116", "tensorrt": "11.4.0.106"}, Library("TensorRT", (11, 4, 0, 106))),
        ({}, Library()),
    ],
)
def test_packages_tell_the_version_of_a_library_that_is_not_imported(monkeypatch, tmp_path, packages, expected):
    for name, version in packages.items():
        (tmp_path / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
        (tmp_path / ("tensorrt_rtx" if "rtx" in name else "tensorrt")).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    importlib.invalidate_caches()
    assert installed_library() == expected


@pytest.mark.usefixtures("nothing_imported")
def test_packages_whose_metadata_lie_elsewhere_are_asked_of_python(monkeypatch, tmp_path):
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    found = SimpleNamespace(version="10.9.0.34")
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda name: [found] if name == "tensorrt-cu12-bindings" else []
    )
    assert installed_library() == Library("TensorRT", (10, 9, 0, 34))


def test_a_library_whose_import_failed_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert installed_library() == Library()
    assert library_like(Library()) == (11, "no TensorRT is installed")


def test_what_packages_say_is_what_the_library_says():
    trt = pytest.importorskip("tensorrt_rtx")
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT comes first")
    code = (
        "import sys\nfrom trtsparse.trtexec.library import installed_library\n"
        "print(installed_library().version)\nprint('tensorrt_rtx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version = tuple(int(part) for part in trt.__version__.split("."))
    assert done.stdout.splitlines() == [str(version), "False"]
