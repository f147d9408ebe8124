"""``trtsparse compare``: a table and a verdict, and an exit code for pipelines."""

import json

import models
from trtsparse.cli.main import main


def test_a_sparse_model_that_is_not_faster_is_exit_code_1(capsys):
    """ONNX Runtime on a CPU has no sparse kernels: most of the time there is nothing in it."""
    path = str(models.get("mlp", widths=(64, 128, 16)))
    code = main(["compare", path, "--engine", "onnxruntime", "--rounds", "3", "--duration", "0.01"])
    printed = capsys.readouterr()
    assert code == (0 if "ship the sparse engine" in printed.out else 1)
    assert "largest difference of an output: 0." in printed.out
    assert printed.err == "note: random numbers were fed to input\n"


def test_one_json_document_goes_to_stdout(capsys):
    path = str(models.get("mlp", widths=(64, 128, 16)))
    code = main(["compare", path, "--engine", "onnxruntime", "--rounds", "3", "--duration", "0.01", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == path
    assert code == (0 if document["ships_sparse"] else 1)
    assert len(document["gains"]) == 3


def test_wrong_input_is_exit_code_2(capsys, tmp_path):
    assert main(["compare", str(tmp_path / "none.onnx"), "--engine", "onnxruntime"]) == 2
    assert "none.onnx" in capsys.readouterr().err
    path = str(models.get("mlp", widths=(64, 128, 16)))
    assert main(["compare", path, "--precision", "fp15"]) == 2
    assert "fp15" in capsys.readouterr().err
