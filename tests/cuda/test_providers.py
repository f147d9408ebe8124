"""The providers: every status is looked at, whatever the binding."""

import sys
import types

import numpy as np
import pytest

from tests.doubles.bindings import installed_bindings, make_pycuda, make_runtime
from tests.doubles.cuda import MemoryCuda
from trtsparse.cuda.base import Cuda, current, open_cuda, stream_handle
from trtsparse.cuda.cuda_pycuda import PyCuda
from trtsparse.cuda.cuda_python import CudaPython
from trtsparse.errors import ConfigError, CudaError, DeviceError, MissingDependencyError, UnsupportedOptionError


def cuda_python(memory, **options):
    with installed_bindings(runtime=make_runtime(memory, **options)):
        return CudaPython()


def pycuda(memory, **options):
    with installed_bindings(pycuda=make_pycuda(memory, **options)):
        return PyCuda()


MADE = {"cuda-python": cuda_python, "pycuda": pycuda}
CALLS = {
    "cuda-python": {
        "allocate": "cudaMalloc", "allocate_pinned": "cudaHostAlloc", "free": "cudaFree",
        "free_pinned": "cudaFreeHost", "create_stream": "cudaStreamCreateWithFlags",
        "destroy_stream": "cudaStreamDestroy", "synchronize": "cudaStreamSynchronize",
        "synchronize_device": "cudaDeviceSynchronize", "create_event": "cudaEventCreateWithFlags",
        "destroy_event": "cudaEventDestroy", "record": "cudaEventRecord", "wait": "cudaStreamWaitEvent",
        "synchronize_event": "cudaEventSynchronize", "event_done": "cudaEventQuery", "copy_in": "cudaMemcpyAsync",
        "copy_out": "cudaMemcpyAsync", "copy_across": "cudaMemcpyAsync", "begin_capture": "cudaStreamBeginCapture",
        "end_capture": "cudaStreamEndCapture", "launch": "cudaGraphLaunch", "destroy_graph": "cudaGraphExecDestroy",
        "device_of": "cudaPointerGetAttributes", "elapsed_ms": "cudaEventElapsedTime",
        "pci_bus_id": "cudaDeviceGetPCIBusId",
    },
    "pycuda": {
        "allocate": "cuMemAlloc", "allocate_pinned": "cuMemHostAlloc", "free": "cuMemFree",
        "free_pinned": "cuMemFreeHost", "create_stream": "cuStreamCreate", "synchronize": "cuStreamSynchronize",
        "synchronize_device": "cuCtxSynchronize", "create_event": "cuEventCreate", "record": "cuEventRecord",
        "wait": "cuStreamWaitEvent", "synchronize_event": "cuEventSynchronize", "event_done": "cuEventQuery",
        "copy_in": "cuMemcpyHtoDAsync", "copy_out": "cuMemcpyDtoHAsync", "copy_across": "cuMemcpyDtoDAsync",
        "elapsed_ms": "cuEventElapsedTime", "pci_bus_id": "cuDeviceGetPCIBusId",
    },
}  # fmt: skip


class Things:
    """One of each, to call every method with."""

    def __init__(self, cuda):
        self.device, self.other = cuda.allocate(64), cuda.allocate(64)
        self.pinned = cuda.allocate_pinned(64)
        self.stream, self.event = cuda.create_stream(), cuda.create_event()
        self.graph = None
        if cuda.graphs:
            cuda.begin_capture(self.stream)
            self.graph = cuda.end_capture(self.stream)
            cuda.begin_capture(self.stream)  # for end_capture

    def arguments(self, method):
        copies = {
            "copy_in": (self.device, self.pinned), "copy_out": (self.pinned, self.device),
            "copy_across": (self.device, self.other),
        }  # fmt: skip
        if method in copies:
            return (*copies[method], 64, self.stream)
        return {
            "allocate": (64,), "allocate_pinned": (64,), "free": (self.device,), "free_pinned": (self.pinned,),
            "destroy_stream": (self.stream,), "synchronize": (self.stream,), "destroy_event": (self.event,),
            "record": (self.event, self.stream), "wait": (self.stream, self.event),
            "synchronize_event": (self.event,), "event_done": (self.event,), "begin_capture": (self.stream,),
            "end_capture": (self.stream,), "launch": (self.graph, self.stream), "destroy_graph": (self.graph,),
            "device_of": (self.device,), "elapsed_ms": (self.event, self.event),
        }.get(method, ())  # fmt: skip


@pytest.mark.parametrize(("binding", "method"), [(b, m) for b, calls in CALLS.items() for m in calls])
def test_a_failing_call_is_named_with_its_code(binding, method):
    memory = MemoryCuda()
    cuda = MADE[binding](memory)
    with current(cuda):
        things = Things(cuda)
        memory.fail(method, code=700, name="cudaErrorIllegalAddress")
        with pytest.raises(CudaError) as caught:
            getattr(cuda, method)(*things.arguments(method))
    assert (caught.value.call, caught.value.name) == (CALLS[binding][method], "cudaErrorIllegalAddress")
    if binding == "cuda-python":
        assert caught.value.code == 700
        assert str(caught.value) == (
            f"{CALLS[binding][method]} failed\n"
            "  got: cudaErrorIllegalAddress (700)\n"
            "  to fix: restart the process: the CUDA context cannot be used any more"
        )
    else:
        assert str(caught.value) == f"{CALLS[binding][method]} failed\n  got: cudaErrorIllegalAddress (-1)"


def test_every_method_is_tried_above():
    methods = {name for name in vars(Cuda) if not name.startswith("_")}
    exempt = {"enter", "leave", "memory_info", "stream_of"}
    assert methods - exempt == set(CALLS["cuda-python"])


@pytest.mark.parametrize("binding", MADE)
def test_providers_keep_the_protocol(binding):
    cuda = MADE[binding](MemoryCuda())
    assert isinstance(cuda, Cuda)
    assert (cuda.name, cuda.device, cuda.graphs) == (binding, 0, binding == "cuda-python")
    free, total = cuda.memory_info()
    assert 0 < free <= total


@pytest.mark.parametrize("binding", MADE)
def test_copies_arrive(binding):
    cuda = MADE[binding](MemoryCuda(order="late"))
    with current(cuda):
        stream, a, b = cuda.create_stream(), cuda.allocate(64), cuda.allocate(64)
        x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
        cuda.copy_in(a, x.ctypes.data, 64, stream)
        cuda.copy_across(b, a, 64, stream)
        cuda.copy_out(y.ctypes.data, b, 64, stream)
        assert not y.any()
        cuda.synchronize(stream)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("binding", MADE)
def test_events_with_timing_tell_how_long_the_work_between_them_took(binding):
    memory = MemoryCuda(order="late")
    cuda = MADE[binding](memory)
    with current(cuda):
        stream, device, host = cuda.create_stream(), cuda.allocate(50_000_000), np.zeros(50_000_000, np.uint8)
        start, end = cuda.create_event(timing=True), cuda.create_event(timing=True, blocking=True)
        cuda.record(start, stream)
        cuda.copy_in(device, host.ctypes.data, 50_000_000, stream)
        cuda.record(end, stream)
        with pytest.raises(CudaError, match="cudaErrorNotReady"):
            cuda.elapsed_ms(start, end)
        cuda.synchronize_event(end)
        assert cuda.elapsed_ms(start, end) == pytest.approx(2, rel=0.01)
        assert cuda.elapsed_ms(start, start) == 0
    assert [call[1:] for call in memory.calls if call[0] == "create_event"] == [(True, False), (True, True)]


@pytest.mark.parametrize("binding", MADE)
def test_events_are_made_without_timing_unless_it_is_asked_for(binding):
    memory = MemoryCuda()
    cuda = MADE[binding](memory)
    with current(cuda):
        stream, event = cuda.create_stream(), cuda.create_event()
        cuda.record(event, stream)
        with pytest.raises(CudaError, match="cudaErrorInvalidResourceHandle"):
            cuda.elapsed_ms(event, event)
    assert ("create_event", False, False) in memory.calls


@pytest.mark.parametrize("binding", MADE)
def test_the_device_tells_where_it_is_plugged_in(binding):
    assert MADE[binding](MemoryCuda()).pci_bus_id() == "0000:00:00.0"


@pytest.mark.parametrize("order", ["eager", "late", "shuffled"])
def test_time_in_memory_is_the_same_in_every_order(order):
    cuda = MemoryCuda(order=order)
    with current(cuda):
        streams = [cuda.create_stream() for _ in range(2)]
        start, middle, end = (cuda.create_event(timing=True) for _ in range(3))
        cuda.record(start, streams[0])
        cuda.submit(streams[0], lambda: None, ms=3.0)
        cuda.record(middle, streams[0])
        cuda.submit(streams[1], lambda: None, ms=1.0)
        cuda.wait(streams[1], middle)
        cuda.submit(streams[1], lambda: None, ms=2.0)
        cuda.record(end, streams[1])
        cuda.synchronize_event(end)
        assert cuda.elapsed_ms(start, middle) == pytest.approx(3.0)
        assert cuda.elapsed_ms(middle, end) == pytest.approx(2.0)
        assert cuda.clock_ns() > 5e6
        for stream in streams:
            cuda.synchronize(stream)


@pytest.mark.parametrize("binding", MADE)
def test_a_machine_without_a_gpu_is_told(binding):
    with pytest.raises(DeviceError) as caught:
        MADE[binding](MemoryCuda(), gpus=0)
    got = "cudaErrorInsufficientDriver" if binding == "cuda-python" else (
        "cuInit failed: no CUDA-capable device is detected"
    )  # fmt: skip
    assert str(caught.value) == (
        "this machine has no GPU that CUDA can use\n"
        "  where: device 0\n"
        f"  got: {got}\n"
        "  expected: an NVIDIA GPU and its driver"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("provider", [CudaPython, PyCuda])
def test_a_gpu_that_is_not_there_is_told(provider):
    memory = MemoryCuda()
    modules = {"runtime": make_runtime(memory, gpus=2), "pycuda": make_pycuda(memory, gpus=2)}
    with installed_bindings(**modules), pytest.raises(DeviceError) as caught:
        provider(2)
    assert str(caught.value) == (
        "there is no such GPU\n  where: device 2\n  got: 2 GPUs\n  expected: an NVIDIA GPU and its driver"
    )


def test_bindings_that_are_missing_name_their_extra():
    with installed_bindings(runtime=None, pycuda=None):
        for provider, extra in (("cuda-python", "cuda"), ("pycuda", "pycuda"), ("auto", "cuda")):
            with pytest.raises(MissingDependencyError) as caught:
                open_cuda(provider)
            assert caught.value.extra == extra
            assert str(caught.value).endswith(f"  to fix: pip install 'trtsparse[{extra}]'")


def test_pycuda_is_taken_where_cuda_python_is_missing():
    with installed_bindings(runtime=None, pycuda=make_pycuda(MemoryCuda())):
        assert open_cuda().name == "pycuda"


def test_an_unknown_provider_is_refused():
    with pytest.raises(ConfigError) as caught:
        open_cuda("numba")
    assert str(caught.value) == (
        "no such CUDA provider\n  where: cuda\n  got: 'numba'\n  expected: auto, cuda-python, pycuda"
    )
    with pytest.raises(ConfigError) as caught:
        open_cuda(MemoryCuda(device=1), device=0)
    assert str(caught.value) == "the CUDA provider is for another device\n  where: cuda\n  got: 1\n  expected: 0"


def test_cuda_python_puts_back_the_device_of_the_thread():
    runtime = make_runtime(MemoryCuda(), gpus=2)
    with installed_bindings(runtime=runtime):
        cuda = CudaPython(1)
    assert runtime.state["device"] == 0
    with current(cuda):
        assert runtime.state["device"] == 1
        with current(cuda):
            assert runtime.state["device"] == 1
        assert runtime.state["device"] == 1
    assert runtime.state["device"] == 0


def test_pycuda_has_no_graphs_and_says_so():
    cuda = pycuda(MemoryCuda())
    for call in (
        lambda: cuda.begin_capture(1), lambda: cuda.end_capture(1), lambda: cuda.launch(1, 1),
        lambda: cuda.destroy_graph(1),
    ):  # fmt: skip
        with pytest.raises(UnsupportedOptionError) as caught:
            call()
        assert str(caught.value) == (
            "PyCUDA has no CUDA graphs\n  where: graphs\n  to fix: use cuda='cuda-python', or leave graphs off"
        )


def test_pycuda_takes_its_own_streams_only():
    memory = MemoryCuda()
    driver = make_pycuda(memory)
    with installed_bindings(pycuda=driver):
        cuda = PyCuda()
    with current(cuda):
        stream = driver.Stream()
        assert cuda.stream_of(stream) == stream.handle
        assert cuda.stream_of(stream.handle) == stream.handle
        assert cuda.stream_of(0) == 0
        for foreign in (types.SimpleNamespace(cuda_stream=77), 77):
            with pytest.raises(ConfigError, match="PyCUDA works with its own streams only"):
                cuda.stream_of(foreign)


def test_pycuda_lets_go_of_streams_that_the_application_used_long_ago():
    memory = MemoryCuda()
    driver = make_pycuda(memory)
    with installed_bindings(pycuda=driver):
        cuda = PyCuda()
    with current(cuda):
        for _ in range(200):
            cuda.stream_of(driver.Stream())
    assert memory.alive["streams"] == 64


def test_pycuda_waits_for_the_device_where_a_stream_is_not_its_own():
    memory = MemoryCuda(order="late")
    cuda = pycuda(memory)
    done = []
    with current(cuda):
        theirs, event = memory.create_stream(), cuda.create_event()
        memory.submit(theirs, lambda: done.append(1))
        cuda.record(event, theirs)
        assert done == [1]


@pytest.mark.parametrize("stream", [
    5, types.SimpleNamespace(cuda_stream=5), types.SimpleNamespace(ptr=5), types.SimpleNamespace(handle=5),
    type("Core", (), {"__cuda_stream__": lambda _self: (0, 5)})(),
])  # fmt: skip
def test_streams_of_every_library_have_a_handle(stream):
    assert stream_handle(stream) == 5


@pytest.mark.parametrize("wrong", [None, "5", True, 5.0])
def test_what_is_no_stream_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        stream_handle(wrong)
    assert str(caught.value) == (
        "not a CUDA stream\n"
        "  where: stream\n"
        f"  got: {type(wrong).__name__}\n"
        "  expected: a handle, or a stream of PyTorch, CuPy, PyCUDA or cuda.core"
    )


def test_the_real_binding_takes_these_arguments():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU: tests/gpu does more")
    cuda = CudaPython.__new__(CudaPython)
    cuda._require_device = lambda: None
    cuda.__init__(0)
    expected = runtime.cudaGetDeviceCount()[0]
    for method, call in CALLS["cuda-python"].items():
        arguments = {
            "record": 2, "wait": 2, "launch": 2, "copy_in": 4, "copy_out": 4, "copy_across": 4, "elapsed_ms": 2,
            "create_stream": 0, "create_event": 0, "synchronize_device": 0, "pci_bus_id": 0,
        }  # fmt: skip
        count = arguments.get(method, 1)
        with pytest.raises(CudaError) as caught:
            getattr(cuda, method)(*[16] * count)
        assert (caught.value.call, caught.value.code, caught.value.name) == (call, int(expected), expected.name)
    assert "cuda.bindings.runtime" in sys.modules
