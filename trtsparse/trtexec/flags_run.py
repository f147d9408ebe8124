"""The rows of the table about inference, tuning, reports and the machine, and our own two flags."""

from __future__ import annotations

from trtsparse.trtexec.flags import Flag, done, noop, refused

__all__ = ["RUN_FLAGS"]

_ROUTES = refused(
    "trtsparse does not search over build routes",
    "build one route with --setBuildRoute=<route>",
)
_DEBUG = refused(
    "trtsparse does not listen to tensors inside an engine",
    "make the tensors outputs of the model: --exportOutput and --dumpRawBindingsToFile write them",
)

_INPUTS = (
    Flag("--batch", "Inference", "Implicit batch.", "N", "integer", since=(5, 1), until=(9, 2),
         here=refused("the batch is a dimension of ONNX models", "give shapes: --shapes=input:8x3x224x224")),
    Flag("--shapes", "Inference", "Input shapes to run with: x:8x3x224x224; names may have one '*'.", "spec",
         "shapes", since=(6, 0)),
    Flag("--loadInputs", "Inference", "Raw input files: x:x.bin,'y:0':y.bin.", "spec", "files", repeatable=True,
         since=(7, 0)),
    Flag("--loadRefOutputs", "Inference", "Raw files of the right outputs, to compare with.", "spec", "files",
         repeatable=True, since=(11, 1)),
    Flag("--refPair", "Inference", "Begins pair N; its --loadInputs and --loadRefOutputs follow it.", "N", "integer",
         low=0, repeatable=True, since=(11, 1)),
    Flag("--accuracyAlgorithm", "Inference", "How outputs are compared.", "spec", "choice",
         choices=("l0", "l1", "l2", "lInf", "cos"), since=(11, 1)),
    Flag("--atol", "Inference", "Absolute tolerance of l0 (default 1e-5).", "X", "number", low=0, since=(11, 1)),
    Flag("--rtol", "Inference", "Relative tolerance of l0 (default 1e-5).", "X", "number", low=0, since=(11, 1)),
    Flag("--accuracyThreshold", "Inference", "Largest loss that passes.", "X", "number", low=0, since=(11, 1)),
)  # fmt: skip

_MEASURING = (
    Flag("--iterations", "Inference", "Least number of queries (default 10).", "N", "integer", low=1, since=(5, 1)),
    Flag("--duration", "Inference", "Least time in seconds (default 3).", "N", "number", low=0, since=(6, 0),
         hint="trtexec's -1, without end, is not done: give a time"),
    Flag("--warmUp", "Inference", "Milliseconds before anything counts (default 200).", "N", "number", low=0,
         since=(6, 0)),
    Flag("--sleepTime", "Inference", "Milliseconds between launch and compute.", "N", "number", low=0, since=(7, 0)),
    Flag("--idleTime", "Inference", "Milliseconds between two queries.", "N", "number", low=0, since=(8, 2)),
    Flag("--infStreams", "Inference", "Queries that run at once (default 1).", "N", "integer", low=1, since=(8, 6)),
    Flag("--streams", "Inference", "As --infStreams.", "N", "integer", low=1, since=(6, 0),
         here=done("--streams flag has been deprecated, use --infStreams flag instead.")),
    Flag("--threads", "Inference", "Each of them from a thread of its own.", since=(6, 0)),
    Flag("--exposeDMA", "Inference", "Copies do not overlap with compute.", since=(7, 0)),
    Flag("--includeDataTransfers", "Inference", "Copy inputs and outputs for each query (default up to 10).",
         since=(11, 0), instead="this is its default"),
    Flag("--noDataTransfers", "Inference", "Copy nothing (default from 11 on).", since=(7, 2),
         on={11: noop(
             "--noDataTransfers is deprecated. Data transfers are now disabled by default. "
             "Use --includeDataTransfers to re-enable data transfers."
         )}),
    Flag("--useManagedMemory", "Inference", "Managed memory.", since=(8, 2),
         here=refused("buffers are device memory and page-locked host memory here", "leave it out")),
    Flag("--useSpinWait", "Inference", "Wait for the GPU actively (default from 11 on).", since=(5, 1),
         on={11: noop(
             "--useSpinWait is deprecated. Spin wait is now enabled by default. "
             "Use --noSpinWait to disable spin wait."
         )}),
    Flag("--noSpinWait", "Inference", "Wait for the GPU asleep (default up to 10).", since=(11, 0),
         instead="this is its default"),
    Flag("--useCudaGraph", "Inference", "Replay a CUDA graph (default from 11 on).", since=(6, 0),
         on={11: noop(
             "--useCudaGraph is deprecated. CUDA graph is now enabled by default. "
             "Use --noCudaGraph to disable CUDA graph."
         )}),
    Flag("--noCudaGraph", "Inference", "Launch kernels one by one (default up to 10).", since=(11, 0),
         instead="this is its default"),
    Flag("--separateProfileRun", "Inference", "Time layers in a second run (always from 11 on).", since=(7, 2),
         on={11: noop(
             "--separateProfileRun is deprecated. Separate profile run is now always enabled. "
             "This flag will be removed in a future release."
         )}),
    Flag("--skipInference", "Inference", "Stop after building or loading.", since=(8, 6)),
    Flag("--timeDeserialize", "Inference", "Measure loading the engine, and stop.", since=(8, 0)),
    Flag("--timeRefit", "Inference", "Measure refitting.", since=(8, 0),
         here=refused(
             "trtsparse does not replace weights in a loaded engine",
             "leave it out; --refit still builds an engine whose weights can be replaced",
         )),
    Flag("--persistentCacheRatio", "Inference", "Share of the L2 cache that persists.", "X", "number", low=0, high=1,
         since=(8, 5), here=refused("trtsparse leaves the L2 cache as CUDA sets it", "leave it out")),
    Flag("--useProfile", "Inference", "Optimization profile to run with (default 0).", "N", "integer", low=0,
         since=(9, 1)),
    Flag("--allocationStrategy", "Inference", "Scratch memory for all profiles, or for the one in use.", "spec",
         "choice", choices=("static", "profile", "runtime"), since=(10, 0)),
    Flag("--weightStreamingBudget", "Inference", "Weights on the GPU: bytes (B, K, M, G), N%, -1 auto, -2 off.", "N",
         "budget", since=(10, 0)),
    Flag("--saveDebugTensors", "Inference", "Files for debug tensors.", "spec", "text", since=(10, 0), here=_DEBUG),
    Flag("--saveAllDebugTensors", "Inference", "Formats of debug tensors.", "spec", "text", since=(10, 12),
         here=_DEBUG),
)  # fmt: skip

_TUNING = (
    Flag("--setBuildRoute", "Tuning", 'Build one route: "-knob=value -knob=value".', "<route>", "text",
         since=(11, 1)),
    Flag("--tuneBuildRoutes", "Tuning", "Try several routes.", "<expr>", "text", since=(11, 1), here=_ROUTES),
    Flag("--tuneBuildRouteFile", "Tuning", "The same from a file.", "<file>", "file", since=(11, 1), here=_ROUTES),
    Flag("--tuningSearch", "Tuning", "How to search.", "spec", "text", since=(11, 1), here=_ROUTES),
    Flag("--tuningCacheFile", "Tuning", "Results of the search.", "<file>", "file", since=(11, 1), here=_ROUTES),
    Flag("--tuningTimeOut", "Tuning", "Seconds for the search.", "N", "text", since=(11, 1), here=_ROUTES),
    Flag("--tuningResultFile", "Tuning", "Result of one step of the search.", "<file>", "file", since=(11, 1),
         here=_ROUTES),
    Flag("--saveAllEngines", "Tuning", "Engines of all routes.", since=(11, 1), here=_ROUTES),
    Flag("--dryRun", "Tuning", "List the routes.", since=(11, 1), here=_ROUTES),
    Flag("--continue", "Tuning", "Resume the search.", since=(11, 1), here=_ROUTES),
    Flag("--helpBuildRoute", "Tuning", "List the knobs of routes.", since=(11, 1), here=_ROUTES),
)  # fmt: skip

_REPORTING = (
    Flag("--verbose", "Reporting", "Print TensorRT's verbose messages.", since=(5, 1)),
    Flag("--avgRuns", "Reporting", "Queries averaged in one line (default 10).", "N", "integer", low=1, since=(5, 1)),
    Flag("--percentile", "Reporting", "0 to 100 (default 90,95,99).", "P1,P2,...", "percentiles", since=(5, 1)),
    Flag("--dumpRefit", "Reporting", "Print what can be refitted.", since=(7, 2)),
    Flag("--dumpOutput", "Reporting", "Print the outputs of the last query.", since=(5, 1)),
    Flag("--dumpRawBindingsToFile", "Reporting", "Write its inputs and outputs to raw files.", since=(8, 6)),
    Flag("--dumpProfile", "Reporting", "Print the time of each layer.", since=(6, 0)),
    Flag("--dumpLayerTime", "Reporting", "As --dumpProfile.", since=(5, 1), until=(5, 1),
         instead="done as --dumpProfile"),
    Flag("--dumpLayerInfo", "Reporting", "Print what the engine tells about its layers.", since=(8, 2)),
    Flag("--dumpOptimizationProfile", "Reporting", "Print the engine's optimization profiles.", since=(9, 1)),
    Flag("--exportTimes", "Reporting", "JSON: the times of each query.", "<file>", "file", since=(6, 0)),
    Flag("--exportOutput", "Reporting", "JSON: the outputs.", "<file>", "file", since=(7, 0)),
    Flag("--exportProfile", "Reporting", "JSON: the time of each layer.", "<file>", "file", since=(6, 0)),
    Flag("--exportLayerInfo", "Reporting", "JSON: what the engine tells about its layers.", "<file>", "file",
         since=(8, 2)),
)  # fmt: skip

_SYSTEM = (
    Flag("--device", "System", "Index of the GPU (default 0).", "N", "integer", low=0, since=(5, 1)),
    Flag("--useDLACore", "System", "DLA core.", "N", "integer", since=(5, 1),
         here=refused("trtsparse builds for GPUs, not for DLA", "leave it out")),
    Flag("--staticPlugins", "System", "Plugin library to load first.", "<file>", "file", repeatable=True,
         since=(8, 6)),
    Flag("--plugins", "System", "As --staticPlugins.", "<file>", "file", repeatable=True, since=(6, 0),
         here=done("--plugins flag has been deprecated, use --staticPlugins flag instead.")),
    Flag("--dynamicPlugins", "System", "Plugin library to load first.", "<file>", "file", repeatable=True,
         since=(8, 6)),
    Flag("--setPluginsToSerialize", "System", "Plugin library to put into a version-compatible plan.", "<file>",
         "file", repeatable=True, since=(8, 6)),
    Flag("--ignoreParsedPluginLibs", "System", "Plugins that the parser found are not put into the plan.",
         since=(8, 6),
         here=noop("--ignoreParsedPluginLibs: only libraries named by --setPluginsToSerialize go into a plan here")),
    Flag("--safetyPlugins", "System", "Safety-certified plugins.", "<file>", "file", since=(10, 13),
         here=refused(
             "safety-certified engines need a runtime that is not the standard TensorRT", "use --dynamicPlugins"
         )),
)  # fmt: skip

_OTHERS = (
    Flag("--help", "Help", "Print this.", aliases=("-h",), since=(5, 1)),
    Flag("--like", "trtsparse", "Whose defaults apply; by default the installed TensorRT's.", "8|10|11", "choice",
         choices=("8", "10", "11")),
    Flag("--engine", "trtsparse", "What executes; by default what fits the model or plan. cusparselt is for ONNX "
         "models on a GPU without TensorRT; --help beside it tells which flags it takes.", "name", "choice",
         choices=("auto", "tensorrt", "onnxruntime", "cusparselt"),
         hint="a plan is named by --loadEngine=<file> or --saveEngine=<file>"),
)  # fmt: skip

RUN_FLAGS: tuple[Flag, ...] = (*_INPUTS, *_MEASURING, *_TUNING, *_REPORTING, *_SYSTEM, *_OTHERS)
