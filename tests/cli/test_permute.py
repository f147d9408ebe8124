"""``trtsparse permute``: writes one model, prints what it keeps."""

import json

import pytest

from tests.accuracy.permuting import Net
from trtsparse.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = Net()
    x = net.node("Relu", net.linear("first", net.input("x", [4, 12]), 12, 16))
    x = net.node("Relu", net.linear("second", x, 16, 12))
    (tmp_path / "model.onnx").write_bytes(net.model(net.linear("third", x, 12, 8)).SerializeToString())
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_table_says_what_is_kept_and_why_a_weight_was_left_alone(folder, capsys):
    assert main(["permute", "model.onnx", "-o", "permuted.onnx", "--time-limit", "5"]) == 0
    captured = capsys.readouterr()
    assert "permuted.onnx: magnitude that 2:4 pruning keeps, by groups of channels" in captured.out
    assert "left alone: first: graph input 'x'" in captured.out
    assert " kept (no order keeps more than " in captured.out
    assert "outputs: equal but for " in captured.out
    assert "the time limit ended" not in captured.out
    assert captured.err == ""
    assert names(folder) == ["model.onnx", "permuted.onnx"]


def test_json_is_one_document_on_stdout(folder, capsys):
    assert main(["permute", "model.onnx", "-o", "permuted.onnx", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["schema"], document["model"], document["pattern"]) == (
        "trtsparse.permute/1",
        "permuted.onnx",
        "2:4",
    )
    assert [group["weights"] for group in document["groups"]] == [["second"], ["third"]]
    assert document["kept_before"] < document["kept_after"] <= document["kept_bound"]
    assert document["left_alone"] == [{"tensor": "first", "reason": "graph input 'x'"}]
    assert captured.err == ""
    assert folder.joinpath("permuted.onnx").exists()


def test_pruning_what_was_permuted_keeps_more(folder, capsys):
    assert main(["permute", "model.onnx", "-o", "model.onnx"]) == 0
    assert names(folder) == ["model.onnx"]
    assert main(["prune", "model.onnx", "-o", "pruned.onnx"]) == 0
    assert main(["validate", "pruned.onnx"]) == 0
    capsys.readouterr()


def test_include_exclude_pattern_and_no_check(folder, capsys):
    options = ["--pattern", "1:2", "--no-check", "--include", "second", "--include", "third", "--exclude", "third"]
    assert main(["permute", "model.onnx", "-o", "p.onnx", "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [group["weights"] for group in document["groups"]] == [["second"]]
    assert document["left_alone"] == [{"tensor": "third", "reason": "third is excluded"}]
    assert (document["pattern"], document["error"]) == ("1:2", None)
    assert names(folder) == ["model.onnx", "p.onnx"]


def test_plugins_are_accepted_on_request(folder, capsys):
    net = Net()
    x = net.node("Relu", net.linear("first", net.input("x", [4, 12]), 12, 16))
    x = net.node("Special", net.linear("second", x, 16, 12))
    (folder / "plugin.onnx").write_bytes(net.model(x).SerializeToString())
    options = ["permute", "plugin.onnx", "-o", "p.onnx", "--json"]
    assert main(options) == 2
    assert "--allow-unknown-operators" in capsys.readouterr().err
    options.append("--allow-unknown-operators")
    assert main(options) == 2
    assert "to fix: leave the comparison out: check=False (--no-check)" in capsys.readouterr().err
    assert main([*options, "--no-check"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [group["permuted"] for group in document["groups"]] == [["first", "first_bias", "second"]]
    assert names(folder) == ["model.onnx", "p.onnx", "plugin.onnx"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["missing.onnx", "-o", "p.onnx"], "error: there is no such file\n  where: missing.onnx\n"),
        (["model.onnx", "-o", "p.onnx", "--time-limit", "0"], "error: a search needs time\n  where: time_limit_s\n"),
        (["model.onnx", "-o", "p.onnx", "--pattern", "4:2"], "error: not an N:M pattern\n  got: 4:2\n"),
        (["model.onnx", "-o", "p.onnx", "--include", "x*"], "error: no weight or node has this name\n"),
        (["model.onnx", "-o", "no/p.onnx"], "error: cannot write the file\n"),
    ],
)
def test_wrong_input_is_an_error_with_exit_code_2(folder, capsys, arguments, text):
    assert main(["permute", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(text)
    assert names(folder) == ["model.onnx"]


def test_the_output_is_required(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["permute", "model.onnx"])
    assert caught.value.code == 2
    assert "-o/--output" in capsys.readouterr().err
    assert names(folder) == ["model.onnx"]
