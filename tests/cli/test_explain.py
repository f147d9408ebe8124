"""`trtsparse explain`: the table for people, one JSON document for machines, and wrong input."""

import json
import re
import subprocess
import sys
import warnings

import onnx
import pytest

import models
from tests.doubles import installed, samples
from tests.helpers import matmul, random, sparse
from tests.tune.scripted import command
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig
from trtsparse.cli.main import main
from trtsparse.tune import measure, shipped, tune


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No tables, no GPU, a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "tables")

    def install(script):
        options = measure.Options(rounds=3, timeout_s=20)
        monkeypatch.setattr(tune, "Tuner", lambda: measure.Tuner(options, command=command(script)))

    install({"unavailable": "device"})
    return install


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(sparse(512, 512, axis=0), rows="n"), path)
    return str(path)


def cells(out, start):
    row = next(line for line in out.splitlines() if line.startswith(f"│ {start}"))
    return [cell.strip() for cell in row.strip("│ ").split("│")]


def test_the_three_columns_the_times_and_the_reason_are_in_one_row(model, capsys):
    assert main(["explain", model, "--shapes", "x:65536x512", "--gpu", "a100"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "estimates from the peaks of NVIDIA A100 SXM 80 GB, not measured"
    row = cells(out, "matmul")
    assert row[:6] == ["matmul", "MatMul", "yes", "yes", "unknown", "65536x512x512 fp16"]
    assert row[8] in row[9]
    assert "an estimate" in row[9]
    assert "expected gain of the model as it is: 1." in out
    assert "expected gain with all eligible weights pruned" not in out
    assert "note: without a measured time of the dense engine" in out


def test_a_narrow_terminal_shows_every_figure(model, capsys, monkeypatch):
    monkeypatch.setattr("trtsparse.report.console._PIPED_WIDTH", 80)
    assert main(["explain", model, "--shapes", "x:65536x512", "--gpu", "a100"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    lines = [line.rstrip() for line in out.splitlines()]
    place = lines.index("matmul")
    assert lines[place + 1] == "  op MatMul   compliant yes   eligible yes   chosen unknown"
    assert re.fullmatch(
        r"  M x N x K 65536x512x512 fp16   dense ms 0\.\d{4}   sparse ms 0\.\d{4}   gain \d\.\d\dx", lines[place + 2]
    )
    assert lines[place + 3].startswith("  why ")


def test_what_pruning_would_gain_is_told_beside(tmp_path, capsys):
    onnx.save(matmul(random(512, 512), rows=65536), tmp_path / "m.onnx")
    assert main(["explain", str(tmp_path / "m.onnx"), "--gpu", "a100"]) == 0
    out = capsys.readouterr().out
    assert "expected gain of the model as it is: 1.00x (1.00x to 1.00x)" in out
    assert "expected gain with all eligible weights pruned: 1." in out


def test_a_measured_total_is_used(model, capsys):
    assert main(["explain", model, "--shapes", "x:65536x512", "--gpu", "a100", "--total-ms", "100"]) == 0
    assert "of the 100 ms that were measured" in capsys.readouterr().out


def test_a_gpu_at_hand_is_measured(alone, model, capsys):
    alone({"dense 0": 2.0, "sparse config 0": 1.0})
    assert main(["explain", model, "--shapes", "x:64x512"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("measured on the GPU at hand, NVIDIA Scripted 1\n")
    assert cells(out, "matmul")[6:9] == ["2.0200", "1.0100", "2.00x"]


def test_without_a_gpu_a_stand_in_is_used_and_named(model, capsys):
    assert main(["explain", model, "--shapes", "x:64x512"]) == 0
    assert capsys.readouterr().out.startswith(
        "nothing was measured here (cuBLASLt does not take this GPU): estimates"
    )


def test_a_report_fills_the_column_chosen(tmp_path, capsys):
    path, plan = tmp_path / "m.onnx", tmp_path / "m.plan"
    onnx.save(samples.tiny(4, channels=512, sparse=True), path)
    with installed("10.13.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(path, BuildConfig(precision="fp16", sparsity="enable")).save(plan)
    assert main(["explain", str(path), "--report", f"{plan}.json", "--gpu", "h100"]) == 0
    out = capsys.readouterr().out
    assert "chosen: by the report of tensorrt 10.13.3.9, fp16, sparsity enable" in out
    assert cells(out, "conv")[4] in ("yes", "no")


def test_json_is_one_document_on_stdout(capsys):
    path = models.get("bert-base", layers=1, hidden=64, heads=2, intermediate=128, vocabulary=50)
    arguments = ["explain", str(path), "--shapes", "input_ids:2x16,token_type_ids:2x16", "--gpu", "l4", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "trtsparse.explain/1"
    assert document["gpu"] == "NVIDIA L4"
    assert len(document["sites"]) == 8
    assert {"compliant", "eligible", "chosen", "gemm", "dense_ms", "sparse_ms", "gain", "why"} <= set(
        document["sites"][0]
    )
    assert set(document["totals"]["now"]) == {"lower", "expected", "upper"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing.onnx"], "no such file"),
        (["MODEL", "--gpu", "voodoo2"], "nothing is known of this GPU"),
        (["MODEL", "--shapes", "z:1x2"], "the model has no such input"),
        (
            ["MODEL", "--shapes", "x:4x513", "--gpu", "h100"],
            "error: a shape contradicts the model\n  where: shapes\n  got: x: (4, 513)\n  expected: x: (n, 512)\n",
        ),
        (["MODEL", "--shapes", "x"], "cannot read a shape"),
        (["MODEL", "--report", "nothing.json"], "cannot read the build report"),
        (["MODEL", "--total-ms", "-1"], "a time is a positive, finite number of milliseconds"),
        (["MODEL", "--total-ms", "inf", "--json"], "a time is a positive, finite number of milliseconds"),
    ],
)
def test_wrong_input_is_exit_code_2(model, capsys, arguments, text):
    assert main(["explain", *(model if word == "MODEL" else word for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_the_verb_starts_without_numpy_or_onnx():
    code = (
        "import sys\nfrom trtsparse.cli.main import main\n"
        "try: main(['explain', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
