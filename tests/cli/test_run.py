"""`trtsparse run`: inputs from files or random, outputs printed and written."""

import errno
import json

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.doubles import installed
from tests.doubles.bindings import installed_bindings, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built
from tests.helpers import matmul, random, save_external
from trtsparse.cli.main import main


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("onnxruntime")
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Add(x, x) }'
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(text), path)
    return path


def network(text):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')


def run(model, arrays, folder):
    """What the file of outputs holds, as lists by name."""
    onnx.save(model, folder / "m.onnx")
    arguments = []
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        arguments += ["--input", f"{name}={folder / name}.npy"]
    assert main(["run", str(folder / "m.onnx"), *arguments, "-o", str(folder / "out.npz")]) == 0
    with np.load(folder / "out.npz", allow_pickle=False) as found:
        return {name: found[name].tolist() for name in found.files}


def test_outputs_of_an_input_file_are_summarised_and_written(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.float32([[1, 2], [3, 4]]))
    code = main(["run", str(model), "--input", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path / "y.npz")])
    assert code == 0
    out = capsys.readouterr().out
    assert out == "y: shape [2, 2], dtype float32, min 2.0, max 8.0, mean 5.0, non_finite 0\n"
    assert np.load(tmp_path / "y.npz")["y"].tolist() == [[2, 4], [6, 8]]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "/head/out.1", "y.npy", "ä b"])
def test_an_output_may_have_every_name(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model = network("(float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.output[0].name = model.graph.node[0].output[0] = name
    assert run(model, {"x": np.float32([1, 2])}, tmp_path) == {name: [-1, -2]}


def test_text_is_written_as_text(tmp_path):
    pytest.importorskip("onnxruntime")
    model = network("(string[n, 2] x) => (string[n, 2] y) { y = Identity(x) }")
    words = [["a", ""], ["ein längeres Wort", "日本"]]
    assert run(model, {"x": np.array(words)}, tmp_path) == {"y": words}
    again = tmp_path / "again"
    again.mkdir()
    assert run(model, {"x": np.load(tmp_path / "out.npz")["y"]}, again) == {"y": words}
    assert run(model, {"x": np.empty((0, 2), np.str_)}, again) == {"y": []}


def test_no_file_is_left_where_outputs_cannot_be_written(model, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert main(["run", str(model), "--random", "-o", str(tmp_path / "y.npz")]) == 2
    assert "error: cannot write the file\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_json_holds_one_document(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.float32([[1, np.inf]]))
    assert main(["run", str(model), "--input", f"x={tmp_path / 'x.npy'}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["outputs"]["y"] == {
        "shape": [1, 2], "dtype": "float32", "min": 2.0, "max": 2.0, "mean": 2.0, "non_finite": 1
    }  # fmt: skip


def test_a_mean_beyond_float64_is_left_out(tmp_path, capsys, recwarn):
    pytest.importorskip("onnxruntime")
    onnx.save(network("(double[2] x) => (double[2] y) { y = Identity(x) }"), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.full(2, 1.7e308))
    arguments = ["run", str(tmp_path / "m.onnx"), "--input", f"x={tmp_path / 'x.npy'}"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["outputs"]["y"]
    assert (found["max"], found["mean"]) == (1.7e308, None)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "y: shape [2], dtype float64, min 1.7e+308, max 1.7e+308, non_finite 0\n"
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("name", "whole"), [("m.onnx", "the model"), ("link", "the model"), ("w.bin", "a data file of the model {model}")]
)
def test_outputs_never_replace_the_model(tmp_path, name, whole, capsys):
    pytest.importorskip("onnxruntime")
    model = save_external(matmul(random(8, 4)), tmp_path / "m.onnx", w="w.bin")
    (tmp_path / "link").symlink_to(model)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["run", str(model), "--random", "-o", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == (
        f"error: the output would replace {whole.format(model=model)}\n  where: {tmp_path / name}\n"
        "  to fix: name another file\n"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_random_inputs_take_their_shapes_from_the_command_line(model, capsys):
    assert main(["run", str(model), "--random", "--shapes", "x:5x2"]) == 0
    assert "shape [5, 2]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "an input is missing"),
        (["--input", "x"], "cannot read an input\n  where: --input\n  got: x\n  expected: name=file.npy"),
        (["--input", "x=/nowhere.npy"], "the array cannot be read\n  where: --input x=/nowhere.npy\n  got: "),
        (["--shapes", "x:1x2"], "shapes are those of random inputs\n  where: --shapes\n  to fix: add --random"),
        (["--random", "--shapes", "x=1"], "cannot read a shape\n  where: --shapes\n  got: x=1\n  expected: name:1x3"),
        (
            ["--random", "--shapes", "x:1x2,x:3x2"],
            "a tensor is named twice\n  where: --shapes\n  got: x:1x2,x:3x2\n  expected: one shape for 'x'\n",
        ),
        (["--random", "-o", "/nowhere/y.npz"], "cannot write the file\n  where: /nowhere/y.npz"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(model, arguments, message, capsys):
    assert main(["run", str(model), *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_shape_for_an_input_that_is_given_in_another_is_refused(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((1, 2), np.float32))
    arguments = ["--input", f"x={tmp_path / 'x.npy'}", "--random", "--shapes", "x:5x2"]
    assert main(["run", str(model), *arguments]) == 2
    assert capsys.readouterr().err == (
        "error: a shape is asked for an input that is given in another one\n  where: shapes, input 'x'\n"
        "  got: (5, 2)\n  expected: (1, 2)\n  to fix: leave the shape out, or the array\n"
    )


def test_a_pickled_array_is_refused(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main(["run", str(model), "--input", f"x={tmp_path / 'x.npy'}"]) == 2
    assert "the array cannot be read" in capsys.readouterr().err


def test_a_plan_says_what_it_would_need(tmp_path, capsys):
    plan = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])
    (tmp_path / "m.plan").write_bytes(plan)
    assert main(["run", str(tmp_path / "m.plan")]) == 3
    assert "TensorRT-RTX 1.7.1.116 and a GPU" in capsys.readouterr().err


def test_outputs_never_replace_a_plan(tmp_path, capsys):
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116]))
    before = plan.read_bytes()
    assert main(["run", str(plan), "-o", str(plan)]) == 2
    assert capsys.readouterr().err == (
        f"error: the output would replace the model\n  where: {plan}\n  to fix: name another file\n"
    )
    assert plan.read_bytes() == before


def test_random_inputs_are_made_for_a_plan(tmp_path, capsys):
    cuda, plan, x = MemoryCuda(), tmp_path / "m.plan", tmp_path / "x.npy"
    np.save(x, np.ones((2, 8), np.float32))
    with installed("10.13.3") as trt, installed_bindings(runtime=make_runtime(cuda)):
        trt.submit = cuda.submit
        plan.write_bytes(built(trt, matmul(random(8, 4))))
        assert main(["run", str(plan), "--input", f"x={x}"]) == 0
        assert capsys.readouterr().out.startswith("y: shape [2, 4], dtype float32")
        assert main(["run", str(plan), "--random", "--shapes", "x:2x8"]) == 0
        assert capsys.readouterr().out.startswith("y: shape [2, 4], dtype float32")
    assert set(cuda.alive.values()) == {0}
