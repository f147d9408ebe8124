"""`trtsparse export-triton`: a repository that Triton can serve, or one clear message."""

import json

import pytest

from tests.doubles import installed
from tests.triton.samples import integer_layer
from trtsparse import BuildConfig, Profile, build
from trtsparse.cli.main import main

pytest.importorskip("tritonclient.grpc")
from trtsparse.triton.checks import check_model

SHAPES = "x:1x64:4x64:16x64"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layer.onnx").write_bytes(integer_layer().SerializeToString())
    return tmp_path


@pytest.fixture
def plan(folder):
    with installed("10.13.3"):
        config = BuildConfig(profiles=(Profile.parse(SHAPES),), sparsity="disable", flavour="tensorrt")
        return build(folder / "layer.onnx", config).save(folder / "layer.plan")


def test_a_plan_is_exported_with_all_that_can_be_asked_for(folder, plan, capsys):
    arguments = ["--name", "m", "--version", "3", "--server", "25.10", "--max-batch-size", "8"]
    arguments += ["--preferred-batch-sizes", "2,8", "--queue-delay-us", "50", "--instances", "2:0,1"]
    arguments += ["--instances", "1:gpu", "--cuda-graphs", "--warmup", "zeros", "--version-policy", "latest:2"]
    arguments += ["--response-cache", "--parameter", "execution_context_allocation_strategy=STATIC"]
    assert main(["export-triton", plan.name, "-r", "repository", *arguments]) == 0
    out = capsys.readouterr().out
    assert out == "m version 3 in repository/m/3: backend tensorrt, batches up to 8\n"
    text = (folder / "repository" / "m" / "config.pbtxt").read_text()
    for part in (
        "max_batch_size: 8",
        "preferred_batch_size: 2\n  preferred_batch_size: 8\n  max_queue_delay_microseconds: 50",
        "count: 2\n  gpus: 0\n  gpus: 1\n  kind: KIND_GPU",
        "graphs: true",
        "zero_data: true",
        "num_versions: 2",
        "response_cache {\n  enable: true",
        'key: "execution_context_allocation_strategy"',
    ):
        assert part in text
    assert check_model(folder / "repository" / "m", server="25.10") == ()


def test_a_model_is_exported_with_a_profile_and_without(folder, capsys):
    assert main(["export-triton", "layer.onnx", "-r", "r", "--shapes", SHAPES, "--backend", "python"]) == 0
    assert capsys.readouterr().out == "layer version 1 in r/layer/1: backend python, batches up to 16\n"
    assert main(["export-triton", "layer.onnx", "-r", "r", "--name", "free", "--no-dynamic-batching"]) == 0
    assert capsys.readouterr().out == (
        "free version 1 in r/free/1: backend onnxruntime, batches up to 32\n"
        "note: no profile limits the batch: max_batch_size 32 was assumed\n"
    )
    assert "dynamic_batching" not in (folder / "r" / "free" / "config.pbtxt").read_text()


def test_a_plan_without_a_report_takes_its_model(folder, plan):
    (folder / "layer.plan.json").unlink()
    arguments = ["export-triton", plan.name, "-r", "r", "--model", "layer.onnx", "--shapes", SHAPES]
    assert main(arguments) == 0
    assert "max_batch_size: 16" in (folder / "r" / "layer" / "config.pbtxt").read_text()


def test_a_plan_with_a_report_takes_no_other_model(folder, plan, capsys):
    (folder / "other.onnx").write_bytes(integer_layer(1).SerializeToString())
    assert main(["export-triton", plan.name, "-r", "r", "--model", "other.onnx"]) == 2
    assert capsys.readouterr().err.startswith("error: the plan was built from another model\n  where: model\n")
    assert main(["export-triton", plan.name, "-r", "r", "--model", "layer.onnx"]) == 0


def test_json_is_the_result(folder, plan, capsys):  # noqa: ARG001 - the folder is where we are
    assert main(["export-triton", plan.name, "-r", "r", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["name"], document["version"]) == ("trtsparse.triton/1", "layer", 1)
    assert document["config"].startswith("# Written by trtsparse")


def test_a_repository_is_checked(folder, plan, capsys):
    assert main(["export-triton", plan.name, "-r", "r"]) == 0
    assert main(["export-triton", plan.name, "-r", "r", "--name", "other"]) == 0
    capsys.readouterr()
    assert main(["export-triton", "-r", "r", "--check"]) == 0
    assert capsys.readouterr().out == "layer: nothing wrong\nother: nothing wrong\n"
    (folder / "r" / "other" / "1" / "model.plan").unlink()
    assert main(["export-triton", "-r", "r", "--check"]) == 1
    assert capsys.readouterr().out == (
        "layer: nothing wrong\nother: 1 wrong\n"
        "  the model's file is missing\n    where: r/other/1\n    expected: model.plan\n"
    )
    assert main(["export-triton", "-r", "r", "--check", "--name", "layer"]) == 0
    assert capsys.readouterr().out == "layer: nothing wrong\n"
    assert main(["export-triton", "-r", "r", "--check", "--server", "24.10", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["models"]["layer"][0].startswith("the plan was built by another TensorRT than the server has")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "r"], "nothing to export was given\n  to fix: give a plan or an ONNX model, or --check"),
        (
            ["layer.onnx", "-r", "r", "--check"],
            "--check looks at what is in the repository\n  got: layer.onnx\n  to fix: leave it out",
        ),
        (
            ["-r", "r", "--check", "--overwrite", "--shapes", "foo", "--queue-delay-us", "5"],
            ("--check exports nothing\n  got: --overwrite, --queue-delay-us, --shapes\n  to fix: leave it out"),
        ),
        (
            ["layer.onnx", "-r", "r", "--no-dynamic-batching", "--queue-delay-us", "100"],
            (
                "requests that are executed alone do not wait for others\n  where: queue_delay_us\n"
                "  got: 100, and dynamic_batching False\n  to fix: leave one of them out"
            ),
        ),
        (
            ["layer.onnx", "-r", "r", "--parameter", "threads=1"],
            (
                "a parameter of the Python backend\n  where: parameters\n"
                "  got: 'threads' for backend 'onnxruntime'\n  to fix: use backend 'python'"
            ),
        ),
        (
            ["layer.onnx", "-r", "r", "--backend", "python", "--parameter", "engine=bogus"],
            (
                "no such engine\n  where: parameters, 'engine'\n  got: 'bogus'\n"
                "  expected: auto, onnxruntime, tensorrt, cusparselt"
            ),
        ),
        (
            ["layer.onnx", "-r", "r", "--preferred-batch-sizes", "four"],
            "cannot read batch sizes\n  where: --preferred-batch-sizes\n  got: four\n  expected: such as 4,16",
        ),
        (
            ["layer.onnx", "-r", "r", "--parameter", "threads"],
            "cannot read a parameter\n  where: --parameter\n  got: threads\n  expected: key=value",
        ),
        (
            ["layer.onnx", "-r", "r", "--instances", "many"],
            "cannot read instances\n  where: instances\n  got: 'many'\n  expected: 2, 2:0,1 or 2:cpu",
        ),
        (["missing.onnx", "-r", "r"], "there is no such file\n  where: missing.onnx"),
        (
            ["-r", "r", "--check"],
            (
                "there is no model repository\n  where: r\n  got: no such folder\n"
                "  expected: folders with a config.pbtxt"
            ),
        ),
    ],
)
def test_wrong_input_is_exit_code_two_and_nothing_is_written(folder, capsys, arguments, message):
    assert main(["export-triton", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["layer.onnx"]


def test_help_describes_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export-triton", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("PLAN_OR_ONNX", "--repository", "--check", "--server", "--overwrite", "--warmup", "--instances"):
        assert option in text
