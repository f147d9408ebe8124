"""What a trtexec command line asks for: `TrtexecOptions`, made by `trtsparse.trtexec.parse.parse`.

Plain values with nothing of TensorRT, numpy or ONNX in them. Sizes are in bytes, times in the unit of their name.
Input names may hold one wildcard ("input*"), as trtexec allows; `trtsparse.trtexec.values.find` resolves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trtsparse.trtexec.policy import Like, Policy

__all__ = [
    "AccuracyOptions",
    "BuildOptions",
    "EngineName",
    "InferenceOptions",
    "IoFormat",
    "ModelOptions",
    "Note",
    "ReferencePair",
    "ReportingOptions",
    "Severity",
    "Shape",
    "ShapeRange",
    "SystemOptions",
    "TrtexecOptions",
    "WeightBudget",
]

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
Severity = Literal["W", "I"]
EngineName = Literal["auto", "tensorrt", "onnxruntime", "cusparselt"]


@dataclass(frozen=True)
class Note:
    """A line to print before anything is done: "[W] text" or "[I] text"."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class ModelOptions:
    """Attributes: onnx: The model's path; None when an engine is loaded."""

    onnx: str | None = None


@dataclass(frozen=True)
class IoFormat:
    """One entry of ``--inputIOFormats``; the layout is always linear ("chw"), others are refused.

    Attributes:
        dtype: "fp32", "fp16", ...; None where only a layout was given, as trtexec 11 does.
    """

    dtype: str | None


@dataclass(frozen=True)
class BuildOptions:
    """What to build, or which engine to load. None means: as TensorRT does by default.

    Attributes:
        load_engine: A plan, or a saved engine of ``--engine=cusparselt``, to load instead of building.
        save_engine: Where to write it.
        skip_inference: Stop after building or loading (``--skipInference``, ``--buildOnly``).
        plan_version_only: Print the version in the header of ``load_engine`` and stop.
        profiles: For each optimization profile (min, opt, max) by input; empty where no shapes were given.
        precision: As `BuildConfig.precision`: "fp32" (``--noTF32``), "tf32" (the default), "fp16", "bf16", "int8",
            "best".
        int8_rest: As `BuildConfig.int8_rest`.
        tf32: TF32 for what stays in FP32; False with ``--noTF32``.
        strongly_typed: The model's own types are law (``--stronglyTyped``): nothing is converted.
        keep_fp32: Nodes or patterns that ``--layerPrecisions`` leaves in FP32.
        random_calibration: ``--int8`` without a calibrated model: ranges from random numbers, as trtexec does.
        quantized: ``--int8`` for an engine that takes INT8 from Q/DQ nodes only: the model must have some.
        sparsity: "disable", "enable" or "force".
        memory_pools: Limits in bytes, by the names of `BuildConfig.memory_pools`.
        optimization_level: 0 to 5.
        profiling_verbosity: "layer_names_only" (trtexec's default), "detailed" or "none".
        timing_cache: The file; None without one, and with ``--noBuilderCache``.
        refit: ``--refit``: all weights can be replaced.
        strip_plan: ``--stripWeights``.
        version_compatible: ``--versionCompatible``.
        exclude_lean_runtime: ``--excludeLeanRuntime``.
        hardware_compatible: As `BuildConfig.hardware_compatible`.
        runtime_platform: "WINDOWS_AMD64" (a member of RuntimePlatform) for engines to run on Windows.
        max_aux_streams: CUDA streams beside the engine's own.
        builder_flags: Members of BuilderFlag to set besides what the fields above say, such as "DIRECT_IO".
        builder_settings: Attributes of IBuilderConfig to set: "avg_timing_iterations" to 8, or, for an attribute that
            is an enumeration, the member's name: "tiling_optimization_level" to "FAST". "build_route" is text.
        parser_flags: Members of OnnxParserFlag to set or, with False, to clear.
        tactic_sources: Members of TacticSource to switch on or off.
        preview_features: Members of PreviewFeature to switch on or off.
        input_formats: ``--inputIOFormats``, one for all inputs or one for each; empty without.
        output_formats: The same for outputs.
    """

    load_engine: str | None = None
    save_engine: str | None = None
    skip_inference: bool = False
    plan_version_only: bool = False
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8", "best"] = "tf32"
    int8_rest: Literal["fp32", "fp16"] | None = None
    tf32: bool = True
    strongly_typed: bool = False
    keep_fp32: tuple[str, ...] = ()
    random_calibration: bool = False
    quantized: bool = False
    sparsity: Literal["disable", "enable", "force"] = "disable"
    memory_pools: Mapping[str, int] = field(default_factory=dict)
    optimization_level: int | None = None
    profiling_verbosity: Literal["none", "layer_names_only", "detailed"] = "layer_names_only"
    timing_cache: str | None = None
    refit: bool = False
    strip_plan: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatible: Literal["ampere_plus", "same_compute_capability"] | None = None
    runtime_platform: str | None = None
    max_aux_streams: int | None = None
    builder_flags: tuple[str, ...] = ()
    builder_settings: Mapping[str, int | str] = field(default_factory=dict)
    parser_flags: Mapping[str, bool] = field(default_factory=dict)
    tactic_sources: Mapping[str, bool] = field(default_factory=dict)
    preview_features: Mapping[str, bool] = field(default_factory=dict)
    input_formats: tuple[IoFormat, ...] = ()
    output_formats: tuple[IoFormat, ...] = ()


@dataclass(frozen=True)
class WeightBudget:
    """How much of the streamable weights stays on the GPU; neither given: TensorRT decides (``-1``).

    Attributes:
        nbytes: So many bytes.
        percent: So much of them, 0 to 100.
    """

    nbytes: int | None = None
    percent: float | None = None


@dataclass(frozen=True)
class ReferencePair:
    """Input files and, if they are to be checked, the files with the outputs that are right for them.

    Attributes:
        inputs: Raw binary files by input name (``--loadInputs``).
        outputs: Raw binary files by output name (``--loadRefOutputs``).
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AccuracyOptions:
    """How outputs are compared with the references; the loss is computed for each output.

    Attributes:
        algorithm: "l0": share of elements with ``|got - ref| > atol + rtol * |ref|``; "l1": mean absolute error;
            "l2": mean squared error; "lInf": largest absolute error; "cos": 1 - cosine similarity.
        atol: For "l0".
        rtol: For "l0".
        threshold: The largest loss that passes; None where nothing is compared.
    """

    algorithm: Literal["l0", "l1", "l2", "lInf", "cos"] = "l0"
    atol: float = 1e-5
    rtol: float = 1e-5
    threshold: float | None = None


@dataclass(frozen=True)
class InferenceOptions:
    """How to run and measure; CUDA graph, transfers, spin wait and profile run are in `TrtexecOptions.policy`.

    Attributes:
        shapes: Input shapes to run with: ``--shapes``, and for the others the opt of the profile in use.
        pairs: ``--loadInputs`` (and ``--loadRefOutputs``): at least one; several with ``--refPair``. The first one's
            inputs are the ones measured; an input without a file is random.
        accuracy: How outputs are compared, if the pairs have any.
        iterations: At least so many.
        duration_s: At least so long.
        warm_up_ms: Time before anything is counted.
        sleep_ms: Between launch and compute.
        idle_ms: Between two queries.
        streams: Contexts that run at once (``--infStreams``).
        threads: Each of them driven by a thread of its own.
        overlap: Copies overlap with compute; False with ``--exposeDMA``.
        time_deserialize: Measure loading the engine, and stop.
        profile: Index of the optimization profile to use.
        profile_given: It was named with ``--useProfile``.
        allocation: Scratch memory for the largest of all profiles ("static"), or of the one in use ("profile").
        weight_budget: Weight streaming at run time; None: off.
        tempdir: Where TensorRT may put temporary files.
        tempfile_controls: Members of TempfileControlFlag to allow or deny: ALLOW_IN_MEMORY_FILES, ...
        lean_runtime: A lean runtime library to load version-compatible plans with (``--leanDLLPath``).
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    pairs: tuple[ReferencePair, ...] = (ReferencePair(),)
    accuracy: AccuracyOptions = AccuracyOptions()
    iterations: int = 10
    duration_s: float = 3.0
    warm_up_ms: float = 200.0
    sleep_ms: float = 0.0
    idle_ms: float = 0.0
    streams: int = 1
    threads: bool = False
    overlap: bool = True
    time_deserialize: bool = False
    profile: int = 0
    profile_given: bool = False
    allocation: Literal["static", "profile"] = "static"
    weight_budget: WeightBudget | None = None
    tempdir: str | None = None
    tempfile_controls: Mapping[str, bool] = field(default_factory=dict)
    lean_runtime: str | None = None


@dataclass(frozen=True)
class ReportingOptions:
    """What to print and to write.

    Attributes:
        verbose: Also print TensorRT's verbose messages.
        average_runs: Queries averaged in one line of the trace (``--avgRuns``).
        percentiles: 0 to 100.
        dump_refit: Print what can be refitted.
        dump_output: Print the outputs of the last query.
        dump_raw_bindings: Write inputs and outputs of the last query to raw files.
        dump_profile: Print the time of each layer.
        dump_layer_info: Print what the engine tells about its layers.
        dump_optimization_profile: Print the engine's optimization profiles.
        export_times: JSON file for the times of each query.
        export_output: JSON file for the outputs.
        export_profile: JSON file for the time of each layer.
        export_layer_info: JSON file for what the engine tells about its layers.
    """

    verbose: bool = False
    average_runs: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    dump_refit: bool = False
    dump_output: bool = False
    dump_raw_bindings: bool = False
    dump_profile: bool = False
    dump_layer_info: bool = False
    dump_optimization_profile: bool = False
    export_times: str | None = None
    export_output: str | None = None
    export_profile: str | None = None
    export_layer_info: str | None = None

    @property
    def wants_profile(self) -> bool:
        """Layers are to be timed."""
        return self.dump_profile or self.export_profile is not None

    @property
    def wants_layer_info(self) -> bool:
        """The inspector is to be asked."""
        return self.dump_layer_info or self.export_layer_info is not None


@dataclass(frozen=True)
class SystemOptions:
    """The machine.

    Attributes:
        device: Index of the GPU.
        plugins: Libraries to load first: ``--staticPlugins``, ``--plugins``, then ``--dynamicPlugins``.
        plugins_to_serialize: Those that go into a version-compatible plan (``--setPluginsToSerialize``); loaded too.
    """

    device: int = 0
    plugins: tuple[str, ...] = ()
    plugins_to_serialize: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrtexecOptions:
    """A whole command line.

    Attributes:
        argv: As given.
        policy: What a measurement includes; `str` of it is the line to print.
        engine: Ours: what executes, "auto" for the engine that fits the model or plan.
        help: ``--help``, or an empty command line: print `trtsparse.trtexec.help.help_text` and stop.
        model: The model.
        build: What to build or load.
        inference: How to run and measure.
        reporting: What to print and write.
        system: The machine.
        notes: Lines to print first, in this order.
    """

    argv: tuple[str, ...]
    policy: Policy
    engine: EngineName = "auto"
    help: bool = False
    model: ModelOptions = ModelOptions()
    build: BuildOptions = BuildOptions()
    inference: InferenceOptions = InferenceOptions()
    reporting: ReportingOptions = ReportingOptions()
    system: SystemOptions = SystemOptions()
    notes: tuple[Note, ...] = ()

    @property
    def like(self) -> Like:
        """The trtexec whose flags and defaults are followed."""
        return self.policy.like
