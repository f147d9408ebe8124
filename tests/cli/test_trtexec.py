"""`trtsparse trtexec` as a command: streams, exit codes, and how soon it answers."""

import json
import subprocess
import sys

import onnx
import pytest

from tests.helpers import matmul, random
from trtsparse.cli.trtexec import main

HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "polygraphy",
    "rich",
    "ml_dtypes",
    "cuda",
}
QUICK = ["--engine=onnxruntime", "--duration=0", "--iterations=3", "--warmUp=0"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(random(8, 4)), path)
    return str(path)


def test_a_run_passes_on_standard_output(model, capsys):
    assert main([f"--onnx={model}", *QUICK]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("&&&& RUNNING TensorRT.trtexec ")
    assert lines[-1].startswith("&&&& PASSED TensorRT.trtexec ")
    assert f"# trtsparse trtexec --onnx={model} --engine=onnxruntime" in lines[0]
    assert "=== Performance summary ===" in captured.out
    assert "[E]" not in captured.err


def test_a_failure_is_exit_code_1_with_the_reason_on_standard_error(capsys):
    assert main(["--onnx=none.onnx", *QUICK]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("&&&& FAILED TensorRT.trtexec ")
    assert "[E] there is no such" in captured.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--onnx=m.onnx", "--sparsty=enable"], "[E]   to fix: did you mean --sparsity?"),
        (["--onnx=m.onnx", "--safe"], "[E] --safe is refused: "),
        (["--onnx"], "[E] --onnx needs a value"),
        (["--fp16"], "[E] Model missing or format not recognized"),
    ],
)
def test_a_wrong_command_line_fails_as_everything_else(words, text, capsys):
    assert main(words) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out.splitlines()[-1].startswith("&&&& FAILED TensorRT.trtexec ")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_is_exit_code_0(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("&&&& RUNNING TensorRT.trtexec ")
    assert "--sparsity" in out


def test_ctrl_c_is_exit_code_130(model, monkeypatch, capsys):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("trtsparse.trtexec.infer.make_feeds", interrupted)
    assert main([f"--onnx={model}", *QUICK]) == 130
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("&&&& FAILED TensorRT.trtexec ")
    assert captured.err.endswith("[E] Interrupted\n")


@pytest.mark.parametrize(
    "words", [["--help"], ["--onnx=m.onnx", "--sparsty=enable"], ["--onnx=m.onnx", "--useDLACore=1"]]
)
def test_help_and_wrong_command_lines_load_no_heavy_library(words):
    code = (
        "import json, sys\nfrom trtsparse.cli.trtexec import main\n"
        f"main({words!r})\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & HEAVY


def test_a_reader_that_goes_away_does_not_stop_the_run(model, tmp_path):
    exported = tmp_path / "t.json"
    code = "import sys; from trtsparse.cli.trtexec import main; sys.exit(main(sys.argv[1:]))"
    words = [f"--onnx={model}", f"--exportTimes={exported}", *QUICK]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait() == 0, said
    assert len(json.loads(exported.read_text())) >= 3
