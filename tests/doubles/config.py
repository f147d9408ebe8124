"""Builder configuration, optimization profiles, timing caches."""

from __future__ import annotations

from typing import Any

from tests.doubles.classes import Field
from tests.doubles.messages import emit, fail
from tests.doubles.values import host_memory

GIB = 1 << 30
POOLS = {"WORKSPACE": 64 * GIB, "TACTIC_DRAM": 64 * GIB, "TACTIC_SHARED_MEMORY": GIB, "DLA_MANAGED_SRAM": 0,
         "DLA_LOCAL_DRAM": GIB, "DLA_GLOBAL_DRAM": GIB // 2}  # fmt: skip


def _refuse(owner: Any, where: str, text: str, at: str) -> None:
    lib, builder = owner._lib, owner._.builder
    text = f"Parameter check failed, condition: {text}"
    fail(lib, builder.logger, builder.error_recorder, where, 3, "API Usage Error", text, at)


class IOptimizationProfile:
    """Ranges of the dynamic inputs; nothing is compared with a network before the build."""

    extra_memory_target = Field("float", 1.0)
    profile_stream = Field("int", 0)

    def set_shape(self: Any, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - the API's names
        for which, shape in (("min", min), ("opt", opt), ("max", max)):
            if any(size < 0 for size in shape):
                condition = "std::all_of(dims.d, dims.d + dims.nbDims, [](int32_t x) noexcept { return x >= 0; }). "
                at = "setDimensions at /_src/optimizer/api/optimizationProfile.cpp:166"
                _refuse(self, "IOptimizationProfile::setDimensions", condition, at)
                raise RuntimeError(f"Shape provided for {which} is inconsistent with other shapes.")
        self._.shapes[input] = tuple(tuple(shape) for shape in (min, opt, max))

    def get_shape(self: Any, input: str) -> list[Any]:  # noqa: A002
        if input in self._.shapes:
            return [self._lib.dims(shape) for shape in self._.shapes[input]]
        text = f"Cannot get dimensions for input: {input}. Input is not present in this OptimizationProfile"
        builder = self._.builder
        fail(
            self._lib, builder.logger, builder.error_recorder, "IOptimizationProfile::getDimensions", 4,
            "API Usage Error", text, "getDimensionsInternal at /_src/optimizer/api/optimizationProfile.cpp:203",
        )  # fmt: skip
        return []

    def set_shape_input(self: Any, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self._.values[input] = (list(min), list(opt), list(max))

    def get_shape_input(self: Any, input: str) -> list[list[int]]:  # noqa: A002
        return [list(value) for value in self._.values.get(input, ())]

    def __bool__(self: Any) -> bool:
        wrong = [
            name for name, (low, opt, high) in self._.shapes.items()
            if not len(low) == len(opt) == len(high)
            or not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        ]  # fmt: skip
        if wrong:
            text = (
                f"Invalid optimization profiles for input tensors {', '.join(wrong)}, please ensure that the "
                "optimization profiles satisfy MIN<=OPT<=MAX."
            )
            builder = self._.builder
            fail(
                self._lib, builder.logger, builder.error_recorder, "IOptimizationProfile::isValid", 4,
                "API Usage Error", text, "isValid at /_src/optimizer/api/optimizationProfile.cpp:367",
            )  # fmt: skip
        return not wrong


class ITimingCache:
    """A timing cache; it holds the bytes that it was made from."""

    def serialize(self: Any) -> Any:
        return host_memory(self._lib, self._.data)

    def combine(self: Any, input_cache: Any, ignore_mismatch: bool) -> bool:  # noqa: ARG002, FBT001
        self._.data = self._.data or input_cache._.data
        return True

    def reset(self: Any) -> bool:
        self._.data = b""
        return True


def _level(self: Any, value: int) -> bool:
    if value < 0:
        text = "level >= 0. Setting builder optimization level. "
        at = "setBuilderOptimizationLevel at /_src/optimizer/api/builderConfig.cpp:729"
        _refuse(self, "IBuilderConfig::setBuilderOptimizationLevel", text, at)
    return value >= 0


def _streams(self: Any, value: int) -> bool:
    if value < 0:
        text = f"nbStreams {value} should not be negative, IBuilderConfig::setMaxAuxStreams({value}) has no effect."
        emit(self._lib, self._.builder.logger, "WARNING", text)
    return value >= 0


def _flags(self: Any, value: int) -> bool:
    if value >= 1 << len(self._lib.classes["BuilderFlag"].__members__):
        text = "flags.toU32() < (1U << EnumMax<BuilderFlag>()). "
        _refuse(self, "IBuilderConfig::setFlags", text, "setFlags at /_src/optimizer/api/builderConfig.cpp:334")
        return False
    return True


def _capabilities(self: Any, value: int) -> bool:
    if value < 0:
        raise ValueError("Provided number of compute capabilities is incorrect")
    none = self._lib.enum("ComputeCapability", "NONE")
    self._.capabilities = (self._.capabilities + [none] * value)[:value]
    return True


def _hardware(self: Any, _value: Any) -> bool:
    if self._lib.rtx:
        text = "setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX."
        emit(self._lib, self._.builder.logger, "WARNING", text)
    return not self._lib.rtx


class IBuilderConfig:
    """How to build."""

    DLA_core = Field("int", -1)
    algorithm_selector = Field("IAlgorithmSelector", nullable=True)
    all_build_routes = Field("str", "", readonly=True)
    avg_timing_iterations = Field("int", 1)
    build_route = Field("str", "")
    builder_optimization_level = Field("int", 3, accept=_level)
    default_device_type = Field("DeviceType", "GPU")
    engine_capability = Field("EngineCapability", "STANDARD")
    flags = Field("int", accept=_flags)
    hardware_compatibility_level = Field("HardwareCompatibilityLevel", "NONE", accept=_hardware)
    int8_calibrator = Field("IInt8Calibrator", nullable=True)
    l2_limit_for_tiling = Field("int", 0)
    max_aux_streams = Field("int", -1, accept=_streams)
    max_num_tactics = Field("int", -1)
    max_workspace_size = Field("int", POOLS["WORKSPACE"])
    min_timing_iterations = Field("int", 1)
    num_compute_capabilities = Field("int", 0, accept=_capabilities)
    plugins_to_serialize = Field("list[str]", ())
    profile_stream = Field("int", 0)
    profiling_verbosity = Field("ProfilingVerbosity", "LAYER_NAMES_ONLY")
    progress_monitor = Field("IProgressMonitor", nullable=True)
    quantization_flags = Field("int", 0)
    remote_auto_tuning_config = Field("str", "")
    runtime_platform = Field("RuntimePlatform", "SAME_AS_BUILD")
    tiling_optimization_level = Field("TilingOptimizationLevel", "NONE")
    num_optimization_profiles = property(lambda self: len(self._.profiles))
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def reset(self: Any) -> None:
        builder = self._.builder
        vars(self._).clear()
        self._.builder, self._.profiles, self._.capabilities, self._.pools = builder, [], [], {}
        self._.previews, self._.device_types, self._.timing_cache = {}, {}, None
        self._.flags = 1 << int(self._lib.enum("BuilderFlag", "TF32"))

    def set_flag(self: Any, flag: Any) -> None:
        where, line = "IBuilderConfig::setFlag", "apiCheckAndSetFlag at /_src/optimizer/api/builderConfig.cpp"
        if flag.name == "???":
            text = "::nvinfer1::trtstd::to_underlying(builderFlag) < ::nvinfer1::EnumMax<BuilderFlag>(). "
            _refuse(self, where, text, f"{line}:128")
        elif flag.name == "EXCLUDE_LEAN_RUNTIME" and not self._on("VERSION_COMPATIBLE"):
            text = (
                "builderFlag != BuilderFlag::kEXCLUDE_LEAN_RUNTIME || flags[BuilderFlag::kVERSION_COMPATIBLE]. "
                "kEXCLUDE_LEAN_RUNTIME can only be set if kVERSION_COMPATIBLE is set."
            )
            _refuse(self, where, text, f"{line}:185")
        else:
            self._.flags |= 1 << int(flag)

    def clear_flag(self: Any, flag: Any) -> None:
        self._.flags &= ~(1 << int(flag))

    def get_flag(self: Any, flag: Any) -> bool:
        return bool(self._.flags >> int(flag) & 1)

    def _on(self: Any, name: str) -> bool:
        """Whether a flag, by name, exists in this version and is set."""
        lib = self._lib
        return lib.has("BuilderFlag", name) and bool(self._.flags >> int(lib.enum("BuilderFlag", name)) & 1)

    def set_quantization_flag(self: Any, flag: Any) -> None:
        self._.quantization_flags = self.quantization_flags | 1 << int(flag)

    def clear_quantization_flag(self: Any, flag: Any) -> None:
        self._.quantization_flags = self.quantization_flags & ~(1 << int(flag))

    def get_quantization_flag(self: Any, flag: Any) -> bool:
        return bool(self.quantization_flags >> int(flag) & 1)

    def set_memory_pool_limit(self: Any, pool: Any, pool_size: int) -> None:
        self._.pools[pool.name] = pool_size

    def get_memory_pool_limit(self: Any, pool: Any) -> int:
        return self._.pools.get(pool.name, POOLS.get(pool.name, 0))

    def set_preview_feature(self: Any, feature: Any, enable: bool) -> None:  # noqa: FBT001 - the API's
        self._.previews[feature.name] = enable

    def get_preview_feature(self: Any, feature: Any) -> bool:
        return self._.previews.get(feature.name, False)

    def get_tactic_sources(self: Any) -> int:
        every = (1 << len(self._lib.classes["TacticSource"].__members__)) - 1
        return vars(self._).get("tactic_sources", every)

    def set_tactic_sources(self: Any, tactic_sources: int) -> bool:
        self._.tactic_sources = tactic_sources
        return True

    def add_optimization_profile(self: Any, profile: Any) -> int:
        if not profile:
            at = "addOptimizationProfile at /_src/optimizer/api/builderConfig.cpp:569"
            _refuse(self, "IBuilderConfig::addOptimizationProfile", "profile->isValid(). ", at)
            return -1
        self._.profiles.append(profile)
        return len(self._.profiles) - 1

    def create_timing_cache(self: Any, serialized_timing_cache: Any) -> Any:
        return self._lib.new("ITimingCache", data=bytes(serialized_timing_cache))

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:  # noqa: ARG002, FBT001
        self._.timing_cache = cache
        return True

    def get_timing_cache(self: Any) -> Any:
        return self._.timing_cache

    def set_device_type(self: Any, layer: Any, device_type: Any) -> None:
        self._.device_types[layer.name] = device_type

    def get_device_type(self: Any, layer: Any) -> Any:
        return self._.device_types.get(layer.name, self.default_device_type)

    def is_device_type_set(self: Any, layer: Any) -> bool:
        return layer.name in self._.device_types

    def reset_device_type(self: Any, layer: Any) -> None:
        self._.device_types.pop(layer.name, None)

    def can_run_on_DLA(self: Any, layer: Any) -> bool:  # noqa: ARG002, N802
        return False

    def _capability_index(self: Any, function: str, index: int, line: int) -> bool:
        if 0 <= index < len(self._.capabilities):
            return True
        text = (
            "index >= 0 && index < std::ssize(mConfig.computeCapabilities). "
            "Index of compute capability is not in a valid range."
        )
        at = f"{function} at /_src/optimizer/api/builderConfig.cpp:{line}"
        _refuse(self, f"IBuilderConfig::{function}", text, at)
        return False

    def set_compute_capability(self: Any, compute_capability: Any, index: int) -> bool:
        if not self._capability_index("setComputeCapability", index, 796):
            return False
        if compute_capability.name == "CURRENT" and (index, len(self._.capabilities)) != (0, 1):
            text = "(index == 0) && (mConfig.computeCapabilities.size() == 1)."
            at = "setComputeCapability at /_src/optimizer/api/builderConfig.cpp:802"
            _refuse(self, "IBuilderConfig::setComputeCapability", text, at)
            return False
        self._.capabilities[index] = compute_capability
        return True

    def get_compute_capability(self: Any, index: int) -> Any:
        if not self._capability_index("getComputeCapability", index, 816):
            return self._lib.enum("ComputeCapability", "NONE")
        return self._.capabilities[index]
