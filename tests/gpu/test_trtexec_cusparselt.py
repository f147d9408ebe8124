"""`trtsparse trtexec --engine=cusparselt` on a real GPU: tuned, measured, saved and loaded, against ONNX Runtime.

Every product is tuned once: all runs of this file share one file of timings.
"""

import json
import re

import numpy as np
import pytest

import models
from tests.gpu.conftest import gpu_world
from tests.trtexec.running import log
from trtsparse.engines.cusparselt.saved import is_saved
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.files.model import OnnxModel
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.prune import prune
from trtsparse.trtexec.run import trtexec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu
RUN = "--engine=cusparselt --duration=0 --iterations=20 --warmUp=20"
CASES = {
    "mlp": ("mlp", {"widths": (1024, 2048, 1024)}, {"input": (512, 1024)}),
    "bert": (
        "bert-base",
        {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 512, "vocabulary": 99},
        {"input_ids": (8, 32)},
    ),
}


@pytest.fixture(autouse=True)
def _gpu():
    """Skips where there is none."""
    gpu_world("cuda-python")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch was built without CUDA")


@pytest.fixture(scope="module")
def timings(tmp_path_factory):
    """Where the tuner of all runs keeps what it found."""
    return tmp_path_factory.mktemp("timings") / "t.json"


class Case:
    """A dense and a pruned model in files, inputs in files, and the flags that name shapes and inputs."""

    def __init__(self, name, folder):
        recipe, options, shapes = CASES[name]
        self.dense, self.pruned = folder / "dense.onnx", folder / "pruned.onnx"
        model = OnnxModel.open(models.get(recipe, **options))
        model.save(self.dense)
        prune(model).model.save(self.pruned)
        self.feeds = random_feeds(model, shapes=shapes)[0]
        for key, array in self.feeds.items():
            np.save(folder / f"{key}.npy", array)
        files = ",".join(f"{key}:{folder / key}.npy" for key in self.feeds)
        named = ",".join(f"{key}:{'x'.join(map(str, array.shape))}" for key, array in self.feeds.items())
        self.flags = f"--loadInputs={files} --shapes={named}"

    def right(self, *, pruned):
        return OnnxRuntimeEngine(self.pruned if pruned else self.dense).run(self.feeds)


@pytest.fixture(params=list(CASES))
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def assert_close(found, right, tolerance):
    for name, values in right.items():
        scale = max(float(np.abs(values).max()), 1e-2)
        assert float(np.abs(found[name] - values).max()) <= tolerance * scale, name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("sparsity", ["disable", "enable", "force"])
def test_each_sparsity_mode_is_measured_and_right(case, timings, tmp_path, sparsity, precision):
    model = case.pruned if sparsity == "enable" else case.dense
    layers = tmp_path / "layers.json"
    result = trtexec(
        f"--onnx={model} {case.flags} {RUN} --{precision} --sparsity={sparsity} --timingCacheFile={timings} "
        f"--exportLayerInfo={layers} --like=10"
    )
    assert result.passed, log(result)
    measured = result.measurement
    assert (measured.place, measured.engine, measured.options.transfers) == ("gpu", "cusparselt", True)
    assert len(measured.queries) >= 20
    assert all(query.compute_ms > 0 and query.h2d_ms > 0 and query.d2h_ms > 0 for query in measured.queries)
    assert re.search(r"\[I\] GPU Compute Time: min = ", log(result))
    assert_close(result.outputs, case.right(pruned=sparsity != "disable"), 0.02 if precision == "fp16" else 0.1)
    products = json.loads(layers.read_text())["Layers"]
    assert any("PyTorch" not in product["TacticName"] for product in products)
    sparse = sum(product["Sparse"] for product in products)
    assert f"{len(products)} products with weights, {sparse} of these chosen to run sparse" in log(result)
    if sparsity == "disable":
        assert sparse == 0
    assert "none is asked for" not in log(result)


def test_dense_weights_are_never_run_sparse(case, timings, tmp_path):
    layers = tmp_path / "layers.json"
    result = trtexec(
        f"--onnx={case.dense} {case.flags} {RUN} --bf16 --timingCacheFile={timings} --exportLayerInfo={layers}"
    )
    assert result.passed, log(result)
    assert not any(product["Sparse"] for product in json.loads(layers.read_text())["Layers"])
    assert "no product has a weight that is eligible and compliant" in log(result)
    assert_close(result.outputs, case.right(pruned=False), 0.1)


def test_a_saved_engine_gives_the_same_outputs_by_the_same_kernels_without_tuning(case, timings, tmp_path):
    saved = tmp_path / "m.trtsparse"
    made = trtexec(
        f"--onnx={case.pruned} {case.flags} {RUN} --fp16 --timingCacheFile={timings} --saveEngine={saved} "
        "--dumpLayerInfo"
    )
    assert made.passed, log(made)
    assert is_saved(saved)
    assert made.files == (saved,)
    loaded = trtexec(f"--loadEngine={saved} {case.flags} {RUN} --dumpLayerInfo")
    assert loaded.passed, log(loaded)
    assert "Engine deserialized in " in log(loaded)
    assert "Engine built in " not in log(loaded)
    assert json.loads(loaded.layers) == json.loads(made.layers)
    for name, values in made.outputs.items():
        np.testing.assert_array_equal(loaded.outputs[name], values)
    assert trtexec(f"--loadEngine={saved} --timeDeserialize").passed
    told = trtexec(f"--loadEngine={saved} --getPlanVersionOnly")
    assert f"gpu {torch.cuda.get_device_name(0)}" in log(told)


def test_streams_profiles_and_files_are_as_for_plans(case, timings, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("Times", "Profile", "Output")}
    flags = " ".join(f"--export{name}={path}" for name, path in files.items())
    result = trtexec(
        f"--onnx={case.pruned} {case.flags} {RUN} --bf16 --timingCacheFile={timings} --infStreams=2 --threads "
        f"--useSpinWait --noDataTransfers --useCudaGraph --dumpProfile --like=8 {flags}"
    )
    assert result.passed, log(result)
    assert {query.stream for query in result.measurement.queries} == {0, 1}
    assert len(json.loads(files["Times"].read_text())) == len(result.measurement.queries)
    profile = json.loads(files["Profile"].read_text())
    assert profile[0]["count"] == result.measurement.profile_queries
    assert sum(row["percentage"] for row in profile[1:]) == pytest.approx(100, abs=1e-3)
    assert {output["name"] for output in json.loads(files["Output"].read_text())} == set(result.outputs)
    assert "[W] --useCudaGraph changes nothing: this engine always launches CUDA graphs of its own" in log(result)
    assert_close(result.outputs, case.right(pruned=True), 0.1)


def test_the_models_own_types_are_computed_in_when_asked_for(case, timings):
    result = trtexec(f"--onnx={case.pruned} {case.flags} {RUN} --stronglyTyped --timingCacheFile={timings}")
    assert result.passed, log(result)
    assert "nothing can run sparse; leave --stronglyTyped out" in log(result)
    assert_close(result.outputs, case.right(pruned=True), 1e-3)
