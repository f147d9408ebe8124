"""Execution contexts: shapes, addresses, and the work that they hand to the module's `submit` hook."""

from __future__ import annotations

from typing import Any

from tests.doubles import execution
from tests.doubles.classes import Field
from tests.doubles.engine import DEVICE_MEMORY
from tests.doubles.messages import call_back, complain, fail

CHECK = "Parameter check failed, condition: "
SOURCE = "/_src/runtime/api/executionContext.cpp"
LAYER_MS = 0.01
"""What the first layer takes; the second takes twice as long, and so on."""


def _device_memory(self: Any, _value: int) -> bool:
    self._.memory_given = True
    return True


def _shown(shape: Any) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


class IOutputAllocator:
    """Base of user allocators: `reallocate_output_async` (or `reallocate_output`) and `notify_shape`."""

    tensorrt_version = Field("int", 1, readonly=True)

    def reallocate_output(self: Any, _tensor_name: str, _memory: Any, _size: int, _alignment: int) -> Any:
        complain("reallocate_output", 'Tried to call pure virtual function "IOutputAllocator::reallocateOutput"')

    def notify_shape(self: Any, _tensor_name: str, _shape: Any) -> None:
        complain("notify_shape", 'Tried to call pure virtual function "IOutputAllocator::notifyShape"')


class IExecutionContext:
    """Executes an engine; one execution at a time."""

    active_optimization_profile = property(lambda self: self._.profile)
    all_shape_inputs_specified = Field("bool", default=True, readonly=True)
    debug_sync = Field("bool", default=False)
    device_memory = Field("int", writeonly=True, accept=_device_memory)
    engine = property(lambda self: self._.engine)
    enqueue_emits_profile = Field("bool", default=True)
    error_recorder = Field("IErrorRecorder", nullable=True)
    name = Field("str", "")
    nvtx_verbosity = Field("ProfilingVerbosity", "LAYER_NAMES_ONLY")
    persistent_cache_limit = Field("int", 0)
    profiler = Field("IProfiler", nullable=True)
    temporary_allocator = Field("IGpuAllocator", nullable=True)
    unfused_tensors_debug_state = Field("bool", default=False)
    all_binding_shapes_specified = property(lambda self: not self._missing_shapes())
    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda *_args: None  # noqa: E731

    def _start(self: Any, *, own_memory: bool) -> None:
        self._.profile, self._.shapes, self._.addresses, self._.allocators = 0, {}, {}, {}
        self._.event, self._.memory_given, self._.unreported = 0, own_memory, False

    def _refuse(self: Any, what: str, text: str, line: int) -> None:
        runtime = self._.engine._.runtime
        recorder = self.error_recorder or self._.engine.error_recorder or runtime.error_recorder
        at = f"{what} at {SOURCE}:{line}"
        fail(
            self._lib, runtime.logger, recorder, f"IExecutionContext::{what}", 3, "API Usage Error", CHECK + text, at
        )

    def _tensors(self: Any, mode: str) -> list[dict[str, Any]]:
        return [t for t in self._.engine._.facts["tensors"] if t["mode"] == mode]

    def _find(self: Any, name: str, what: str, *modes: str) -> dict[str, Any] | None:
        for mode in modes or ("INPUT", "OUTPUT"):
            for tensor in self._tensors(mode):
                if tensor["name"] == name:
                    return tensor
        kind = "input " if modes == ("INPUT",) else "output " if modes == ("OUTPUT",) else ""
        self._refuse(what, f"nameIsValid. Given invalid {kind}tensor name: {name}.", 1500)
        return None

    def _missing_shapes(self: Any) -> list[str]:
        return [t["name"] for t in self._tensors("INPUT") if -1 in t["shape"] and t["name"] not in self._.shapes]

    def set_optimization_profile_async(self: Any, profile_index: int, _stream_handle: int) -> bool:
        count = self._.engine.num_optimization_profiles
        if not 0 <= profile_index < count:
            text = (
                f"profileIndex >= 0 && profileIndex < mEngine.getNbOptimizationProfiles(). Index is {profile_index}."
            )
            self._refuse("setOptimizationProfileAsync", text, 1322)
            return False
        self._.profile = profile_index
        self._.shapes.clear()
        return True

    def set_input_shape(self: Any, name: str, shape: Any) -> bool:
        what = "setInputShape"
        tensor = self._find(name, what, "INPUT")
        if tensor is None:
            return False
        given, known = tuple(int(size) for size in shape), tensor["shape"]
        if len(given) != len(known):
            text = (
                f"engineDims.nbDims == dims.nbDims. Set dimensions of {name} are {_shown(given)}. "
                f"Expected dimensions are {_shown(known)}."
            )
            self._refuse(what, text, 2068)
            return False
        if any(size not in (-1, new) for size, new in zip(known, given, strict=True)):
            text = (
                f"engineDims.d[i] == dims.d[i]. Static dimension mismatch while setting input shape for {name}. "
                f"Set dimensions are {_shown(given)}. Expected dimensions are {_shown(known)}."
            )
            self._refuse(what, text, 2078)
            return False
        low, _, high = self._.engine._.facts["profiles"][self._.profile][name]
        if not all(a <= size <= b for a, size, b in zip(low, given, high, strict=True)):
            text = (
                f"satisfyProfile. Set dimension {_shown(given)} for tensor {name} does not satisfy any optimization "
                f"profiles. Valid range for profile {self._.profile}: {_shown(low)}..{_shown(high)}."
            )
            self._refuse(what, text, 2092)
            return False
        self._.shapes[name] = given
        return True

    def _input_shapes(self: Any) -> dict[str, tuple[int, ...]]:
        return {t["name"]: self._.shapes.get(t["name"], tuple(t["shape"])) for t in self._tensors("INPUT")}

    def _output_shapes(self: Any) -> dict[str, tuple[int, ...]]:
        if self._missing_shapes():
            return {t["name"]: tuple(t["shape"]) for t in self._tensors("OUTPUT")}
        return self._.engine._.model.output_shapes(self._input_shapes())

    def get_tensor_shape(self: Any, name: str) -> Any:
        tensor = self._find(name, "getTensorShape")
        if tensor is None:
            return self._lib.dims(())
        shapes = self._input_shapes() if tensor["mode"] == "INPUT" else self._output_shapes()
        return self._lib.dims(shapes[name])

    def get_tensor_strides(self: Any, name: str) -> Any:
        shape, strides = tuple(self.get_tensor_shape(name)), [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        return self._lib.dims(strides[: len(shape)])

    def infer_shapes(self: Any) -> list[str]:
        return self._missing_shapes()

    def set_tensor_address(self: Any, name: str, memory: int) -> bool:
        if self._find(name, "setTensorAddress") is None:
            return False
        self._.addresses[name] = memory
        return True

    def get_tensor_address(self: Any, name: str) -> int:
        return self._.addresses.get(name, 0) if self._find(name, "getTensorAddress") else 0

    def set_output_allocator(self: Any, name: str, output_allocator: Any) -> bool:
        if self._find(name, "setOutputAllocator", "OUTPUT") is None:
            return False
        self._.allocators[name] = output_allocator
        return True

    def get_output_allocator(self: Any, name: str) -> Any:
        return self._.allocators.get(name)

    def get_max_output_size(self: Any, name: str) -> int:
        tensor = self._find(name, "getMaxOutputSize", "OUTPUT")
        if tensor is None:
            return -1
        facts = self._.engine._.facts
        largest = {key: high for key, (_, _, high) in facts["profiles"][self._.profile].items()} | self._.shapes
        shape = self._.engine._.model.output_shapes({k: tuple(v) for k, v in largest.items()})[name]
        return -1 if -1 in shape else execution.nbytes(tensor["dtype"], shape)

    def set_device_memory(self: Any, _memory: int, _size: int) -> None:
        self._.memory_given = True

    def update_device_memory_size_for_shapes(self: Any) -> int:
        return DEVICE_MEMORY

    def set_input_consumed_event(self: Any, event: int) -> bool:
        self._.event = event
        return True

    def get_input_consumed_event(self: Any) -> int:
        return self._.event

    def set_aux_streams(self: Any, aux_streams: list[int]) -> None:
        self._.aux_streams = aux_streams

    def set_debug_listener(self: Any, listener: Any) -> bool:
        self._.listener = listener
        return True

    def get_debug_listener(self: Any) -> Any:
        return vars(self._).get("listener")

    def get_runtime_config(self: Any) -> Any:
        return self._.config

    def is_stream_capturable(self: Any, _stream: int) -> bool:
        return not self._.allocators

    def report_to_profiler(self: Any) -> bool:
        """With `enqueue_emits_profile` the enqueueing has reported already; else report the launch before, once."""
        if self.profiler is None:
            return False
        if self.enqueue_emits_profile:
            return True
        launched, self._.unreported = self._.unreported, False
        if launched:
            self._report()
        return bool(launched)

    def _report(self: Any) -> None:
        for number, layer in enumerate(self._.engine._.facts["layers"], start=1):
            call_back(self.profiler, "report_layer_time", layer["name"], LAYER_MS * number)

    def _ready(self: Any, what: str) -> bool:
        """Whether everything is set that an execution needs; what is not is reported."""
        if missing := self._missing_shapes():
            text = f"allInputDimensionsSpecified(mode). Input shapes are not set for: {', '.join(missing)}."
            self._refuse(what, text, 2640)
            return False
        if not self._.memory_given:
            self._refuse(what, "mContext.deviceMemory != nullptr. Device memory is not set.", 2650)
            return False
        for tensor in self._tensors("INPUT"):
            if not self._.addresses.get(tensor["name"]):
                text = (
                    "mContext.profileObliviousBindings.at(profileObliviousIndex) != nullptr. Address is not set for "
                    f"input tensor {tensor['name']}. Call setInputTensorAddress or setTensorAddress before "
                    "enqueue/execute."
                )
                self._refuse(what, text, 2666)
                return False
        for tensor in self._tensors("OUTPUT"):
            if not self._.addresses.get(tensor["name"]) and not self._.allocators.get(tensor["name"]):
                text = (
                    "mContext.profileObliviousBindings.at(profileObliviousIndex) || getPtrOrNull(mOutputAllocators, "
                    "profileObliviousIndex). Neither address or allocator is set for output tensor "
                    f"{tensor['name']}. Call setOutputTensorAddress, setTensorAddress or setOutputAllocator before "
                    "enqueue/execute."
                )
                self._refuse(what, text, 2671)
                return False
        return True

    def execute_async_v3(self: Any, stream_handle: int) -> bool:
        if not self._ready("enqueueV3"):
            return False
        try:
            self._lib.module.submit(stream_handle, self._work(stream_handle))
        except Exception as error:  # noqa: BLE001 - whatever the evaluator or a hook raises ends the execution
            self._refuse("enqueueV3", f"execution succeeded. {type(error).__name__}: {error}", 2700)
            return False
        self._.unreported = self.profiler is not None
        if self.profiler is not None and self.enqueue_emits_profile:
            self._report()
        return True

    def execute_v2(self: Any, bindings: list[int]) -> bool:
        names = [t["name"] for t in self._.engine._.facts["tensors"]]
        if len(bindings) != len(names):
            self._refuse(
                "executeV2", f"bindings.size() == getNbIOTensors(). {len(bindings)} bindings are given.", 900
            )
            return False
        self._.addresses.update(zip(names, bindings, strict=True))
        if not self._ready("executeV2"):
            return False
        self._work(0)()
        return True

    def _work(self: Any, stream_handle: int) -> Any:
        """The execution with shapes and addresses as they are now; memory is read and written when it runs."""
        engine, lib = self._.engine, self._lib
        model = engine._.model
        dtypes = {t["name"]: t["dtype"] for t in engine._.facts["tensors"]}
        shapes, addresses, allocators = self._input_shapes(), dict(self._.addresses), dict(self._.allocators)
        names = [t["name"] for t in self._tensors("OUTPUT")]
        known = self._output_shapes()
        for name in names:
            if allocators.get(name) and -1 not in known[name]:
                allocate(lib, allocators.pop(name), addresses, name, known[name], dtypes[name], stream_handle)

        def work() -> None:
            feeds = {n: execution.read_memory(addresses[n], dtypes[n], shape) for n, shape in shapes.items()}
            for name, array in model.run(feeds, names).items():
                if allocators.get(name):
                    allocate(lib, allocators[name], addresses, name, array.shape, dtypes[name], stream_handle)
                execution.write_memory(addresses[name], dtypes[name], array)

        return work


def allocate(
    lib: Any, allocator: Any, addresses: dict[str, int], name: str, shape: Any, dtype: str, stream: int
) -> None:
    """Ask the user's allocator for an output's memory and tell it the shape."""
    size, alignment = execution.nbytes(dtype, tuple(shape)), 256
    current = addresses.get(name, 0)
    if lib.generation > 8 and hasattr(type(allocator), "reallocate_output_async"):
        given = allocator.reallocate_output_async(name, current, size, alignment, stream)
    else:
        given = allocator.reallocate_output(name, current, size, alignment)
    if not given:
        raise MemoryError(f"the output allocator gave no memory for {name} ({size} bytes)")
    addresses[name] = int(given)
    allocator.notify_shape(name, lib.dims(shape))
