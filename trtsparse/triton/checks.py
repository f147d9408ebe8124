"""Checks of model repositories: what Triton finds while it loads them, and what it never finds."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trtsparse.builder.plan import read_header
from trtsparse.engines import TensorSpec
from trtsparse.errors import ConfigError, TrtSparseError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import did_you_mean
from trtsparse.triton.batching import find_batching
from trtsparse.triton.config import check_session
from trtsparse.triton.protobuf import messages, parse_config, triton_type
from trtsparse.triton.servers import Release, check_plan, find_server
from trtsparse.triton.source import Source, known_source

__all__ = [
    "backend_of",
    "check_config",
    "check_model",
    "check_repository",
    "check_served",
    "check_version",
    "versions_of",
]

CONFIG = "config.pbtxt"
_OURS = b"trtsparse.triton.python_backend"
"""What our model.py imports."""
_PLATFORMS = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "torch_aoti": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "",
}
_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "python": "model.py"}
_SERVED = ("model.plan", "model.trtsparse", "model.onnx")
"""What our model.py looks for beside it, in this order."""
_OTHER_FOLDERS = ("warmup", "initial_state", "configs")


def check_repository(
    repository: str | os.PathLike[str], *, name: str | None = None, server: str | None = None
) -> dict[str, tuple[TrtSparseError, ...]]:
    """Check every model of a repository, or one of them.

    Args:
        repository: Its folder.
        name: The one to check; None: all.
        server: As `trtsparse.triton.options.TritonOptions.server`.

    Returns:
        Model name to what is wrong with it, each an error ready to be shown; empty for a model without faults.

    Raises:
        ConfigError: There is no such folder, it has no models or not that one, or ``server`` is not known.
        MissingDependencyError: Triton's client library is not installed.
    """
    root = Path(repository)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    models = [path for path in folders if not path.name.startswith(".")]
    if not models:
        got = "a folder without models" if root.is_dir() else "no such folder"
        raise ConfigError("there is no model repository", where=root, got=got, expected="folders with a config.pbtxt")
    names = [path.name for path in models]
    if name is not None and name not in names:
        expected = ", ".join(map(repr, names))
        raise ConfigError(
            "there is no such model", where=root, got=repr(name), expected=expected, fix=did_you_mean(name, names)
        )
    return {path.name: check_model(path, server=server) for path in models if name in (None, path.name)}


def check_model(folder: str | os.PathLike[str], *, server: str | None = None) -> tuple[TrtSparseError, ...]:
    """Check one model of a repository.

    Args:
        folder: The model's: it holds ``config.pbtxt`` and a folder for each version.
        server: As `trtsparse.triton.options.TritonOptions.server`.

    Returns:
        What is wrong, each an error ready to be shown.

    Raises:
        ConfigError: ``server`` is not known.
        MissingDependencyError: Triton's client library is not installed.
    """
    path, release = Path(folder), find_server(server) if server else None
    try:
        config = parse_config(_read(path / CONFIG), where=path / CONFIG)
    except ConfigError as error:
        return (error,)
    problems = list(check_config(config, folder=path))
    problems += _check_versions(config, path)
    if config.platform != "ensemble":
        sound = not problems  # else the comparison with the model would say the same again
        for version in versions_of(path):
            problems += check_version(config, path / str(version), release, compare=sound)
    return tuple(problems)


def check_config(config: Any, *, folder: Path) -> Iterator[TrtSparseError]:
    """What is wrong with a configuration by itself.

    Args:
        config: A ModelConfig.
        folder: The model's.
    """
    where = folder / CONFIG
    if config.name and config.name != folder.name:
        yield ConfigError(
            "the model's name is not that of its folder",
            where=where,
            got=repr(config.name),
            expected=repr(folder.name),
        )
    yield from _check_platform(config, where)
    if config.max_batch_size < 0:
        yield ConfigError(
            "max_batch_size is negative", where=where, got=config.max_batch_size, fix="0 is no batching"
        )
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size and config.max_batch_size >= 0:
            yield ConfigError(
                "a preferred batch is out of range",
                where=f"{where}, dynamic_batching",
                got=size,
                expected=f"1 to max_batch_size, which is {config.max_batch_size}",
            )
    for role, entries in (("input", config.input), ("output", config.output)):
        if not entries:
            yield ConfigError(f"there is no {role}", where=where, fix=f"list every {role} of the model")
        for name, times in Counter(entry.name for entry in entries).items():
            if times > 1:
                yield ConfigError(f"an {role} is listed more than once", where=where, got=f"{name!r}, {times} times")
        for index, entry in enumerate(entries):
            yield from _check_tensor(entry, f"{where}, {role} {entry.name or index!r}", config.max_batch_size)
    yield from _check_execution(config, where)


def _check_platform(config: Any, where: Path) -> Iterator[TrtSparseError]:
    if not config.platform and not config.backend:
        yield ConfigError("neither platform nor backend is given", where=where, fix='such as backend: "tensorrt"')
    elif config.platform and config.platform not in _PLATFORMS:
        if config.backend in ("", *_PLATFORMS.values()):
            yield ConfigError(
                "no such platform",
                where=where,
                got=repr(config.platform),
                expected=", ".join(_PLATFORMS),
                fix=did_you_mean(config.platform, _PLATFORMS),
            )
    elif config.platform and config.backend not in ("", _PLATFORMS[config.platform]):
        yield ConfigError(
            "platform and backend contradict each other",
            where=where,
            got=f"{config.platform!r} and {config.backend!r}",
            expected=f"backend {_PLATFORMS[config.platform]!r}",
        )


def backend_of(config: Any) -> str:
    """The backend of a configuration, which may give it or a platform; empty where neither says it."""
    return config.backend or _PLATFORMS.get(config.platform, "")


def _check_tensor(entry: Any, where: str, max_batch_size: int) -> Iterator[TrtSparseError]:
    if not entry.name:
        yield ConfigError("a name is missing", where=where)
    if entry.data_type == messages().TYPE_INVALID:
        yield ConfigError("data_type is missing", where=where, expected="such as TYPE_FP32")
    if not entry.dims:
        yield ConfigError("dims are missing", where=where, expected="such as dims: [ 3, -1 ]; [ 1 ] for a scalar")
    for dim in (*entry.dims, *entry.reshape.shape):
        if dim < -1 or dim == 0:
            yield ConfigError(
                "a dim is out of range", where=where, got=dim, expected="at least 1, or -1 if it varies"
            )
    if entry.HasField("reshape") and entry.dims:
        if not entry.reshape.shape and not max_batch_size:
            yield ConfigError(
                "a reshape to no dims needs batches", where=where, fix="leave it out; backend 'python' serves scalars"
            )
        elif _pieces(entry.dims) != _pieces(entry.reshape.shape):
            yield ConfigError(
                "reshape has another number of elements than dims",
                where=where,
                got=list(entry.reshape.shape),
                expected=f"as many as {list(entry.dims)} has, with the varying dims in the same places",
            )


def _pieces(dims: Sequence[int]) -> list[int]:
    """Elements between dims that vary."""
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def _check_execution(config: Any, where: Path) -> Iterator[TrtSparseError]:
    """Instances and graphs."""
    kinds = messages().ModelInstanceGroup
    for group in config.instance_group:
        if group.gpus and group.kind in (kinds.KIND_CPU, kinds.KIND_MODEL):
            yield ConfigError(
                "instances that are not of kind KIND_GPU have no GPUs", where=where, got=f"gpus {list(group.gpus)}"
            )
        if group.kind == kinds.KIND_CPU and "tensorrt" in (config.backend, config.platform.partition("_")[0]):
            yield ConfigError("a plan is executed by a GPU", where=f"{where}, instance_group", got="KIND_CPU")
    for spec in config.optimization.cuda.graph_spec:
        sizes = range(1, config.max_batch_size + 1) if config.max_batch_size > 0 else range(1)
        if spec.batch_size not in sizes:
            yield ConfigError(
                "a CUDA graph's batch is out of range",
                where=f"{where}, graph_spec",
                got=spec.batch_size,
                expected=f"1 to {config.max_batch_size}" if config.max_batch_size > 0 else "0: there are no batches",
            )
    yield from _check_warmup(config, where)


def _check_warmup(config: Any, where: Path) -> Iterator[TrtSparseError]:
    names = [entry.name for entry in config.input]
    for warmup in config.model_warmup:
        place = f"{where}, model_warmup {warmup.name!r}"
        for name in sorted({*warmup.inputs, *names}):
            if name not in names:
                yield ConfigError("a warm-up request has an unknown input", where=place, got=repr(name))
            elif name not in warmup.inputs:
                yield ConfigError("a warm-up request lacks an input", where=place, expected=repr(name))
            elif min(warmup.inputs[name].dims, default=1) < 1:
                got = f"{name!r} {list(warmup.inputs[name].dims)}"
                yield ConfigError("a warm-up request has dims that are not sizes", where=place, got=got)


def versions_of(folder: Path) -> list[int]:
    """A model's versions, as Triton counts them."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def _check_versions(config: Any, folder: Path) -> Iterator[TrtSparseError]:
    found = versions_of(folder)
    if not found and config.platform != "ensemble":
        yield ConfigError("there is no version", where=folder, expected=f"a folder such as {folder / '1'}")
    for path in sorted(folder.iterdir()):
        odd = path.is_dir() and not path.name.startswith(".") and path.name not in _OTHER_FOLDERS
        if odd and path.name not in map(str, found):
            yield ConfigError(
                "a folder's name is no version", where=path, expected="a whole number without leading zeros"
            )
    for version in config.version_policy.specific.versions:
        if version not in found:
            yield ConfigError(
                "a version that is to be served is not there",
                where=f"{folder / CONFIG}, version_policy",
                got=version,
                expected=", ".join(map(str, found)) or "a version folder",
            )


def check_version(
    config: Any, version: Path, release: Release | None = None, *, compare: bool = True
) -> Iterator[TrtSparseError]:
    """What is wrong with a version: files that are missing, or that a configuration does not fit.

    Args:
        config: A ModelConfig.
        version: The version's folder.
        release: The server.
        compare: Look at inputs, outputs and profiles too.
    """
    backend = backend_of(config)
    if backend not in _FILES:
        return
    main = version / (config.default_model_filename or _FILES[backend])
    if not main.exists():
        yield ConfigError("the model's file is missing", where=version, expected=main.name)
        return
    if backend == "python":
        if _OURS not in main.read_bytes():
            return  # what somebody else's model.py reads is not known
        served = next((version / name for name in _SERVED if (version / name).exists()), None)
        if served is None:
            yield ConfigError("the model's file is missing", where=version, expected=" or ".join(_SERVED))
            return
        main = served
    yield from _check_file(config, main, release, compare=compare)


def _check_file(config: Any, main: Path, release: Release | None, *, compare: bool) -> Iterator[TrtSparseError]:
    """What is wrong with a plan or model."""
    backend, where = backend_of(config), main.parent.parent / CONFIG
    try:
        source = known_source(main)
        if isinstance(source.content, OnnxModel):
            source.content.external_files()  # which must be there, and long enough
        if backend == "tensorrt":
            check_plan(read_header(main), release, where=main, compatible=source.version_compatible)
    except TrtSparseError as error:
        yield error
        return
    if backend == "python":
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        on_cpu = any(group.kind == messages().ModelInstanceGroup.KIND_CPU for group in config.instance_group)
        yield from check_session(source, parameters, on_cpu=on_cpu, where=str(where))
    if compare and (source.facts.inputs or source.facts.outputs):
        yield from check_served(config, source, where=where)


def check_served(config: Any, source: Source, *, where: Path) -> Iterator[TrtSparseError]:
    """Whether a configuration fits what it is to serve.

    Args:
        config: A ModelConfig.
        source: A model or plan, with its inputs and outputs.
        where: The configuration's file.
    """
    facts = source.facts
    for role, entries, specs in (("input", config.input, facts.inputs), ("output", config.output, facts.outputs)):
        listed = {entry.name: entry for entry in entries}
        known = {spec.name: spec for spec in specs}
        for name in listed:
            if name not in known:
                yield ConfigError(
                    f"the model has no such {role}",
                    where=where,
                    got=repr(name),
                    expected=", ".join(map(repr, known)),
                    fix=did_you_mean(name, known),
                )
        for name, spec in known.items():
            if name in listed:
                yield from _check_against(listed[name], spec, f"{where}, {role} {name!r}", config.max_batch_size)
            elif role == "input":
                yield ConfigError("an input of the model is not listed", where=where, got=str(spec))
    if config.max_batch_size > 0:
        try:
            find_batching(facts, asked=config.max_batch_size, plan=source.header is not None)
        except ConfigError as error:
            yield ConfigError(
                error.what, where=f"{where}, max_batch_size", got=error.got, expected=error.expected, fix=error.fix
            )


def _check_against(entry: Any, spec: TensorSpec, where: str, max_batch_size: int) -> Iterator[TrtSparseError]:
    try:
        expected = triton_type(spec.dtype, where)
    except ConfigError as error:
        yield error
        return
    got = messages().DataType.Name(entry.data_type)
    if got not in (expected, "TYPE_INVALID"):
        yield ConfigError("the model has another data type", where=where, got=got, expected=expected)
    if spec.shape is None or not entry.dims:
        return
    given = list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
    model = [dim if isinstance(dim, int) else -1 for dim in spec.shape][1 if max_batch_size > 0 else 0 :]
    if not model and math.prod(given) == 1:
        return  # a scalar
    if len(given) != len(model) or any(-1 not in (a, b) and a != b for a, b in zip(given, model, strict=True)):
        batch = " besides the batch" if max_batch_size > 0 else ""
        yield ConfigError("the model has other dims", where=where, got=given, expected=f"{model}{batch}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("the model has no configuration", where=path.parent, expected=path.name) from error
    except (OSError, ValueError) as error:
        raise ConfigError("the model's configuration cannot be read", where=path, got=str(error)) from error
