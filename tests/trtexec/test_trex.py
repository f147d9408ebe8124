"""NVIDIA's TREx (trt-engine-explorer on PyPI) reads our JSON files through its own loader.

The package asks for dozens of exact versions (Jupyter, numpy below 2, protobuf below 4), so only its loader is
imported: `trex.parser` needs nothing, `trex.engine_plan` needs pandas. Install it with
``pip install --no-deps trt-engine-explorer``, and pandas.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest

from tests.doubles import VERSIONS, installed
from tests.doubles.cuda import MemoryCuda
from trtsparse.trtexec.layers import layer_names
from trtsparse.trtexec.run import trtexec

QUICK = "--duration=0 --iterations=5 --warmUp=0"


@pytest.fixture
def trex(monkeypatch):
    """Imports a module of TREx without the package's __init__, which imports all of Jupyter."""
    found = importlib.util.find_spec("trex")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    if folder is None or not (folder / "engine_plan.py").is_file():
        pytest.skip("TREx is not installed: pip install --no-deps trt-engine-explorer")
    package = types.ModuleType("trex")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "trex", package)
    yield lambda name: importlib.import_module(f"trex.{name}")
    for name in [name for name in sys.modules if name.startswith("trex.")]:
        del sys.modules[name]


@pytest.fixture
def export(tmp_path):
    """Gives a function that runs trtexec and returns the result and the files of layers, profile and times."""
    files = [tmp_path / f"{name}.json" for name in ("layers", "profile", "times")]
    flags = "--exportLayerInfo={} --exportProfile={} --exportTimes={}".format(*files)

    def run(words, **options):
        result = trtexec(f"{words} {flags} {QUICK}", **options)
        assert result.passed, "\n".join(result.lines)
        return result, *map(str, files)

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_of_a_run_on_tensorrt_are_read(trex, model, export, version):
    cuda = MemoryCuda()
    with installed(version) as trt:
        trt.submit = cuda.submit
        words = f"--onnx={model} --profilingVerbosity=detailed --separateProfileRun"
        result, layers, profile, times = export(words, cuda=cuda)
    parser = trex("parser")
    latencies = parser.read_timing_file(times)
    assert latencies == pytest.approx([query.latency_ms for query in result.measurement.queries], abs=1e-6)
    rows = parser.read_profiling_file(profile)
    assert [row["name"] for row in rows] == [layer.name for layer in result.measurement.layers]
    assert sum(row["percentage"] for row in rows) == pytest.approx(100, abs=1e-4)
    found, bindings = parser.import_graph_file(layers)
    assert [layer["Name"] for layer in found] == layer_names(result.layers)
    assert bindings == ["x", "y"]


def test_the_files_of_a_run_on_the_cpu_are_a_whole_engine_plan(trex, model, export):
    pytest.importorskip("pandas", reason="TREx's tables are pandas'")
    result, layers, profile, times = export(f"--onnx={model} --engine=onnxruntime")
    assert trex("parser").read_timing_file(times) == pytest.approx(
        [query.latency_ms for query in result.measurement.queries], abs=1e-6
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' about TREx
        plan = trex("engine_plan").EnginePlan(layers, profile)
    assert [layer.name for layer in plan.layers] == layer_names(result.layers)
    assert plan.total_weights_size == 64 * 128 * 4
    average = sum(layer.average_ms for layer in result.measurement.layers)
    assert plan.total_runtime == pytest.approx(average, abs=1e-4)
    assert [value.name for value in plan.get_bindings()[0]] == ["x"]


def test_a_real_model_becomes_an_engine_plan(trex, export):
    pytest.importorskip("pandas", reason="TREx's tables are pandas'")
    pytest.importorskip("magika", reason="the package brings the model")
    from models.packaged import magika_model

    result, layers, profile, _ = export(f"--onnx={magika_model()} --engine=onnxruntime --shapes=bytes:1x2048")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = trex("engine_plan").EnginePlan(layers, profile)
    names = layer_names(result.layers)
    assert len(plan.df) == len(names) == len(result.measurement.layers)
    assert plan.df["latency.avg_time"].sum() > 0
