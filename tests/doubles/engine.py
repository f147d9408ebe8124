"""The runtime, engines and their inspector."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from tests.doubles import execution, plan, sparsity
from tests.doubles.classes import Field
from tests.doubles.messages import fail, register_logger
from tests.doubles.values import STORED, host_memory

DEVICE_MEMORY = 1 << 20
"""Bytes of activation memory that every engine claims to need."""


class Runtime:
    """Loads plans."""

    error_recorder = Field("IErrorRecorder", nullable=True)
    gpu_allocator = Field("IGpuAllocator", nullable=True, writeonly=True)
    max_threads = Field("int", 1)
    DLA_core = Field("int", -1)
    num_DLA_cores = Field("int", 0, readonly=True)  # noqa: N815 - the API's name
    engine_host_code_allowed = Field("bool", default=False)
    defer_weights_loading = Field("bool", default=False)
    engine_header_size = Field("int", plan.HEADER.size, readonly=True)
    tempfile_control_flags = Field("int", 3)
    temporary_directory = Field("str", nullable=True)
    logger = property(lambda self: self._.logger)
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def _init(self: Any, logger: Any) -> None:
        self._.logger = logger
        register_logger(self._lib, self, logger, "createInferRuntime")

    def _refuse(
        self: Any, code: int, kind: str, text: str, at: str, where: str = "IRuntime::deserializeCudaEngine"
    ) -> None:
        fail(self._lib, self.logger, self.error_recorder, where, code, kind, text, at)

    def deserialize_cuda_engine(self: Any, source: Any) -> Any:
        data = bytes(source)
        if not self._header_fits(data):
            return None
        try:
            facts, model = plan.unpack(data)
            intact = hashlib.sha256(model).hexdigest() == facts["digest"]
        except (ValueError, KeyError):
            intact = False
        if not intact:
            text = "Serialization assertion plan payload intact failed."
            self._refuse(1, "Serialization", text, "parsePlan at /_src/runtime/dispatch/runtime.cpp:812")
            return None
        return self._lib.new("ICudaEngine", runtime=self, facts=facts, model=execution.Model(model), data=data)

    def _header_fits(self: Any, data: bytes) -> bool:
        source = "/_src/runtime/dispatch/runtime.cpp"
        if not data:
            text = "Cannot deserialize with an empty memory buffer."
            self._refuse(3, "API Usage Error", text, f"deserializeCudaEngineEx at {source}:278")
            return False
        if len(data) < plan.HEADER.size:
            text = "Assertion bufferSize >= minBufferSize failed. "
            self._refuse(2, "Internal Error", text, f"readHeader at {source}:765", where="")
            return False
        tag, _, _, _, size, *rest = plan.HEADER.unpack_from(data)
        wanted = plan.magic(self._lib)
        if tag != wanted:
            numbers = f"({int.from_bytes(tag, 'little')} != {int.from_bytes(wanted, 'little')})"
            text = (
                "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.Trying to load an engine "
                f"created with incompatible serialization version {numbers}. Check that the engine was not created "
                "using safety runtime, same OS was used and version compatibility parameters were set accordingly "
                "and that it is a TRT engine file."
            )
            self._refuse(1, "Serialization", text, f"throwUnlessHeaderOk at {source}:48")
            return False
        if size != len(data):
            text = "Serialization assertion plan.header.size == blobSize failed."
            self._refuse(1, "Serialization", text, f"parsePlan at {source}:780")
            return False
        if tuple(rest[:4]) != self._lib.numbers:
            expected, got = (".".join(map(str, numbers)) for numbers in (self._lib.numbers, rest[:4]))
            text = (
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{expected} got {got}, please rebuild."
            )
            self._refuse(6, "API Usage Error", text, f"throwUnlessVersionOk at {source}:95")
            return False
        return True

    def get_engine_validity(self: Any, buffer: Any) -> tuple[Any, int]:
        """Looks at the magic alone, as the real one misses truncation and altered version bytes."""
        data = bytes(buffer)
        lib = self._lib
        if len(data) >= plan.HEADER.size and data[:4] == plan.magic(lib):
            return lib.enum("EngineValidity", "VALID"), 0
        return lib.enum("EngineValidity", "INVALID"), int(lib.enum("EngineInvalidityDiagnostics", "MALFORMED_ENGINE"))


def _tensor(engine: Any, name: str, what: str) -> dict[str, Any] | None:
    """Facts of an I/O tensor; an unknown name is logged."""
    found = next((t for t in engine._.facts["tensors"] if t["name"] == name), None)
    if found is None:
        engine._refuse(what, f"Given invalid tensor name: {name}. Get valid tensor names with getIOTensorName()")
    return found


class ICudaEngine:
    """A loaded plan."""

    error_recorder = Field("IErrorRecorder", nullable=True)
    device_memory_size = Field("int", DEVICE_MEMORY, readonly=True)
    device_memory_size_v2 = Field("int", DEVICE_MEMORY, readonly=True)
    has_implicit_batch_dimension = Field("bool", default=False, readonly=True)
    max_batch_size = Field("int", 1, readonly=True)
    tactic_sources = Field("int", 0, readonly=True)
    weights_loaded = Field("bool", default=True, readonly=True)
    weight_streaming_budget = Field("int", 0)
    weight_streaming_budget_v2 = Field("int", 0)
    weight_streaming_scratch_memory_size = Field("int", 0, readonly=True)
    minimum_weight_streaming_budget = Field("int", 0, readonly=True)
    name = property(lambda self: self._.facts["name"])
    num_io_tensors = property(lambda self: len(self._.facts["tensors"]))
    num_bindings = property(lambda self: len(self._.facts["tensors"]) * len(self._.facts["profiles"]))
    num_layers = property(lambda self: len(self._.facts["layers"]))
    num_optimization_profiles = property(lambda self: len(self._.facts["profiles"]))
    num_aux_streams = property(lambda self: self._.facts["aux_streams"])
    engine_capability = property(lambda self: self._lib.enum("EngineCapability", self._.facts["capability"]))
    hardware_compatibility_level = property(
        lambda self: self._lib.enum("HardwareCompatibilityLevel", self._.facts["hardware"])
    )
    profiling_verbosity = property(lambda self: self._lib.enum("ProfilingVerbosity", self._.facts["verbosity"]))
    refittable = property(lambda self: any(flag.startswith("REFIT") for flag in self._.facts["flags"]))
    streamable_weights_size = property(
        lambda self: len(self._.model.data) if "WEIGHT_STREAMING" in self._.facts["flags"] else 0
    )
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def _refuse(self: Any, what: str, text: str) -> None:
        runtime = self._.runtime
        text, at = f"Parameter check failed, condition: {text}", f"{what} at /_src/runtime/api/engine.cpp:1203"
        recorder = self.error_recorder or runtime.error_recorder
        fail(self._lib, runtime.logger, recorder, f"ICudaEngine::{what}", 3, "API Usage Error", text, at)

    def get_tensor_name(self: Any, index: int) -> str | None:
        if 0 <= index < self.num_io_tensors:
            return self._.facts["tensors"][index]["name"]
        self._refuse("getIOTensorName", f"0 <= index && index < getNbIOTensors(). Index is {index}.")
        return None

    def __getitem__(self: Any, index: int) -> str | None:
        return self.get_tensor_name(index)

    def get_tensor_mode(self: Any, name: str) -> Any:
        found = _tensor(self, name, "getTensorIOMode")
        return self._lib.enum("TensorIOMode", found["mode"] if found else "NONE")

    def get_tensor_dtype(self: Any, name: str) -> Any:
        found = _tensor(self, name, "getTensorDataType")
        return self._lib.enum("DataType", found["dtype"] if found else "FLOAT")

    def get_tensor_shape(self: Any, name: str) -> Any:
        found = _tensor(self, name, "getTensorShape")
        return self._lib.dims(found["shape"] if found else ())

    def get_tensor_location(self: Any, name: str) -> Any:
        _tensor(self, name, "getTensorLocation")
        return self._lib.enum("TensorLocation", "DEVICE")

    def get_tensor_format(self: Any, name: str, _profile_index: int = 0) -> Any:
        _tensor(self, name, "getTensorFormat")
        return self._lib.enum("TensorFormat", "LINEAR")

    def get_tensor_format_desc(self: Any, name: str, _profile_index: int = 0) -> str:
        return f"Row major linear {self.get_tensor_dtype(name).name} format (kLINEAR)"

    def get_tensor_bytes_per_component(self: Any, name: str, _profile_index: int = 0) -> int:
        return int(np.dtype(STORED[self.get_tensor_dtype(name).name]).itemsize)

    def get_tensor_components_per_element(self: Any, name: str, _profile_index: int = 0) -> int:
        _tensor(self, name, "getTensorComponentsPerElement")
        return -1

    def get_tensor_vectorized_dim(self: Any, name: str, _profile_index: int = 0) -> int:
        _tensor(self, name, "getTensorVectorizedDim")
        return -1

    def get_tensor_profile_shape(self: Any, name: str, profile_index: int) -> list[Any]:
        profiles = self._.facts["profiles"]
        if not 0 <= profile_index < len(profiles):
            self._refuse("getProfileShape", f"profileIndex < getNbOptimizationProfiles(). Index is {profile_index}.")
            return []
        if name not in profiles[profile_index]:
            self._refuse("getProfileShape", f"isInput. Tensor {name} is not an input.")
            return []
        return [self._lib.dims(shape) for shape in profiles[profile_index][name]]

    def is_shape_inference_io(self: Any, name: str) -> bool:
        _tensor(self, name, "isShapeInferenceIO")
        return False

    def is_debug_tensor(self: Any, _name: str) -> bool:
        return False

    def get_aliased_input_tensor(self: Any, _name: str) -> str | None:
        return None

    def get_device_memory_size_for_profile(self: Any, _profile_index: int) -> int:
        return DEVICE_MEMORY

    get_device_memory_size_for_profile_v2 = get_device_memory_size_for_profile

    def get_weight_streaming_automatic_budget(self: Any) -> int:
        return 0

    def serialize(self: Any) -> Any:
        return host_memory(self._lib, self._.data)

    def create_serialization_config(self: Any) -> Any:
        return self._lib.new("ISerializationConfig", flags=0)

    def serialize_with_config(self: Any, _config: Any) -> Any:
        return self.serialize()

    def create_runtime_config(self: Any) -> Any:
        return self._lib.new("IRuntimeConfig")

    def create_execution_context(self: Any, first: Any = None) -> Any:
        config = isinstance(first, self._lib.classes.get("IRuntimeConfig", ()))
        strategy = first.get_execution_context_allocation_strategy() if config else first
        context = self._lib.new("IExecutionContext", engine=self, config=first if config else None)
        context._start(own_memory=strategy is None or strategy.name != "USER_MANAGED")
        return context

    def create_execution_context_without_device_memory(self: Any) -> Any:
        context = self._lib.new("IExecutionContext", engine=self, config=None)
        context._start(own_memory=False)
        return context

    def create_engine_inspector(self: Any) -> Any:
        return self._lib.new("EngineInspector", engine=self)


class IRuntimeConfig:
    """Settings of a context."""

    cuda_graph_strategy = Field("CudaGraphStrategy", "DISABLED")
    dynamic_shapes_kernel_specialization_strategy = Field("DynamicShapesKernelSpecializationStrategy", "LAZY")

    def set_execution_context_allocation_strategy(self: Any, strategy: Any) -> None:
        self._.strategy = strategy

    def get_execution_context_allocation_strategy(self: Any) -> Any:
        default = self._lib.enum("ExecutionContextAllocationStrategy", "STATIC")
        return vars(self._).get("strategy", default)

    def create_runtime_cache(self: Any) -> Any:
        return self._lib.new("IRuntimeCache", data=b"")

    def set_runtime_cache(self: Any, cache: Any = None) -> bool:
        self._.cache = cache
        return True

    def get_runtime_cache(self: Any) -> Any:
        return vars(self._).get("cache")


class IRuntimeCache:
    """Compiled kernels, kept between processes: here, the bytes that it was given."""

    def serialize(self: Any) -> Any:
        return host_memory(self._lib, self._.data)

    def deserialize(self: Any, blob: Any) -> bool:
        self._.data = bytes(blob)
        return True

    def reset(self: Any) -> bool:
        self._.data = b""
        return True


class ISerializationConfig:
    """Flags of a serialization."""

    flags = Field("int", 0)

    def set_flag(self: Any, flag: Any) -> bool:
        self._.flags |= 1 << int(flag)
        return True

    def clear_flag(self: Any, flag: Any) -> bool:
        self._.flags &= ~(1 << int(flag))
        return True

    def get_flag(self: Any, flag: Any) -> bool:
        return bool(self._.flags >> int(flag) & 1)


class EngineInspector:
    """Tells an engine's layers, in full only if the build asked for it."""

    execution_context = Field("IExecutionContext", nullable=True)
    error_recorder = Field("IErrorRecorder", nullable=True)

    def _layers(self: Any) -> list[Any]:
        facts = self._.engine._.facts
        layers = [sparsity.Layer(**layer) for layer in facts["layers"]]
        if self._lib.rtx and layers:  # one node for its compiler; kernels are chosen on the target
            whole = f"{{ForeignNode[{layers[0].name}...{layers[-1].name}]}}"
            outputs = tuple(t["name"] for t in facts["tensors"] if t["mode"] == "OUTPUT")
            layers = [sparsity.Layer(whole, "Myelin", layers[0].inputs[:1], outputs)]
        if facts["verbosity"] == "NONE":
            return []
        if facts["verbosity"] != "DETAILED":
            return [layer.name for layer in layers]
        return [self._detail(layer) for layer in layers]

    def _detail(self: Any, layer: sparsity.Layer) -> dict[str, Any]:
        kinds = {"conv": "CaskConvolution", "gemm": "CaskGemmConvolution"}
        detail: dict[str, Any] = {
            "Name": layer.name, "LayerType": kinds.get(layer.kind, layer.kind),
            "Inputs": [{"Name": name, "Location": "Device"} for name in layer.inputs],
            "Outputs": [{"Name": name, "Location": "Device"} for name in layer.outputs], "StreamId": 0,
        }  # fmt: skip
        if layer.compute:
            detail |= {"HasSparseWeights": int(layer.compliant)}
        if not self._lib.rtx:
            detail |= {"TacticName": sparsity.tactic(layer), "TacticValue": "0x0000000000000000"}
        return detail

    def get_engine_information(self: Any, format: Any) -> str:  # noqa: A002 - the API's name
        layers = self._layers()
        names = [t["name"] for t in self._.engine._.facts["tensors"]]
        if format.name == "JSON":
            return json.dumps({"Layers": layers, "Bindings": names}, indent=0)
        shown = [layer if isinstance(layer, str) else layer["Name"] for layer in layers]
        return "Layers:\n" + "\n".join(shown) + "\n\nBindings:\n" + "\n".join(names)

    def get_layer_information(self: Any, layer_index: int, format: Any) -> str:  # noqa: A002
        layers = self._layers()
        if not 0 <= layer_index < len(layers):
            self._.engine._refuse("getLayerInformation", f"layerIndex < getNbLayers(). Index is {layer_index}.")
            return ""
        layer = layers[layer_index]
        if format.name == "JSON":
            return json.dumps(layer)
        return layer if isinstance(layer, str) else layer["Name"]
