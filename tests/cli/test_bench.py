"""`trtsparse bench`: the table for people, one JSON document for machines, and wrong input."""

import json
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from tests.doubles import installed, samples
from tests.doubles.bindings import installed_bindings, make_runtime
from tests.doubles.cuda import MemoryCuda
from tests.doubles.gpu import built
from tests.helpers import matmul, random
from trtsparse.bench.options import BenchOptions
from trtsparse.bench.records import Clocks, Energy, Measurement, Query
from trtsparse.cli.main import main

QUICK = ["--iterations", "3", "--duration", "0.02", "--warm-up", "5"]


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("onnxruntime")
    proto = matmul(random(64, 32))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def plan(tmp_path):
    """A plan, with TensorRT and CUDA in memory to measure it on."""
    memory = MemoryCuda(order="late", log=False)
    with installed("10.13.3") as trt, installed_bindings(runtime=make_runtime(memory), pycuda=None):
        trt.submit = memory.submit
        profile = {"x": ((1, 8, 6, 6), (2, 8, 6, 6), (4, 8, 6, 6))}
        path = tmp_path / "m.plan"
        path.write_bytes(built(trt, samples.tiny("N"), profile))
        yield path
    memory.check()
    assert set(memory.alive.values()) == {0}


def test_a_model_is_measured_on_the_cpu(model, capsys):
    assert main(["bench", str(model), "--shapes", "x:3x64", *QUICK]) == 0
    captured = capsys.readouterr()
    assert "ONNX Runtime" in captured.out
    (row,) = [line for line in captured.out.splitlines() if "latency" in line]
    numbers = [float(cell) for cell in row.split("│")[2:-1]]
    assert len(numbers) == 7
    assert min(numbers) > 0
    assert "throughput: " in captured.out
    assert "measured with: 1 stream; inputs x 3x64" in captured.out
    assert "note: random numbers were fed to x" in captured.err
    assert "note: no power and energy: they are measured on GPUs" in captured.err


def test_a_plan_is_measured_on_the_gpu_with_its_layers(plan, capsys):
    assert main(["bench", str(plan), "--profile", "--percentiles", "50,99.9", *QUICK]) == 0
    out = capsys.readouterr().out
    for part in ("latency", "enqueue (host)", "copies in", "execution", "copies out", "p50", "p99.9"):
        assert part in out
    assert "1 stream, queue depth 2, CUDA graphs, transfers, blocking waits, cuda-python; inputs x 2x8x6x6" in out
    assert "conv + relu" in out
    assert "layers, by time" in out


def test_switches_reach_the_measurement(plan, capsys):
    switches = ["--no-graphs", "--no-transfers", "--spin-wait", "--streams", "2", "--threads", "--queue-depth", "3"]
    assert main(["bench", str(plan), *switches, "--no-energy", *QUICK]) == 0
    captured = capsys.readouterr()
    assert "2 streams in threads, queue depth 3, no CUDA graphs, no transfers, spinning, cuda-python" in captured.out
    assert "copies in" not in captured.out
    assert "power and energy" not in captured.err
    assert main(["bench", str(plan), "--expose-dma", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["options"]["expose_dma"], found["options"]["transfers"]) == (True, True)


def test_json_is_one_document_and_nothing_else_on_stdout(model, capsys):
    assert main(["bench", str(model), "--json", "--profile", *QUICK]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["schema"] == "trtsparse.bench/1"
    assert found["model"] == str(model)
    assert found["count"] >= 3
    assert found["throughput_qps"] > 0
    assert found["times"]["latency"]["median_ms"] > 0
    assert [layer["name"] for layer in found["layers"]] == ["matmul"]
    assert found["inputs"] == {"x": {"shape": [1, 64], "random": True}}
    assert found["energy"] is None
    assert captured.err == ""


def test_given_inputs_are_fed(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", random(5, 64))
    assert main(["bench", str(model), "--input", f"x={tmp_path / 'x.npy'}", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == {"x": {"shape": [5, 64], "random": False}}


def test_an_archive_is_not_taken_for_an_array(model, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=random(5, 64))
    assert main(["bench", str(model), "--input", f"x={tmp_path / 'x.npz'}", *QUICK]) == 2
    assert f"error: the array cannot be read\n  where: --input x={tmp_path / 'x.npz'}\n" in capsys.readouterr().err


def test_many_layers_are_cut_and_said_to_be(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    weights = [onnx.numpy_helper.from_array(random(8, 8, seed=i), f"w{i}") for i in range(40)]
    nodes = [onnx.helper.make_node("MatMul", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}"], name=f"layer {i}")
             for i in range(40)]  # fmt: skip
    infos = [onnx.helper.make_tensor_value_info(name, 1, [2, 8]) for name in ("x", "x40")]
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "m.onnx")
    assert main(["bench", str(tmp_path / "m.onnx"), "--profile", *QUICK]) == 0
    out = capsys.readouterr().out
    assert sum("layer " in line and "│" in line for line in out.splitlines()) == 30
    assert "and 10 more, " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "an option must be a positive whole number\n  where: iterations\n  got: 0"),
        (["--duration", "-1"], "an option must be a time of 0 or more\n  where: duration_s\n  got: -1.0"),
        (["--streams", "0"], "an option must be a positive whole number\n  where: streams\n  got: 0"),
        (["--percentiles", "90,x"], "cannot read the percentiles\n  where: --percentiles\n  got: 90,x\n  exp"),
        (["--percentiles", "101"], "a percentile is out of range\n  where: percentiles\n  got: 101.0"),
        (["--input", "x"], "cannot read an input\n  where: --input\n  got: x\n  expected: name=file.npy"),
        (["--input", "x=/nowhere.npy"], "the array cannot be read\n  where: --input x=/nowhere.npy\n  got: "),
        (["--shapes", "z:1x64"], "the model has no such input\n  where: shapes\n  got: 'z'\n  expected: 'x'"),
        (["--shapes", "x:1x65"], "a shape contradicts the model"),
        (["--shapes", "x"], "cannot read a shape\n  where: --shapes\n  got: x\n  expected: name:1x3x224x224"),
        (["--device", "0"], "an ONNX model is executed on the CPU\n  where: device"),
        (["--engine", "tensorrt"], "TensorRT executes plans"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_and_exit_code_2(model, arguments, message, capsys):
    for extra in ([], ["--json"]):
        assert main(["bench", str(model), *arguments, *extra]) == 2
        captured = capsys.readouterr()
        assert f"error: {message}" in captured.err
        assert captured.out == ""


def test_a_file_that_is_not_there_is_exit_code_2(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "m.onnx")]) == 2
    assert "error: there is no such file" in capsys.readouterr().err


def test_a_plan_without_a_gpu_is_exit_code_3(tmp_path, capsys):
    path = tmp_path / "m.plan"
    path.write_bytes(b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116]))
    with installed_bindings(runtime=make_runtime(MemoryCuda(), gpus=0), pycuda=None):
        assert main(["bench", str(path), "--json"]) == 3
    captured = capsys.readouterr()
    assert "TensorRT-RTX 1.7.1.116 and a GPU" in captured.err
    assert captured.out == ""


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom trtsparse.cli.main import main\n"
        "try:\n    main(['bench', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    taken = []
    for _ in range(5):  # the quickest: others use this machine, too
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - start)
    assert "--expose-dma" in done.stdout
    heavy = ("numpy", "onnx", "onnxruntime", "tensorrt", "torch", "cuda", "pynvml", "rich")
    assert not [name for name in heavy if f"'{name}'" in done.stderr]
    assert min(taken) < 0.5


def test_energy_clock_and_warnings_are_told(monkeypatch, capsys):
    queries = [Query(i, i, i, i, i, i + 0.5 + i % 2, i + 2, i + 2) for i in range(10)]
    found = Measurement(
        engine="tensorrt", description="m.plan in TensorRT 10.13.3 on GPU 0", place="gpu", options=BenchOptions(),
        queries=tuple(queries), warm_up_queries=5, warm_up_ms=200.0, wall_s=0.011, cuda="pycuda", shapes={"x": ()},
        energy=Energy(3.3, 0.33, 300.0, 2, "counter"), clocks=Clocks(1980, 1755, 1980, 61, ("power cap",)),
    )  # fmt: skip
    monkeypatch.setattr("trtsparse.bench.measure.bench", lambda *_args, **_options: found)
    assert main(["bench", "m.plan"]) == 0
    captured = capsys.readouterr()
    assert "energy: 330 mJ per query, 300 W (the whole GPU, by its energy counter)" in captured.out
    assert "clock: 1980 to 1755 of 1980 MHz, 61 C, held back by: power cap" in captured.out
    assert "no CUDA graphs, transfers, blocking waits, pycuda; inputs x scalar" in captured.out
    assert captured.err == (
        "warning: GPU compute time is unstable, with coefficient of variance = 50%.\n"
        "  to fix: lock the GPU's clock, or let the host spin while it waits\n"
    )
