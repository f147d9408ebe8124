"""An engine's saved form: a zip archive of the ONNX model, the chosen kernels and the compressed weights.

Members are stored as they are, and a hash of each is in ``manifest.json``: the SHA-256 of those of its 16 MiB pieces,
which threads compute side by side. Nothing in it is executed when read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtsparse.errors import PlanError
from trtsparse.files import atomic
from trtsparse.files.model import OnnxModel
from trtsparse.files.protobuf import Buffer
from trtsparse.tune.result import Kernel

__all__ = ["SCHEMA", "Saved", "is_saved", "read_saved", "write_saved"]

SCHEMA = "trtsparse.cusparselt/4"
_MANIFEST, _MODEL = "manifest.json", "model.onnx"
_ZIP = b"PK\x03\x04"
_HEADER = struct.Struct("<26xHH")  # before a member; the lengths of the name and the extra field, which follow it
_PIECE = 1 << 24  # bytes hashed by themselves


@dataclass(frozen=True)
class Saved:
    """What a saved engine holds.

    Attributes:
        model: The model.
        precision: "bf16", "fp16" or "typed".
        kernels: By what was asked (`trtsparse.tune.choose.question`): the kernel; None for PyTorch's own.
        weights: Compressed weights by the product's key; of a file that was read, where they are in it.
        made_on: The GPU, the libraries and the version of trtsparse that kernels and compressed weights are for.
        compiled: Whether what surrounds the products is compiled.
        use_sparse: Whether sparse kernels may run.
        passes: Milliseconds of passes after products that the choices rest on, by what they do.
    """

    model: OnnxModel
    precision: str
    kernels: Mapping[str, Kernel | None]
    weights: Mapping[str, Buffer] = field(repr=False)
    made_on: Mapping[str, str]
    compiled: bool = False
    use_sparse: bool = True
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
            members: dict[str, Buffer] = {}
            for file in sorted(Path(folder).iterdir()):
                members[file.name] = _map(file)
                archive.write(file, file.name)
            weights = {}
            for number, (tensor, data) in enumerate(saved.weights.items()):
                member = weights[tensor] = f"weights/{number}.bin"
                members[member] = data
                archive.writestr(member, data)
            manifest = {
                "schema": SCHEMA,
                "precision": saved.precision,
                "compiled": saved.compiled,
                "use_sparse": saved.use_sparse,
                "passes": dict(saved.passes),
                "made_on": dict(saved.made_on),
                "kernels": {key: kernel and dataclasses.asdict(kernel) for key, kernel in saved.kernels.items()},
                "weights": weights,
                "sha256": _hashes(members),
            }
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
    return Path(path)


def read_saved(path: str | os.PathLike[str]) -> Saved:
    """Read a saved engine; the model and the compressed weights stay in the file, which is mapped.

    Raises:
        PlanError: It is damaged, or of a later version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, _map(Path(path)), str(path))
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(
            "a saved engine is damaged", where=str(path), got=f"{type(error).__name__}: {error}", fix="save it again"
        ) from error


def _read(archive: zipfile.ZipFile, mapped: memoryview, where: str) -> Saved:
    manifest: dict[str, Any] = json.loads(archive.read(_MANIFEST))
    if manifest["schema"] != SCHEMA:
        raise PlanError(
            "a saved engine has another form",
            where=where,
            got=manifest["schema"],
            expected=SCHEMA,
            fix="save it with this version of trtsparse",
        )
    members = {name: _content(archive, mapped, name) for name in manifest["sha256"]}
    for name, found in _hashes(members).items():
        if found != manifest["sha256"][name]:
            archive.read(name)  # which tells damage, by the archive's own checksum, from a change
            raise PlanError(
                "a saved engine was changed after it was written",
                where=f"{where}: {name}",
                got=f"SHA-256 {found}",
                expected=manifest["sha256"][name],
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
        use_sparse=bool(manifest["use_sparse"]),
        passes={str(name): float(ms) for name, ms in manifest["passes"].items()},
    )


def _content(archive: zipfile.ZipFile, mapped: memoryview, name: str) -> Buffer:
    """A member's bytes, where they are in the file unless another program has compressed them."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(name)
    archive.open(name).close()  # checks the header
    start = info.header_offset + _HEADER.size + sum(_HEADER.unpack_from(mapped, info.header_offset))
    return mapped[start : start + info.file_size]


def _map(file: Path) -> memoryview:
    """A file's bytes, mapped for as long as something refers to them."""
    with file.open("rb") as opened:
        empty = not file.stat().st_size  # which cannot be mapped
        return memoryview(b"" if empty else mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _hashes(members: Mapping[str, Buffer]) -> dict[str, str]:
    """Of each member the SHA-256 of those of its pieces."""
    pieces = [
        (name, memoryview(data)[start : start + _PIECE])
        for name, data in members.items()
        for start in range(0, len(data), _PIECE)
    ]
    whole = {name: hashlib.sha256() for name in members}
    with ThreadPoolExecutor() as pool:
        hashed = pool.map(lambda piece: hashlib.sha256(piece[1]).digest(), pieces)
        for (name, _), digest in zip(pieces, hashed, strict=True):
            whole[name].update(digest)
    return {name: found.hexdigest() for name, found in whole.items()}
