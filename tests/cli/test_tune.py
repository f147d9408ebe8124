"""`trtsparse tune`: the table for people, one JSON document for machines, and wrong input."""

import json
import subprocess
import sys

import onnx
import pytest

import models
from tests.helpers import matmul, random
from tests.tune.scripted import FACTS, command
from trtsparse.cli.main import main
from trtsparse.tune import measure, tune

pytestmark = pytest.mark.usefixtures("gpu")
GOOD = {"dense 0": 3.0, "dense 1": 2.0, "sparse config 3": 4.0, "sparse config 0": 1.0, "sparse config 1": "crash"}
EITHER = "error: give either a model or products\n  where: tune\n  expected: trtsparse tune MODEL, or --gemm M,N,K\n"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU with scripted kernels, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(script):
        options = measure.Options(rounds=3, timeout_s=20)
        monkeypatch.setattr(tune, "Tuner", lambda: measure.Tuner(options, command=command(script)))

    install(GOOD)
    return install


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(matmul(random(64, 32), rows="n"), path)
    return str(path)


def test_a_narrow_terminal_shows_every_figure(capsys, monkeypatch):
    monkeypatch.setattr("trtsparse.report.console._PIPED_WIDTH", 80)
    assert main(["tune", "--gemm", "4096,1024,768", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert (
        "4096x1024x768 bf16 to bf16\n"
        "  uses -   dense ms 2.0200   sparse ms 1.0100   gain 2.00x   low 2.00x\n"
        "  high 2.00x   over default 3.96x   sparse kernel config 0\n"
    ) in "\n".join(line.rstrip() for line in out.splitlines())


def test_a_product_is_a_row_of_the_table(capsys):
    assert main(["tune", "--gemm", "4096,1024,768", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA Scripted 1" in out
    assert "cusparselt 0.8.0" in out
    row = next(line for line in out.splitlines() if "4096x1024x768" in line)
    cells = [cell.strip() for cell in row.strip("│┃ ").split("│")]
    assert cells == [
        "4096x1024x768 bf16 to bf16",
        "-",
        "2.0200",
        "1.0100",
        "2.00x",
        "2.00x",
        "2.00x",
        "3.96x",
        "config 0",
    ]
    assert "left out: sparse config 1: killed by SIGKILL" in out
    assert "kernels killed the tuning process 1 times" in out
    assert "1 products in " in out


def test_a_model_is_summed_up(capsys):
    path = models.get("bert-base", layers=2, hidden=64, heads=2, intermediate=128, vocabulary=50)
    assert main(["tune", str(path), "--shapes", "input_ids:2x16,token_type_ids:2x16"]) == 0
    out = capsys.readouterr().out
    assert "all weight products: 24.24 ms dense, 12.12 ms with sparse kernels where they are faster (2.00x)" in out
    assert [line.split("│")[2].strip() for line in out.splitlines() if " fp16 to fp16 " in line] == ["8", "2", "2"]


def test_json_is_one_document_on_stdout(model, capsys):
    assert main(["tune", model, "--shapes", "x:5x64", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "trtsparse.tune/1"
    assert document["facts"] == FACTS
    assert [(row["gemm"]["m"], row["gemm"]["n"], row["gemm"]["k"]) for row in document["rows"]] == [(5, 32, 64)]


def test_a_second_run_uses_the_cache_and_fresh_does_not(capsys):
    arguments = ["tune", "--gemm", "64,64,64", "--json"]
    cached = []
    for extra in ([], [], ["--fresh"]):
        assert main([*arguments, *extra]) == 0
        cached.append(json.loads(capsys.readouterr().out)["cached"])
    assert cached == [0, 1, 0]


def test_a_damaged_cache_is_told(tmp_path, capsys):
    (tmp_path / "c.json").write_text("{")
    assert main(["tune", "--gemm", "64,64,64", "--cache", str(tmp_path / "c.json")]) == 0
    assert f"warning: the cache {tmp_path / 'c.json'} is damaged" in capsys.readouterr().err
    assert json.loads((tmp_path / "c.json").read_text())["devices"]


def test_products_without_time_are_named(capsys):
    assert main(["tune", *[f"--gemm={at},64,64" for at in (1, 2, 3, 4, 5)], "--limit-s", "-1"]) == 0
    out = capsys.readouterr().out
    assert "no time was left for 1x64x64 fp16->fp16, 2x64x64 fp16->fp16, 3x64x64 fp16->fp16 and 2 more" in out


def test_a_model_with_nothing_to_tune_is_the_answer_no(gpu, tmp_path, capsys):
    onnx.save(matmul(random(6, 32)), tmp_path / "m.onnx")
    gpu({"unavailable": "device"})
    assert main(["tune", str(tmp_path / "m.onnx")]) == 1
    assert "nothing to tune: no weight of the model is eligible" in capsys.readouterr().err


def test_products_without_rows_are_no_reason_to_doubt_the_weights(gpu, model, capsys):
    gpu({"unavailable": "device"})
    assert main(["tune", model, "--shapes", "x:0x64"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "nothing to tune: with these shapes no product of an eligible weight has a known size above zero\n"
    )
    assert "of unknown size, not tuned: matmul" in captured.out


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("dependency", "error: cuBLASLt is used through nvmath-python\n  to fix: pip install 'trtsparse[cuda]'"),
        ("device", "error: cuBLASLt does not take this GPU\n  got: CUBLAS_STATUS_ARCH_MISMATCH\n"),
    ],
)
def test_what_the_machine_lacks_is_exit_code_3(gpu, capsys, what, text):
    gpu({"unavailable": what})
    assert main(["tune", "--gemm", "64,64,64"]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith(text)
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], EITHER),
        (["m.onnx", "--gemm", "8,8,8"], EITHER),
        (
            ["m.onnx", "--epilogue", "bias"],
            "error: a model's products have no epilogue\n  where: --out-dtype, --epilogue\n  to fix: use --gemm\n",
        ),
        (["--gemm", "8,8"], "cannot read a product's dims"),
        (["--gemm", "8,8,8", "--epilogue", "silu"], "no such epilogue"),
        (["--gemm", "8,8,8", "--out-dtype", "int4"], "fp16 products have no such output type"),
        (
            ["--gemm", "8,8,8", "--shapes", "x:1x2"],
            (
                "error: shapes are those of a model's inputs\n  where: --shapes\n"
                "  to fix: leave them out with --gemm\n"
            ),
        ),
        (["nothing.onnx"], "no such file"),
    ],
)
def test_wrong_input_is_exit_code_2(capsys, arguments, text):
    assert main(["tune", *arguments]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_dynamic_shapes_are_asked_for(model, capsys):
    assert main(["tune", model]) == 2
    assert "to fix: give --shapes" in capsys.readouterr().err


def test_the_verb_starts_without_numpy_or_onnx():
    code = (
        "import sys\nfrom trtsparse.cli.main import main\n"
        "try: main(['tune', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
