"""What becomes of trtexec's flags with ``--engine=cusparselt``, where that is not what becomes of them otherwise.

A flag is refused where it asks for something of the result that this engine cannot give. It is a no-op where it is
about how TensorRT builds, which leaves the result as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trtsparse.builder.config import COMPILED_FROM
from trtsparse.trtexec.flags import DONE, Flag, Treatment, noop, refused

__all__ = ["CUSPARSELT", "DEFAULTS", "for_cusparselt"]

_BUILDER = noop("it is about TensorRT's builder, and kernels are chosen by their times here")
_NO_CALIBRATION = noop("INT8 follows from the model's Q/DQ nodes, and nothing is calibrated")
_NO_PLUGINS = noop("no plugin is used here")
_ANYWHERE = noop("on another GPU, or with other libraries, the kernels of a saved engine are chosen anew")
_WORKSPACE = noop("kernels take the workspace that they need")
_ALWAYS_TOLD = noop("this engine always tells the names of its steps")
_NO_TENSORRT = refused("this engine executes without TensorRT", "leave it out")
_PLUGINS = refused("TensorRT's plugins are not executed without TensorRT", "leave --engine=cusparselt out")
_ONE_TYPE = "this engine computes a model in one type, and in INT8 where it has Q/DQ nodes"
_ROUTES = refused(
    "this engine has no build routes: each kernel is the fastest of those that it times", "leave it out"
)
_INT8_ONLY = refused(
    "this engine computes nothing in FP8 and INT4", "leave it out; INT8 is for models with Q/DQ nodes"
)
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
    "--layerOutputTypes": refused(_ONE_TYPE, "leave it out"),
    **dict.fromkeys(("--fp8", "--int4"), _INT8_ONLY),
    "--calib": refused(
        "INT8 follows from the model's Q/DQ nodes, and no calibration cache is read",
        "give a model with Q/DQ nodes, such as trtsparse.precision.int8.to_int8 makes",
    ),
    "--precisionConstraints": noop("it binds --layerPrecisions, which this engine does not have"),
    **dict.fromkeys(("--inputIOFormats", "--outputIOFormats"), _MODELS_TYPES),
    **dict.fromkeys(("--minShapesCalib", "--optShapesCalib", "--maxShapesCalib", "--calibProfile"), _NO_CALIBRATION),
    **dict.fromkeys(
        ("--refit", "--stripWeights", "--weightless", "--stripAllWeights", "--dumpRefit", "--refitFromOnnx",
         "--timeRefit"),
        _KEPT_WEIGHTS,
    ),
    **dict.fromkeys(("--versionCompatible", "--hardwareCompatibilityLevel"), _ANYWHERE),
    "--excludeLeanRuntime": noop("a saved engine brings no runtime"),
    **dict.fromkeys(
        ("--useRuntime", "--leanDLLPath", "--runtimePlatform", "--restricted", "--setBuildRoute", "--tempdir",
         "--tempfileControls"),
        _NO_TENSORRT,
    ),
    "--cpuOnly": refused("this engine needs a GPU", "--engine=onnxruntime executes on the CPU"),
    **dict.fromkeys(
        ("--tuneBuildRoutes", "--tuneBuildRouteFile", "--tuningSearch", "--tuningCacheFile", "--tuningTimeOut",
         "--tuningResultFile", "--saveAllEngines", "--dryRun", "--continue", "--helpBuildRoute"),
        _ROUTES,
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
    "--safetyPlugins": refused("TensorRT's plugins are not executed without TensorRT", "leave it out"),
    "--allocationStrategy": noop("PyTorch allocates this engine's memory"),
    "--useCudaGraph": noop("this engine always launches CUDA graphs of its own"),
    "--noCudaGraph": refused("this engine always launches CUDA graphs of its own", "leave it out"),
}  # fmt: skip
"""By the flag's name; a flag that is not here is treated as for TensorRT."""
DEFAULTS = (
    "With --engine=cusparselt FP32 values are computed in BF16, and sparse kernels are enabled; trtexec's own "
    "defaults are TF32, and --sparsity=disable."
)
_HELP = {
    "--fp16": "FP32 values are computed in FP16, except where that would overflow.",
    "--bf16": "FP32 values are computed in BF16: this engine's default.",
    "--int8": "INT8 where the model has Q/DQ nodes; a model without any is rejected.",
    "--sparsity": "Sparse kernels: enable is this engine's default; force prunes by magnitude first.",
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
    flag = replace(flag, help=_HELP.get(flag.name, flag.help))
    if own is None:
        return flag
    if own.status != "no-op":
        return replace(flag, here=own, on={}, instead="done all the same")
    told = f"changes nothing: {own.text}"
    return replace(flag, here=noop(f"{flag.name} {told}"), on={}, instead=f"it {told}")
