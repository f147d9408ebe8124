"""Where a session can live: the in-memory CUDA, each binding over it, and each binding on a machine with a GPU.

    pytest -m gpu tests/gpu -q -k smoke           # a first look
    pytest -m "gpu and not slow" tests/gpu -q     # all of it
    compute-sanitizer --tool memcheck --show-backtrace device --report-api-errors no --error-exitcode 9 \\
        python -m pytest -m "gpu and not slow" tests/gpu/test_session_*.py -q -k cuda-python
    compute-sanitizer --tool racecheck --show-backtrace device --error-exitcode 9 \\
        python -m pytest -m "gpu and not slow" tests/gpu/test_session_on_kernels.py -q -k "smoke or scratch"

The sanitizer's host backtraces keep Python's frames alive, and with them every array in their variables: tests that
count memory need them off. The API errors left out are 34 refused lookups in cuda-bindings' own start.
"""

import gc

import pytest

from tests.doubles.bindings import installed_bindings, make_pycuda, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.kernels import GpuKernels, KernelEngine, MemoryKernels
from trtsparse.cuda.base import open_cuda
from trtsparse.cuda.cuda_pycuda import PyCuda
from trtsparse.cuda.cuda_python import CudaPython
from trtsparse.errors import DeviceError, MissingDependencyError
from trtsparse.runtime.options import SessionOptions
from trtsparse.runtime.session import Session

BINDINGS = ("cuda-python", "pycuda")
SLOW = 2_000_000
"""Cycles that a kernel spins: about a millisecond."""


class World:
    """A CUDA and kernels on it.

    Attributes:
        cuda: The provider.
        memory: The in-memory CUDA beneath it; None on a real GPU.
        slow: Cycles after which a missing synchronisation shows; 0 where executions are late anyway.
    """

    def __init__(self, cuda, kernels, *, slow, memory=None):
        self.cuda, self.kernels, self.slow = cuda, kernels, slow
        self.memory = memory or (cuda if isinstance(cuda, MemoryCuda) else None)
        self.is_memory = self.memory is not None

    def engine(self, **options):
        token = self.cuda.enter()
        try:
            return KernelEngine(self.kernels, **options)
        finally:
            self.cuda.leave(token)

    def session(self, engine=None, **options):
        return Session(engine or self.engine(), cuda=self.cuda, options=SessionOptions(**options))

    def check(self):
        gc.collect()
        if self.is_memory:
            self.memory.check()
            assert set(self.memory.alive.values()) == {0}


_kernels = {}


def gpu_world(binding):
    """A world on GPU 0; skips where there is none."""
    try:
        cuda = open_cuda(binding)
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error).replace("\n", " "))
    token = cuda.enter()
    try:
        kernels = _kernels.setdefault(0, None) or GpuKernels(0)
        _kernels[0] = kernels
    finally:
        cuda.leave(token)
    return World(cuda, kernels, slow=SLOW)


def memory_world(order):
    cuda = MemoryCuda(order=order, log=False)
    return World(cuda, MemoryKernels(cuda), slow=0)


def provider_world(binding):
    """A provider over a double of its binding, over the in-memory CUDA."""
    memory = MemoryCuda(order="shuffled", log=False)
    if binding == "cuda-python":
        with installed_bindings(runtime=make_runtime(memory)):
            cuda = CudaPython()
    else:
        with installed_bindings(pycuda=make_pycuda(memory)):
            cuda = PyCuda()
    return World(cuda, MemoryKernels(memory), slow=0, memory=memory)


PLACES = [
    *("memory-eager", "memory-late", "memory-shuffled", "double-cuda-python", "double-pycuda"),
    *(pytest.param(binding, marks=pytest.mark.gpu) for binding in BINDINGS),
]


@pytest.fixture(params=PLACES)
def world(request):
    """Everywhere."""
    name = request.param
    kind, _, rest = name.partition("-")
    made = gpu_world(name) if name in BINDINGS else {"memory": memory_world, "double": provider_world}[kind](rest)
    yield made
    made.check()


@pytest.fixture(params=BINDINGS)
def gpu(request):
    """On a real GPU only."""
    made = gpu_world(request.param)
    yield made
    made.check()
