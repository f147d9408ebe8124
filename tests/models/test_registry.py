import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import models
from models import _graph, _registry
from trtsparse.errors import ConfigError


def test_names_are_those_that_the_documentation_uses():
    assert models.names() == (
        "magika", "ppocr-det", "ppocr-rec", "digits-dense", "digits-sparse", "resnext50", "resnext101", "bert-base",
        "bert-large", "vit-base",
        "vit-h", "llm-block", "mlp",
    )  # fmt: skip


def test_a_second_call_uses_the_file_of_the_first(tmp_path):
    first = models.get("mlp", folder=tmp_path, widths=(8, 4))
    written = first.stat().st_mtime_ns
    assert onnx.load(first).graph.name == "mlp"
    assert models.get("mlp", folder=tmp_path, widths="8,4", seed=0) == first
    assert first.stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [first]


@pytest.mark.parametrize("damage", [Path.unlink, lambda data: data.write_bytes(b"short")])
def test_a_model_that_has_lost_its_weights_is_written_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(_graph, "_ONE_FILE_NBYTES", 100)
    path = models.get("mlp", folder=tmp_path, widths=(8, 4))
    data = path.with_name(f"{path.name}.data")
    before = data.read_bytes()
    damage(data)
    assert models.get("mlp", folder=tmp_path, widths=(8, 4)) == path
    assert data.read_bytes() == before


def test_other_options_weights_or_code_give_another_file(tmp_path, monkeypatch):
    weights = tmp_path / "w.npz"
    tensors = {"layers.0.weight": np.ones((4, 8), np.float32), "layers.0.bias": np.zeros(4, np.float32)}
    np.savez(weights, **tensors)
    paths = [
        models.get("mlp", folder=tmp_path, widths=(8, 4)),
        models.get("mlp", folder=tmp_path, widths=(8, 4), seed=1),
        models.get("mlp", folder=tmp_path, widths=(8, 4), weights=weights),
    ]
    np.savez(weights, **tensors, more=np.zeros(1))
    paths.append(models.get("mlp", folder=tmp_path, widths=(8, 4), weights=weights))
    (tmp_path / "code.py").write_text("changed = True\n", encoding="utf-8")
    monkeypatch.setattr(_registry, "__file__", str(tmp_path / "_registry.py"))
    paths.append(models.get("mlp", folder=tmp_path, widths=(8, 4)))
    assert len(set(paths)) == 5


def test_the_default_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.get("mlp", widths=(8, 4)).parent == tmp_path / "trtsparse" / "models"


def test_a_preset_is_a_default_that_options_change(tmp_path):
    path = models.get("bert-large", folder=tmp_path, layers=1, hidden=32, intermediate=64, vocabulary=9)
    assert sum(node.op_type == "Erf" for node in onnx.load(path).graph.node) == 1


UNKNOWN_NAME = f"""no recipe has this name
  got: 'resnet50'
  expected: {", ".join(models.names())}
  to fix: did you mean 'resnext50'?"""

UNKNOWN_OPTION = """the recipe 'llm' has no such option
  got: 'hiden'
  expected: batch, blocks, hidden, intermediate, seed, sequence, weights
  to fix: did you mean 'hidden'?"""


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet50", {}, UNKNOWN_NAME),
        ("llm-block", {"hiden": 8}, UNKNOWN_OPTION),
        ("magika", {"seed": 1}, "the recipe 'magika' has no options\n  got: 'seed'"),
    ],
)
def test_an_unknown_name_or_option_is_answered_with_the_known_ones(tmp_path, name, options, text):
    with pytest.raises(ConfigError) as caught:
        models.get(name, folder=tmp_path, **options)
    assert str(caught.value) == text
    assert not list(tmp_path.iterdir())


def test_importing_the_package_loads_no_optional_library():
    optional = {"magika", "rapidocr", "safetensors", "onnxruntime", "PIL", "sklearn", "torch"}
    code = f"import sys, models; print(sorted({optional} & set(sys.modules)))"
    root = Path(models.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
