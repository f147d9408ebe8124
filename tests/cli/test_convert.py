"""``trtsparse convert``: writes one model, prints what stayed in FP32 and how far the outputs moved."""

import json

import numpy as np
import onnx
import pytest

import models
from trtsparse.cli.main import main
from trtsparse.precision.converted import Converted, KeptNode
from trtsparse.report.convert import converted_lines
from trtsparse.sparsity.prune import prune

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a pruned model, and recorded inputs."""
    monkeypatch.chdir(tmp_path)
    prune(models.get("mlp", widths=(64, 128, 16)), output="sparse.onnx")
    (tmp_path / "inputs").mkdir()
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal((8, 64)).astype(np.float32)
        np.savez(tmp_path / "inputs" / f"{seed}.npz", input=values)
    return tmp_path


def types(path):
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 2}


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)]
)
def test_a_pruned_model_gets_another_type_and_stays_compliant(folder, capsys, precision, kind):
    command = ["convert", "sparse.onnx", "-o", "half.onnx", "--precision", precision, "--samples", "inputs"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"wrote half.onnx in {precision.upper()}; largest difference of an output: ")
    assert "random" not in told
    assert types(folder / "half.onnx") == {kind}
    assert main(["validate", "half.onnx"]) == 0


def test_int8_is_calibrated_with_the_samples(folder, capsys):
    command = ["convert", "sparse.onnx", "-o", "int8.onnx", "--precision", "int8", "--samples", "inputs"]
    assert main([*command, "--calibration", "percentile", "--quantize-outputs", "--int8-rest", "fp16", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["schema"], found["model"], found["output"]) == ("trtsparse.convert/1", "sparse.onnx", "int8.onnx")
    assert found["precision"] == "int8+fp16"
    assert 0 < found["error"] <= found["limit"] == 0.2
    assert captured.err == ""
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(folder / "int8.onnx").graph.node}
    assert main(["validate", "int8.onnx"]) == 0


@pytest.mark.usefixtures("folder")
def test_random_calibration_is_warned_of(capsys):
    command = ["convert", "sparse.onnx", "-o", "int8.onnx", "--precision", "int8", "--random-calibration"]
    assert main([*command, "--shapes", "input:4x64"]) == 0
    assert capsys.readouterr().err == (
        "warning: sparse.onnx is calibrated with random numbers: its INT8 accuracy on real inputs will be bad\n"
    )


def test_a_model_that_is_less_accurate_than_asked_is_exit_code_1_and_not_written(folder, capsys):
    command = ["convert", "sparse.onnx", "-o", "half.onnx", "--precision", "fp16", "--max-error", "1e-12"]
    assert main([*command, "--shapes", "input:4x64"]) == 1
    assert capsys.readouterr().err.startswith("error: the fp16 model is less accurate than asked\n")
    assert not (folder / "half.onnx").exists()


def test_nodes_that_are_kept_are_named(folder, capsys):
    (first, *_) = (node.name for node in onnx.load(folder / "sparse.onnx").graph.node)
    command = ["convert", "sparse.onnx", "-o", "sparse.onnx", "--precision", "fp16", "--samples", "inputs"]
    assert main([*command, "--keep-fp32", first]) == 0
    assert f"in FP32, as asked: {first}" in capsys.readouterr().out
    assert types(folder / "sparse.onnx") == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["fp16", "--int8-rest", "fp16"], "an option is about INT8\n  where: --int8-rest\n  got: --precision fp16\n"),
        (["bf16", "--random-calibration"], "an option is about INT8\n  where: --random-calibration\n"),
        (
            ["fp16", "--samples", "inputs", "--shapes", "input:1x64"],
            "shapes are those of random inputs\n  where: --shapes\n  to fix: leave out --shapes or --samples\n",
        ),
        (
            ["int8", "--samples", "inputs", "--random-calibration"],
            (
                "calibration is either random or not\n  where: --random-calibration\n"
                "  to fix: leave out --random-calibration or --samples\n"
            ),
        ),
        (
            ["int8"],
            (
                "INT8 needs real inputs to calibrate with\n  where: --samples\n"
                "  expected: a folder of .npz or .npy files, some hundred inputs\n"
                "  to fix: --random-calibration is enough to measure time\n"
            ),
        ),
        (["fp16", "--samples", "nowhere"], "there is no such file or folder\n  where: nowhere\n"),
        (["fp16", "--keep-fp32", "nobody"], "the model has no such node\n"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, flags, told):
    assert main(["convert", "sparse.onnx", "-o", "o.onnx", "--precision", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_reasons_and_notes_are_lines_and_long_lists_end():
    kept = [*(KeptNode(f"n{i}", "overflow") for i in range(10)), KeptNode("last", "error")]
    made = Converted(None, "int8+fp16", tuple(kept), 0.01234, 0.2, ("compared on random inputs",), ("fc",))
    assert converted_lines(made, "o.onnx").splitlines() == [
        "wrote o.onnx in INT8+FP16; largest difference of an output: 0.0123 of its range (at most 0.2)",
        "in FP32, a value is too large for the type: n0, n1, n2, n3, n4, n5, n6, n7 and 2 more",
        "in FP32, the outputs were too far off without: last",
        "output not quantized, where no sparse INT8 kernels were seen chosen: fc",
        "note: compared on random inputs",
    ]
