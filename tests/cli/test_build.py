"""`trtsparse build`: a real TensorRT-RTX plan and its report, or one clear message."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtsparse.builder.plan import read_header
from trtsparse.cli.main import main
from trtsparse.sparsity.prune import prune


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    weights = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_pruned_model_becomes_a_plan_and_a_report(model, tmp_path, capsys):
    prune(model, output=model)
    plan = tmp_path / "m.plan"
    code = main(["build", str(model), "-o", str(plan), "--precision", "fp16", "--shapes", "x:1x64:4x64:8x64"])
    assert code == 0
    assert read_header(plan).flavour == "tensorrt_rtx"
    report = json.loads((tmp_path / "m.plan.json").read_text())
    (site,) = report["sites"]
    assert (site["compliant"], site["eligible"], site["chosen"]) == (True, True, "decided at load")
    out = capsys.readouterr().out
    assert "precision fp16 asked, fp16 reached: converted graph" in out
    assert f"wrote {plan}" in out


def test_force_prunes_first_and_says_so(model, tmp_path, capsys):
    arguments = ["--precision", "fp16", "--sparsity", "force", "--shapes", "x:8x64"]
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 0
    assert "force: 2,048 weights pruned by magnitude" in capsys.readouterr().out


def test_json_is_the_report(model, tmp_path, capsys):
    plan = tmp_path / "m.plan"
    assert main(["build", str(model), "-o", str(plan), "--shapes", "x:8x64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "m.plan.json").read_text())


def test_warnings_of_the_report_are_printed(model, tmp_path, capsys):
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), "--shapes", "x:8x64"]) == 0
    assert "warning: " in capsys.readouterr().out  # FP32, and nothing is compliant


def test_memory_limits_take_units(model, tmp_path):
    arguments = ["--shapes", "x:8x64", "--memory-pool", "workspace=1G"]
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 0
    report = json.loads((tmp_path / "m.plan.json").read_text())
    assert report["config"]["memory_pools"] == {"workspace": 1 << 30}


def test_samples_give_the_profile(model, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 64), np.float32))
    arguments = ["--samples", str(tmp_path / "x.npy"), "--precision", "fp16"]
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 0
    report = json.loads((tmp_path / "m.plan.json").read_text())
    assert report["profiles"] == [{"x": {"min": [4, 64], "opt": [4, 64], "max": [4, 64]}}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the model has dynamic inputs and no profile says how large they are"),
        (["--shapes", "y:1x64"], "a profile names an input that the model does not have"),
        (["--shapes", "x:1x64", "--memory-pool", "workspace"], "cannot read a memory limit\n  where: --memory-pool"),
        (["--shapes", "x:1x64", "--compute-capability", "9.0"], "cannot build for this compute capability"),
        (["--shapes", "x:1x64", "--typing", "weak", "--precision", "fp16"], "TensorRT-RTX"),
    ],
)
def test_wrong_input_is_exit_code_2_and_nothing_is_written(model, tmp_path, arguments, message, capsys):
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}


def test_an_output_that_cannot_be_written_is_found_before_building(model, capsys):
    assert main(["build", str(model), "-o", "/nowhere/m.plan", "--shapes", "x:8x64"]) == 2
    assert "cannot write the file\n  where: /nowhere/m.plan" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["m.onnx", "m.data", "m"])
def test_the_model_is_not_replaced_by_the_plan_or_the_report(model, tmp_path, output, capsys):
    onnx.save(onnx.load(model), model, save_as_external_data=True, location="m.data", size_threshold=0)
    path = model.rename(tmp_path / "m.json") if output == "m" else model  # the report of "m" is "m.json"
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert main(["build", str(path), "-o", str(tmp_path / output), "--shapes", "x:8x64"]) == 2
    assert "the output would replace " in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_timing_cache_does_not_replace_the_model_either(model, tmp_path, capsys):
    before = model.read_bytes()
    arguments = ["--shapes", "x:8x64", "--timing-cache", str(model)]
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 2
    assert f"the output would replace the model\n  where: {model}\n" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m.onnx": before}


def test_options_that_nothing_would_come_of_are_refused(model, tmp_path, capsys):
    arguments = ["--shapes", "x:8x64", "--precision", "tf32", "--keep-fp32", "nonsense"]
    assert main(["build", str(model), "-o", str(tmp_path / "m.plan"), *arguments]) == 2
    assert "keep_fp32=('nonsense',) is about conversions" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}
