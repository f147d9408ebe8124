"""`export_triton`: a plan or an ONNX model into a Triton model repository."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from trtsparse.builder.engine import BuiltEngine
from trtsparse.builder.profile import Profile
from trtsparse.engines import DeviceEngine, Engine
from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.runtime.session import Session
from trtsparse.triton import repository as folders
from trtsparse.triton.batching import Batching
from trtsparse.triton.checks import CONFIG, backend_of, check_config, check_served, check_version, versions_of
from trtsparse.triton.config import choose_backend, make_config
from trtsparse.triton.options import TritonOptions, as_tuple, check_type
from trtsparse.triton.protobuf import parse_config, write_config
from trtsparse.triton.servers import check_plan, find_server
from trtsparse.triton.source import Source, open_source

__all__ = ["ExportedModel", "export_triton"]

Model = str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel
_TEMPLATE = Path(__file__).with_name("model_template.py")


@dataclass(frozen=True)
class ExportedModel:
    """What `export_triton` wrote.

    Attributes:
        name: The model's.
        version: Its number.
        folder: The version's.
        backend: Triton's.
        max_batch_size: As configured.
        config: Text of ``config.pbtxt``, as it is there now.
        notes: What was decided that users might wonder about.
    """

    name: str
    version: int
    folder: Path
    backend: str
    max_batch_size: int
    config: str = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"schema": "trtsparse.triton/1", **asdict(self), "folder": str(self.folder), "notes": list(self.notes)}


def export_triton(
    source: Model | BuiltEngine | Engine | DeviceEngine | Session,
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    model: Model | Engine | DeviceEngine | Session | None = None,
    profiles: Sequence[Profile] = (),
    version: int | None = None,
    overwrite: bool = False,
    options: TritonOptions | None = None,
) -> ExportedModel:
    """Add a model, or a new version of one, to a Triton model repository.

    A plan's inputs, outputs and profiles come from the report that its build wrote beside it, else from ``model``,
    else from the plan itself where it can be loaded. A server that reads the repository meanwhile sees whole versions
    only. A model that is there keeps its ``config.pbtxt``, which must fit the new version.

    Args:
        source: A plan (path or bytes), an ONNX model, what `trtsparse.build` returns, a saved engine (path), or an
            engine or session that gives what it was made from.
        repository: Its folder; made if it is missing.
        name: The model's, by default that of the file.
        model: For a plan: its ONNX model, or where it has no report an engine that was made from it. Of a plan with
            a report it gives the names of dynamic dims.
        profiles: Ranges of the inputs' shapes, where no report has them.
        version: Its number, by default the next one.
        overwrite: Replace ``config.pbtxt``, and the version if it is there.
        options: How to serve it.

    Raises:
        ConfigError: An option does not fit, something is there already, or the inputs and outputs are not known.
        PlanError: Not a plan, damaged, or not one for the server that was named.
        ModelError: Neither an ONNX model nor a plan.
        OutputError: The repository cannot be written; it is as it was.
        MissingDependencyError: Triton's client library is not installed.

    Example:
        >>> import tempfile, pytest
        >>> _ = pytest.importorskip("tritonclient.grpc")
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export_triton(parser.parse_model(text), folder, profiles=[Profile.parse("x:1x4:4x4:8x4")])
        ...     made.name, made.version, made.max_batch_size, sorted(path.name for path in made.folder.iterdir())
        ('model', 1, 8, ['model.onnx'])
    """
    options = TritonOptions() if options is None else options
    check_type("options", options, TritonOptions)
    opened = open_source(source, model=model, profiles=as_tuple("profiles", profiles, Profile))
    folder = Path(repository) / _checked_name(opened.name if name is None else name, given=name is not None)
    backend = choose_backend(opened, options)
    server = find_server(options.server) if options.server else None
    if opened.header is not None and backend == "tensorrt":
        check_plan(opened.header, server, where=opened.where, compatible=opened.version_compatible)
    config, batching = make_config(opened, options, name=folder.name, backend=backend)
    for problem in check_config(config, folder=folder):
        raise problem
    return _write(_Job(opened, folder, backend, config, batching, version, overwrite))


@dataclass(frozen=True)
class _Job:
    """Everything decided before anything is written."""

    source: Source
    folder: Path
    backend: str
    config: Any
    batching: Batching
    version: int | None
    overwrite: bool

    def write_version(self, folder: Path) -> None:
        """Write the files of a version."""
        self.source.write(folder)
        if self.backend == "python":
            (folder / "model.py").write_bytes(_TEMPLATE.read_bytes())


def _write(job: _Job) -> ExportedModel:
    config, text = job.config, write_config(job.config)
    notes = [job.batching.note] if job.batching.note else []
    if job.backend == "tensorrt" and job.source.version_compatible:
        notes.append("start the server with --backend-config=tensorrt,version-compatible=true")
    version = _checked_version(job.version)
    if not job.folder.exists():
        version = version or 1
        _check_policy(config, [version], job.folder)
        folders.add_model(job.folder, version, text, job.write_version)
        return _made(job, config, text, version, notes)
    there = versions_of(job.folder)
    current = _current(job.folder)
    if job.overwrite or current is None:
        _check_staying(job, [number for number in there if number != version])
    else:
        _check_free(job, there)
        text, kept = current, _kept_config(job, current)
        if kept != config:
            notes.append(f"{CONFIG} was kept as it is; overwrite to have it written anew")
        config = kept
    _check_policy(config, [*there, version or max(there, default=0) + 1], job.folder)
    changed = None if text == current else text  # an untouched file is no reason for a server to load it again
    if version in there:
        folders.replace_version(job.folder, version, changed, job.write_version)
    else:
        version = folders.add_version(job.folder, version, changed, job.write_version)
    return _made(job, config, text, version, notes)


def _made(job: _Job, config: Any, text: str, version: int, notes: list[str]) -> ExportedModel:
    place = job.folder / str(version)
    return ExportedModel(job.folder.name, version, place, job.backend, config.max_batch_size, text, tuple(notes))


def _current(folder: Path) -> str | None:
    path = folder / CONFIG
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _check_free(job: _Job, there: list[int]) -> None:
    if job.version in there:
        raise ConfigError(
            "the version is there already",
            where=job.folder / str(job.version),
            got=f"versions {', '.join(map(str, there))}",
            fix="leave the version out to add a new one, or overwrite it",
        )


def _kept_config(job: _Job, text: str) -> Any:
    """The configuration that is there, after it was found to fit the new version."""
    where = job.folder / CONFIG
    config = parse_config(text, where=where)
    if backend_of(config) != job.backend:
        raise ConfigError(
            "the model is served by another backend",
            where=where,
            got=repr(backend_of(config)),
            expected=repr(job.backend),
            fix="export it under another name",
        )
    for problem in check_served(config, job.source, where=where):
        raise ConfigError(
            f"the configuration that is there does not fit the new version: {problem.what}",
            where=problem.where,
            got=problem.got,
            expected=problem.expected,
            fix="export it under another name, or overwrite the configuration",
        )
    return config


def _check_staying(job: _Job, versions: list[int]) -> None:
    """A configuration holds for all versions: a new one must fit those that stay."""
    for version in versions:
        for problem in check_version(job.config, job.folder / str(version)):
            raise ConfigError(
                f"the new configuration does not fit version {version}, which stays: {problem.what}",
                where=problem.where,
                got=problem.got,
                expected=problem.expected,
                fix="export it under another name, or remove that version first",
            )


def _check_policy(config: Any, versions: list[int], folder: Path) -> None:
    missing = [number for number in config.version_policy.specific.versions if number not in versions]
    if missing:
        raise ConfigError(
            "a version that is to be served is not there",
            where=f"{folder}, version_policy",
            got=", ".join(map(str, missing)),
            expected=", ".join(map(str, sorted(set(versions)))),
        )


def _checked_name(name: str, *, given: bool) -> str:
    if re.fullmatch(r"\w[\w.+-]*", name) is None:
        raise ConfigError(
            "a model cannot have this name",
            where="name",
            got=repr(name),
            expected="letters, digits, _ - . + only",
            fix=None if given else "give a name",
        )
    return name


def _checked_version(version: int | None) -> int | None:
    if version is None:
        return None
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < 2**31:
        raise ConfigError("a version is a positive number", where="version", got=repr(version))
    return version
