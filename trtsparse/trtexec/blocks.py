"""The blocks "=== ... Options ===" that trtexec prints before it begins, from what was asked for here.

Rows, names and order are those of the trtexec whose defaults apply, so that what reads its log reads ours. Rows about
things that are refused here (DLA, safety, ...) say what is true: they are off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtsparse.trtexec.options import BuildOptions, InferenceOptions, IoFormat, ShapeRange, TrtexecOptions

__all__ = ["ALGORITHMS", "builds", "option_blocks"]

_VERBOSITIES = {"layer_names_only": 0, "none": 1, "detailed": 2}
_SPARSITY = {"disable": "Disabled", "enable": "Enabled", "force": "Forced"}
_TACTICS = {
    "CUBLAS": "cublas",
    "CUBLAS_LT": "cublasLt",
    "CUDNN": "cudnn",
    "EDGE_MASK_CONVOLUTIONS": "edge mask convolutions",
    "JIT_CONVOLUTIONS": "JIT convolutions",
}
_MIB, _KIB = 1 << 20, 1 << 10
ALGORITHMS = {"l0": "L0", "l1": "L1", "l2": "L2", "lInf": "LInf", "cos": "CosineSimilarity"}
"""As trtexec prints them."""


def builds(options: TrtexecOptions) -> bool:
    """Whether a plan is built. ONNX Runtime needs none: then one is built only if something else asks for it."""
    build = options.build
    if build.load_engine is not None or options.engine == "cusparselt":
        return False
    return options.engine != "onnxruntime" or build.save_engine is not None or build.skip_inference


def option_blocks(options: TrtexecOptions) -> str:
    """All blocks, a line each; lines may be empty. Where nothing is built there is no block about it."""
    loads = options.build.load_engine is not None
    own = options.engine == "cusparselt"
    nothing = (loads and options.like > 8) or not (loads or own or builds(options))
    build = _build_cusparselt if own else _build
    blocks = [_model(options), [""] if nothing else build(options), _system(options)]
    return "\n".join(line for block in (*blocks, _inference(options), _reporting(options), [""]) for line in block)


def _model(options: TrtexecOptions) -> list[str]:
    return [
        "=== Model Options ===",
        f"Format: {'ONNX' if options.model.onnx else '*'}",
        f"Model: {options.model.onnx or ''}",
        "Output:",
    ]


def _build(options: TrtexecOptions) -> list[str]:
    build, like = options.build, options.like
    rows = {
        **({"Max batch": "explicit batch"} if like == 8 else {}),
        "Memory Pools": _pools(build, like),
        **({"minTiming": str(build.builder_settings.get("min_timing_iterations", 1))} if like == 8 else {}),
        "avgTiming": str(build.builder_settings.get("avg_timing_iterations", 8)),
        "Precision": _precision(build, like),
        **({"LayerPrecisions": ", ".join(f"{name}:fp32" for name in build.keep_fp32)} if like < 11 else {}),
        "Layer Device Types": "",
        **({"Calibration": "Dynamic" if build.random_calibration else ""} if like < 11 else {}),
        "Refit": _on(build.refit),
        **({"Strip weights": _on(build.strip_plan)} if like > 8 else {}),
        "Version Compatible": _on(build.version_compatible),
        **(
            {"ONNX Plugin InstanceNorm": _on(build.parser_flags.get("NATIVE_INSTANCENORM") is False)}
            if like > 8
            else {}
        ),
        "TensorRT runtime": "full",
        "Lean DLL Path": options.inference.lean_runtime or "",
        "Tempfile Controls": _tempfiles(options.inference),
        "Exclude Lean Runtime": _on(build.exclude_lean_runtime),
        "Sparsity": _SPARSITY[build.sparsity],
        "Safe mode": "Disabled",
        "Build DLA standalone loadable": "Disabled",
        "Allow GPU fallback for DLA": "Disabled",
        "DirectIO mode": _on("DIRECT_IO" in build.builder_flags),
        **({"Restricted mode": _on("SAFETY_SCOPE" in build.builder_flags)} if like < 11 else {}),
        "Skip inference": _on(build.skip_inference),
        "Save engine": build.save_engine or "",
        "Load engine": build.load_engine or "",
        "Profiling verbosity": str(_VERBOSITIES[build.profiling_verbosity]),
        "Tactic sources": _tactics(build.tactic_sources),
        "timingCacheMode": _cache_mode(build),
        "timingCacheFile": build.timing_cache or "",
        **(_since_10(build) if like > 8 else {"Heuristic": "Disabled"}),
        "Preview Features": _switches(build.preview_features, "k{}") or "Use default preview flags.",
        "MaxAuxStreams": str(-1 if build.max_aux_streams is None else build.max_aux_streams),
        "BuilderOptimizationLevel": str(-1 if build.optimization_level is None else build.optimization_level),
    }
    if like > 8:
        rows |= _last_since_10(build, like)
    rows["Input(s)s format"] = _formats(build.input_formats, like)
    rows["Output(s)s format"] = _formats(build.output_formats, like)
    calibration = [] if like == 11 else ["Input calibration shapes: model"]
    return ["=== Build Options ===", *_texts(rows), *_profiles(build.profiles, like), *calibration]


def _build_cusparselt(options: TrtexecOptions) -> list[str]:
    """Those rows that say something about this engine."""
    build = options.build
    precision = "Strongly Typed" if build.strongly_typed else "FP32+FP16" if build.precision == "fp16" else "BF16"
    rows = {
        "Precision": f"{precision}+INT8" if build.quantized else precision,
        "Sparsity": _SPARSITY[build.sparsity],
        "Skip inference": _on(build.skip_inference),
        "Save engine": build.save_engine or "",
        "Load engine": build.load_engine or "",
        "timingCacheFile": build.timing_cache or "",
    }
    if build.load_engine is not None:  # it knows better
        del rows["Precision"], rows["Sparsity"]
    return ["=== Build Options ===", *_texts(rows), *_profiles(build.profiles, options.like)]


def _since_10(build: BuildOptions) -> dict[str, str]:
    return {
        "Enable Compilation Cache": _on("DISABLE_COMPILATION_CACHE" not in build.builder_flags),
        "Enable Monitor Memory": _on("MONITOR_MEMORY" in build.builder_flags),
        "errorOnTimingCacheMiss": _on("ERROR_ON_TIMING_CACHE_MISS" in build.builder_flags),
    }


def _last_since_10(build: BuildOptions, like: int) -> dict[str, str]:
    return {
        "MaxTactics": str(build.builder_settings.get("max_num_tactics", -1)),
        **({"Calibration Profile Index": "0"} if like == 10 else {}),
        "Weight Streaming": _on("WEIGHT_STREAMING" in build.builder_flags),
        "Runtime Platform": "Windows AMD64" if build.runtime_platform else "Same As Build",
        "Debug Tensors": "",
        "Distributive Independence": _on("DISTRIBUTIVE_INDEPENDENCE" in build.builder_flags),
        "Mark Unfused Tensors As Debug Tensors": "Disabled",
    }


def _system(options: TrtexecOptions) -> list[str]:
    system = options.system
    plugins = "Loaded static plugins:" if options.like == 11 else "Plugins:"
    return [
        "=== System Options ===",
        f"Device: {system.device}",
        "DLACore: ",
        " ".join((plugins, *system.plugins)),
        " ".join(("setPluginsToSerialize:", *system.plugins_to_serialize)),
        "dynamicPlugins:",
        "ignoreParsedPluginLibs: 0",
        "",
    ]


def _inference(options: TrtexecOptions) -> list[str]:
    inference, policy, like = options.inference, options.policy, options.like
    on_gpu = options.engine != "onnxruntime"
    colon = ":" if like == 8 else " :"
    shapes = [f"Input inference shape{colon} {name}={_dims(shape)}" for name, shape in inference.shapes.items()]
    rows = {
        "Iterations": str(inference.iterations),
        "Duration": f"{inference.duration_s:g}s (+ {inference.warm_up_ms:g}ms warm up)",
        "Sleep time": f"{inference.sleep_ms:g}ms",
        "Idle time": f"{inference.idle_ms:g}ms",
        "Inference Streams": str(inference.streams),
        "ExposeDMA": _on(not inference.overlap),
        "Data transfers": _on(policy.transfers and on_gpu),
        "Spin-wait": _on(policy.spin_wait and on_gpu),
        "Multithreading": _on(inference.threads),
        "CUDA Graph": _on(policy.graphs and on_gpu),
        **({"Separate profiling": _on(policy.separate_profile_run)} if like < 11 else {}),
        "Time Deserialize": _on(inference.time_deserialize),
        "Time Refit": "Disabled",
        "NVTX verbosity": str(_VERBOSITIES[options.build.profiling_verbosity]),
        "Persistent Cache Ratio": "0",
    }
    if like > 8:
        rows["Optimization Profile Index"] = str(inference.profile)
        rows["Weight Streaming Budget"] = _budget(inference)
    files = [f"{name}<-{path}" for name, path in inference.pairs[0].inputs.items()]
    batch = ["Batch: Explicit", *(shapes or ["Input inference shapes: model"])]
    debug = [] if like == 8 else ["Debug Tensor Save Destinations:", "Dump All Debug Tensor in Formats: "]
    return ["=== Inference Options ===", *batch, *_texts(rows), *_accuracy(options), "Inputs:", *files, *debug]


def _accuracy(options: TrtexecOptions) -> list[str]:
    asked = options.inference.accuracy
    if asked.threshold is None:
        return []
    tolerances = {"Absolute Tolerance (atol)": asked.atol, "Relative Tolerance (rtol)": asked.rtol}
    rows = {"Accuracy Algorithm": ALGORITHMS[asked.algorithm]}
    rows |= {name: f"{value:g}" for name, value in tolerances.items() if asked.algorithm == "l0"}
    return _texts({**rows, "Accuracy Threshold": f"{asked.threshold:g}"})


def _reporting(options: TrtexecOptions) -> list[str]:
    reporting = options.reporting
    rows = {
        "Verbose": _on(reporting.verbose),
        "Averages": f"{reporting.average_runs} inferences",
        "Percentiles": ",".join(f"{percentile:g}" for percentile in reporting.percentiles),
    }
    files = {
        "Dump output": _on(reporting.dump_output),
        "Profile": _on(reporting.dump_profile),
        "Export timing to JSON file": reporting.export_times or "",
        "Export output to JSON file": reporting.export_output or "",
        "Export profile to JSON file": reporting.export_profile or "",
    }
    refit = f"Dump refittable layers:{_on(reporting.dump_refit)}"  # trtexec has no space here
    return ["=== Reporting Options ===", *_texts(rows), refit, *_texts(files)]


def _texts(rows: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in rows.items()]


def _on(value: object) -> str:
    return "Enabled" if value else "Disabled"


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _precision(build: BuildOptions, like: int) -> str:
    asked = {
        "fp16": "FP32+FP16",
        "bf16": "FP32+BF16",
        "int8": "FP32+INT8" if build.int8_rest == "fp32" else "FP32+FP16+INT8",
        "best": "FP32+FP16+BF16+INT8",
    }.get(build.precision, "FP32")
    if build.strongly_typed or (like == 11 and asked == "FP32"):
        return "Strongly Typed"
    return f"Strongly Typed, asked for {asked}" if like == 11 else asked


def _pools(build: BuildOptions, like: int) -> str:
    names = {"workspace": "workspace", "dlaSRAM": "", "dlaLocalDRAM": "", "dlaGlobalDRAM": ""}
    parts = [f"{shown}: {_limit(build, name, _MIB, 'MiB')}" for shown, name in names.items()]
    if like > 8:
        parts.append(f"tacticSharedMem: {_limit(build, 'tactic_shared_memory', _KIB, 'KiB')}")
    return ", ".join(parts)


def _limit(build: BuildOptions, name: str, unit: int, shown: str) -> str:
    nbytes = build.memory_pools.get(name)
    return "default" if nbytes is None else f"{nbytes / unit:g} {shown}"


def _tempfiles(inference: InferenceOptions) -> str:
    controls = inference.tempfile_controls
    shown = {"in_memory": "ALLOW_IN_MEMORY_FILES", "temporary": "ALLOW_TEMPORARY_FILES"}
    texts = (f"{name}: {'allow' if controls.get(flag, True) else 'deny'}" for name, flag in shown.items())
    return f"{{ {', '.join(texts)} }}"


def _tactics(sources: Mapping[str, bool]) -> str:
    named = {shown: sources[name] for name, shown in _TACTICS.items() if name in sources}
    return _switches(named, "{}") or "Using default tactic sources"


def _switches(switches: Mapping[str, bool], form: str) -> str:
    return "".join(f"{form.format(name)} [{'ON' if on else 'OFF'}], " for name, on in switches.items())


def _cache_mode(build: BuildOptions) -> str:
    if "DISABLE_TIMING_CACHE" in build.builder_flags:
        return "disable"
    return "global" if build.timing_cache else "local"


def _formats(formats: Sequence[IoFormat], like: int) -> str:
    if not formats:
        return "CHW" if like == 11 else "fp32:CHW"
    return ",".join("chw" if found.dtype is None else f"{found.dtype}:chw" for found in formats)


def _profiles(profiles: Sequence[Mapping[str, ShapeRange]], like: int) -> list[str]:
    named = [
        f"Input build shape{'' if like == 8 else f' (profile {index})'}: {name}={'+'.join(map(_dims, triple))}"
        for index, profile in enumerate(profiles)
        for name, triple in profile.items()
    ]
    return named or ["Input build shapes: model"]


def _budget(inference: InferenceOptions) -> str:
    budget = inference.weight_budget
    if budget is None:
        return "Disabled"
    if budget.nbytes is not None:
        return f"{budget.nbytes} bytes"
    return "Automatic" if budget.percent is None else f"{budget.percent:g}%"
