"""Tuning on a real GPU: kernels that are kept make the same kernels again, and every type has a table.

pytest -m gpu tests/gpu/test_tune.py -q
"""

import json

import numpy as np
import pytest

from trtsparse.cuda.base import open_cuda
from trtsparse.errors import DeviceError, MissingDependencyError
from trtsparse.tune.cache import Cache
from trtsparse.tune.cuda_library import CudaLibrary
from trtsparse.tune.dense import Algorithm, Dense, dense_form
from trtsparse.tune.gemm import Gemm, Refused
from trtsparse.tune.measure import Options, Tuner
from trtsparse.tune.operands import Operands
from trtsparse.tune.sparse import Configuration, Sparse
from trtsparse.tune.tune import tune

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("library")]
MOST = 64 << 20


@pytest.fixture(scope="module")
def library():
    try:
        return CudaLibrary(open_cuda("cuda-python"))
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error).replace("\n", " "))


@pytest.fixture
def options():
    return Options(rounds=5, screen_s=20.0)


class Place:
    """Operands of a product, and what kernels make of them."""

    def __init__(self, library, gemm):
        self.cuda, self.stream, self.gemm = library.cuda, library.stream, gemm
        nbytes = gemm.padded_m * gemm.n * gemm.output_type.nbytes
        self.data = Operands(self.cuda, self.stream, gemm, l2_nbytes=1 << 20, y_nbytes=nbytes)
        self.workspace = self.data.allocate(MOST)

    def output(self, runner, w):
        self.data.poison(self.gemm.output_type)
        runner.enqueue(
            x=self.data.sets[0].x, w=w, y=self.data.sets[0].y, workspace=self.workspace, stream=self.stream
        )
        return self.data.read(self.gemm.output_type, (self.gemm.m, self.gemm.n)).copy()

    def launched(self, runner, w):
        """The kernels' names and grids, from a captured graph."""
        from cuda.bindings import driver, runtime

        def ok(answer):
            code, *values = answer
            assert int(code) == 0, code
            return values[0] if len(values) == 1 else values

        ok(runtime.cudaStreamBeginCapture(self.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed))
        runner.enqueue(
            x=self.data.sets[0].x, w=w, y=self.data.sets[0].y, workspace=self.workspace, stream=self.stream
        )
        graph = ok(runtime.cudaStreamEndCapture(self.stream))
        _, count = ok(runtime.cudaGraphGetNodes(graph))
        nodes, _ = ok(runtime.cudaGraphGetNodes(graph, count))
        found = []
        for node in nodes[:count]:
            handle = driver.CUgraphNode(int(node))
            if ok(driver.cuGraphNodeGetType(handle)) != driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL:
                continue
            made = ok(driver.cuGraphKernelNodeGetParams(handle))
            name = driver.cuFuncGetName(made.func) if int(made.func) else driver.cuKernelGetName(made.kern)
            found.append((ok(name), made.gridDimX, made.gridDimY, made.gridDimZ, made.blockDimX, made.sharedMemBytes))
        ok(runtime.cudaGraphDestroy(graph))
        return found


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8", "fp8_e4m3"])
def test_every_dense_algorithm_that_was_kept_makes_the_same_kernel_again(library, dtype):
    gemm = dense_form(Gemm(512, 1024, 2048, dtype))
    place, first = Place(library, gemm), Dense(gemm)
    w = place.data.sets[0].w
    kept, before = [], []
    for algorithm in first.algorithms(workspace_nbytes=MOST):
        runner = first.runner(algorithm)
        kept.append(json.dumps([algorithm.data, algorithm.fast_accumulation, algorithm.workspace_nbytes]))
        before.append((place.launched(runner, w), place.output(runner, w).tobytes()))
    first.close()
    assert kept
    assert all(names for names, _ in before)
    again = Dense(gemm)  # it has not asked the heuristics
    for text, (names, output) in zip(kept, before, strict=True):
        runner = again.runner(Algorithm(*json.loads(text)))
        assert place.launched(runner, w) == names
        assert place.output(runner, w).tobytes() == output
    again.close()
    place.data.close()


def test_data_that_is_no_algorithm_is_refused():
    made = Dense(Gemm(512, 1024, 2048))
    data = made.algorithms(workspace_nbytes=MOST)[0].data
    for damaged in (data[:32], "00" * 64, "ff" * 64):
        with pytest.raises(Refused):
            made.runner(Algorithm(damaged, fast_accumulation=False, workspace_nbytes=0))
    made.close()


@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8_e4m3"])
def test_one_compressed_weight_serves_configurations_of_any_number_of_rows(library, dtype):
    """Compressed by one product's descriptors, used by another's."""
    small, large = Gemm(64, 512, 1024, dtype), Gemm(512, 512, 1024, dtype)
    place, made = Place(library, large), Sparse(small)
    nbytes, scratch = made.compressed_nbytes()
    assert nbytes < 0.65 * place.data.w.nbytes
    packed, working = place.data.allocate(nbytes), place.data.allocate(scratch)
    made.compress(w=place.data.sets[0].w, compressed=packed, scratch=working, stream=place.stream)
    other = Sparse(large)
    outputs = []
    for configuration in (other.configurations()[0], Configuration(0), Configuration(1)):
        plan = other.runner(configuration)
        outputs.append(place.output(plan, packed).astype(np.float64))
        plan.close()
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=0.05, atol=0.05 * np.abs(outputs[0]).max())
    other.close()
    made.close()
    place.data.close()


@pytest.mark.parametrize(
    "gemm",
    [
        Gemm(512, 512, 1024, "bf16"), Gemm(512, 512, 1024, "int8"), Gemm(500, 512, 1024, "int8", "fp16"),
        Gemm(512, 512, 1024, "int8", "int32"), Gemm(512, 512, 1024, "fp8_e4m3"), Gemm(512, 512, 1024, "tf32"),
        Gemm(500, 512, 1024, "bf16", "", "bias_relu"), Gemm(1, 512, 1024, "int8"), Gemm(1, 512, 1024, "bf16"),
        Gemm(500, 512, 1024, "bf16", "", "bias_add_relu"), Gemm(512, 512, 1024, "fp16", "", "add"),
    ],
    ids=lambda gemm: gemm.key,
)  # fmt: skip
def test_every_type_has_a_dense_and_a_sparse_kernel_that_compute_the_product(options, tmp_path, gemm):
    with Tuner(options) as tuner:
        (row,) = tune([gemm], cache=Cache(tmp_path / "tune.json"), tuner=tuner).rows
    assert row.dense is not None, dict(row.facts)
    assert row.sparse is not None, dict(row.facts)
    for kernel in (row.dense, row.sparse):
        assert kernel.error <= kernel.bound
        assert 0 < kernel.low <= kernel.ms <= kernel.high
    assert row.facts["compressed_nbytes"] < row.facts["dense_nbytes"]


def test_a_crash_is_remembered_across_products_and_runs(options, tmp_path):
    """Kernels of FP16 are known to raise "illegal instruction" on an H100; elsewhere nothing may crash at all."""
    cache, first, second = Cache(tmp_path / "tune.json"), Gemm(512, 512, 1024, "fp16"), Gemm(256, 512, 1024, "fp16")
    with Tuner(options) as tuner:
        (row,) = tune([first], cache=cache, tuner=tuner).rows
        (again,) = tune([second], cache=cache, tuner=tuner).rows
    with Tuner(options) as tuner:
        (later,) = tune([Gemm(128, 512, 1024, "fp16")], cache=cache, tuner=tuner).rows
    assert row.restarts <= options.crashes
    assert (again.restarts, later.restarts) == (0, 0), (again.skipped, later.skipped)
    assert row.sparse
    assert again.sparse
    assert later.sparse


def test_a_choice_that_was_kept_computes_the_product_in_a_new_process(library, options, tmp_path):
    gemm = Gemm(512, 512, 1024, "bf16")
    cache = Cache(tmp_path / "tune.json")
    with Tuner(options) as tuner:
        tune([gemm], cache=cache, tuner=tuner)
        facts = tuner.facts()
    kept = cache.load(facts).results[gemm]
    place = Place(library, gemm)
    rows = np.arange(0, 512, 37)
    wanted = place.data.x.take(rows) @ place.data.w.take(np.arange(512)).T
    made = Sparse(gemm)
    nbytes, scratch = made.compressed_nbytes()
    packed, working = place.data.allocate(nbytes), place.data.allocate(scratch)
    made.compress(w=place.data.sets[0].w, compressed=packed, scratch=working, stream=place.stream)
    plan = made.runner(Configuration(**kept.sparse.parameters))
    problem = Dense(gemm)
    for runner, w in (
        (plan, packed),
        (problem.runner(Algorithm(**kept.dense.parameters)), place.data.sets[0].w),
    ):
        got = place.output(runner, w)[rows].astype(np.float64)
        assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 5e-3
    plan.close()
    problem.close()
    made.close()
    place.data.close()


def test_sparse_kernels_are_faster_where_they_should_be(tmp_path):
    with Tuner() as tuner:
        (row,) = tune([Gemm(4096, 4096, 4096, "bf16")], cache=Cache(tmp_path / "tune.json"), tuner=tuner).rows
    assert row.gain > 1.2
    assert row.sparse.ms < row.defaults["sparse"]
