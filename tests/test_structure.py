"""The package's own promises: which way imports point, what importing it costs, which names are public."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import trtsparse

PACKAGE = Path(trtsparse.__file__).parent
FLOW = [
    "files", "sparsity", "torch", "precision", "accuracy", "builder", "cuda", "tune", "engines", "runtime", "bench",
    "report", "trtexec", "triton", "cli",
]  # fmt: skip
EVERYWHERE = {"errors", "_version"}
HEAVY = {
    "cuda", "nvmath", "onnxruntime", "polygraphy", "pycuda", "pynvml", "rich", "tensorrt", "tensorrt_rtx", "torch",
    "tritonclient",
}  # fmt: skip


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def folder_modules():
    return [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 1]


@pytest.mark.parametrize("path", folder_modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_folder_imports_only_folders_to_its_left_in_the_flow(path):
    own = path.relative_to(PACKAGE).parts[0]
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "trtsparse" or len(parts) == 1 or parts[1] in EVERYWHERE:
            continue
        assert parts[1] in FLOW, f"{name} is not in the flow"
        assert FLOW.index(parts[1]) <= FLOW.index(own), f"{own} imports {name}, which is to its right"


def test_every_folder_has_its_place_in_the_flow():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(FLOW)


def test_importing_the_package_loads_no_heavy_library():
    code = "import json, sys, trtsparse; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & (HEAVY | {"numpy", "onnx"})


def test_validate_and_prune_need_neither_tensorrt_nor_onnxruntime_nor_cuda():
    code = (
        "import json, sys\nfrom trtsparse import validate, prune\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & HEAVY


def test_public_names_are_sorted_importable_and_listed():
    public = [name for name in trtsparse.__all__ if name != "__version__"]
    assert public == sorted(public)
    for name in public:
        assert getattr(trtsparse, name).__doc__, name
    assert set(trtsparse.__all__) <= set(dir(trtsparse))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trtsparse' has no attribute 'nothing'"):
        trtsparse.nothing  # noqa: B018 - the access is the test


def test_public_functions_are_functions_whatever_was_imported_before():
    code = (
        "import trtsparse.builder.build\nfrom trtsparse import build, prune, validate\n"
        "assert all(map(callable, (build, prune, validate)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_optional_libraries_are_imported_inside_the_function_that_needs_them(path):
    own = {"torch"} if path.parent.name == "torch" else set()  # a folder for PyTorch is imported with PyTorch
    optional = HEAVY - {"rich"} - own
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        assert not [name for name in names if name.split(".")[0] in optional], path
