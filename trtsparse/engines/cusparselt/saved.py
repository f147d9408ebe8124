"""An engine's saved form: a zip archive of the ONNX model, the chosen kernels and the compressed weights.

Members are stored as they are, and each one's SHA-256 is in ``manifest.json``; nothing in it is executed when read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtsparse.errors import PlanError
from trtsparse.files import atomic
from trtsparse.files.model import OnnxModel
from trtsparse.tune.result import Kernel

__all__ = ["SCHEMA", "Saved", "is_saved", "read_saved", "write_saved"]

SCHEMA = "trtsparse.cusparselt/2"
_MANIFEST, _MODEL = "manifest.json", "model.onnx"
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Saved:
    """What a saved engine holds.

    Attributes:
        model: The model.
        precision: "bf16", "fp16" or "typed".
        kernels: By what was asked (`trtsparse.tune.choose.question`): the kernel; None for PyTorch's own.
        weights: Compressed weights by the tensor's name.
        made_on: The GPU and the libraries that the kernels and the compressed weights are for.
        compiled: Whether what surrounds the products is compiled.
        passes: Milliseconds of passes after products that the choices rest on, by what they do.
    """

    model: OnnxModel
    precision: str
    kernels: Mapping[str, Kernel | None]
    weights: Mapping[str, bytes] = field(repr=False)
    made_on: Mapping[str, str]
    compiled: bool = False
    passes: Mapping[str, float] = field(default_factory=dict)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive with our manifest."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        if opened.read(4) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(file) as archive:
            return _MANIFEST in archive.namelist()
    except zipfile.BadZipFile:
        return True  # reading it tells what is wrong


def write_saved(path: str | os.PathLike[str], saved: Saved) -> Path:
    """Write a saved engine, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="trtsparse-") as folder, atomic.replacing(path) as target:
        saved.model.save(Path(folder) / _MODEL)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            hashes = {}
            for file in sorted(Path(folder).iterdir()):
                hashes[file.name] = _hash(file.read_bytes())
                archive.write(file, file.name)
            weights = {}
            for number, (tensor, data) in enumerate(saved.weights.items()):
                member = weights[tensor] = f"weights/{number}.bin"
                hashes[member] = _hash(data)
                archive.writestr(member, data)
            manifest = {
                "schema": SCHEMA,
                "precision": saved.precision,
                "compiled": saved.compiled,
                "passes": dict(saved.passes),
                "made_on": dict(saved.made_on),
                "kernels": {key: kernel and dataclasses.asdict(kernel) for key, kernel in saved.kernels.items()},
                "weights": weights,
                "sha256": hashes,
            }
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
    return Path(path)


def read_saved(path: str | os.PathLike[str]) -> Saved:
    """Read a saved engine.

    Raises:
        PlanError: It is damaged, or of a later version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, str(path))
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(
            "a saved engine is damaged", where=str(path), got=f"{type(error).__name__}: {error}", fix="save it again"
        ) from error


def _read(archive: zipfile.ZipFile, where: str) -> Saved:
    manifest: dict[str, Any] = json.loads(archive.read(_MANIFEST))
    if manifest["schema"] != SCHEMA:
        raise PlanError(
            "a saved engine has another form",
            where=where,
            got=manifest["schema"],
            expected=SCHEMA,
            fix="save it with this version of trtsparse",
        )
    members = {}
    for name, expected in manifest["sha256"].items():
        members[name] = archive.read(name)
        if _hash(members[name]) != expected:
            raise PlanError(
                "a saved engine was changed after it was written",
                where=f"{where}: {name}",
                got=f"SHA-256 {_hash(members[name])}",
                expected=expected,
                fix="save it again",
            )
    files = {
        "" if name == _MODEL else name: data for name, data in members.items() if not name.startswith("weights/")
    }
    return Saved(
        model=OnnxModel(files, name=where),
        precision=str(manifest["precision"]),
        kernels={key: Kernel(**kernel) if kernel else None for key, kernel in manifest["kernels"].items()},
        weights={tensor: members[member] for tensor, member in manifest["weights"].items()},
        made_on={str(key): str(value) for key, value in manifest["made_on"].items()},
        compiled=bool(manifest["compiled"]),
        passes={str(name): float(ms) for name, ms in manifest["passes"].items()},
    )


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
