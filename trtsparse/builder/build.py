"""`build`: an ONNX model in, a plan and a report out, with TensorRT 8.6, 10, 11 or TensorRT-RTX.

TensorRT's raw API is used; see `trtsparse.builder.adapter` for why.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtsparse.builder import network as networks
from trtsparse.builder import profiles as ranges
from trtsparse.builder import timing_cache
from trtsparse.builder.adapter import find_tensorrt
from trtsparse.builder.advanced import apply_types
from trtsparse.builder.capabilities import Capabilities
from trtsparse.builder.config import BuildConfig, Profile
from trtsparse.builder.engine import BuiltEngine, check_apart
from trtsparse.builder.logs import Log, collecting
from trtsparse.builder.options import apply_options, load_plugins
from trtsparse.builder.plan import read_header
from trtsparse.builder.precision import Conversion, Route, choose_route, convert, stored_precision
from trtsparse.builder.progress import monitoring
from trtsparse.builder.report import BuildReport, Notes, PrecisionReport, fingerprint
from trtsparse.builder.sites import (
    Evidence,
    make_rows,
    node_names,
    nodes_in_fp32,
    warn_about_open_layers,
    warn_before,
)
from trtsparse.builder.sparsity_log import read_inspector, read_log
from trtsparse.errors import BuildError, ConfigError, DeviceError, OutputError, TrtSparseError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import check_feeds, read_feeds
from trtsparse.precision.specs import input_specs
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import SiteReport, validate

__all__ = ["build"]


@dataclass(frozen=True)
class _Job:
    """Everything decided before TensorRT is asked for anything.

    Attributes:
        source: The user's model.
        built: What is parsed: pruned and converted where asked.
        sites: Of the source, judged after pruning, in a thread while TensorRT's parser is at work.
        in_fp32: Nodes of the source that are computed in FP32 in a build of less, likewise.
        fingerprint: Hashes of the source, likewise.
    """

    config: BuildConfig
    capabilities: Capabilities
    source: OnnxModel
    conversion: Conversion
    route: Route
    stored: str
    sites: Future[tuple[SiteReport, ...]]
    in_fp32: Future[frozenset[str]]
    fingerprint: Future[dict[str, Any]]
    pruning: dict[str, Any] | None
    profiles: tuple[Profile, ...]
    samples: Sequence[Mapping[str, np.ndarray]]

    @property
    def built(self) -> OnnxModel:
        return self.conversion.model

    @property
    def kept(self) -> tuple[str, ...]:
        """Nodes that stay in FP32; a flag lets TensorRT run in half precision what was only not quantized."""
        return self.conversion.kept if self.route.keeps_fp32 else ()


@dataclass(frozen=True)
class _Result:
    """What came out of TensorRT."""

    plan: bytes
    log: Log
    seconds: float
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    inspected: str | None


def build(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
    config: BuildConfig | None = None,
    *,
    samples: Sequence[Mapping[str, np.ndarray]] | str | os.PathLike[str] = (),
) -> BuiltEngine:
    """Build a TensorRT engine from an ONNX model.

    Args:
        model: A path, serialized bytes, or a model in memory. It is not changed.
        config: What to build; None for FP32 without sparsity.
        samples: Real inputs, ``{name: array}`` each, or a folder of .npz or .npy files as
            `trtsparse.precision.feeds.read_feeds` takes it. A converted model is compared with the original on them,
            INT8 is calibrated with them, and the profile is inferred from them where the configuration has none.

    Returns:
        The plan and the report. Warnings in the report were also raised as `BuildWarning`.

    Raises:
        ModelError: The model cannot be read, or TensorRT's parser refuses it (`OperatorError` lists the nodes).
        ConfigError: Options or profiles are wrong, or unknown to this version (`UnsupportedOptionError`).
        PrecisionError: The converted model is less accurate than ``config.max_error``.
        BuildError: TensorRT returned no plan; its messages are in the error.
        MissingDependencyError: No TensorRT is installed.
        DeviceError: This TensorRT needs a GPU to build, and there is none.
        KeyboardInterrupt: Ctrl-C; the build is stopped and nothing is written.

    Builds in several threads run one after another: TensorRT has one logger per process.

    Example:
        >>> import pytest
        >>> _ = pytest.importorskip("tensorrt_rtx")
        >>> from onnx import parser
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
        >>> engine = build(parser.parse_model(text), BuildConfig(flavour="tensorrt_rtx"))
        >>> engine.header.flavour, engine.report.outputs
        ('tensorrt_rtx', ({'name': 'y', 'dtype': 'float32', 'shape': [4]},))
    """
    started = time.perf_counter()
    options = BuildConfig() if config is None else config
    if not isinstance(options, BuildConfig):
        raise ConfigError("not a configuration", where="config", got=repr(config), expected="a BuildConfig")
    notes = Notes()
    source = OnnxModel.open(model)
    trt = find_tensorrt(options.flavour)
    with ThreadPoolExecutor(1, thread_name_prefix="trtsparse-build") as pool:
        job = _prepare(source, options, Capabilities.of(trt), _read_samples(source, samples), pool)
        try:
            result = _build(trt, job, notes)
        except TrtSparseError:
            job.sites.result()  # what is wrong with the model itself says more than what TensorRT makes of it
            raise
        report = _report(job, result, notes, started)
    return BuiltEngine(plan=result.plan, report=report)


def _read_samples(
    source: OnnxModel, samples: Sequence[Mapping[str, np.ndarray]] | str | os.PathLike[str]
) -> Sequence[Mapping[str, np.ndarray]]:
    """Samples from a folder or file, checked against the model; others as they are."""
    if not isinstance(samples, (str, os.PathLike)):
        return samples
    inputs = input_specs(source)
    feeds = read_feeds(samples, input_name=inputs[0].name if len(inputs) == 1 else "")
    check_feeds(source, feeds)
    return feeds


def _prepare(
    source: OnnxModel,
    config: BuildConfig,
    capabilities: Capabilities,
    samples: Sequence[Mapping[str, np.ndarray]],
    pool: ThreadPoolExecutor,
) -> _Job:
    """Check everything that can be checked, prune and convert."""
    capabilities.check(config)
    if config.timing_cache is not None:
        check_apart(source, [config.timing_cache])
    stored = stored_precision(source)
    route = choose_route(config, capabilities, stored)
    profiles = _profiles(source, config, samples)
    pruned, pruning = source, None
    if config.sparsity == "force":
        done = prune(source, include=config.prune_include, exclude=config.prune_exclude, allow_unknown_operators=True)
        pruned, pruning = done.model, done.to_dict()
    shapes = ranges.usual_shapes(input_specs(source), profiles)
    sites = pool.submit(_judge, pruned, route, stored, shapes)
    if route.convert:
        sites.result()  # a damaged model is refused here
    conversion = convert(pruned, route, config, samples=samples, shapes=shapes)
    return _Job(
        config,
        capabilities,
        source,
        conversion,
        route,
        stored,
        sites,
        pool.submit(_in_fp32, source, conversion.model, route),
        pool.submit(fingerprint, source),
        pruning,
        profiles,
        samples,
    )


def _judge(
    model: OnnxModel, route: Route, stored: str, shapes: dict[str, tuple[int, ...]] | None
) -> tuple[SiteReport, ...]:
    converted = stored == "fp32" and route.reached in ("fp16", "bf16", "int8")
    precision = route.reached if converted else "stored"
    return validate(model, precision=precision, shapes=shapes, allow_unknown_operators=True).sites


def _in_fp32(source: OnnxModel, built: OnnxModel, route: Route) -> frozenset[str]:
    mixed = route.keeps_fp32 and route.reached not in ("fp32", "tf32")
    return nodes_in_fp32(source, built) if mixed else frozenset()


def _profiles(
    source: OnnxModel, config: BuildConfig, samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Profile, ...]:
    inputs = input_specs(source)
    inferred = ranges.infer_profile(inputs, samples) if samples and not config.profiles else None
    profiles = (inferred,) if inferred else config.profiles
    ranges.check_profiles(inputs, profiles)
    return profiles


def _warn(job: _Job, notes: Notes) -> None:
    """Say, before TensorRT starts, what will not be as the caller may expect."""
    config, reached = job.config, job.route.reached
    if config.wants_sparsity:
        warn_before(
            job.sites.result(),
            notes,
            reached=reached,
            forced=config.sparsity == "force",
            kept=job.kept,
            in_fp32=job.in_fp32.result(),
            targets=config.compute_capabilities,
        )
        warn_about_open_layers(job.conversion.open_layers, notes)
    if config.precision in ("fp32", "tf32") and reached != config.precision:
        stored = f"the model is stored in {job.stored.upper()} and stays so"
        notes.warn(f"precision={config.precision!r} was asked for, but {stored}")
    if config.timing_cache is not None and job.capabilities.ahead_of_time:
        notes.warn(f"{job.capabilities.name} times no kernels while building: the timing cache is left as it is")


def _build(trt: types.ModuleType | Any, job: _Job, notes: Notes) -> _Result:
    """Everything that happens inside TensorRT."""
    config, capabilities = job.config, job.capabilities
    with collecting(trt) as (logger, log):
        builder = _make_builder(trt, logger, log, capabilities)
        load_plugins(trt, config.plugins, log)
        if capabilities.flavour == "tensorrt" and _has_foreign_operators(job.built):
            trt.init_libnvinfer_plugins(logger, "")
        network = networks.create_network(trt, builder, capabilities, strong=job.route.strong)
        parsed = networks.parse(trt, network, job.built, logger, log, name=job.source.name, settings=config.advanced)
        apply_types(trt, network, config.advanced, strong=job.route.strong, version=capabilities.name)
        settings = builder.create_builder_config()
        apply_options(trt, builder, settings, config, job.route.flags)
        made_up = config.advanced.shape_value
        ranges.add_profiles(builder, network, settings, job.profiles, job.samples, missing=made_up, warn=notes.warn)
        cache = _timing_cache(config, capabilities)
        if cache is not None:
            timing_cache.attach(settings, cache, log, notes.warn)
        _warn(job, notes)
        plan, seconds = _serialize(trt, builder, parsed, settings, job, log)
        if cache is not None:
            _keep_timings(settings, cache, log, notes)
        inspect = config.wants_sparsity and not capabilities.ahead_of_time
        inspected = _inspect(trt, plan, logger, config) if inspect else None
        if log.unheard:
            notes.warn("another TensorRT object of this process has its own logger: the build log was not heard")
        inputs, outputs = networks.describe_io(network)
        return _Result(plan, log, seconds, inputs, outputs, inspected)


def _make_builder(trt: Any, logger: Any, log: Log, capabilities: Capabilities) -> Any:
    """The Builder; its constructor fails where there is no GPU and one is needed."""
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise DeviceError(
            f"{capabilities.name} cannot make a builder",
            got="; ".join(log.errors) or str(error),
            expected="an NVIDIA GPU and a driver that fits this version",
            fix="build on the machine with the GPU, or with TensorRT-RTX, which builds without one",
        ) from error


def _serialize(
    trt: Any, builder: Any, parsed: networks.Parsed, settings: Any, job: _Job, log: Log
) -> tuple[bytes, float]:
    """The plan and the seconds that it took."""
    before = len(log.messages)
    started = time.perf_counter()
    with monitoring(trt, settings, supported="progress" in job.capabilities.features) as cancelled:
        memory = builder.build_serialized_network(parsed.network, settings)
    seconds = time.perf_counter() - started
    if cancelled.is_set():
        raise KeyboardInterrupt
    if memory is None:
        raise _no_plan(job, log.since(before))
    return bytes(memory), seconds


def _no_plan(job: _Job, log: Log) -> BuildError:
    name = job.capabilities.name
    fix = "read TensorRT's messages above; set the logging level of 'trtsparse.tensorrt' to DEBUG for all of them"
    needs_gpu = [
        option
        for option, on in (
            ("refit", job.config.refit in ("all", "identical")),
            ("strip_plan", job.config.strip_plan),
            ("version_compatible", job.config.version_compatible),
            ("compute_capabilities=('current',)", "current" in job.config.compute_capabilities),
        )
        if on
    ]
    if job.capabilities.ahead_of_time and needs_gpu:
        fix = f"leave out {', '.join(needs_gpu)}: {name} was not able to do this without a GPU"
    return BuildError(
        f"{name} built no plan",
        where=job.source.name,
        got="".join(f"\n    {text}" for text in log.errors) or "no message",
        fix=fix,
    )


def _keep_timings(settings: Any, cache: Path, log: Log, notes: Notes) -> None:
    """A finished build is not lost because its timings cannot be written."""
    try:
        timing_cache.update(settings, cache, log)
    except OutputError as error:
        notes.warn(f"the timing cache {cache} was not written: {error.got}")


def _timing_cache(config: BuildConfig, capabilities: Capabilities) -> Path | None:
    return None if config.timing_cache is None or capabilities.ahead_of_time else Path(config.timing_cache)


def _has_foreign_operators(model: OnnxModel) -> bool:
    domains = {"", "ai.onnx", "ai.onnx.ml"}
    return any(
        node.domain not in domains or not onnx.defs.has(node.op_type, node.domain) for node in model.proto.graph.node
    )


def _inspect(trt: Any, plan: bytes, logger: Any, config: BuildConfig) -> str | None:
    """The inspector's account of the layers; None when the engine cannot be loaded here."""
    runtime = trt.Runtime(logger)
    if config.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _report(job: _Job, result: _Result, notes: Notes, started: float) -> BuildReport:
    config, route = job.config, job.route
    evidence = Evidence(
        asked=config.wants_sparsity,
        at_load=job.capabilities.ahead_of_time,
        log=read_log(text for _, text in result.log.messages),
        tactics=read_inspector(result.inspected) if result.inspected else None,
        names={}
        if job.capabilities.ahead_of_time or not config.wants_sparsity
        else node_names(job.source, job.built),
    ).knowing(site.node for site in job.sites.result())
    rows = make_rows(
        job.sites.result(),
        evidence,
        reached=route.reached,
        kept=job.kept,
        in_fp32=job.in_fp32.result(),
        open_layers=job.conversion.open_layers,
        targets=config.compute_capabilities,
    )
    if config.wants_sparsity and not evidence.at_load and not evidence.known:
        notes.warn("TensorRT said nothing about sparse layers: whether any was chosen is not known")
    header = read_header(result.plan)
    return BuildReport(
        flavour=job.capabilities.flavour,
        version=".".join(map(str, header.version)),
        model=job.fingerprint.result(),
        precision=_precision(job),
        sparsity=config.sparsity,
        sites=rows,
        pruning=job.pruning,
        profiles=tuple(profile.to_dict() for profile in job.profiles),
        inputs=result.inputs,
        outputs=result.outputs,
        config=config.to_dict(),
        warnings=tuple(notes.texts),
        library_warnings=result.log.warnings,
        untraced=evidence.untraced(row.node for row in rows),
        build_seconds=round(result.seconds, 4),
        total_seconds=round(time.perf_counter() - started, 4),
        plan_bytes=result.plan,
    )


def _precision(job: _Job) -> PrecisionReport:
    return PrecisionReport(
        asked=job.config.precision,
        reached=job.route.reached,
        way=job.route.way,
        typing="strong" if job.route.strong else "weak",
        flags=job.route.flags,
        stored=job.stored,
        error=job.conversion.error,
        limit=job.conversion.limit,
        kept=job.kept,
        conversion=job.conversion.steps,
    )
