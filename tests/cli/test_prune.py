"""``trtsparse prune``: writes one model, prints what changed."""

import json

import numpy as np
import pytest
from onnx import helper

from tests.helpers import matmul, model, random, sparse, tensor
from trtsparse.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "v"], ["b"], name="second"),
        helper.make_node("MatMul", ["b", "odd"], ["y"], name="third"),
    ]
    weights = {"w": random(8, 8), "v": random(8, 6), "odd": random(6, 3)}
    proto = model(nodes, [tensor(name, value) for name, value in weights.items()])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_pruned_model_is_compliant(folder, capsys):
    assert main(["validate", "model.onnx"]) == 1
    assert main(["prune", "model.onnx", "-o", "pruned.onnx"]) == 0
    assert main(["validate", "pruned.onnx"]) == 0
    out = capsys.readouterr().out
    assert "left alone: odd: reduction of 6 is not a multiple of 4" in out
    assert "2 tensors, 56 weights set to zero" in out
    assert names(folder) == ["model.onnx", "pruned.onnx"]


def test_json_is_one_document_on_stdout(folder, capsys):
    assert main(["prune", "model.onnx", "-o", "pruned.onnx", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["schema"], document["model"], document["zeroed"]) == ("trtsparse.prune/1", "pruned.onnx", 56)
    assert [t["tensor"] for t in document["tensors"]] == ["w", "v"]
    assert document["skipped"] == [{"tensor": "odd", "reason": "reduction of 6 is not a multiple of 4"}]
    assert captured.err == ""
    assert folder.joinpath("pruned.onnx").exists()


def test_the_output_may_be_the_input(folder):
    assert main(["prune", "model.onnx", "-o", "model.onnx"]) == 0
    assert main(["validate", "model.onnx"]) == 0
    assert names(folder) == ["model.onnx"]


def test_include_and_exclude_may_be_repeated(folder, capsys):
    assert main(["prune", "model.onnx", "-o", "a.onnx", "--include", "first", "--include", "v", "--json"]) == 0
    assert [t["tensor"] for t in json.loads(capsys.readouterr().out)["tensors"]] == ["w", "v"]
    assert main(["prune", "model.onnx", "-o", "b.onnx", "--exclude", "w", "--exclude", "third", "--json"]) == 0
    assert [t["tensor"] for t in json.loads(capsys.readouterr().out)["tensors"]] == ["v"]
    assert names(folder) == ["a.onnx", "b.onnx", "model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--include", "secnd"],
            (
                "no weight or node has this name\n  where: include\n  got: secnd\n  expected: for example second\n"
                "  to fix: `trtsparse validate` lists the names; * and ? are wildcards"
            ),
        ),
        (
            ["--include", "odd"],
            (
                "the tensor cannot be pruned\n  where: 'odd', used by node 'third'\n"
                "  got: reduction of 6 is not a multiple of 4\n  to fix: leave it out of `include`"
            ),
        ),
        (["--pattern", "x"], "not an N:M pattern\n  got: x\n  expected: 0 < N < M <= 16, as in 2:4"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(folder, capsys, options, message):
    assert main(["prune", "model.onnx", "-o", "pruned.onnx", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""
    assert names(folder) == ["model.onnx"]


def test_an_output_is_required(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["prune", "model.onnx"])
    assert caught.value.code == 2
    assert "-o" in capsys.readouterr().err
    assert names(folder) == ["model.onnx"]


def test_help_describes_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["prune", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "IN", "OUT", "--include", "--exclude", "--pattern", "--json", "--allow-unknown-operators", "--method",
        "--calibration", "--samples", "--seed", "--device", "--keep-biases", "--max-drop",
    ):  # fmt: skip
        assert option in text


def test_other_patterns_are_pruned(folder):
    assert main(["prune", "model.onnx", "-o", "pruned.onnx", "--pattern", "1:4"]) == 0
    assert main(["validate", "pruned.onnx", "--pattern", "1:4"]) == 0
    assert folder.joinpath("pruned.onnx").exists()


def test_a_compliant_tensor_is_said_to_have_been_compliant(folder, capsys):
    (folder / "good.onnx").write_bytes(matmul(sparse(8, 4, axis=0)).SerializeToString())
    assert main(["prune", "good.onnx", "-o", "same.onnx"]) == 0
    assert "0 (was compliant)" in capsys.readouterr().out
    assert (folder / "same.onnx").read_bytes() == (folder / "good.onnx").read_bytes()


@pytest.fixture
def data(folder):
    (folder / "data").mkdir()
    for seed in range(4):
        values = np.random.default_rng(seed).normal(0.5, 1, (2, 8)).astype(np.float32)
        np.save(folder / "data" / f"{seed}.npy", values)
    return folder


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_calibrated_pruning_prints_the_output_error_of_each_layer(data, capsys, method):
    assert main(["prune", "model.onnx", "-o", "out.onnx", "--method", method, "--calibration", "data"]) == 0
    assert main(["validate", "out.onnx"]) == 0
    out = capsys.readouterr().out
    assert "output error on 4 calibration inputs" in out
    assert "by magnitude" in out
    assert names(data) == ["data", "model.onnx", "out.onnx"]


def test_calibrated_pruning_gives_one_json_document(data, capsys):
    options = [
        "--method",
        "sparsegpt",
        "--calibration",
        "data",
        "--samples",
        "3",
        "--seed",
        "1",
        "--keep-biases",
        "--json",
    ]
    assert main(["prune", "model.onnx", "-o", "out.onnx", *options]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["method"], document["samples"]) == ("sparsegpt", 3)
    assert [layer["tensor"] for layer in document["layers"]] == ["w", "v"]
    assert all(layer["error"] <= layer["magnitude_error"] and layer["biases"] == [] for layer in document["layers"])
    assert captured.err == ""
    assert (data / "out.onnx").exists()


def test_a_limit_leaves_layers_dense_and_says_which(data, capsys):
    options = ["--method", "sparsegpt", "--calibration", "data", "--max-drop"]
    assert main(["prune", "model.onnx", "-o", "all.onnx", *options, "0.99", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert everything["dense"] == []
    limit = str(everything["drop"] * 0.9)
    assert main(["prune", "model.onnx", "-o", "some.onnx", *options, limit]) == 0
    out = capsys.readouterr().out
    assert "left dense to keep to the limit: pruned alone it moves the output by 0." in out
    assert "1 tensors" in out
    assert f"at most {float(limit):g} was allowed; 1 layers left dense" in out
    assert main(["prune", "model.onnx", "-o", "none.onnx", *options, "0"]) == 1
    assert "error: no layer can be pruned within the limit" in capsys.readouterr().err
    assert names(data) == ["all.onnx", "data", "model.onnx", "some.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "wanda"],
            (
                "'wanda' needs calibration data\n  where: calibration\n"
                "  to fix: give real inputs: a folder of .npz files or a list of feeds"
            ),
        ),
        (
            ["--samples", "3"],
            "the option needs calibration data\n  where: --samples\n  to fix: add --calibration PATH",
        ),
        (
            ["--keep-biases"],
            "the option needs calibration data\n  where: --keep-biases\n  to fix: add --calibration PATH",
        ),
        (
            ["--max-drop", "0.1"],
            "the option needs calibration data\n  where: --max-drop\n  to fix: add --calibration PATH",
        ),
        (
            ["--calibration", "nothing"],
            "there is no such file or folder\n  where: nothing\n  expected: a folder of .npz or .npy files",
        ),
        (
            ["--calibration", "data", "--device", "tpu"],
            "no such device\n  where: device\n  got: 'tpu'\n  expected: 'cpu', 'cuda', 'cuda:1', ...",
        ),
        (
            ["--calibration", "data", "--max-drop", "-1"],
            "the limit must not be negative\n  where: max_drop\n  got: -1.0",
        ),
    ],
)
def test_bad_calibration_options_are_named_and_nothing_is_written(data, capsys, options, message):
    assert main(["prune", "model.onnx", "-o", "out.onnx", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""
    assert names(data) == ["data", "model.onnx"]


def test_a_model_with_plugins_gets_as_far_as_its_calibration(data, capsys):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Special", ["h"], ["y"], name="plugin"),
    ]
    proto = model(nodes, [tensor("w", random(8, 8))])
    (data / "plugin.onnx").write_bytes(proto.SerializeToString())
    options = ["prune", "plugin.onnx", "-o", "out.onnx", "--calibration", "data", "--max-drop", "0.5"]
    assert main(options) == 2
    assert "error: the model has operators that ONNX does not define" in capsys.readouterr().err
    assert main([*options, "--allow-unknown-operators"]) == 2
    assert capsys.readouterr().err.startswith("error: ONNX Runtime does not load the model\n  where: plugin.onnx\n")
    assert names(data) == ["data", "model.onnx", "plugin.onnx"]
