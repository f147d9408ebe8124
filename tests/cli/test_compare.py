"""``trtsparse compare``: a table and a verdict, and an exit code for pipelines."""

import json

import onnx
import pytest
from onnx import parser

import models
from trtsparse.bench import compare as module
from trtsparse.bench.compare import Comparison, Side
from trtsparse.builder.config import COMPILED_FROM
from trtsparse.cli.main import main
from trtsparse.cuda.driver import count_gpus

QUICK = ["--rounds", "3", "--duration", "0.01"]
ON_CPU = "note: ONNX Runtime has no sparse kernels: sparsity saves no time there\n"


def test_without_sparse_kernels_the_answer_is_exit_code_1(capsys):
    path = str(models.get("mlp", widths=(64, 128, 16)))
    assert main(["compare", path, "--engine", "onnxruntime", *QUICK]) == 1
    printed = capsys.readouterr()
    assert "ship the dense engine: the sparse one runs no sparse kernels (" in printed.out
    assert "largest difference of an output: 0." in printed.out
    assert printed.err == f"{ON_CPU}note: random numbers were fed to input\n"


@pytest.mark.parametrize(("gains", "code"), [((1.2, 1.3, 1.1), 0), ((0.9, 1.0, 0.8), 1)])
def test_the_exit_code_says_whether_the_sparse_engine_ships(gains, code, capsys, monkeypatch):
    side = Side("an engine", 1.0, 0.9, 1.1, None)
    monkeypatch.setattr(module, "compare", lambda *_, **__: Comparison(side, side, gains, 0.1, "y"))
    assert main(["compare", "m.onnx"]) == code
    printed = capsys.readouterr()
    assert ("ship the sparse engine: 1.2 x as fast" in printed.out) is (code == 0)
    assert printed.err == ""


@pytest.mark.parametrize(("more", "named"), [([], "m.onnx"), (["--sparse", "s.onnx"], "s.onnx")])
def test_where_nothing_runs_sparse_the_way_to_find_out_why_is_named(more, named, capsys, monkeypatch):
    side = Side("an engine", 1.0, 0.9, 1.1, None)
    found = Comparison(side, side, (1.2, 1.3, 1.1), 0.1, "y", runs_sparse=False)
    monkeypatch.setattr(module, "compare", lambda *_, **__: found)
    assert main(["compare", "m.onnx", *more]) == 1
    assert capsys.readouterr().err == (
        f"note: `trtsparse validate {named}` says which weights are eligible and compliant\n"
    )


def test_one_json_document_goes_to_stdout(capsys):
    path = str(models.get("mlp", widths=(64, 128, 16)))
    assert main(["compare", path, "--engine", "onnxruntime", *QUICK, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == path
    assert (document["runs_sparse"], document["ships_sparse"]) == (False, False)
    assert len(document["gains"]) == 3


def test_wrong_input_is_exit_code_2(capsys, tmp_path):
    assert main(["compare", str(tmp_path / "none.onnx"), "--engine", "onnxruntime"]) == 2
    assert "none.onnx" in capsys.readouterr().err
    path = str(models.get("mlp", widths=(64, 128, 16)))
    assert main(["compare", path, "--precision", "fp15"]) == 2
    assert "fp15" in capsys.readouterr().err


def test_models_with_different_outputs_are_exit_code_2(capsys, tmp_path):
    for name in "yz":
        text = f"(float[1, 8] x) => (float[1, 8] {name}) {{ {name} = Relu(x) }}"
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
        onnx.save(model, tmp_path / f"{name}.onnx")
    dense, sparse = (str(tmp_path / f"{name}.onnx") for name in "yz")
    assert main(["compare", dense, "--sparse", sparse, "--engine", "onnxruntime", *QUICK]) == 2
    assert capsys.readouterr().err == (
        f"error: the models have different outputs\n  where: {sparse}\n  got: 'z'\n  expected: 'y'\n"
    )


def test_a_precision_that_the_engine_does_not_take_is_exit_code_2_at_once(capsys):
    for precision in ("int8", "best", "tf32", "fp32"):
        assert main(["compare", "none.onnx", "--engine", "cusparselt", "--precision", precision]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: the cusparselt engine does not compare in this precision\n")
        assert f"  got: '{precision}'\n  expected: 'fp16' or 'bf16'\n" in told


def test_a_precision_that_changes_nothing_is_said(capsys):
    path = str(models.get("mlp", widths=(64, 128, 16)))
    main(["compare", path, "--engine", "onnxruntime", "--precision", "bf16", "--rounds", "3", "--duration", "0.01"])
    assert capsys.readouterr().err == (
        "note: --precision changes nothing: ONNX Runtime runs the models as they are stored\n"
        f"{ON_CPU}note: random numbers were fed to input\n"
    )
    assert main(["compare", path, "--engine", "onnxruntime", "--precision", "fp15"]) == 2
    capsys.readouterr()
    main(
        ["compare", path, "--engine", "onnxruntime", "--optimization-level", "0", "--rounds", "3", "--duration", "0"]
    )
    assert capsys.readouterr().err.startswith(
        "note: --optimization-level changes nothing: ONNX Runtime runs the models as they are stored\n"
    )


def test_an_optimization_level_that_there_is_not_is_exit_code_2(capsys):
    assert main(["compare", "none.onnx", "--engine", "cusparselt", "--optimization-level", "6"]) == 2
    assert capsys.readouterr().err == (
        "error: optimization_level is out of range\n  got: 6\n  expected: a whole number from 0 to 5\n"
    )


def test_the_help_says_which_precisions_each_engine_takes(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "of both (default: fp16): with tensorrt as in `trtsparse build`; with cusparselt fp16, or bf16 as run, "
        "bench and trtexec have by default; onnxruntime runs the models as they are stored" in told
    )
    assert f"with cusparselt, from {COMPILED_FROM} on torch.compile fuses what surrounds the products" in told


@pytest.mark.parametrize("command", [["compare"], ["bench"], ["compare", "--precision", "bf16"]])
def test_every_command_says_the_same_where_there_is_no_gpu_for_the_engine(command, capsys):
    if count_gpus():
        pytest.skip("there is a GPU")
    path = str(models.get("mlp", widths=(64, 128, 16)))
    assert main([*command, path, "--engine", "cusparselt"]) == 3
    assert capsys.readouterr().err == (
        "error: there is no GPU to run the engine on\n"
        "  where: engine='cusparselt'\n"
        "  got: no GPU that CUDA can use\n"
        "  expected: an NVIDIA GPU of compute capability 8.0 (Ampere) or newer\n"
        "  to fix: run it on a machine with an NVIDIA GPU, or the ONNX model with engine='onnxruntime'\n"
    )
