"""What is to be served: a plan or an ONNX model, with its inputs, outputs and profiles, wherever those are known."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtsparse.builder.engine import BuiltEngine, report_path
from trtsparse.builder.plan import PlanHeader, read_header
from trtsparse.builder.profile import Profile
from trtsparse.builder.profiles import check_profiles
from trtsparse.engines import DeviceEngine, Engine, TensorSpec, plan_header
from trtsparse.engines.cusparselt.saved import is_saved, read_saved
from trtsparse.engines.device import ProfileShapes
from trtsparse.errors import ConfigError, DeviceError, EngineError, MissingDependencyError, PlanError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.specs import input_specs, output_specs
from trtsparse.runtime.session import Session

__all__ = ["Facts", "Source", "known_source", "open_source"]

Model = str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel
_DEFAULT_NAME = "model"


@dataclass(frozen=True)
class Facts:
    """What clients see of a model.

    Attributes:
        inputs: With names for dynamic dims where the model has them.
        outputs: Likewise.
        profiles: Ranges of the inputs' shapes; none where nothing limits them, or nothing is known.
        shape_inputs: Inputs whose values are shapes, in host memory.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ProfileShapes, ...] = ()
    shape_inputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Source:
    """A plan or model and how to write it into a version's folder.

    Attributes:
        name: What a repository would call it.
        where: What messages call it.
        facts: Inputs, outputs and profiles.
        header: The plan's; None for an ONNX model.
        report: Of the build, where there is one.
        content: The bytes, the file, or a model or engine that can save itself.
        saved: It is a saved engine of cuSPARSELt, or such an engine.
    """

    name: str
    where: str
    facts: Facts
    header: PlanHeader | None = None
    report: Mapping[str, Any] | None = None
    content: Any = field(default=b"", repr=False)
    saved: bool = False

    @property
    def file_name(self) -> str:
        """What Triton, or our model.py, looks for."""
        return "model.trtsparse" if self.saved else "model.onnx" if self.header is None else "model.plan"

    @property
    def version_compatible(self) -> bool:
        """The plan was built to run in later versions of its TensorRT."""
        return bool(self.report and self.report.get("config", {}).get("version_compatible"))

    def write(self, folder: Path) -> None:
        """Write the model, its data files, and the report of its build beside it."""
        target = folder / self.file_name
        if isinstance(self.content, Path):
            shutil.copyfile(self.content, target)
        elif isinstance(self.content, bytes):
            target.write_bytes(self.content)
        else:
            self.content.save(target)  # a model, or an engine
        if self.report is not None:
            report_path(target).write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")


def open_source(
    source: Model | BuiltEngine | Engine | DeviceEngine | Session,
    *,
    model: Model | Engine | DeviceEngine | Session | None = None,
    profiles: Sequence[Profile] = (),
) -> Source:
    """Find out what a source is, and what its inputs and outputs are.

    Args:
        source: A plan (path or bytes), an ONNX model, a saved engine (path), a built engine, or an engine or session
            that gives what it was made from.
        model: Where else the inputs and outputs of a plan are known from: its ONNX model, or an engine. Where there
            is a report, the model that it is about, which alone has the names of dynamic dims.
        profiles: Ranges of the inputs' shapes, where no report has them.

    Raises:
        ConfigError: The plan's inputs are not known, profiles do not fit, the model is not the plan's, or an engine
            does not give its plan.
        PlanError: Not a plan, damaged, or the report beside it is that of another one.
        ModelError: Neither an ONNX model nor a plan.
    """
    if isinstance(source, BuiltEngine):
        report = source.report.to_dict()
        return _of_plan(source.plan, _DEFAULT_NAME, "BuiltEngine", report, model, profiles)
    if isinstance(source, Session):
        return open_source(source.engine, model=model or source, profiles=profiles)
    if isinstance(source, (Engine, DeviceEngine)):
        if source.name == "cusparselt":
            facts = _limited(source.inputs, source.outputs, profiles)
            return Source(_DEFAULT_NAME, source.description, facts, content=source, saved=True)
        return _of_plan(_plan_of(source), _DEFAULT_NAME, source.description, None, model or source, profiles)
    if plan_header(source) is None:
        if model is not None:
            raise ConfigError("an ONNX model says itself what its inputs are", where="model", fix="leave it out")
        if isinstance(source, (str, os.PathLike)) and is_saved(source):
            return _of_saved(Path(source), profiles)
        return _of_onnx(OnnxModel.open(source), profiles)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _of_plan(path, path.stem, str(path), _read_report(path), model, profiles)
    return _of_plan(bytes(source), _DEFAULT_NAME, "bytes", None, model, profiles)  # type: ignore[arg-type]  # as above


def known_source(path: Path) -> Source:
    """A plan or model as far as it is known without loading it: a plan without a report has no inputs and outputs.

    Raises:
        PlanError: A damaged plan, or the report beside it is that of another one.
        ModelError: Neither an ONNX model nor a plan.
    """
    header = plan_header(path)
    if header is None:
        return _of_saved(path, ()) if is_saved(path) else _of_onnx(OnnxModel.open(path), ())
    report = _read_report(path)
    facts = Facts((), ()) if report is None else _facts_of_report(report)
    return Source(path.stem, str(path), facts, header, report, path)


def _read_report(plan: Path) -> dict[str, Any] | None:
    """The report beside a plan, if there is one and it is that plan's.

    Raises:
        PlanError: It cannot be read, or is that of another plan.
    """
    path = report_path(plan)
    if not path.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        stated = report["plan"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError("the build report beside the plan cannot be read", where=path, got=repr(error)) from error
    found = _sha256(plan)
    if found != stated:
        raise PlanError(
            "the build report beside the plan is that of another plan",
            where=path,
            got=f"SHA-256 {stated}",
            expected=found,
            fix="copy both files again, or remove the report and give the ONNX model",
        )
    return report


def _sha256(source: Any) -> str:
    if not isinstance(source, Path):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _of_onnx(model: OnnxModel, profiles: Sequence[Profile]) -> Source:
    name = model.path.stem if model.path is not None else _DEFAULT_NAME
    return Source(name, model.name, _limited(input_specs(model), output_specs(model), profiles), content=model)


def _of_saved(path: Path, profiles: Sequence[Profile]) -> Source:
    model = read_saved(path).model
    facts = _limited(input_specs(model), output_specs(model), profiles)
    return Source(path.stem, str(path), facts, content=path, saved=True)


def _limited(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], profiles: Sequence[Profile]) -> Facts:
    """Facts of something that nothing but the given profiles limits."""
    if profiles:
        check_profiles(inputs, profiles)
    return Facts(inputs, outputs, tuple(profile.shapes for profile in profiles))


def _of_plan(
    plan: bytes | Path,
    name: str,
    where: str,
    report: Mapping[str, Any] | None,
    model: Any,
    profiles: Sequence[Profile],
) -> Source:
    header = read_header(plan)
    if report is not None:
        if profiles and list(report["profiles"]) != [profile.to_dict() for profile in profiles]:
            raise ConfigError("the plan's report says which profiles it has", where="profiles", fix="leave them out")
        facts = _facts_of_report(report) if model is None else _named(_facts_of_report(report), report, model)
    elif model is not None:
        facts = _facts_of_model(model, profiles)
    else:
        facts = _facts_of_library(plan, where, header)
    return Source(name, where, facts, header, report, plan)


def _facts_of_report(report: Mapping[str, Any]) -> Facts:
    """From the report of a build."""
    inputs, outputs = (tuple(_spec(entry) for entry in report[key]) for key in ("inputs", "outputs"))
    profiles = tuple(
        {name: tuple(tuple(triple[word]) for word in ("min", "opt", "max")) for name, triple in profile.items()}
        for profile in report["profiles"]
    )
    return Facts(inputs, outputs, profiles, _shape_inputs(inputs, profiles))  # type: ignore[arg-type]  # three each


def _named(facts: Facts, report: Mapping[str, Any], model: Any) -> Facts:
    """The facts of a report, with the names that its model gives the dynamic dims."""
    if isinstance(model, (Engine, DeviceEngine, Session)):
        raise ConfigError("the plan's report says what its inputs are", where="model", fix="leave it out")
    opened = OnnxModel.open(model)
    built = report["model"]
    found = _sha256(opened.files[""])
    if found != built["sha256"]:
        raise ConfigError(
            "the plan was built from another model",
            where="model",
            got=f"{opened.name}, SHA-256 {found}",
            expected=f"{built['name']}, SHA-256 {built['sha256']}",
            fix="give that one, or leave it out: the plan's report says what its inputs and outputs are",
        )

    inputs = _with_names(facts.inputs, input_specs(opened))
    return replace(facts, inputs=inputs, outputs=_with_names(facts.outputs, output_specs(opened)))


def _with_names(specs: Sequence[TensorSpec], named: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    shapes = {spec.name: spec.shape or () for spec in named}
    found = []
    for spec in specs:
        shape, names = spec.shape or (), shapes.get(spec.name, ())
        if len(shape) == len(names):
            shape = tuple(name if dim == "?" else dim for dim, name in zip(shape, names, strict=True))
        found.append(replace(spec, shape=shape))
    return tuple(found)


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    import ml_dtypes  # noqa: F401 - registers bfloat16 and others with numpy

    try:
        dtype = np.dtype(entry["dtype"])
    except TypeError as error:
        raise ConfigError(
            "an input or output has a type that numpy lacks", where=repr(entry["name"]), got=entry["dtype"]
        ) from error
    return TensorSpec(entry["name"], dtype, tuple("?" if size < 0 else size for size in entry["shape"]))


def _facts_of_model(model: Any, profiles: Sequence[Profile]) -> Facts:
    """From the ONNX model of a plan, or from an engine."""
    engine = model.engine if isinstance(model, Session) else model
    if isinstance(engine, (Engine, DeviceEngine)):
        known = tuple(getattr(engine, "profiles", ())) or tuple(profile.shapes for profile in profiles)
        return Facts(engine.inputs, engine.outputs, known, frozenset(getattr(engine, "shape_inputs", ())))
    found = _of_onnx(OnnxModel.open(engine), profiles).facts
    return Facts(found.inputs, found.outputs, found.profiles, _shape_inputs(found.inputs, found.profiles))


def _facts_of_library(plan: bytes | Path, where: str, header: PlanHeader) -> Facts:
    """From the plan itself, which only the library that built it can read, on a GPU."""
    from trtsparse.engines.tensorrt import TensorRTEngine

    try:
        engine = TensorRTEngine(plan)
    except (DeviceError, EngineError, MissingDependencyError, PlanError) as error:
        report = report_path(plan) if isinstance(plan, Path) else "the report"
        raise ConfigError(
            "the plan's inputs and outputs are not known",
            where=where,
            got=f"no build report beside it, and it cannot be loaded here: {error.what}",
            expected=f"{report} of its build, or its ONNX model",
            fix=f"give the ONNX model of this plan of {header} and its profiles",
        ) from error
    try:
        return Facts(engine.inputs, engine.outputs, engine.profiles, engine.shape_inputs)
    finally:
        engine.close()


def _plan_of(engine: Engine | DeviceEngine) -> bytes:
    """The plan of a loaded engine."""
    serialize = getattr(getattr(engine, "raw", None), "serialize", None)
    if serialize is None:
        raise ConfigError(
            "the engine does not give the model that it was made from",
            where="engine",
            got=engine.description,
            fix="give the model's own file",
        )
    return bytes(serialize())


def _shape_inputs(inputs: Sequence[TensorSpec], profiles: Sequence[ProfileShapes]) -> frozenset[str]:
    """Inputs whose profile holds values: small fixed vectors of whole numbers whose ranges are not their shape."""
    return frozenset(
        spec.name
        for spec in inputs
        if spec.dtype.kind in "iu" and spec.shape is not None and len(spec.shape) <= 1
        for profile in profiles
        if all(isinstance(dim, int) for dim in spec.shape)
        and any(shape != spec.shape for shape in profile.get(spec.name, ()))
    )
