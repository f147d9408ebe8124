"""Whatever is given: exit code 2, one message on stderr, nothing on stdout, nothing written, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import trtsparse
import trtsparse.sparsity.validate
from tests.helpers import matmul, model, point_to, random, tensor
from trtsparse.cli.main import main

GOOD = matmul(random(8, 4)).SerializeToString()


def external(location, **entries):
    proto = matmul(random(8, 4))
    point_to(proto.graph.initializer[0], location=location, **entries)
    return proto.SerializeToString()


def twice():
    proto = matmul(random(8, 4))
    proto.graph.initializer.append(proto.graph.initializer[0])
    return proto.SerializeToString()


def with_dims(*dims):
    proto = matmul(random(8, 4))
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    return proto.SerializeToString()


def swirls():
    nodes = [helper.make_node("Swirl", ["x"], ["a"], name="s1"), helper.make_node("Swirl", ["a"], ["y"], name="s2")]
    return model(nodes).SerializeToString()


BAD = {
    "missing": (None, ["there is no such file", "where: model.onnx"]),
    "empty": (b"", ["the file is empty", "where: model.onnx"]),
    "random bytes": (bytes(range(255, 100, -1)), ["model.onnx"]),
    "text": (b"once upon a time\n" * 9, ["model.onnx"]),
    "PNG": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00", ["model.onnx"]),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", ["model.onnx"]),
    "truncated": (GOOD[: len(GOOD) // 2], ["truncated or damaged", "model.onnx"]),
    "external missing": (external("no.bin"), ["an external data file is missing", "no.bin"]),
    "external outside": (external("../w.bin"), ["external data lies outside the model's folder", "../w.bin"]),
    "external absolute": (external("/etc/passwd"), ["external data lies outside the model's folder", "/etc/passwd"]),
    "external through a link": (external("link.bin"), ["external data lies outside the model's folder", "link.bin"]),
    "external short": (external("short.bin"), ["an external data file is too short", "got: 10 bytes"]),
    "new opset": (matmul(random(8, 4), opset=999).SerializeToString(), ["opset is unknown", "got: opset 999"]),
    "unknown operators": (swirls(), ["operators that ONNX does not define", "Swirl (node 's1'", "Swirl (node 's2'"]),
    "an initializer twice": (twice(), ["an initializer appears more than once", "got: 'w'"]),
    "too little data": (with_dims(8, 5), ["dims and data disagree", "got: 128 bytes", "expected: 160 bytes"]),
    "negative dims": (with_dims(-8, 4), ["a tensor has a negative dim", "got: [-8, 4]"]),
    "absurd dims": (with_dims(2**62, 4), ["a tensor's dims are absurd"]),
    "no UTF-8": (GOOD.replace(b"matmul", b"mat\xff\xfel"), ["a name is not UTF-8 text"]),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(128))
    (inside / "link.bin").symlink_to(tmp_path / "w.bin")
    (inside / "short.bin").write_bytes(bytes(10))
    monkeypatch.chdir(inside)
    return inside


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize(
    "verb", [["validate", "model.onnx"], ["prune", "model.onnx", "-o", "out.onnx"]], ids=lambda v: v[0]
)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_model_is_exit_code_two_and_one_message(folder, capsys, verb, json, kind):
    data, parts = BAD[kind]
    if data is not None:
        (folder / "model.onnx").write_bytes(data)
    before = names(folder)
    assert main([*verb, *json]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "unexpected" not in captured.err
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err
    assert names(folder) == before


@pytest.mark.parametrize("verb", [["validate", "."], ["prune", ".", "-o", "out.onnx"]], ids=lambda v: v[0])
def test_a_folder_is_no_model(folder, capsys, verb):
    assert main(verb) == 2
    assert capsys.readouterr().err == "error: the path is a folder, not an ONNX file\n  where: .\n"
    assert "out.onnx" not in names(folder)


@pytest.mark.parametrize(
    "verb", [["validate", "m"], ["prune", "m", "-o", "out.onnx"], ["explain", "m"], ["build", "m", "-o", "p"],
             ["compare", "m"], ["run", "m", "--engine", "onnxruntime"]], ids=lambda verb: verb[0],
)  # fmt: skip
def test_a_saved_engine_is_no_model(folder, capsys, verb):
    (folder / "m").write_bytes(b"PK\x03\x04" + bytes(100))
    assert main(verb) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: this is a zip archive, such as a saved engine of cuSPARSELt, not an ONNX model\n  where: m\n"
        "  to fix: give the ONNX model it was made from\n"
    )


@pytest.mark.parametrize("output", ["no/such/out.onnx", "short.bin/out.onnx", ".", "/proc/out.onnx"])
def test_an_output_that_cannot_be_written_is_exit_code_two(folder, capsys, output):
    (folder / "model.onnx").write_bytes(GOOD)
    before = names(folder)
    assert main(["prune", "model.onnx", "-o", output]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: cannot write the file\n  where: {output}\n  got: ")
    assert captured.out == ""
    assert names(folder) == before
    assert (folder / "model.onnx").read_bytes() == GOOD


@pytest.mark.parametrize("arguments", [[], ["vaildate", "model.onnx"], ["--no-such"], ["validate"], ["prune", "a"]])
def test_a_command_that_cannot_be_read_is_exit_code_two(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: trtsparse" in captured.err


def test_help_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "validate" in text
    assert "prune" in text


def test_a_defect_of_ours_is_reported_without_a_traceback(folder, capsys, monkeypatch):
    (folder / "model.onnx").write_bytes(GOOD)

    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(trtsparse.sparsity.validate, "validate", broken)
    assert main(["validate", "model.onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: unexpected ZeroDivisionError: oops\n"
        "  to fix: this is a defect of trtsparse; run again with TRTSPARSE_DEBUG=1 and report the traceback\n"
    )
    monkeypatch.setenv("TRTSPARSE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["validate", "model.onnx"])


def test_the_installed_command_prints_the_same_message_and_no_traceback(folder):
    (folder / "model.onnx").write_bytes(b"text")
    root = Path(trtsparse.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "trtsparse", "validate", "model.onnx", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_tensor_without_elements_is_no_error(folder, capsys):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", np.zeros((0, 4), np.float32))])
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    assert main(["validate", "model.onnx"]) == 1
    assert "empty weight: dims [0, 4]" in capsys.readouterr().out
    assert main(["prune", "model.onnx", "-o", "out.onnx"]) == 0
