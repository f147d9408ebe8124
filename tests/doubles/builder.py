"""The builder: what it refuses, what it says, what it makes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from tests.doubles import plan, sparsity
from tests.doubles.classes import Field
from tests.doubles.messages import call_back, emit, fail, register_logger
from tests.doubles.values import host_memory

PRECISIONS = ("FP16", "BF16", "INT8", "FP8", "INT4", "FP4")
PHASES = (
    ("Cloning network graph", 2),
    ("Preparing graph for optimization", 4),
    ("Computing profile costs", 1),
    ("Constructing engine from schedule", 3),
)


class Refused(Exception):  # noqa: N818 - not an error of this program
    """Why a network cannot be built: (code, kind, text, source)."""


def _bracketed(shape: Any) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


class Builder:
    """Builds plans."""

    error_recorder = Field("IErrorRecorder", nullable=True)
    gpu_allocator = Field("IGpuAllocator", nullable=True, writeonly=True)
    max_threads = Field("int", 1)
    max_batch_size = Field("int", 1)
    logger = property(lambda self: self._.logger)
    max_DLA_batch_size = Field("int", 268435456, readonly=True)  # noqa: N815 - the API's name
    num_DLA_cores = Field("int", 0, readonly=True)  # noqa: N815
    platform_has_fast_fp16 = Field("bool", default=True, readonly=True)
    platform_has_fast_int8 = Field("bool", default=True, readonly=True)
    platform_has_tf32 = Field("bool", default=True, readonly=True)
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def _init(self: Any, logger: Any) -> None:
        self._.logger = logger
        self._.networks = 0
        register_logger(self._lib, self, logger, "createInferBuilder")

    def _refuse(self: Any, where: str, code: int, kind: str, text: str, at: str) -> None:
        fail(self._lib, self.logger, self.error_recorder, where, code, kind, text, at)

    def create_builder_config(self: Any) -> Any:
        config = self._lib.new("IBuilderConfig", builder=self)
        config.reset()
        return config

    def create_optimization_profile(self: Any) -> Any:
        return self._lib.new("IOptimizationProfile", builder=self, shapes={}, values={})

    def create_network(self: Any, flags: int = 0) -> Any:
        lib = self._lib
        known = lib.classes["NetworkDefinitionCreationFlag"].__members__
        if flags >= 1 << len(known):
            text = (
                "Parameter check failed, condition: flagSet.toU32() < (1U << "
                "EnumMax<NetworkDefinitionCreationFlag>()). "
            )
            at = "createNetworkV2 at /_src/optimizer/api/builder.cpp:905"
            self._refuse("IBuilder::createNetworkV2", 3, "API Usage Error", text, at)
            return None
        named = {name for name, flag in known.items() if flags >> int(flag) & 1}
        if lib.typed:
            flags |= 1 << int(known["STRONGLY_TYPED"])
        self._.networks += 1
        return lib.new(
            "INetworkDefinition", builder=self, flags=flags, name=f"Unnamed Network {self._.networks - 1}",
            error_recorder=None, inputs=[], outputs=[], layers=[], tensors={}, model=None,
            typed=lib.typed or "STRONGLY_TYPED" in named,
            implicit_batch=lib.generation == 8 and "EXPLICIT_BATCH" not in named,
        )  # fmt: skip

    def is_network_supported(self: Any, network: Any, config: Any) -> bool:
        return self._valid(network, config)

    def reset(self: Any) -> None:
        """Nothing is kept."""

    def _valid(self: Any, network: Any, config: Any) -> bool:
        try:
            check(network, config)
        except Refused as refused:
            self._refuse("IBuilder::buildSerializedNetwork", *refused.args)
            return False
        return True

    def build_serialized_network(self: Any, network: Any, config: Any) -> Any:
        lib = self._lib
        if not self._valid(network, config):
            return None
        monitor = vars(config._).get("progress_monitor")
        if monitor is not None and not _report(monitor):
            at = "next at /_src/optimizer/common/scopedProgressReporter.cpp:92"
            self._refuse("IBuilder::buildSerializedNetwork", 7, "BuildCanceled", "Build canceled by user", at)
            return None
        flags = {name for name in lib.classes["BuilderFlag"].__members__ if config._on(name)}
        layers = sparsity.engine_layers(network._.model, flags, typed=network._.typed)
        for name, low, high in _ranges(network, config):
            if low != high:
                emit(lib, self.logger, "INFO", f"In input ({name}), minShape is not the same as maxShape.")
        for line in self._progress(network, layers, flags):
            emit(lib, self.logger, "INFO", line)
        model = network._.model.SerializeToString(deterministic=True)
        return host_memory(lib, plan.pack(lib, _facts(network, config, layers, flags, model), model))

    def _progress(self: Any, network: Any, layers: list[Any], flags: set[str]) -> list[str]:
        size = sum(i.ByteSize() for i in network._.model.graph.initializer)
        lines = [
            "Local timing cache in use. Profiling results in this builder pass will not be stored.",
            f"Detected {network.num_inputs} inputs and {network.num_outputs} output network tensors.",
            f"Total Weights Memory: {size} bytes",
        ]
        if "SPARSE_WEIGHTS" in flags and not self._lib.rtx:
            lines += sparsity.log_lines(layers, self._lib.generation)
        return [*lines, "Engine generation completed in 0.01 seconds."]

    def build_engine(self: Any, network: Any, config: Any) -> Any:
        built = self.build_serialized_network(network, config)
        return built and self._lib.classes["Runtime"](self.logger).deserialize_cuda_engine(built)

    build_engine_with_config = build_engine

    def build_serialized_network_to_stream(self: Any, network: Any, config: Any, writer: Any) -> bool:
        built = self.build_serialized_network(network, config)
        return (
            built is not None and call_back(writer, "write", bytes(built), built.nbytes, otherwise=-1) == built.nbytes
        )


def _ranges(network: Any, config: Any) -> list[tuple[str, Any, Any]]:
    found = []
    for profile in config._.profiles:
        for info in network._.inputs:
            low, _, high = profile._.shapes.get(info.name, (info.shape, (), info.shape))
            found.append((info.name, tuple(low), tuple(high)))
    return found


def _report(monitor: Any) -> bool:
    """Walk through the phases of a build; False if the user cancels."""
    outer, go_on = "Building engine", True
    call_back(monitor, "phase_start", outer, None, len(PHASES))
    for step, (phase, count) in enumerate(PHASES):
        call_back(monitor, "phase_start", phase, outer, count)
        for inner in range(count):
            go_on = go_on and call_back(monitor, "step_complete", phase, inner, otherwise=True)
        call_back(monitor, "phase_finish", phase)
        go_on = go_on and call_back(monitor, "step_complete", outer, step, otherwise=True)
        if not go_on:
            break
    call_back(monitor, "phase_finish", outer)
    return go_on


def check(network: Any, config: Any) -> None:
    """Refuse what cannot be built.

    Raises:
        Refused: With the code, the kind, the text and the source of the library's message.
    """
    source = "validate at /_src/optimizer/api/network.cpp"
    if not network._.outputs:
        raise Refused(4, "API Usage Error", "Network must have at least one output.", f"{source}:3810")
    if network._.typed:
        for name in PRECISIONS:
            if config._on(name):
                at = "createNetworkBuildConfig at /_src/optimizer/api/builder.cpp:485"
                condition = f"!config.getFlag(BuilderFlag::k{name}). "
                raise Refused(3, "API Usage Error", f"Parameter check failed, condition: {condition}", at)
    else:
        _check_int8(network, config)
    dynamic = [info for info in network._.inputs if -1 in tuple(info.shape)]
    if dynamic and not config._.profiles:
        text = "Network has dynamic or shape inputs, but no optimization profile has been defined."
        raise Refused(4, "API Usage Error", text, f"{source}:4023")
    for index, profile in enumerate(config._.profiles):
        for info in network._.inputs:
            _check_profile(info, profile, index)


def _check_int8(network: Any, config: Any) -> None:
    """Weakly typed INT8 needs the flag where the graph is quantized, and scales where it is not."""
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in network._.model.graph.node)
    enabled = config._on("INT8")
    if quantized and not enabled:
        text = "Int8 precision has been set for a layer or layer output, but int8 is not configured in the builder"
        raise Refused(4, "Internal Error", text, "validate at /_src/optimizer/api/network.cpp:2921")
    if enabled and not quantized and vars(config._).get("int8_calibrator") is None:
        text = (
            "Calibration failure occurred with no scaling factors detected. This could be due to no int8 calibrator "
            "or insufficient custom scales for network layers. Please see int8 sample to setup calibration correctly."
        )
        raise Refused(
            4, "Internal Error", text, "initCalibrationParams at /_src/optimizer/standardEngineBuilder.cpp:1460"
        )


def _check_profile(info: Any, profile: Any, index: int) -> None:
    source, kind = "validate at /_src/optimizer/api/network.cpp", "API Usage Error"
    shape, ranges = tuple(info.shape), profile._.shapes.get(info.name)
    if -1 not in shape:
        for which, given in zip(("kMIN", "kOPT", "kMAX"), ranges or (), strict=False):
            if given != shape:
                text = (
                    f"Input tensor {info.name} has static dimensions that don't match {which} dimensions in profile "
                    f"index {index}. Input dimensions are {_bracketed(shape)} but profile dimensions are "
                    f"{_bracketed(given)}."
                )
                raise Refused(4, kind, text, "operator() at /_src/optimizer/api/network.cpp:4067")
        return
    if ranges is None:
        text = f"Dynamic input tensor {info.name} is missing dimensions in profile {index}."
        raise Refused(4, kind, text, f"{source}:4046")
    low, opt, high = ranges
    if len(low) != len(shape):
        text = (
            f"Dynamic-shaped input tensor {info.name} has {len(shape)} dimensions but profile {index} has "
            f"{len(low)} dimensions."
        )
        raise Refused(4, kind, text, f"{source}:4048")
    for axis, size in enumerate(shape):
        if size != -1 and not low[axis] == opt[axis] == high[axis] == size:
            text = (
                f"Dimension mismatch for tensor {info.name} and profile {index}. At dimension axis {axis}, profile "
                f"has min={low[axis]}, opt={opt[axis]}, max={high[axis]} but tensor has {size}."
            )
            raise Refused(4, kind, text, f"{source}:4054")


def _facts(network: Any, config: Any, layers: list[Any], flags: set[str], model: bytes) -> dict[str, Any]:
    """What the engine will tell about itself."""
    profiles = []
    for profile in config._.profiles or [None]:
        known = profile._.shapes if profile is not None else {}
        profiles.append({i.name: known.get(i.name) or (tuple(i.shape),) * 3 for i in network._.inputs})
    tensors = [
        {"name": info.name, "mode": mode, "dtype": info.dtype.name, "shape": list(info.shape)}
        for mode, group in (("INPUT", network._.inputs), ("OUTPUT", network._.outputs))
        for info in group
    ]
    return {
        "name": network.name, "tensors": tensors, "profiles": profiles, "flags": sorted(flags),
        "verbosity": config.profiling_verbosity.name, "layers": [asdict(layer) for layer in layers],
        "digest": hashlib.sha256(model).hexdigest(), "aux_streams": max(config.max_aux_streams, 0),
        "capability": config.engine_capability.name, "hardware": config.hardware_compatibility_level.name,
        "pools": dict(sorted(config._.pools.items())),
    }  # fmt: skip
