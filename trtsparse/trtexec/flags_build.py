"""The rows of the table about the model and the build."""

from __future__ import annotations

from trtsparse.trtexec.flags import DONE, Flag, done, noop, refused

__all__ = ["BUILD_FLAGS"]

_CAFFE_UFF = refused(
    "TensorRT has no parser for Caffe and UFF models any more", "export the model to ONNX: --onnx=<file>"
)
_CAFFE = (5, 1), (9, 2)
_BATCH = refused(
    "the batch is a dimension of ONNX models",
    "give shapes with their batch: --shapes=input:8x3x224x224, or --minShapes, --optShapes and --maxShapes",
)
_CALIBRATED_ONCE = noop(
    "INT8 ranges are found before the build, at the opt shapes or the shapes of the inputs given: calibration shapes "
    "change nothing"
)
_BY_CONVERSION = "done by a builder flag where TensorRT has one, else by converting the model"
_IN_THE_MODEL = refused(
    "trtsparse quantizes to INT8 only",
    "a model that already holds such Q/DQ nodes needs no flag: --stronglyTyped",
)
_DLA = refused("trtsparse builds for GPUs, not for DLA", "leave it out")
_SAFETY = refused("safety-certified engines need a runtime that is not the standard TensorRT", "leave it out")
_DEBUG = refused(
    "trtsparse does not listen to tensors inside an engine",
    "make the tensors outputs of the model: --exportOutput and --dumpRawBindingsToFile write them",
)
_REFITTING = refused(
    "trtsparse does not replace weights in a loaded engine; TensorRT itself refuses dense weights for sparse layers",
    "build again with --onnx and the new weights",
)

_MODEL = (
    Flag("--onnx", "Model", "The ONNX model.", "<file>", "file", since=(5, 1)),
    Flag("--model", "Model", "Caffe model.", "<file>", "file", since=_CAFFE[0], until=_CAFFE[1], here=_CAFFE_UFF),
    Flag("--deploy", "Model", "Caffe prototxt.", "<file>", "file", since=_CAFFE[0], until=_CAFFE[1], here=_CAFFE_UFF),
    Flag("--uff", "Model", "UFF model.", "<file>", "file", since=_CAFFE[0], until=_CAFFE[1], here=_CAFFE_UFF),
    Flag("--uffInput", "Model", "UFF input.", "spec", "text", since=_CAFFE[0], until=_CAFFE[1], here=_CAFFE_UFF),
    Flag("--uffNHWC", "Model", "UFF inputs are NHWC.", since=(6, 0), until=_CAFFE[1], here=_CAFFE_UFF),
    Flag("--input", "Model", "Caffe input.", "<name>", "text", since=(5, 1), until=(5, 1), here=_CAFFE_UFF),
    Flag("--output", "Model", "Caffe or UFF output.", "<name>", "text", since=_CAFFE[0], until=_CAFFE[1],
         here=_CAFFE_UFF),
)  # fmt: skip

_SHAPES = (
    Flag("--maxBatch", "Build", "Largest implicit batch.", "N", "integer", since=(6, 0), until=(9, 2), here=_BATCH),
    Flag("--explicitBatch", "Build", "Explicit batch.", since=(6, 0), until=(9, 3),
         here=noop("the batch of ONNX models is always explicit"),
         on={8: noop(
             "--explicitBatch flag has been deprecated and has no effect!\n"
             "Explicit batch dim is automatically enabled if input model is ONNX or if dynamic shapes are provided "
             "when the engine is built."
         )},
         instead="the batch of ONNX models is always explicit"),
    Flag("--minShapes", "Build", "Smallest shapes of a profile: x:1x3x224x224,y:1x2.", "spec", "shapes",
         repeatable=True, since=(6, 0)),
    Flag("--optShapes", "Build", "Shapes that a profile is tuned for.", "spec", "shapes", repeatable=True,
         since=(6, 0)),
    Flag("--maxShapes", "Build", "Largest shapes of a profile.", "spec", "shapes", repeatable=True, since=(6, 0)),
    Flag("--profile", "Build", "Begins profile N; its --minShapes, --optShapes and --maxShapes follow it.", "N",
         "integer", low=0, repeatable=True, since=(9, 1)),
    Flag("--minShapesCalib", "Build", "Smallest shapes to calibrate with.", "spec", "shapes", since=(7, 1),
         until=(10, 16), here=_CALIBRATED_ONCE, instead="calibration shapes change nothing here"),
    Flag("--optShapesCalib", "Build", "Shapes to calibrate with.", "spec", "shapes", since=(7, 1), until=(10, 16),
         here=_CALIBRATED_ONCE, instead="calibration shapes change nothing here"),
    Flag("--maxShapesCalib", "Build", "Largest shapes to calibrate with.", "spec", "shapes", since=(7, 1),
         until=(10, 16), here=_CALIBRATED_ONCE, instead="calibration shapes change nothing here"),
    Flag("--calibProfile", "Build", "Profile to calibrate with.", "N", "integer", low=0, since=(9, 1), until=(10, 16),
         here=_CALIBRATED_ONCE, instead="calibration shapes change nothing here"),
    Flag("--inputIOFormats", "Build", "Type and layout of each input: fp32:chw, or chw. Only chw is done.", "spec",
         "formats", since=(6, 0)),
    Flag("--outputIOFormats", "Build", "The same for outputs.", "spec", "formats", since=(6, 0)),
)  # fmt: skip

_PRECISION = (
    Flag("--noTF32", "Build", "FP32 without TF32.", since=(7, 1)),
    Flag("--fp16", "Build", "FP16 kernels.", since=(5, 1), until=(10, 16), instead=_BY_CONVERSION),
    Flag("--bf16", "Build", "BF16 kernels.", since=(9, 1), until=(10, 16), instead=_BY_CONVERSION),
    Flag("--int8", "Build", "INT8 kernels; ranges from random numbers unless the model is quantized.", since=(5, 1),
         until=(10, 16), instead=_BY_CONVERSION),
    Flag("--fp8", "Build", "FP8 kernels.", since=(8, 6), until=(10, 16), here=_IN_THE_MODEL),
    Flag("--int4", "Build", "INT4 weights.", since=(10, 1), until=(10, 16), here=_IN_THE_MODEL),
    Flag("--best", "Build", "FP16, BF16 and TF32, and INT8 for models that are quantized.", since=(7, 1),
         until=(10, 16), instead=_BY_CONVERSION),
    Flag("--stronglyTyped", "Build", "The model's own types are law.", since=(9, 1)),
    Flag("--explicitPrecision", "Build", "Explicit precision.", since=(8, 0), until=(9, 3),
         here=noop("Q/DQ nodes are always honoured"),
         on={8: noop("--explicitPrecision flag has been deprecated and has no effect!")},
         instead="Q/DQ nodes are always honoured"),
    Flag("--precisionConstraints", "Build", "What --layerPrecisions binds.", "spec", "choice",
         choices=("none", "prefer", "obey"), since=(8, 2), until=(10, 16)),
    Flag("--layerPrecisions", "Build", "Layers to leave in FP32: name:fp32,...; names may have one '*'.", "spec",
         "types", since=(8, 4), until=(10, 16)),
    Flag("--layerOutputTypes", "Build", "Types of layers' outputs.", "spec", "text", since=(8, 4), until=(10, 16),
         here=refused("the types of outputs follow from their layers", "use --layerPrecisions=name:fp32")),
    Flag("--layerDeviceTypes", "Build", "GPU or DLA by layer.", "spec", "text", since=(8, 6), here=_DLA),
    Flag("--calib", "Build", "INT8 calibration cache.", "<file>", "file", since=(5, 1), until=(10, 16),
         here=refused(
             "INT8 ranges are found by running the model, not read from TensorRT's calibration cache",
             "trtsparse build --precision int8 --samples <folder> calibrates with real inputs; a quantized (Q/DQ) "
             "model needs none",
         )),
    Flag("--sparsity", "Build", "Sparse kernels: enable, or force to prune by magnitude first.", "spec", "choice",
         choices=("disable", "enable", "force"), since=(8, 0)),
)  # fmt: skip

_ENGINE = (
    Flag("--saveEngine", "Build", "Where to write the plan, or the engine of --engine=cusparselt.", "<file>", "file",
         since=(5, 1)),
    Flag("--loadEngine", "Build", "A plan, or such an engine, to load instead of building.", "<file>", "file",
         since=(5, 1)),
    Flag("--asyncFileReader", "Build", "Read the plan asynchronously.", since=(10, 7),
         here=noop("--asyncFileReader: plans are read at once here; the time of inference is the same"),
         instead="plans are read at once here; the time of inference is the same"),
    Flag("--getPlanVersionOnly", "Build", "Print which TensorRT wrote --loadEngine, and stop.", since=(9, 1)),
    Flag("--buildOnly", "Build", "As --skipInference.", since=(6, 0), until=(9, 3),
         on={8: done("--buildOnly flag has been deprecated by --skipInference flag.")},
         instead="done as --skipInference"),
    Flag("--refit", "Build", "Weights can be replaced later.", since=(7, 2)),
    Flag("--stripWeights", "Build", "Leave the weights out of the plan.", since=(10, 0)),
    Flag("--weightless", "Build", "As --stripWeights.", since=(9, 3), until=(10, 16),
         instead="done as --stripWeights"),
    Flag("--stripAllWeights", "Build", "--refit and --stripWeights.", since=(10, 1)),
    Flag("--refitFromOnnx", "Build", "Replace the engine's weights.", "<file>", "file", since=(10, 14),
         here=_REFITTING),
    Flag("--versionCompatible", "Build", "A plan that newer TensorRT versions can load.", aliases=("--vc",),
         since=(8, 6)),
    Flag("--excludeLeanRuntime", "Build", "Leave the lean runtime out of such a plan.", since=(8, 6)),
    Flag("--useRuntime", "Build", "Only full is done.", "runtime", "choice", choices=("full", "dispatch", "lean"),
         since=(8, 6)),
    Flag("--leanDLLPath", "Build", "Lean runtime to load version-compatible plans with.", "<file>", "file",
         since=(8, 6)),
    Flag("--hardwareCompatibilityLevel", "Build", "Other GPUs that can run the engine.", "mode", "choice",
         choices=("none", "ampere+", "sameComputeCapability"), since=(8, 6)),
    Flag("--runtimePlatform", "Build", "System that will run the engine.", "platform", "choice",
         choices=("SameAsBuild", "WindowsAMD64"), since=(10, 2)),
    Flag("--allowWeightStreaming", "Build", "Weights can stay in host memory.", since=(10, 0)),
    Flag("--profilingVerbosity", "Build", "What the engine can tell about its layers.", "mode", "choice",
         choices=("layer_names_only", "detailed", "none", "default", "verbose"), since=(8, 2)),
    Flag("--nvtxMode", "Build", "As --profilingVerbosity.", "mode", "choice", choices=("default", "verbose", "none"),
         since=(7, 1), until=(9, 3),
         on={8: done("--nvtxMode flag has been deprecated by --profilingVerbosity flag.")},
         instead="done as --profilingVerbosity"),
)  # fmt: skip

_BUILDER = (
    Flag("--memPoolSize", "Build", "Limits in MiB, or with B, K, M, G: workspace:2G,tacticSharedMem:48K.", "spec",
         "pools", since=(8, 4)),
    Flag("--workspace", "Build", "Workspace in MiB.", "N", "number", low=0, since=(5, 1), until=(9, 3),
         on={8: done("--workspace flag has been deprecated by --memPoolSize flag.")},
         instead="done as --memPoolSize=workspace:N"),
    Flag("--builderOptimizationLevel", "Build", "0 (fast builds) to 5 (fast engines).", "N", "integer", low=-1,
         high=5, since=(8, 6)),
    Flag("--heuristic", "Build", "Pick kernels by heuristics.", since=(8, 5), until=(9, 3),
         on={8: done(
             "--heuristic flag has been deprecated, use --builderOptimizationLevel=<N> flag instead "
             "(N <= 2 enables heuristic)."
         )},
         instead="done as --builderOptimizationLevel=2"),
    Flag("--minTiming", "Build", "Least number of timings of each kernel.", "M", "integer", low=1, since=(6, 0),
         until=(9, 3), here=noop("TensorRT has no such setting since version 10"), on={8: DONE},
         instead="TensorRT has no such setting since version 10"),
    Flag("--avgTiming", "Build", "Timings averaged for each kernel.", "M", "integer", low=1, since=(6, 0)),
    Flag("--maxTactics", "Build", "Most kernels to time for a layer.", "N", "integer", low=-1, since=(10, 4)),
    Flag("--maxAuxStreams", "Build", "CUDA streams beside the engine's own.", "N", "integer", low=-1, since=(8, 6)),
    Flag("--timingCacheFile", "Build", "Kernel timings, read before and updated after the build.", "<file>", "file",
         since=(8, 0)),
    Flag("--noBuilderCache", "Build", "No timing cache.", since=(7, 1)),
    Flag("--noCompilationCache", "Build", "No compilation cache.", since=(9, 1)),
    Flag("--errorOnTimingCacheMiss", "Build", "Fail where the timing cache lacks a kernel.", since=(9, 1)),
    Flag("--tacticSources", "Build", "Libraries of kernels: +JIT_CONVOLUTIONS,-EDGE_MASK_CONVOLUTIONS.", "spec",
         "signed", choices=("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
         since=(7, 2)),
    Flag("--preview", "Build", "Preview features: +aliasedPluginIO1003,-runtimeActivationResize.", "spec", "signed",
         choices=("fasterDynamicShapes0805", "disableExternalTacticSourcesForCore0805", "profileSharing0806",
                  "aliasedPluginIO1003", "runtimeActivationResize", "multiDeviceRuntime"),
         since=(8, 5)),
    Flag("--directIO", "Build", "No reformatting at inputs and outputs.", since=(8, 2),
         on={like: done("--directIO flag has been deprecated") for like in (10, 11)}),
    Flag("--restricted", "Build", "Check that layers are in the safety scope.", since=(8, 2), until=(10, 16)),
    Flag("--monitorMemory", "Build", "TensorRT reports its memory.", since=(10, 6)),
    Flag("--distributiveIndependence", "Build", "Results do not depend on the batch's other members.",
         since=(10, 12)),
    Flag("--tilingOptimizationLevel", "Build", "0 (none) to 3 (full).", "N", "integer", low=0, high=3, since=(10, 8)),
    Flag("--l2LimitForTiling", "Build", "L2 cache for tiling, in bytes.", "N", "integer", low=-1, since=(10, 8)),
    Flag("--pluginInstanceNorm", "Build", "InstanceNorm by the plugin.", aliases=("--pi",), since=(10, 0)),
    Flag("--nativeInstanceNorm", "Build", "InstanceNorm by TensorRT itself.", aliases=("--ni",), since=(9, 1),
         until=(9, 3), here=noop("this is the default since TensorRT 10"), instead="this is the default"),
    Flag("--enablePluginOverride", "Build", "Plugins may replace ONNX operators.", since=(10, 15)),
    Flag("--tempdir", "Build", "Where TensorRT puts temporary files.", "<dir>", "file", since=(8, 6)),
    Flag("--tempfileControls", "Build", "in_memory:allow|deny,temporary:allow|deny.", "spec", "controls",
         since=(8, 6)),
    Flag("--decomposableAttentions", "Build", "Attentions that may be taken apart.", "spec", "text", since=(10, 14),
         here=refused("trtsparse does not set this for single attentions", "leave it out")),
    Flag("--markDebug", "Build", "Tensors to debug.", "spec", "text", since=(10, 0), here=_DEBUG),
    Flag("--markUnfusedTensorsAsDebugTensors", "Build", "All unfused tensors to debug.", since=(10, 12), here=_DEBUG),
)  # fmt: skip

_OTHER_TARGETS = (
    Flag("--allowGPUFallback", "Build", "For layers that DLA does not have.", since=(5, 1),
         here=noop("--allowGPUFallback: without DLA all layers are on the GPU")),
    Flag("--buildDLAStandalone", "Build", "DLA loadable.", since=(8, 6), here=_DLA),
    Flag("--uint8AsymmetricQuantizationDLA", "Build", "UINT8 for DLA.", since=(10, 11), here=_DLA),
    Flag("--reportCapabilityDLA", "Build", "Check that DLA can run all nodes.", since=(10, 16), here=_DLA),
    Flag("--adjustForDLA", "Build", "Rewrite layers for DLA.", since=(10, 16), here=_DLA),
    Flag("--safe", "Build", "Safety-certified engine.", since=(5, 1), here=_SAFETY),
    Flag("--consistency", "Build", "Check a safety-certified engine.", since=(8, 2),
         here=noop("Skipping consistency checker on non-safety mode.")),
    Flag("--dumpKernelText", "Build", "Kernel text of a safety-certified engine.", since=(10, 13), here=_SAFETY),
    Flag("--remoteAutoTuningConfig", "Build", "Tune on another machine.", "config", "text", since=(10, 13),
         here=_SAFETY),
    Flag("--cpuOnly", "Build", "Build safety-certified engines without a GPU.", since=(10, 15),
         here=refused("without a GPU only TensorRT-RTX builds", "install it: pip install 'trtsparse[rtx]'")),
)  # fmt: skip

BUILD_FLAGS: tuple[Flag, ...] = (*_MODEL, *_SHAPES, *_PRECISION, *_ENGINE, *_BUILDER, *_OTHER_TARGETS)
