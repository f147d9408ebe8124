"""The digits recipe: kept models that need no PyTorch, and a training that pruning does not harm."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import models
from models import digits
from trtsparse.errors import MissingDependencyError, ModelNotFoundError
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def scores(path, images):
    return onnxruntime.InferenceSession(path).run(["scores"], {"image": images})[0]


def test_the_kept_models_are_small_and_differ_in_weights_only():
    dense, sparse = onnx.load(digits.dense_model()), onnx.load(digits.sparse_model())
    for model in (dense, sparse):
        assert model.ByteSize() < 300_000
        assert str(Path.home()).encode() not in model.SerializeToString()
    assert [node.SerializeToString() for node in dense.graph.node] == [
        node.SerializeToString() for node in sparse.graph.node
    ]
    assert scores(digits.dense_model(), np.zeros((3, 1, 8, 8), np.float32)).shape == (3, 10)


def test_the_kept_models_are_got_by_name():
    assert models.get("digits-dense") == digits.dense_model()
    assert models.get("digits-sparse") == digits.sparse_model()


def test_the_kept_sparse_model_is_compliant_and_the_dense_one_is_not():
    assert validate(digits.sparse_model()).compliant
    report = validate(digits.dense_model())
    assert not report.compliant
    assert report.by_sites.eligible == 4
    assert [site.reason for site in report.sites if not site.eligible] == ["reduction of 1 is not a multiple of 4"]


def test_the_kept_models_read_digits_that_they_were_not_trained_with():
    pytest.importorskip("sklearn")
    data = digits.digits()
    dense, sparse = (
        digits.accuracy(scores(path, data.test_images), data.test_labels)
        for path in (digits.dense_model(), digits.sparse_model())
    )
    assert dense > 99
    assert sparse >= dense - digits.LIMIT


def test_pruning_alone_costs_more_than_retraining_leaves(tmp_path):
    pytest.importorskip("sklearn")
    data = digits.digits()
    prune(digits.dense_model(), output=tmp_path / "pruned.onnx")
    pruned = digits.accuracy(scores(tmp_path / "pruned.onnx", data.test_images), data.test_labels)
    dense = digits.accuracy(scores(digits.dense_model(), data.test_images), data.test_labels)
    assert pruned < dense - digits.LIMIT


def test_every_digit_is_held_out_once_and_never_trained_with():
    pytest.importorskip("sklearn")
    first, second = (digits.digits(3, fold=fold) for fold in (0, 1))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    np.testing.assert_array_equal(first.train_images, second.test_images)
    np.testing.assert_array_equal(first.test_labels, second.train_labels)
    assert (first.test_images.dtype, first.test_images.shape[1:]) == (np.float32, (1, 8, 8))
    assert (first.test_images.min(), first.test_images.max()) == (0, 1)
    assert not np.array_equal(first.test_labels, digits.digits(4).test_labels)


def test_a_missing_file_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "__file__", str(tmp_path / "digits.py"))
    with pytest.raises(ModelNotFoundError) as caught:
        digits.dense_model()
    assert str(caught.value) == (
        f"a model that belongs into this folder is missing\n  where: {tmp_path / 'digits_dense.onnx'}\n"
        "  to fix: python -m models.digits --seeds 1 --output models"
    )


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        (
            "sklearn.datasets",
            digits.digits,
            "the handwritten digits need scikit-learn\n  to fix: pip install 'trtsparse[models]'",
        ),
        ("torch", digits.train, "training needs PyTorch\n  to fix: pip install 'trtsparse[torch]'"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, package, call, message):
    if package == "torch":
        pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as caught:
        call()
    assert str(caught.value) == message


def test_the_kept_models_need_neither_pytorch_nor_scikit_learn():
    code = "import sys, models.digits as d; d.dense_model(); print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    root = Path(digits.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def quick(monkeypatch):
    """The recipe with one pass over the digits, and with a limit that this cannot break."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(digits, "_EPOCHS", 1)
    monkeypatch.setattr(digits, "LIMIT", 100)


@pytest.mark.usefixtures("quick")
def test_a_seed_gives_the_same_networks_again_and_leaves_pytorch_as_it_was():
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, again, other = digits.train(1), digits.train(1), digits.train(2)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("dense", "sparse"):
        states = [getattr(trained, name).state_dict() for trained in (first, again, other)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])
    assert first.dense_accuracy == again.dense_accuracy
    assert not any("mask" in key for key in first.dense.state_dict())


@pytest.mark.usefixtures("quick")
def test_the_command_prints_each_seed_and_writes_the_models(tmp_path, capsys):
    assert digits.main(["--seeds", "2", "-o", str(tmp_path / "new")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["seed", "dense", "pruned", "retrained", "difference", "seconds"]
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "mean"]
    assert all(re.fullmatch(r"( +[\d.]+){4} +[+-][\d.]+ +[\d.]+", line) for line in lines[2:4])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["digits_dense.onnx", "digits_sparse.onnx"]
    assert validate(tmp_path / "new" / "digits_sparse.onnx").compliant
    kept, new = onnx.load(digits.sparse_model()), onnx.load(tmp_path / "new" / "digits_sparse.onnx")
    assert [node.op_type for node in new.graph.node] == [node.op_type for node in kept.graph.node]


@pytest.mark.usefixtures("quick")
def test_the_command_says_no_when_retraining_loses_too_much(monkeypatch, capsys):
    monkeypatch.setattr(digits, "LIMIT", -100)
    assert digits.main(["--seeds", "1"]) == 1
    assert "mean" in capsys.readouterr().out


def test_a_wrong_number_of_seeds_and_a_missing_package_are_told(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        digits.main(["--seeds", "0"])
    assert caught.value.code == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert digits.main([]) == 3
    assert capsys.readouterr().err.startswith("error: the handwritten digits need scikit-learn")


@pytest.mark.slow
def test_retraining_comes_within_the_limit_of_the_dense_network():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    found = digits.evaluate(0)
    assert found["pruned"] < found["dense"]
    assert found["dense"] > 99
    assert found["retrained"] >= found["dense"] - digits.LIMIT
