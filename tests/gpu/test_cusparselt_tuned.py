"""The cusparselt engine as users open it: kernels are tuned when a shape is first executed, and kept."""

import numpy as np
import pytest

import models
from tests.gpu.conftest import gpu_world
from trtsparse.bench.compare import compare
from trtsparse.bench.options import BenchOptions
from trtsparse.builder.config import BuildConfig
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.precision.feeds import random_feeds
from trtsparse.runtime.session import Session
from trtsparse.sparsity.prune import prune

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Kernels that were tuned are kept from one test to the next."""
    gpu_world("cuda-python")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch was built without CUDA")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def model(cache):  # noqa: ARG001 - where its kernels go
    return prune(models.get("mlp", widths=(1024, 2048, 1024))).model


def test_products_are_tuned_once_and_give_what_onnx_runtime_gives(model):
    feeds = random_feeds(model, shapes={"input": (4096, 1024)})[0]
    right = OnnxRuntimeEngine(model).run(feeds)
    seen = []
    for _ in range(2):
        with Session(model, engine="cusparselt") as session:
            for name, values in session.run(feeds).items():
                scale = float(np.abs(right[name]).max())
                assert float(np.abs(values - right[name]).max()) <= 0.05 * scale
            seen.append([used.kernel for used in session.engine.used])
    assert all(kernel is not None for kernel in seen[0])
    assert seen[0] == seen[1]  # from the cache


def test_a_sparse_model_is_compared_with_its_dense_kernels(model):
    options = BenchOptions(iterations=5, duration_s=0.0, warm_up_ms=1.0)
    config = BuildConfig(precision="bf16")
    found = compare(
        model, engine="cusparselt", config=config, shapes={"input": (4096, 1024)}, rounds=3, options=options
    )
    assert found.dense.description.endswith("0 of 2 products sparse")
    assert found.output_error <= 0.05
