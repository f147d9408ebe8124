"""Engines of --engine=cusparselt in files: written whole after their kernels were chosen, recognised, refused."""

import re
import warnings
import zipfile

import pytest

from tests.trtexec.on_memory import HERE, Machine, texts, warnings_of
from tests.trtexec.running import QUICK, failed, log
from trtsparse.engines.cusparselt.saved import is_saved, read_saved
from trtsparse.errors import ConfigError, DeviceError, ModelError, OutputError, PlanError
from trtsparse.trtexec.layers import layer_names
from trtsparse.trtexec.run import trtexec
from trtsparse.tune.cache import CacheWarning


@pytest.fixture
def gpu(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def saved(gpu, model, tmp_path):
    """A saved engine, made with sparse kernels in FP16."""
    path = tmp_path / "m.trtsparse"
    assert gpu.run(f"--onnx={model} {HERE} --fp16 --saveEngine={path} {QUICK}").passed
    gpu.questions.clear()
    return path


def test_an_engine_is_saved_after_its_kernels_were_chosen(gpu, model, tmp_path):
    path = tmp_path / "m.trtsparse"
    result = gpu.run(f"--onnx={model} {HERE} --fp16 --saveEngine={path} {QUICK}")
    assert result.passed, log(result)
    assert is_saved(path)
    found = read_saved(path)
    assert (found.precision, [one.kind for one in found.kernels.values()]) == ("fp16", ["sparse"])
    assert (result.plan_path, result.files, result.plan) == (path, (path,), None)
    said = texts(result)
    assert f"[I] Saved engine to {path}" in said
    assert f"[I] Created engine with size: {path.stat().st_size / 2**20:.6g} MiB" in said
    assert said.index(f"[I] Saved engine to {path}") < said.index("[I] Starting inference")


def test_an_engine_can_be_saved_without_measuring_it(gpu, model, tmp_path):
    path = tmp_path / "m.trtsparse"
    result = gpu.run(f"--onnx={model} {HERE} --saveEngine={path} --skipInference --dumpLayerInfo --like=10")
    assert result.passed, log(result)
    assert result.measurement is None
    assert is_saved(path)
    assert layer_names(result.layers) == ["matmul"]
    assert result.lines[-2].endswith("[I] Skipped inference phase since --skipInference is added.")


@pytest.mark.parametrize("named", ["", HERE])
def test_a_saved_engine_is_recognised_and_runs_without_a_tuner(gpu, saved, named):
    result = gpu.run(f"--loadEngine={saved} {named} --like=10 {QUICK}")
    assert result.passed, log(result)
    assert gpu.engine.is_saved
    assert gpu.engine.asked_precision is None
    assert not gpu.questions
    assert result.options.engine == "cusparselt"
    said = texts(result)
    assert f"[I] Loaded {saved} in fp16 on memory, 1 of 1 products sparse" in said
    assert [line for line in said if re.fullmatch(r"\[I\] Engine deserialized in \S+ sec\.", line)]
    assert not [line for line in said if line.startswith(("[I] Engine built", "[I] Choosing"))]
    assert warnings_of(result) == []
    assert "[I] === Build Options ===" not in said
    assert "Throughput: " in log(result)


def test_what_was_decided_when_an_engine_was_saved_stays(gpu, saved):
    flags = "--fp16 --sparsity=disable --timingCacheFile=t.json"
    result = gpu.run(f"--loadEngine={saved} {flags} --like=8 {QUICK}")
    assert result.passed, log(result)
    for name in ("--fp16", "--sparsity", "--timingCacheFile"):
        assert f"[W] {name} changes nothing: this was decided when the engine was saved" in texts(result)
    assert gpu.engine.asked_precision is None
    assert [line for line in texts(result) if "1 of 1 products sparse" in line]


def test_a_saved_engine_can_be_loaded_only(gpu, saved):
    streams = gpu.cuda.counts["create_stream"]
    result = gpu.run(f"--loadEngine={saved} --skipInference")
    assert result.passed, log(result)
    assert result.measurement is None
    assert gpu.cuda.counts["create_stream"] == streams  # nothing was executed


def test_a_saved_engine_says_what_it_is_for(gpu, saved):
    result = gpu.run(f"--loadEngine={saved} --getPlanVersionOnly")
    assert result.passed, log(result)
    assert len(result.lines) == 3
    assert result.lines[1].endswith("[I] Engine was saved in fp16, with 1 kernels for: gpu memory, cusparselt 0.8.0")


def test_loading_is_timed_when_asked(gpu, model, saved):
    result = gpu.run(f"--loadEngine={saved} --timeDeserialize")
    assert result.passed, log(result)
    assert result.measurement is None
    assert "[I] First deserialization time = " in log(result)
    assert " in 20 iterations, average time = " in log(result)
    error = failed(gpu.run(f"--onnx={model} {HERE} --timeDeserialize"), ConfigError)
    assert str(error) == (
        "only saved engines are deserialized\n"
        "  where: --timeDeserialize\n"
        "  to fix: --saveEngine=<file>, then --loadEngine=<file> --timeDeserialize"
    )


def test_profiles_are_those_of_the_engine(gpu, dynamic):
    result = gpu.run(f"--onnx={dynamic} {HERE} --dumpOptimizationProfile {QUICK}")
    assert "[I] Model input x (profile 0): min=1x8, opt=4x8, max=1024x8" in texts(result)


def test_warnings_of_the_engine_and_the_tuner_are_in_the_log(gpu, saved, monkeypatch):
    prepare = gpu.engines.prepare

    def telling(self, rows):
        warnings.warn("the kernels are chosen anew", RuntimeWarning, stacklevel=2)
        warnings.warn("results of tuning are not kept", CacheWarning, stacklevel=2)
        prepare(self, rows)

    monkeypatch.setattr(gpu.engines, "prepare", telling)
    said = texts(gpu.run(f"--loadEngine={saved} {QUICK}"))
    assert "[W] the kernels are chosen anew" in said
    assert "[W] results of tuning are not kept" in said


def test_a_saved_engine_is_for_no_other_engine(gpu, saved):
    error = failed(gpu.run(f"--loadEngine={saved} --engine=tensorrt"), ConfigError)
    assert str(error) == (
        "TensorRT cannot execute a saved engine of cuSPARSELt\n"
        f"  where: --loadEngine={saved}\n"
        "  to fix: leave --engine=tensorrt out"
    )
    error = failed(gpu.run(f"--loadEngine={saved} --engine=onnxruntime"), ConfigError)
    assert error.what == "ONNX Runtime cannot execute a plan"


@pytest.mark.parametrize("content", [b"vtrt" + bytes(100), b"", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_saved_engine_is_refused(gpu, tmp_path, content):
    path = tmp_path / "m.plan"
    path.write_bytes(content)
    error = failed(gpu.run(f"--loadEngine={path} {HERE}"), ConfigError)
    assert str(error) == (
        "this is no saved engine of cuSPARSELt\n"
        f"  where: --loadEngine={path}\n"
        "  expected: what --onnx=<file> --engine=cusparselt --saveEngine=<file> wrote\n"
        "  to fix: leave --engine=cusparselt out if it is a plan of TensorRT"
    )


def test_a_saved_engine_that_is_missing_or_damaged_is_said(gpu, saved, tmp_path):
    error = failed(gpu.run(f"--loadEngine={tmp_path}/none {HERE}"), PlanError)
    assert str(error) == f"there is no such saved engine\n  where: --loadEngine={tmp_path}/none"
    broken = tmp_path / "broken.trtsparse"
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(broken, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name)[:-1] + b"?" if name == "model.onnx" else good.read(name))
    error = failed(gpu.run(f"--loadEngine={broken}"), PlanError)
    assert error.what == "a saved engine was changed after it was written"


@pytest.mark.usefixtures("without_gpu")
def test_a_truncated_saved_engine_is_said_before_the_gpu_is_looked_for(saved, tmp_path):
    short = tmp_path / "short.trtsparse"
    short.write_bytes(saved.read_bytes()[:-40])
    result = trtexec(f"--loadEngine={short}")
    assert result.exit_code == 1
    assert str(result.error) == (
        f"a saved engine is damaged\n  where: {short}\n  got: BadZipFile: File is not a zip file\n"
        "  to fix: save it again"
    )
    assert isinstance(trtexec(f"--loadEngine={saved}").error, DeviceError)


def test_an_engine_that_cannot_be_saved_is_refused_before_anything_is_made(gpu, model, tmp_path):
    result = gpu.run(f"--onnx={model} {HERE} --saveEngine={tmp_path}/none/m.trtsparse {QUICK}")
    assert failed(result, OutputError).what == "cannot write the file"
    assert not gpu.engines.made


def test_a_run_that_fails_leaves_no_saved_engine(gpu, model, tmp_path, monkeypatch):
    def broken(_self, _rows):
        raise ModelError("no kernel does this")

    monkeypatch.setattr(gpu.engines, "prepare", broken)
    result = trtexec(f"--onnx={model} {HERE} --saveEngine={tmp_path}/m.trtsparse {QUICK}", cuda=gpu.cuda)
    assert failed(result, ModelError).what == "no kernel does this"
    assert not list(tmp_path.glob("*.trtsparse*"))
    assert gpu.engine.closed
