"""``trtsparse validate``: tables and JSON on stdout, verdicts on stderr, exit codes."""

import json

import numpy as np
import pytest
from onnx import helper

from tests.helpers import matmul, model, random, sparse, tensor
from trtsparse.cli.main import main


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def save(proto, name="model.onnx"):
        (tmp_path / name).write_bytes(proto.SerializeToString())
        return name

    return save


def half():
    """Two equal products, one of them compliant."""
    nodes = [
        helper.make_node("MatMul", ["x", "good"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "bad"], ["y"], name="second"),
    ]
    return model(nodes, [tensor("good", sparse(8, 8, axis=0)), tensor("bad", random(8, 8))])


@pytest.mark.parametrize(
    ("proto", "code", "verdict"),
    [
        (matmul(sparse(8, 4, axis=0)), 0, "compliant\n"),
        (matmul(random(8, 4)), 1, "not compliant\n"),
        (half(), 1, "not compliant\n"),
        (matmul(random(6, 4)), 1, "not compliant: no weight is eligible for sparse kernels\n"),
    ],
)
def test_the_exit_code_is_the_verdict(path, capsys, proto, code, verdict):
    assert main(["validate", path(proto)]) == code
    assert capsys.readouterr().err == verdict


def test_the_table_keeps_compliant_and_eligible_apart(path, capsys):
    main(["validate", path(half())])
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "compliant" in line and "eligible" in line)
    assert "violating groups" in header
    first = next(line for line in lines if "first" in line)
    second = next(line for line in lines if "second" in line)
    assert "0 of 16" in first
    assert "16 of 16" in second
    assert "sites: 2 in all, 2 eligible, 1 of these compliant (50.0% of all)" in lines
    assert "parameters: 128 in all, 128 eligible, 64 of these compliant (50.0% of all)" in lines
    assert "MACs: 256 in all, 256 eligible, 128 of these compliant (50.0% of all)" in lines


def test_json_is_one_document_on_stdout(path, capsys):
    assert main(["validate", path(half()), "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["by_sites"] == {"total": 2, "eligible": 2, "compliant": 1}
    assert [site["compliant"] for site in document["sites"]] == [True, False]
    assert captured.err == "not compliant\n"


@pytest.mark.parametrize("by", ["macs", "parameters", "sites"])
@pytest.mark.parametrize(("share", "code"), [("0.5", 0), ("0.51", 1), ("0", 0), ("1", 1)])
def test_require_asks_for_a_share_of_the_work(path, capsys, by, share, code):
    assert main(["validate", path(half()), "--require", share, "--by", by]) == code
    assert capsys.readouterr().err == f"50.0% of {by} eligible and compliant, {float(share):.1%} required\n"


def test_require_counts_what_is_asked_for(path):
    nodes = [
        helper.make_node("MatMul", ["x", "good"], ["a"]),
        helper.make_node("MatMul", ["a", "bad"], ["b"]),
        helper.make_node("MatMul", ["b", "bad"], ["y"]),
    ]
    proto = model(nodes, [tensor("good", sparse(8, 8, axis=0)), tensor("bad", random(8, 8))])
    name = path(proto)
    assert main(["validate", name, "--require", "0.5", "--by", "parameters"]) == 0
    assert main(["validate", name, "--require", "0.5", "--by", "sites"]) == 1
    assert main(["validate", name, "--require", "0.5"]) == 1


def test_a_dynamic_model_needs_shapes_for_require(path, capsys):
    name = path(matmul(sparse(8, 4, axis=0), rows="n"))
    assert main(["validate", name, "--require", "0.5"]) == 2
    assert capsys.readouterr().err == (
        "error: the work of the model is unknown where shapes are\n  where: --require\n"
        "  got: no shapes for MatMul 'matmul'\n"
        "  to fix: give --shapes, or count otherwise: --by parameters\n"
    )
    assert main(["validate", name, "--require", "0.5", "--shapes", "x:4x8"]) == 0
    assert main(["validate", name, "--require", "0.5", "--by", "parameters"]) == 0


def unreached():
    """A product of as many rows as are chosen when the model runs."""
    nodes = [
        helper.make_node("Compress", ["x", "chosen"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "good"], ["y"], name="product"),
    ]
    weights = [tensor("good", sparse(8, 8, axis=0)), tensor("chosen", np.array([True, False]))]
    return model(nodes, weights, inputs={"x": ["n", 8]})


def test_where_every_input_has_a_shape_no_more_shapes_are_asked_for(path, capsys):
    name = path(unreached())
    main(["validate", name])
    assert "MACs: unknown, as some shapes are (give --shapes)" in capsys.readouterr().out
    main(["validate", name, "--shapes", "x:4x8"])
    assert (
        "MACs: unknown: shape inference does not reach product; "
        "fix the input shapes in the model and fold its constants\n"
    ) in capsys.readouterr().out
    assert main(["validate", name, "--shapes", "x:4x8", "--require", "0.5"]) == 2
    assert capsys.readouterr().err == (
        "error: the work of the model is unknown where shapes are\n  where: --require\n"
        "  got: shape inference does not reach product\n"
        "  to fix: fix the input shapes in the model and fold its constants, or count otherwise: --by parameters\n"
    )


def test_a_recurrent_layer_s_work_counts(path, capsys):
    nodes = [
        helper.make_node("GRU", ["x", "W", "R"], ["h"], hidden_size=8),
        helper.make_node("MatMul", ["h", "good"], ["y"]),
    ]
    weights = {"W": random(1, 24, 8), "R": random(1, 24, 8), "good": sparse(8, 24, axis=0)}
    proto = model(nodes, [tensor(*item) for item in weights.items()], inputs={"x": [5, 2, 8]})
    assert main(["validate", path(proto), "--require", "0.33"]) == 0
    assert main(["validate", path(proto), "--require", "0.34"]) == 1
    assert "33.3% of macs" in capsys.readouterr().err


def test_a_dynamic_model_says_that_its_work_is_unknown(path, capsys):
    main(["validate", path(matmul(sparse(8, 4, axis=0), rows="n"))])
    assert "MACs: unknown, as some shapes are (give --shapes)" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "code"), [("stored", 1), ("fp32", 1), ("fp16", 0), ("bf16", 1), ("int8", 0)])
def test_values_are_judged_in_the_precision_asked_for(path, precision, code):
    values = np.full((8, 4), 1e-9, np.float32)
    values[0::4] = 1
    assert main(["validate", path(matmul(values)), "--precision", precision]) == code


def test_other_patterns_are_judged(path):
    name = path(matmul(sparse(8, 4, axis=0)))
    assert main(["validate", name, "--pattern", "1:2"]) == 0
    assert main(["validate", name, "--pattern", "1:4"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--require", "1.5"], "a share is a number from 0 to 1\n  where: --require\n  got: 1.5"),
        (["--require", "nan"], "a share is a number from 0 to 1\n  where: --require\n  got: nan"),
        *(
            (
                ["--by", by],
                "the option says what a required share counts\n  where: --by\n  to fix: add --require SHARE",
            )
            for by in ("macs", "parameters", "sites")
        ),
        (["--pattern", "4:2"], "not an N:M pattern\n  got: 4:2\n  expected: 0 < N < M <= 16, as in 2:4"),
        (["--shapes", "x"], "cannot read a shape\n  where: --shapes\n  got: x\n  expected: name:1x3x224x224"),
        (["--shapes", "x:axb"], "cannot read a shape\n  where: --shapes\n  got: x:axb\n  expected: name:1x3x224x224"),
        (["--shapes", "z:1x8"], "the model has no such input\n  where: shapes\n  got: z\n  expected: x"),
        (
            ["--shapes", "x:2x9"],
            "a shape contradicts the model\n  where: shapes\n  got: x: (2, 9)\n  expected: x: (2, 8)",
        ),
    ],
)
def test_bad_options_are_named(path, capsys, options, message):
    assert main(["validate", path(half()), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "options", [["--precision", "fp4"], ["--by", "x"], ["--require", "x"], ["--no-such"], ["a", "b"]]
)
def test_what_argparse_refuses_is_exit_code_two(path, capsys, options):
    with pytest.raises(SystemExit) as caught:
        main(["validate", path(half()), *options])
    assert caught.value.code == 2
    assert "usage: trtsparse" in capsys.readouterr().err


def test_help_describes_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["validate", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("IN", "--require", "--by", "--precision", "--pattern", "--shapes", "--json", "--allow-unknown"):
        assert option in text


def test_names_with_markup_are_printed_as_they_are(path, capsys):
    assert main(["validate", path(matmul(sparse(8, 4, axis=0), name="layer[0]/[bold]x[/bold]"))]) == 0
    assert "layer[0]/[bold]x[/bold]" in capsys.readouterr().out


def test_a_path_with_markup_is_printed_as_it_is(path, capsys):
    assert main(["validate", path(matmul(sparse(8, 4, axis=0)), "a[b]c.onnx")]) == 0
    assert "a[b]c.onnx" in capsys.readouterr().out
