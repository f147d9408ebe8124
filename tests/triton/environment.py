"""Makes the environment of the Triton tests: a real tritonserver that runs on a CPU, and perf_analyzer.

python tests/triton/environment.py [FOLDER]

The server comes from the wheel nvidia-pytriton. It has an environment of its own because its Python backend needs
NumPy 1: with NumPy 2 every tensor is silently empty or zero. trtsparse is installed there from this repository,
editable. What could later make the server hang or lie is checked here: libraries, NumPy, a session.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / ".triton-env"
SERVER = "nvidia-pytriton==0.7.0"  # tritonserver 2.51, release 24.10
PACKAGES = ("numpy<2", "onnxruntime>=1.20")
PERF_ANALYZER = "tritonclient==2.51.0"  # the last one with the binary inside
RELEASE = "24.10"
PERF_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
SESSION = """
import numpy as np
from onnx import parser
from trtsparse import Session
assert np.__version__.startswith("1."), np.__version__
text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
with Session(parser.parse_model(text)) as session:
    assert session.run({"x": np.ones((3, 2), np.float32)})["y"].sum() == 12
"""


class Environment:
    """Where everything is.

    Args:
        folder: Of the environment, made or not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.python = self.bin / "python"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "venv" / "lib" / f"python{version}" / "site-packages"
        self.triton = self.packages / "pytriton" / "tritonserver"
        self.server = self.triton / "bin" / "tritonserver"
        self.backends = self.triton / "backends"
        self.stub = self.triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        self.perf_analyzer = folder / "perf" / "bin" / "perf_analyzer"
        self.perf_libraries = folder / "perf-libraries"

    @property
    def complete(self) -> bool:
        """True when everything was made, for this interpreter and these versions."""
        mark = self.folder / "complete"
        return mark.is_file() and mark.read_text() == _key()

    def variables(self, *libraries: Path) -> dict[str, str]:
        """The variables of a process of this environment, with folders of libraries before the interpreter's own."""
        folders = [*map(str, libraries), str(sysconfig.get_config_var("LIBDIR"))]
        return {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(folders),
        }


def make(folder: Path) -> Environment:
    """Make the environment, or return at once when it is there."""
    made = Environment(folder)
    if made.complete:
        return made
    if folder.exists() and any(folder.iterdir()) and not (folder / "venv").is_dir():
        sys.exit(f"{folder} is a folder of something else")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run(sys.executable, "-m", "venv", folder / "venv")
    pip = (made.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--editable", ROOT, *PACKAGES)
    _run(*pip, "--no-deps", SERVER)
    _run(*pip, "--no-deps", "--target", folder / "perf", PERF_ANALYZER)
    if not made.stub.is_file():
        sys.exit(f"{SERVER} has no Python backend for {sys.version.split()[0]}: use Python 3.9 to 3.13")
    shutil.copy(made.stub, made.backends / "python")
    made.perf_libraries.mkdir()
    for name, pattern in PERF_LIBRARIES.items():
        (made.perf_libraries / name).symlink_to(next((made.packages / "nvidia_pytriton.libs").glob(pattern)))
    made.perf_analyzer.chmod(0o755)
    for program in (made.server, made.stub, made.backends / "python" / "libtriton_python.so"):
        _check_libraries(program, made.variables())
    _check_libraries(made.perf_analyzer, made.variables(made.perf_libraries))
    _run(made.python, "-c", SESSION, env=made.variables(), cwd=folder)
    (folder / "complete").write_text(_key())
    return made


def _key() -> str:
    """Changes with whatever makes an environment useless."""
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = project[project.index("\ndependencies = [") : project.index("\n[project.optional-dependencies]")]
    facts = (sys.version, sys.base_prefix, ROOT, dependencies, Path(__file__).read_text())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command and return what it prints; a failure ends the program with everything that it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout}")
    return done.stdout


def _check_libraries(program: Path, variables: dict[str, str]) -> None:
    """A program whose libraries are missing hangs the server rather than failing: find out now."""
    missing = [line.strip() for line in _run("ldd", program, env=variables).splitlines() if "not found" in line]
    if missing:
        python = "; libpython needs an interpreter built with --enable-shared" if "libpython" in str(missing) else ""
        sys.exit(f"{program} lacks libraries: {', '.join(missing)}{python}")


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DEFAULT
    print(make(place).folder)
