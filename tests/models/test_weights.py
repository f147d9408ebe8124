import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import mlp
from models._weights import Weight, he, open_source, xavier
from trtsparse.errors import ConfigError, MissingDependencyError, ModelError, ModelNotFoundError

LAYER = {"layers.0.weight": np.ones((4, 8), np.float32), "layers.0.bias": np.zeros(4, np.float32)}


def make(path):
    return mlp.make(widths=(8, 4), weights=path)


def error_of(path, kind=ModelError):
    with pytest.raises(kind) as caught:
        make(path)
    assert type(caught.value) is kind
    return str(caught.value)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 2**70),
    name=st.text(max_size=8),
)
def test_values_depend_on_seed_and_name_only(shape, seed, name):
    weight = Weight(name, shape, std=0.3, channels=0)
    values = weight.generate(seed)
    assert values.dtype == np.float32
    assert values.shape == shape
    assert values.size == weight.size
    np.testing.assert_array_equal(values, weight.generate(seed))
    assert not np.array_equal(values, weight.generate(seed + 1))
    assert not np.array_equal(values, Weight(f"{name}!", shape, std=0.3, channels=0).generate(seed))


@pytest.mark.parametrize(("shape", "channels"), [((512, 256, 3, 3), 0), ((1024, 2048), 1)])
def test_a_layers_weights_are_centred_heavy_tailed_and_scaled_per_channel(shape, channels):
    values = Weight("w", shape, std=0.05, channels=channels).generate(0)
    rows = np.moveaxis(values, channels, 0).reshape(shape[channels], -1)
    assert values.std() == pytest.approx(0.05, rel=0.05)
    assert np.abs(rows.mean(1)).max() < 1e-6
    scales = np.log(rows.std(1))
    assert scales.std() == pytest.approx(0.25, rel=0.15)
    unit = rows / rows.std(1, keepdims=True)
    assert 4 < (unit**4).mean() < 5.2  # a normal distribution has 3


def test_a_vectors_values_have_its_mean_and_deviation():
    values = Weight("b", (20_000,), std=0.1, mean=1.0).generate(0)
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert values.std() == pytest.approx(0.1, rel=0.05)


def test_a_channel_of_one_weight_is_not_centred_to_zero():
    assert np.all(Weight("w", (5, 1), std=1.0, channels=0).generate(0) != 0)


@given(fan_in=st.integers(1, 10**6), fan_out=st.integers(1, 10**6))
def test_he_and_xavier_follow_their_formulas(fan_in, fan_out):
    assert he(fan_in) ** 2 * fan_in == pytest.approx(2)
    assert xavier(fan_in, fan_out) ** 2 * (fan_in + fan_out) == pytest.approx(2)


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.npz"
    assert error_of(path, ModelNotFoundError) == f"no such weights file\n  where: {path}"


def test_another_kind_of_file_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"x")
    assert error_of(path, ConfigError) == (
        f"weights are read from .safetensors and .npz files\n  where: {path}\n  got: .pth\n"
        "  to fix: save the state dict with safetensors.torch.save_file or numpy.savez"
    )


def test_a_missing_tensor_is_named(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{"layers.0.weight": LAYER["layers.0.weight"], "other": np.zeros(3)})
    assert error_of(path) == (
        f"the weights file lacks a tensor\n  where: {path}\n  got: 2 tensors\n"
        "  expected: 'layers.0.bias' of shape (4,)"
    )


def test_a_tensor_of_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{**LAYER, "layers.0.weight": np.ones((8, 4), np.float32)})
    assert error_of(path) == (
        f"a tensor in the weights file has the wrong shape\n  where: {path}, tensor 'layers.0.weight'\n"
        "  got: (8, 4)\n  expected: (4, 8)\n"
        "  to fix: give the recipe the options of the network that the file was saved from"
    )


def test_a_transposed_weights_shape_is_told_as_the_file_should_have_it(tmp_path):
    weight = Weight("w", (8, 4), std=1, transposed=True)
    path = tmp_path / "w.npz"
    np.savez(path, w=np.ones((8, 4), np.float32))
    with open_source(path, seed=0, names=lambda name: [name]) as source, pytest.raises(ModelError) as caught:
        source(weight)
    assert (caught.value.got, caught.value.expected) == ((8, 4), (4, 8))


def test_integers_are_no_weights(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{**LAYER, "layers.0.weight": np.ones((4, 8), np.int8)})
    assert error_of(path) == (
        f"a tensor in the weights file is not floating point\n  where: {path}, tensor 'layers.0.weight'\n"
        "  got: int8\n  expected: float16, bfloat16, float32 or float64"
    )


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    assert error_of(path).startswith(f"the weights file cannot be read\n  where: {path}\n  got: ")


def test_a_single_array_is_no_weights_file(tmp_path):
    path = tmp_path / "w.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    assert error_of(path) == (
        f"the weights file cannot be read\n  where: {path}\n  got: one array, not an archive of arrays"
    )


def test_a_damaged_or_pickled_tensor_is_named(tmp_path):
    pickled, cut = tmp_path / "pickled.npz", tmp_path / "cut.npz"
    np.savez(pickled, **{**LAYER, "layers.0.weight": np.array([[None]])}, allow_pickle=True)
    np.savez(cut, **LAYER)
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("layers.0.weight.npy", b"\x93NUMPY\x01\x00")
    for path in (pickled, cut):
        expected = f"the weights file cannot be read\n  where: {path}, tensor 'layers.0.weight'\n  got: "
        assert error_of(path).startswith(expected)


def test_reading_safetensors_without_the_library_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert error_of(path, MissingDependencyError) == (
        f"reading .safetensors needs safetensors\n  where: {path}\n  to fix: pip install 'trtsparse[models]'"
    )
