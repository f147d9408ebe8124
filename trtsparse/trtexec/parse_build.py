"""The flags about what to build; how they act on each other follows trtexec unless a comment says why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import Arguments
from trtsparse.trtexec.options import BuildOptions, ShapeRange

__all__ = ["read_build"]

_HALVES = {"--fp16": "fp16", "--bf16": "bf16"}
_BUILDER_FLAGS = {
    "--allowWeightStreaming": "WEIGHT_STREAMING",
    "--directIO": "DIRECT_IO",
    "--distributiveIndependence": "DISTRIBUTIVE_INDEPENDENCE",
    "--errorOnTimingCacheMiss": "ERROR_ON_TIMING_CACHE_MISS",
    "--monitorMemory": "MONITOR_MEMORY",
    "--noBuilderCache": "DISABLE_TIMING_CACHE",
    "--noCompilationCache": "DISABLE_COMPILATION_CACHE",
    "--restricted": "SAFETY_SCOPE",
}
_SETTINGS = {
    "--avgTiming": "avg_timing_iterations",
    "--l2LimitForTiling": "l2_limit_for_tiling",
    "--maxTactics": "max_num_tactics",
    "--setBuildRoute": "build_route",
}
_DECIDED = (
    "--fp16", "--bf16", "--int8", "--stronglyTyped", "--sparsity", "--timingCacheFile", "--builderOptimizationLevel"
)  # fmt: skip
_TILING = ("NONE", "FAST", "MODERATE", "FULL")
_PREVIEW = {
    "fasterDynamicShapes0805": "FASTER_DYNAMIC_SHAPES_0805",
    "disableExternalTacticSourcesForCore0805": "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805",
    "profileSharing0806": "PROFILE_SHARING_0806",
    "aliasedPluginIO1003": "ALIASED_PLUGIN_IO_10_03",
    "runtimeActivationResize": "RUNTIME_ACTIVATION_RESIZE_10_10",
    "multiDeviceRuntime": "MULTIDEVICE_RUNTIME_10_16",
}
_ALWAYS_SINCE_10 = tuple(_PREVIEW)[:3]
_LIBRARIES = ("CUBLAS", "CUBLAS_LT", "CUDNN")
_HARDWARE = {"ampere+": "ampere_plus", "sameComputeCapability": "same_compute_capability"}
_OLD_VERBOSITY = {"default": "layer_names_only", "verbose": "detailed"}


def read_build(arguments: Arguments, profiles: tuple[Mapping[str, ShapeRange], ...]) -> BuildOptions:
    """Read the build section.

    Args:
        arguments: The command line.
        profiles: From `trtsparse.trtexec.parse_shapes.read_shapes`.

    Raises:
        ConfigError: Flags exclude each other.
    """
    _check_engine(arguments)
    if arguments.engine == "cusparselt":
        return _read_cusparselt(arguments, profiles)
    _check_runtime(arguments)
    return BuildOptions(
        load_engine=arguments.get("--loadEngine"),
        save_engine=arguments.get("--saveEngine"),
        skip_inference=arguments.has("--skipInference", "--buildOnly") or _platform(arguments) is not None,
        plan_version_only=arguments.has("--getPlanVersionOnly"),
        profiles=profiles,
        sparsity=_sparsity(arguments),
        memory_pools=_memory_pools(arguments),
        optimization_level=_optimization_level(arguments),
        profiling_verbosity=_verbosity(arguments),
        timing_cache=None if arguments.has("--noBuilderCache") else arguments.get("--timingCacheFile"),
        refit=arguments.has("--refit", "--stripAllWeights"),
        strip_plan=arguments.has("--stripWeights", "--stripAllWeights", "--weightless"),
        **_compatibility(arguments),
        runtime_platform=_platform(arguments),
        max_aux_streams=_unless_automatic(arguments.get("--maxAuxStreams", -1)),
        builder_flags=tuple(member for flag, member in _BUILDER_FLAGS.items() if arguments.has(flag)),
        builder_settings=_settings(arguments),
        parser_flags=_parser_flags(arguments),
        tactic_sources=_tactic_sources(arguments),
        preview_features=_preview(arguments),
        input_formats=arguments.get("--inputIOFormats", ()),
        output_formats=arguments.get("--outputIOFormats", ()),
        **_precision(arguments),
    )


def _read_cusparselt(arguments: Arguments, profiles: tuple[Mapping[str, ShapeRange], ...]) -> BuildOptions:
    """What ``--engine=cusparselt`` reads of the section; for a saved engine most of it was decided before."""
    loads = arguments.has("--loadEngine")
    strong, _, asked = _asked_precisions(arguments)
    halves = [_HALVES[name] for name in asked if name in _HALVES]
    if len(halves) > 1:
        raise ConfigError("--fp16 --bf16 is refused: this engine computes a model in one type", fix="one of them")
    if arguments.has("--minShapes", "--maxShapes"):
        arguments.inform("kernels are chosen for --optShapes and --shapes; other shapes are executed all the same")
    sparsity = _sparsity(arguments, default="enable")
    for name in _DECIDED if loads else ():
        if arguments.has(name):
            arguments.warn(f"{name} changes nothing: this was decided when the engine was saved")
    decided = {} if loads else {
        "precision": halves[0] if halves else "tf32", "strongly_typed": strong, "quantized": "--int8" in asked,
        "sparsity": sparsity, "timing_cache": arguments.get("--timingCacheFile"),
        "optimization_level": _unless_automatic(arguments.get("--builderOptimizationLevel", -1)),
    }  # fmt: skip
    return BuildOptions(
        load_engine=arguments.get("--loadEngine"),
        save_engine=arguments.get("--saveEngine"),
        skip_inference=arguments.has("--skipInference", "--buildOnly"),
        plan_version_only=arguments.has("--getPlanVersionOnly"),
        profiles=profiles,
        **{"sparsity": "enable", **decided},
    )


def _check_engine(arguments: Arguments) -> None:
    if arguments.has("--loadEngine") and arguments.has("--saveEngine"):
        raise ConfigError(
            "Incompatible load and save engine options selected", got="--loadEngine and --saveEngine", expected="one"
        )
    if arguments.has("--loadEngine") and arguments.has("--onnx"):
        arguments.inform("--onnx is not read: --loadEngine names an engine that is built already")
    if arguments.has("--getPlanVersionOnly") and not arguments.has("--loadEngine"):
        raise ConfigError("--getPlanVersionOnly reads a plan, and none is named", expected="--loadEngine=<file>")


def _check_runtime(arguments: Arguments) -> None:
    runtime = arguments.get("--useRuntime", "full")
    if runtime != "full":
        raise ConfigError(
            f"--useRuntime={runtime} is refused: engines are executed by the full runtime here",
            fix="leave it out: the full runtime loads version-compatible plans too",
        )


def _asked_precisions(arguments: Arguments) -> tuple[bool, bool, list[str]]:
    """Whether ``--stronglyTyped`` and ``--best`` are there, and the flags of single precisions that count."""
    strong, best = arguments.has("--stronglyTyped"), arguments.has("--best")
    asked = [name for name in ("--fp16", "--int8", "--bf16") if arguments.has(name)]
    if strong and best:
        raise ConfigError(
            "--best and --stronglyTyped cannot be both set. --best enables implicit precisions, while "
            "--stronglyTyped enforces explicit precisions."
        )
    if strong:
        for name in asked:
            word = name.lstrip("-")
            arguments.warn(
                f"Invalid usage, setting {word} mode is not allowed if graph is strongly typed. "
                f"Disabling BuilderFlag::k{word.upper()}."
            )
        asked = []
    return strong, best, asked


def _precision(arguments: Arguments) -> dict[str, Any]:
    strong, best, asked = _asked_precisions(arguments)
    tf32 = not arguments.has("--noTF32")
    _say_typing(arguments, asked=bool(asked or best), default=tf32 and not strong)
    if "--int8" in asked:
        chosen = _int8(arguments, half=best or "--fp16" in asked)
    elif best or len(asked) > 1:
        chosen = {"precision": "best"}
        if best:
            arguments.inform("--best takes INT8 only where the model is quantized (Q/DQ); --int8 quantizes it")
    else:
        chosen = {"precision": _HALVES[asked[0]] if asked else "tf32" if tf32 else "fp32"}
    keep = _keep_fp32(arguments, chosen["precision"])
    return {**chosen, "tf32": tf32, "strongly_typed": strong, "keep_fp32": keep}


def _int8(arguments: Arguments, *, half: bool) -> dict[str, Any]:
    if arguments.has("--bf16") and not half:
        raise ConfigError(
            "--int8 --bf16 is refused: what is not INT8 stays FP32 or becomes FP16 here",
            fix="--int8, or --int8 --fp16",
        )
    if arguments.has("--bf16"):
        arguments.inform("--bf16: what is not INT8 becomes FP16")
    return {"precision": "int8", "int8_rest": "fp16" if half else "fp32", "random_calibration": True}


def _say_typing(arguments: Arguments, *, asked: bool, default: bool) -> None:
    """Two lines that trtexec 10 prints."""
    if arguments.like == 10 and asked:
        arguments.warn(
            "Weakly-typed networks have been deprecated in TensorRT. You can use the AutoCast tool "
            "(https://nvidia.github.io/TensorRT-Model-Optimizer/guides/8_autocast.html) to convert the network to be "
            "strongly typed."
        )
    elif arguments.like == 10 and default:
        arguments.inform(
            "TF32 is enabled by default. Add --noTF32 flag to further improve accuracy with some performance cost."
        )


def _keep_fp32(arguments: Arguments, precision: str) -> tuple[str, ...]:
    types: dict[str, str] = arguments.get("--layerPrecisions", {})
    bound = arguments.get("--precisionConstraints", "none") != "none"
    if bound and not types:
        arguments.warn(
            'When --precisionConstraints flag is set to "obey" or "prefer", please add '
            "--layerPrecision/--layerOutputTypes flags to set layer-wise precisions and output types."
        )
    if types and not bound:
        arguments.warn(
            "--layerPrecision/--layerOutputTypes flags have no effect when --precisionConstraints flag is set to "
            '"none".'
        )
        return ()
    for name, dtype in types.items():
        if dtype not in ("fp32", precision) or (name == "*" and dtype == "fp32"):
            raise ConfigError(
                "--layerPrecisions can only leave layers in FP32 here",
                where="--layerPrecisions",
                got=f"{name}:{dtype}",
                expected="a precision for all, and name:fp32 for layers that need more",
                fix="--fp16 --precisionConstraints=obey --layerPrecisions=name:fp32",
            )
    return tuple(name for name, dtype in types.items() if dtype == "fp32" and precision not in ("fp32", "tf32"))


def _sparsity(arguments: Arguments, *, default: str = "disable") -> Any:
    chosen = arguments.get("--sparsity", default)
    if chosen == "force":
        if arguments.like != 8:
            arguments.warn(
                "--sparsity=force has been deprecated. Please use <polygraphy surgeon prune> to rewrite the weights "
                "to a sparsity pattern and then run with --sparsity=enable"
            )
        arguments.inform(
            "--sparsity=force keeps the two largest of every four weights; trtexec keeps the first two, whatever "
            "they are. Both cost accuracy unless the model is fine-tuned"
        )
    return chosen


def _memory_pools(arguments: Arguments) -> dict[str, int]:
    pools: dict[str, int] = arguments.get("--memPoolSize", {})
    workspace = arguments.get("--workspace")
    return pools if workspace is None else {"workspace": int(workspace * (1 << 20)), **pools}


def _optimization_level(arguments: Arguments) -> int | None:
    level = _unless_automatic(arguments.get("--builderOptimizationLevel", -1))
    return 2 if level is None and arguments.has("--heuristic") else level


def _unless_automatic(value: int) -> int | None:
    return None if value == -1 else value


def _verbosity(arguments: Arguments) -> Any:
    given = arguments.get("--profilingVerbosity", arguments.get("--nvtxMode", "layer_names_only"))
    if given in _OLD_VERBOSITY:
        arguments.warn(
            f"--profilingVerbosity={given} has been deprecated by --profilingVerbosity={_OLD_VERBOSITY[given]}."
        )
    return _OLD_VERBOSITY.get(given, given)


def _compatibility(arguments: Arguments) -> dict[str, Any]:
    compatible = arguments.has("--versionCompatible")
    hardware = _HARDWARE.get(arguments.get("--hardwareCompatibilityLevel", "none"))
    if arguments.has("--pluginInstanceNorm") and (compatible or hardware == "ampere_plus"):
        raise ConfigError(
            "Plugin InstanceNorm cannot be used with version compatible or hardware compatible engines!",
            fix="leave out --pluginInstanceNorm",
        )
    exclude = arguments.has("--excludeLeanRuntime")
    if exclude and not compatible:
        arguments.warn("--excludeLeanRuntime has no effect without --versionCompatible.")
    return {
        "version_compatible": compatible,
        "exclude_lean_runtime": exclude and compatible,
        "hardware_compatible": hardware,
    }


def _platform(arguments: Arguments) -> str | None:
    return "WINDOWS_AMD64" if arguments.get("--runtimePlatform", "SameAsBuild") == "WindowsAMD64" else None


def _settings(arguments: Arguments) -> dict[str, int | str]:
    given = {attribute: arguments.get(flag) for flag, attribute in _SETTINGS.items()}
    settings = {attribute: value for attribute, value in given.items() if value not in (None, -1)}
    if arguments.has("--minTiming") and arguments.like == 8:  # for the others it is a no-op in the table
        if arguments.installed == 8:
            settings["min_timing_iterations"] = arguments.get("--minTiming")
        else:
            arguments.inform("--minTiming changes nothing: TensorRT has no such setting since version 10")
    if arguments.has("--tilingOptimizationLevel"):
        settings["tiling_optimization_level"] = _TILING[arguments.get("--tilingOptimizationLevel")]
    return settings


def _parser_flags(arguments: Arguments) -> dict[str, bool]:
    flags = {"NATIVE_INSTANCENORM": False} if arguments.has("--pluginInstanceNorm") else {}
    return {**flags, "ENABLE_PLUGIN_OVERRIDE": True} if arguments.has("--enablePluginOverride") else flags


def _tactic_sources(arguments: Arguments) -> dict[str, bool]:
    """What TensorRT 11 does not have any more is off."""
    given: dict[str, bool] = dict(arguments.get("--tacticSources", {}))
    for name in _LIBRARIES if arguments.installed == 11 else ():
        if given.get(name):
            raise ConfigError(
                f"Unknown tactic source: {name}", where="--tacticSources", got=f"+{name}", fix=f"leave out +{name}"
            )
        if given.pop(name, None) is not None:
            arguments.inform(f"--tacticSources=-{name} changes nothing: TensorRT 11 does not use it")
    return given


def _preview(arguments: Arguments) -> dict[str, bool]:
    """What TensorRT 10 made the rule needs no switching on."""
    given: dict[str, bool] = dict(arguments.get("--preview", {}))
    if arguments.like != 8 and given.pop("profileSharing0806", None) is not None:
        arguments.warn(
            "profileSharing0806 is on by default in TensorRT 10.0. This flag is deprecated and has no effect."
        )
    for name in _ALWAYS_SINCE_10 if arguments.installed != 8 else ():
        if given.get(name):
            del given[name]
            arguments.inform(f"--preview=+{name} changes nothing: this is always so since TensorRT 10")
    return {_PREVIEW[name]: on for name, on in given.items()}
