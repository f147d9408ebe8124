"""Build, run and report with every TensorRT, by its strict double and CUDA on host memory."""

import json

import numpy as np
import onnx
import pytest

from tests.doubles import VERSIONS, installed
from tests.doubles.cuda import MemoryCuda
from tests.helpers import matmul, sparse
from trtsparse import Session
from trtsparse.trtexec.run import trtexec

QUICK = "--duration=0 --iterations=12 --warmUp=0"


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def cuda(version):
    provider = MemoryCuda()
    with installed(version) as trt:
        trt.submit = provider.submit
        yield provider


def like(version):
    return 8 if version.startswith("8") else 10 if version.startswith("10") else 11


def test_a_build_and_a_run_pass_and_the_banner_names_the_library(version, cuda, model, tmp_path):
    plan = tmp_path / "m.plan"
    result = trtexec(f"--onnx={model} --saveEngine={plan} --fp16 --sparsity=enable {QUICK}", cuda=cuda)
    assert result.passed, "\n".join(result.lines)
    name = "TensorRT-RTX" if version.startswith("rtx") else "TensorRT"
    assert result.lines[0].startswith(f"&&&& RUNNING TensorRT.trtexec [{name} v")
    assert result.lines[-1].startswith(f"&&&& PASSED TensorRT.trtexec [{name} v")
    assert result.plan == plan.read_bytes()
    assert result.options.like == like(version)
    assert result.build.precision.reached == "fp16"
    assert len(result.measurement.queries) >= 12
    assert result.measurement.place == "gpu"
    cuda.check()
    assert cuda.alive == {"allocations": 0, "streams": 0, "events": 0, "graphs": 0}


def test_the_policy_is_that_of_the_installed_major_version(version, cuda, model):
    result = trtexec(f"--onnx={model} {QUICK}", cuda=cuda)
    modern = like(version) == 11
    assert result.measurement.graphs == modern
    assert result.measurement.options.transfers != modern
    assert result.measurement.options.spin_wait == modern
    said = [line for line in result.lines if "Measured like trtexec" in line]
    state = "on" if modern else "off"
    assert [f"trtexec {like(version)} (" in said[0], f"CUDA graph {state}" in said[0]] == [True, True]


def test_another_majors_policy_can_be_chosen(cuda, model):
    result = trtexec(f"--onnx={model} --like=10 {QUICK}", cuda=cuda)
    assert (result.measurement.graphs, result.measurement.options.transfers) == (False, True)
    assert "Measured like trtexec 10 (--like=10)" in "\n".join(result.lines)


def test_a_saved_plan_gives_the_values_of_a_session(cuda, model, tmp_path):
    plan, raw, exported = tmp_path / "m.plan", tmp_path / "x.bin", tmp_path / "y.json"
    assert trtexec(f"--onnx={model} --saveEngine={plan} --skipInference", cuda=cuda).passed
    x = np.random.default_rng(1).standard_normal((2, 64)).astype("f4")
    raw.write_bytes(x.tobytes())
    result = trtexec(f"--loadEngine={plan} --loadInputs=x:{raw} --exportOutput={exported} {QUICK}", cuda=cuda)
    assert result.passed, "\n".join(result.lines)
    with Session(plan, cuda=cuda) as session:
        expected = session.run({"x": x})["y"]
    (found,) = json.loads(exported.read_text())
    assert (found["name"], found["dimensions"]) == ("y", "2x128")
    assert np.array_equal(np.array(found["values"], np.float32), expected.ravel())
    assert np.array_equal(result.outputs["y"], expected)


def test_layers_and_their_times_are_printed_and_written(cuda, model, tmp_path):
    layers, profile, times = tmp_path / "layers.json", tmp_path / "profile.json", tmp_path / "times.json"
    result = trtexec(
        f"--onnx={model} --profilingVerbosity=detailed --dumpLayerInfo --exportLayerInfo={layers} --dumpProfile "
        f"--exportProfile={profile} --exportTimes={times} --separateProfileRun {QUICK}",
        cuda=cuda,
    )
    assert result.passed, "\n".join(result.lines)
    described = json.loads(layers.read_text())
    assert described["Bindings"] == ["x", "y"]
    head, *rows = json.loads(profile.read_text())
    assert head["count"] == result.measurement.profile_queries
    assert [row["name"] for row in rows] == [layer.name for layer in result.measurement.layers]
    assert len(json.loads(times.read_text())) == len(result.measurement.queries)
    log = "\n".join(result.lines)
    assert "[I] Layer Information:" in log
    assert f"[I] === Profile ({head['count']} iterations ) ===" in log
    assert set(result.files) == {layers, profile, times}


def test_a_plan_of_another_version_is_explained(cuda, model, tmp_path):
    plan = tmp_path / "m.plan"
    assert trtexec(f"--onnx={model} --saveEngine={plan} --skipInference", cuda=cuda).passed
    data = bytearray(plan.read_bytes())
    data[24] += 1
    plan.write_bytes(data)
    result = trtexec(f"--loadEngine={plan} {QUICK}", cuda=cuda)
    assert result.exit_code == 1
    assert "the plan was built by another version of TensorRT" in result.error.what
    assert result.lines[-1].startswith("&&&& FAILED TensorRT.trtexec")


@pytest.mark.parametrize("flag", ["--dumpOptimizationProfile", "--useProfile=1 --allocationStrategy=profile"])
def test_the_second_of_two_profiles_can_be_used(cuda, flag, tmp_path):
    path = tmp_path / "d.onnx"
    onnx.save(matmul(sparse(64, 128, axis=0), rows="n"), path)
    ranges = " ".join(
        f"--profile={i} --minShapes=x:{low}x64 --optShapes=x:{opt}x64 --maxShapes=x:{high}x64"
        for i, (low, opt, high) in enumerate([(1, 2, 4), (8, 8, 16)])
    )
    shown = "--dumpOptimizationProfile" in flag
    result = trtexec(f"--onnx={path} {ranges} {flag} {'' if shown else '--shapes=x:16x64'} {QUICK}", cuda=cuda)
    assert result.passed, "\n".join(result.lines)
    log = "\n".join(result.lines)
    if shown:
        assert "Model input x (profile 1): min=8x64, opt=8x64, max=16x64" in log
        assert "2 profiles detected but not set. Running with profile 0." in log
    assert result.measurement.shapes == {"x": (2, 64) if shown else (16, 64)}
    cuda.check()
    assert cuda.alive["allocations"] == 0
