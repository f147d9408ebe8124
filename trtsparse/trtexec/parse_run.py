"""The flags about running, reporting and the machine, and the policy that they make; as trtexec has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtsparse.errors import ConfigError
from trtsparse.trtexec.arguments import BY_NAME, Arguments
from trtsparse.trtexec.options import (
    AccuracyOptions,
    InferenceOptions,
    ReferencePair,
    ReportingOptions,
    Shape,
    SystemOptions,
    WeightBudget,
)
from trtsparse.trtexec.policy import Policy

__all__ = ["read_inference", "read_policy", "read_reporting", "read_system"]

_SWITCHES = {
    "graphs": ("--useCudaGraph", "--noCudaGraph"),
    "transfers": ("--includeDataTransfers", "--noDataTransfers"),
    "spin_wait": ("--useSpinWait", "--noSpinWait"),
}
_PAIR_FILES = ("--loadInputs", "--loadRefOutputs")


def read_policy(arguments: Arguments, reason: str) -> Policy:
    """The defaults of the trtexec that is followed, and what flags make of them.

    Raises:
        ConfigError: A flag and its opposite.
    """
    policy = Policy.of(arguments.like, reason=reason)
    for name, (on, off) in _SWITCHES.items():
        acting = [flag for flag in (on, off) if arguments.has(flag) and _acts(flag, arguments)]
        if len(acting) > 1:
            raise ConfigError(f"{on} and {off} contradict each other", expected="one of them")
        if acting:
            policy = policy.change(name, to=acting == [on], flag=acting[0])
    if arguments.has("--separateProfileRun") and _acts("--separateProfileRun", arguments):
        policy = policy.change("separate_profile_run", to=True, flag="--separateProfileRun")
    if arguments.engine == "cusparselt":
        policy = policy.change("graphs", to=True, flag="the engine's own")
    return policy


def read_inference(arguments: Arguments, shapes: Mapping[str, Shape], *, builds: bool) -> InferenceOptions:
    """Read the inference section.

    Args:
        arguments: The command line.
        shapes: From `trtsparse.trtexec.parse_shapes.read_shapes`.
        builds: An engine is built; else a plan is loaded.

    Raises:
        ConfigError: Flags exclude each other.
    """
    pairs = _pairs(arguments)
    return InferenceOptions(
        shapes=shapes,
        pairs=pairs,
        accuracy=_accuracy(arguments, compares=any(pair.outputs for pair in pairs), builds=builds),
        iterations=arguments.get("--iterations", 10),
        duration_s=arguments.get("--duration", 3.0),
        warm_up_ms=arguments.get("--warmUp", 200.0),
        sleep_ms=arguments.get("--sleepTime", 0.0),
        idle_ms=arguments.get("--idleTime", 0.0),
        streams=arguments.get("--infStreams", arguments.get("--streams", 1)),
        threads=arguments.has("--threads"),
        overlap=not arguments.has("--exposeDMA"),
        time_deserialize=arguments.has("--timeDeserialize"),
        profile=arguments.get("--useProfile", 0),
        profile_given=arguments.has("--useProfile"),
        allocation=_allocation(arguments),
        weight_budget=_weight_budget(arguments),
        tempdir=arguments.get("--tempdir"),
        tempfile_controls=arguments.get("--tempfileControls", {}),
        lean_runtime=arguments.get("--leanDLLPath"),
    )


def read_reporting(arguments: Arguments) -> ReportingOptions:
    """Read the reporting section."""
    return ReportingOptions(
        verbose=arguments.has("--verbose"),
        average_runs=arguments.get("--avgRuns", 10),
        percentiles=arguments.get("--percentile", (90.0, 95.0, 99.0)),
        dump_refit=arguments.has("--dumpRefit"),
        dump_output=arguments.has("--dumpOutput"),
        dump_raw_bindings=arguments.has("--dumpRawBindingsToFile"),
        dump_profile=arguments.has("--dumpProfile", "--dumpLayerTime"),
        dump_layer_info=arguments.has("--dumpLayerInfo"),
        dump_optimization_profile=arguments.has("--dumpOptimizationProfile"),
        export_times=arguments.get("--exportTimes"),
        export_output=arguments.get("--exportOutput"),
        export_profile=arguments.get("--exportProfile"),
        export_layer_info=arguments.get("--exportLayerInfo"),
    )


def read_system(arguments: Arguments) -> SystemOptions:
    """Read the system section."""
    serialized = arguments.all("--setPluginsToSerialize")
    plugins = arguments.all("--plugins", "--staticPlugins", "--dynamicPlugins")
    return SystemOptions(
        device=arguments.get("--device", 0),
        plugins=tuple(dict.fromkeys((*plugins, *serialized))),
        plugins_to_serialize=tuple(dict.fromkeys(serialized)),
    )


def _acts(flag: str, arguments: Arguments) -> bool:
    """From 11 on ``--useCudaGraph`` and its like are no-ops, even beside their opposites."""
    return BY_NAME[flag].treatment(arguments.like).status == "done"


def _pairs(arguments: Arguments) -> tuple[ReferencePair, ...]:
    if not arguments.has("--refPair"):
        files = [arguments.all(name) for name in _PAIR_FILES]
        for name, given in zip(_PAIR_FILES, files, strict=True):
            if len(given) > 1:
                raise ConfigError(f"{name} comes twice", expected="--refPair=0 before the first, --refPair=1 ...")
        inputs, outputs = (given[0] if given else {} for given in files)
        if outputs and not inputs:
            raise ConfigError("--loadRefOutputs requires --loadInputs to be specified.")
        return (ReferencePair(inputs, outputs),)
    found: dict[int, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    expected = -1
    for name, value, position in arguments.only("--refPair", *_PAIR_FILES):
        if name == "--refPair":
            if value in found:
                raise ConfigError("Reference pair index cannot be the same.", where="--refPair", got=value)
            current = found[value] = {}
        elif position != expected or name in current:
            raise ConfigError(
                f"{name} belongs to no reference pair",
                expected="--refPair=0 --loadInputs=<spec> --loadRefOutputs=<spec> --refPair=1 ...",
            )
        else:
            current[name] = value
        expected = position + 1
    return _complete_pairs(found)


def _complete_pairs(found: Mapping[int, Mapping[str, Any]]) -> tuple[ReferencePair, ...]:
    if max(found) < 1:
        raise ConfigError("When using --refPair, you need at least two pairs of I/O.")
    for index in range(max(found) + 1):
        for name in _PAIR_FILES:
            if name not in found.get(index, {}):
                raise ConfigError(
                    f"Missing {name} for reference pair at index {index}. Each --refPair must have both --loadInputs "
                    "and --loadRefOutputs."
                )
    return tuple(ReferencePair(*(found[index][name] for name in _PAIR_FILES)) for index in sorted(found))


def _accuracy(arguments: Arguments, *, compares: bool, builds: bool) -> AccuracyOptions:
    algorithm = arguments.get("--accuracyAlgorithm", "l0")
    for name in ("--atol", "--rtol"):
        if algorithm != "l0" and arguments.has(name):
            raise ConfigError(
                f"{name} is only valid for L0 accuracy algorithm.", got=f"--accuracyAlgorithm={algorithm}"
            )
    threshold = arguments.get("--accuracyThreshold", 0.0) or None
    if compares and threshold is None:
        raise ConfigError(
            "--accuracyThreshold (with a positive value) is required when --loadRefOutputs or --refPair is set."
        )
    if compares and arguments.has("--skipInference", "--buildOnly"):
        raise ConfigError(
            "--loadRefOutputs/--refPair cannot be used with --skipInference: accuracy validation needs the inference "
            "phase to run."
        )
    if compares and builds:
        arguments.warn(
            "Accuracy validation (--loadRefOutputs/--refPair) with --onnx may produce unreliable results because "
            "engine builds are nondeterministic. Use --loadEngine for deterministic comparison."
        )
    return AccuracyOptions(
        algorithm=algorithm,
        atol=arguments.get("--atol", 1e-5),
        rtol=arguments.get("--rtol", 1e-5),
        threshold=threshold,
    )


def _allocation(arguments: Arguments) -> Any:
    given = arguments.get("--allocationStrategy", "static")
    if arguments.engine == "cusparselt":
        return "static"
    if given == "runtime":
        arguments.warn(
            "--allocationStrategy=runtime is done as --allocationStrategy=profile: scratch memory is allocated for "
            "the largest shapes of the profile in use, not for the shapes at hand"
        )
    return "profile" if given == "runtime" else given


def _weight_budget(arguments: Arguments) -> WeightBudget | None:
    budget: WeightBudget | None = arguments.get("--weightStreamingBudget")
    streams = arguments.has("--allowWeightStreaming")
    if arguments.has("--weightStreamingBudget") and not streams:
        raise ConfigError("The weight streaming budget can only be set with --allowWeightStreaming specified.")
    if streams and budget is None:
        arguments.warn(
            "The engine can stream its weights but it will not at runtime because --weightStreamingBudget unset or "
            "set to -2."
        )
    return budget
