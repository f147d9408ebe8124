import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import models
from models import bert, mlp, resnext
from models._cli import main


def python_m(*words, cwd):
    env = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_a_generator_runs_as_a_module(tmp_path):
    words = "--depth 101 --width 8 --groups 4 --num-classes 10 --image-size 32 --batch 1 --seed 3 -o m.onnx"
    done = python_m("models.resnext", *words.split(), cwd=tmp_path)
    made = resnext.make(depth=101, width=8, groups=4, num_classes=10, image_size=32, batch=1, seed=3)
    parameters = resnext.ResNeXt(depth=101, width=8, groups=4, num_classes=10).graph().parameters
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"m.onnx: resnext, {parameters:,} parameters, ")
    assert done.stdout.count("\n") == 1
    assert onnx.load(tmp_path / "m.onnx") == made


def test_the_recipes_are_listed(tmp_path):
    done = python_m("models", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(line.split()[0] for line in lines) == models.names()
    assert lines[5] == "resnext50     ResNeXt-50 32x8d, image classification" + " " * 20 + "python -m models.resnext"


def test_an_error_is_printed_without_a_traceback(tmp_path):
    done = python_m("models.mlp", "--widths", "8,x", "-o", "m.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: an option is wrong\n  where: recipe 'mlp', widths\n  got: '8,x'\n"
        "  expected: two or more positive integers, as in 784,512,10\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_exit_code_3(tmp_path, monkeypatch, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    words = ["--weights", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "m.onnx")]
    assert main(mlp.MLP, words) == 3
    assert "pip install 'trtsparse[models]'" in capsys.readouterr().err


def test_flags_and_names_for_lengths_reach_the_model(tmp_path):
    words = "--layers 1 --hidden 16 --heads 2 --intermediate 32 --vocabulary 9 --mask --batch B --sequence 7"
    assert main(bert.Bert, [*words.split(), "-o", str(tmp_path / "m.onnx")]) == 0
    inputs = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(tmp_path / "m.onnx").graph.input}
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert (inputs["attention_mask"][0].dim_param, inputs["attention_mask"][1].dim_value) == ("B", 7)


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        main(mlp.MLP, ["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--widths VALUE lengths of the input, ..., the output (default: 1024,4096,4096,1000)" in text
    assert "--seed VALUE seed of the generated weights (default: 0)" in text
    assert "--weights VALUE read trained weights from this .safetensors or .npz file" in text
