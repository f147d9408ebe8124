"""What becomes of trtexec's flags with ``--engine=cusparselt``, where that is not what becomes of them otherwise.

A flag is refused where it asks for something of the result that this engine cannot give. It is a no-op where it is
about how TensorRT builds, which leaves the result as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trtsparse.trtexec.flags import DONE, Flag, Treatment, noop, refused

__all__ = ["COMPILED_FROM", "CUSPARSELT", "for_cusparselt"]

_BUILDER = noop("it is about TensorRT's builder, and kernels are chosen by their times here")
_NO_CALIBRATION = noop("INT8 follows from the model's Q/DQ nodes, and nothing is calibrated")
_NO_PLUGINS = noop("no plugin is used here")
_ANYWHERE = noop("on another GPU, or with other libraries, the kernels of a saved engine are chosen anew")
_WORKSPACE = noop("kernels take the workspace that they need")
_ALWAYS_TOLD = noop("this engine always tells the names of its steps")
_NO_TENSORRT = refused("this engine executes without TensorRT", "leave it out")
_PLUGINS = refused("TensorRT's plugins are not executed without TensorRT", "leave --engine=cusparselt out")
_ONE_TYPE = "this engine computes a model in one type, and in INT8 where it has Q/DQ nodes"
_KEPT_WEIGHTS = refused("the weights of this engine cannot be replaced", "save it again, from the new model")
_RESIDENT = refused("the weights of this engine stay on the GPU", "leave it out")
_MODELS_TYPES = refused("inputs and outputs of this engine have the model's types", "leave it out")

CUSPARSELT: Mapping[str, Treatment] = {
    **dict.fromkeys(("--fp16", "--bf16", "--int8"), DONE),
    "--best": refused(_ONE_TYPE, "--fp16 or --bf16"),
    "--noTF32": refused(
        "this engine does not set TF32", "--stronglyTyped: products are in FP32 then, convolutions as PyTorch is set"
    ),
    "--layerPrecisions": refused(_ONE_TYPE, "leave it out; --fp16 leaves in FP32 what would overflow"),
    "--precisionConstraints": noop("it binds --layerPrecisions, which this engine does not have"),
    **dict.fromkeys(("--inputIOFormats", "--outputIOFormats"), _MODELS_TYPES),
    **dict.fromkeys(("--minShapesCalib", "--optShapesCalib", "--maxShapesCalib", "--calibProfile"), _NO_CALIBRATION),
    **dict.fromkeys(("--refit", "--stripWeights", "--weightless", "--stripAllWeights", "--dumpRefit"), _KEPT_WEIGHTS),
    **dict.fromkeys(("--versionCompatible", "--hardwareCompatibilityLevel"), _ANYWHERE),
    "--excludeLeanRuntime": noop("a saved engine brings no runtime"),
    **dict.fromkeys(
        ("--useRuntime", "--leanDLLPath", "--runtimePlatform", "--restricted", "--setBuildRoute", "--tempdir",
         "--tempfileControls"),
        _NO_TENSORRT,
    ),
    **dict.fromkeys(("--allowWeightStreaming", "--weightStreamingBudget"), _RESIDENT),
    **dict.fromkeys(("--profilingVerbosity", "--nvtxMode"), _ALWAYS_TOLD),
    **dict.fromkeys(("--memPoolSize", "--workspace"), _WORKSPACE),
    "--builderOptimizationLevel": DONE,
    **dict.fromkeys(
        ("--heuristic", "--minTiming", "--avgTiming", "--maxTactics", "--tacticSources",
         "--preview", "--noCompilationCache", "--monitorMemory", "--tilingOptimizationLevel", "--l2LimitForTiling"),
        _BUILDER,
    ),
    "--maxAuxStreams": noop("this engine executes on one stream"),
    "--noBuilderCache": refused("the times of kernels are always kept", "--timingCacheFile=<new file> has none"),
    "--errorOnTimingCacheMiss": refused("kernels that nobody timed are timed", "leave it out"),
    "--directIO": refused("this engine copies inputs and outputs to and from its CUDA graph", "leave it out"),
    "--distributiveIndependence": refused("the kernels for another batch may sum in another order", "leave it out"),
    **dict.fromkeys(("--nativeInstanceNorm", "--ignoreParsedPluginLibs"), _NO_PLUGINS),
    **dict.fromkeys(
        ("--pluginInstanceNorm", "--enablePluginOverride", "--staticPlugins", "--plugins", "--dynamicPlugins",
         "--setPluginsToSerialize"),
        _PLUGINS,
    ),
    "--allocationStrategy": noop("PyTorch allocates this engine's memory"),
    "--useCudaGraph": noop("this engine always launches CUDA graphs of its own"),
    "--noCudaGraph": refused("this engine always launches CUDA graphs of its own", "leave it out"),
}  # fmt: skip
"""By the flag's name; a flag that is not here is treated as for TensorRT."""
COMPILED_FROM = 4
"""The least --builderOptimizationLevel at which models are compiled."""
_HELP = {
    "--builderOptimizationLevel": f"{COMPILED_FROM} or 5: torch.compile fuses what surrounds the products.",
}


def for_cusparselt(flag: Flag) -> Flag:
    """The flag's row as it is with this engine.

    Example:
        >>> row = Flag("--workspace", "Build", "Workspace in MiB.", "N", "number", since=(5, 1), until=(9, 3))
        >>> for_cusparselt(row).treatment(8).text
        '--workspace changes nothing: kernels take the workspace that they need'
    """
    own = CUSPARSELT.get(flag.name)
    if own is None:
        return flag
    if own.status != "no-op":
        return replace(flag, here=own, on={}, instead="done all the same", help=_HELP.get(flag.name, flag.help))
    told = f"changes nothing: {own.text}"
    return replace(flag, here=noop(f"{flag.name} {told}"), on={}, instead=f"it {told}")
