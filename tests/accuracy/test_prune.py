"""Pruning with calibration data: what it changes, what it must not, and that it is never worse than magnitude."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.accuracy.pruning import METHODS, chain, feeds, images, output_of
from tests.helpers import arrays, differing, matmul, model, random, save_external, sparse, tensor
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.prune import CalibratedResult, prune
from trtsparse.errors import ConfigError, EngineError, FeedError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import prune as prune_by_magnitude
from trtsparse.sparsity.validate import validate


def convolution(*, bias=True, **attributes):
    names = ["x", "w", "b"] if bias else ["x", "w"]
    used = [tensor("w", random(6, 8, 3, 3)), tensor("b", random(6, seed=1))][: len(names) - 1]
    node = helper.make_node("Conv", names, ["y"], name="conv", **attributes)
    return model([node], used, inputs={"x": [2, 8, 9, 10]})


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_compliant_and_says_what_it_did(method):
    data = feeds(20, 16)
    result = prune(chain(), method=method, calibration=data)
    assert validate(result.model).compliant
    assert isinstance(result, CalibratedResult)
    assert (result.method, result.samples, [layer.tensor for layer in result.layers]) == (method, 6, ["w", "v"])
    for layer in result.layers:
        assert layer.rows == 120
        assert layer.method == method
        assert 0 < layer.error <= layer.magnitude_error
        assert (layer.damping == 0.01) == (method == "sparsegpt")
    document = result.to_dict()
    assert document["schema"] == "trtsparse.prune/1"
    assert (document["method"], document["layers"][1]["tensor"], document["layers"][0]["biases"]) == (
        method,
        "v",
        ["b"],
    )
    assert result.zeroed == sum(np.count_nonzero(value == 0) for value in arrays(result.model).values())


@given(seed=st.integers(0, 9999), method=st.sampled_from(METHODS), biases=st.booleans(), rows=st.integers(1, 30))
@settings(deadline=None, max_examples=25)
def test_no_layer_is_worse_than_magnitude_on_its_own_calibration_data(seed, method, biases, rows):
    proto = chain()
    for i, initializer in enumerate(proto.graph.initializer):
        values = np.random.default_rng(seed + i).normal(size=initializer.dims).astype(np.float32)
        initializer.CopyFrom(tensor(initializer.name, values))
    data = feeds(rows, 16, seed=seed, count=2)
    result = prune(proto, method=method, calibration=Calibration(data, biases=biases))
    for layer in result.layers:
        assert layer.error <= layer.magnitude_error
        assert layer.method in (method, "magnitude")
        assert bool(layer.reason) == (layer.method != method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("biases", [True, False])
def test_the_error_told_is_the_error_measured(method, biases):
    """One layer: its output error is the model's, measured in ONNX Runtime."""
    for proto, data in (
        (convolution(pads=(1, 1, 1, 1)), images(2, 8, 9, 10)),
        (convolution(strides=(2, 2), bias=False), images(2, 8, 9, 10)),
        (matmul(random(16, 8), rows=20), feeds(20, 16)),
    ):
        result = prune(proto, method=method, calibration=Calibration(data, biases=biases))
        (layer,) = result.layers
        dense, pruned = output_of(proto, data), output_of(result.model, data)
        without_bias = onnx.ModelProto()
        without_bias.CopyFrom(proto)
        for initializer in without_bias.graph.initializer:
            if initializer.name == "b":
                initializer.CopyFrom(tensor("b", np.zeros(6, np.float32)))
        power = np.linalg.norm(output_of(without_bias, data))
        assert layer.error == pytest.approx(np.linalg.norm(dense - pruned) / power, rel=1e-3)


def test_sparsegpt_moves_the_output_less_than_wanda_and_wanda_less_than_magnitude():
    data = feeds(200, 16)
    proto = chain()
    dense = output_of(proto, data)
    moved = {
        m: np.linalg.norm(output_of(prune(proto, method=m, calibration=data).model, data) - dense) for m in METHODS
    }
    plain = np.linalg.norm(output_of(prune(proto).model, data) - dense)
    assert moved["sparsegpt"] < moved["wanda"] < plain
    assert moved["magnitude"] < plain  # its biases are corrected


def test_each_layer_is_calibrated_on_the_layers_pruned_before():
    proto, data = chain(), feeds(50, 16)
    whole = prune(proto, method="sparsegpt", calibration=data)
    first = prune(proto, method="sparsegpt", calibration=data, include=["w"])
    then = prune(first.model, method="sparsegpt", calibration=data, include=["v"])
    assert then.layers[0].error == pytest.approx(whole.layers[1].error)
    alone = prune(proto, method="sparsegpt", calibration=data, include=["v"])
    assert alone.layers[0].error != pytest.approx(whole.layers[1].error, rel=1e-3)
    for name, values in arrays(then.model).items():
        np.testing.assert_allclose(values, arrays(whole.model)[name], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_only_bytes_of_pruned_weights_and_their_biases_change(method, tmp_path):
    proto = chain()
    proto.producer_name = "someone"
    proto.metadata_props.add(key="k", value="v")
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    prune(source, output=target, method=method, calibration=feeds(20, 16), exclude=["v"])
    before, after = source.read_bytes(), target.read_bytes()
    places = {t.name: before.index(t.raw_data) for t in proto.graph.initializer}
    allowed = {*range(places["w"], places["w"] + 16 * 12 * 4), *range(places["b"], places["b"] + 12 * 4)}
    changed = set(differing(before, after).tolist())
    assert changed <= allowed
    assert any(places["b"] <= at < places["b"] + 48 for at in changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_biases_stay_when_asked_to():
    result = prune(chain(), method="sparsegpt", calibration=Calibration(feeds(20, 16), biases=False))
    before, after = arrays(chain()), arrays(result.model)
    assert np.array_equal(before["b"], after["b"])
    assert np.array_equal(before["c"], after["c"])
    assert [layer.biases for layer in result.layers] == [(), ()]


@pytest.mark.parametrize("method", METHODS)
def test_biases_keep_the_mean_of_every_output(method):
    data = feeds(50, 16)
    proto = chain()
    result = prune(proto, method=method, calibration=data, include=["w"])
    for name in ("q",):
        means = []
        for source in (proto, result.model.load()):
            watched = onnx.ModelProto()
            watched.CopyFrom(source)
            watched.graph.output.append(onnx.ValueInfoProto(name=name))
            run = runner(OnnxModel.open(watched))
            means.append(np.concatenate([run(feed)[name] for feed in data]).mean(0))
        np.testing.assert_allclose(means[1], means[0], atol=1e-5)


def test_pruning_again_changes_nothing():
    data = feeds(20, 16)
    once = prune(chain(), method="sparsegpt", calibration=data)
    again = prune(once.model, method="sparsegpt", calibration=data)
    assert bytes(again.model.files[""]) == bytes(once.model.files[""])
    assert again.layers == ()
    assert [tensor.zeroed for tensor in again.tensors] == [0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(method):
    options = Calibration(feeds(5, 16, count=30), samples=7, seed=3)
    first, second = (prune(chain(), method=method, calibration=options) for _ in range(2))
    assert bytes(first.model.files[""]) == bytes(second.model.files[""])
    assert first.samples == 7


def test_another_seed_chooses_other_samples():
    data = feeds(5, 16, count=30)
    found = [
        prune(chain(), method="sparsegpt", calibration=Calibration(data, samples=7, seed=seed)).layers[0].error
        for seed in (0, 1)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("pattern", ["1:2", "1:4", "3:4"])
def test_other_patterns_are_made(pattern):
    result = prune(chain(), method="sparsegpt", calibration=feeds(20, 16), pattern=Pattern.parse(pattern))
    assert validate(result.model, pattern=Pattern.parse(pattern)).compliant
    assert result.pattern == pattern


def test_a_compliant_tensor_stays_as_it_is():
    nodes = [
        helper.make_node("MatMul", ["x", "good"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    proto = model(nodes, [tensor("good", sparse(8, 8, axis=0)), tensor("w", random(8, 4))], inputs={"x": [4, 8]})
    result = prune(proto, method="sparsegpt", calibration=feeds(4, 8))
    assert [layer.tensor for layer in result.layers] == ["w"]
    assert np.array_equal(arrays(result.model)["good"], arrays(proto)["good"])


def test_magnitude_without_data_is_the_plain_function_and_needs_no_onnxruntime(tmp_path):
    (tmp_path / "m.onnx").write_bytes(chain().SerializeToString())
    assert bytes(prune(chain()).model.files[""]) == bytes(prune_by_magnitude(chain()).model.files[""])
    code = (
        "import sys\nfrom trtsparse.accuracy.prune import prune\nresult = prune(sys.argv[1])\n"
        "assert result.zeroed\nassert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], check=True)


def test_external_data_are_pruned_beside_the_model(tmp_path):
    source = save_external(chain(), tmp_path / "in.onnx", w="w.bin", b="w.bin")
    inside = prune(chain(), method="sparsegpt", calibration=feeds(20, 16))
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "out" / "same.onnx", tmp_path / "other.onnx", source):
        result = prune(source, output=target, method="sparsegpt", calibration=feeds(20, 16))
        for name, values in arrays(result.model).items():
            np.testing.assert_array_equal(values, arrays(inside.model)[name])


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    bad = feeds(20, 16)
    bad[2]["x"][0, 0] = np.nan
    with pytest.raises(FeedError):
        prune(chain(), output=tmp_path / "out.onnx", method="sparsegpt", calibration=bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", ["one sample", "zeros", "constant", "dead channels"])
def test_degenerate_data_still_give_a_finite_compliant_model(method, data):
    values = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    if data == "one sample":
        values = values[:1]
    elif data == "zeros":
        values[:] = 0
    elif data == "constant":
        values[:] = 1
    else:
        values[:, ::3] = 0
    result = prune(chain(), method=method, calibration=[{"x": values}])
    assert validate(result.model).compliant
    assert all(np.isfinite(value).all() for value in arrays(result.model).values())
    assert all(layer.error <= layer.magnitude_error for layer in result.layers)


def test_not_a_number_in_the_data_names_feed_and_input():
    data = feeds(5, 16)
    data[3]["x"][2, 7] = np.nan
    with pytest.raises(FeedError) as caught:
        prune(chain(), method="wanda", calibration=data)
    assert str(caught.value) == "the calibration data hold NaN\n  where: feed 3, input 'x'"


def test_an_infinity_that_a_layer_reads_names_the_tensor():
    data = feeds(5, 16)
    data[3]["x"][2, 7] = np.inf
    with pytest.raises(FeedError) as caught:
        prune(chain(), method="wanda", calibration=data)
    assert "where: tensor 'x'\n  got: infinity" in str(caught.value)


def test_not_a_number_that_the_model_makes_names_the_tensor():
    nodes = [
        helper.make_node("Log", ["x"], ["logarithm"]),
        helper.make_node("MatMul", ["logarithm", "w"], ["y"]),
    ]
    proto = model(nodes, [tensor("w", random(8, 4))], inputs={"x": [5, 8]})
    with pytest.raises(FeedError) as caught:
        prune(proto, method="sparsegpt", calibration=feeds(5, 8))
    assert "where: tensor 'logarithm'\n  got: NaN" in str(caught.value)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_methods_that_need_data_say_so(method):
    with pytest.raises(ConfigError) as caught:
        prune(chain(), method=method)
    assert str(caught.value) == (
        f"'{method}' needs calibration data\n  where: calibration\n"
        "  to fix: give real inputs: a folder of .npz files or a list of feeds"
    )


def test_an_unknown_method_is_an_error():
    with pytest.raises(ConfigError) as caught:
        prune(chain(), method="random")
    assert str(caught.value) == (
        "no such method\n  where: method\n  got: 'random'\n  expected: 'magnitude', 'wanda', 'sparsegpt'"
    )


def test_data_that_do_not_fit_the_model_are_an_error():
    with pytest.raises(FeedError, match="the model has no such input"):
        prune(chain(), method="wanda", calibration=feeds(5, 16, name="z"))
    with pytest.raises(FeedError, match="there are no feeds"):
        prune(chain(), method="wanda", calibration=[])
    with pytest.raises(FeedError, match="wrong shape"):
        prune(chain(), method="wanda", calibration=feeds(5, 12))


def test_a_model_that_onnxruntime_does_not_run_is_an_error():
    nodes = [helper.make_node("Plugin", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    proto = model(nodes, [tensor("w", random(8, 4))], inputs={"x": [5, 8]})
    with pytest.raises(EngineError):
        prune(proto, method="wanda", calibration=feeds(5, 8), allow_unknown_operators=True)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_tensor_at_the_same_place_of_a_file_changes_nothing(tmp_path, method):
    nodes = [
        helper.make_node("Resize", ["x", "roi", "scales"], ["h"], name="up", mode="nearest"),
        helper.make_node("Conv", ["h", "w", "b"], ["y"], name="conv"),
    ]
    stored = {
        "scales": np.float32([1, 1, 2, 2]), "roi": np.zeros(0, np.float32), "w": random(8, 8, 2, 2),
        "none": np.zeros((0, 4), np.float32), "b": random(8, seed=1), "end": np.zeros(0, np.float32),
    }  # fmt: skip
    proto = model(nodes, [tensor(*item) for item in stored.items()], inputs={"x": [2, 8, 4, 4]})
    path = save_external(proto, tmp_path / "m.onnx", **dict.fromkeys(stored, "m.bin"))
    data = [{"x": random(2, 8, 4, 4, seed=seed)} for seed in range(4)]
    inside, beside = (
        prune(given, method=method, calibration=data, output=tmp_path / name)
        for given, name in ((proto, "inside.onnx"), (path, "beside.onnx"))
    )
    assert beside.to_dict()["layers"] == inside.to_dict()["layers"]
    assert beside.layers[0].biases == ("b",)
    expected = arrays(inside.model)
    assert all(np.array_equal(value, expected[name]) for name, value in arrays(beside.model).items())


def test_progress_reaches_the_whole():
    steps = []
    prune(chain(), method="wanda", calibration=feeds(5, 16), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(16 * 12 * 4, 1152), (1152, 1152)]


def test_data_may_be_a_folder_of_files(tmp_path):
    for i, feed in enumerate(feeds(5, 16, count=4)):
        np.savez(tmp_path / f"{i}.npz", **feed)
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{i}.npy", feed["x"])
    found = [
        prune(chain(), method="sparsegpt", calibration=Calibration(source, samples=3))
        for source in (tmp_path, tmp_path / "npy", feeds(5, 16, count=4))
    ]
    assert len({bytes(result.model.files[""]) for result in found}) == 1
    assert found[0].samples == 3


@pytest.mark.parametrize(("options", "text"), [
    ({"samples": 0}, "calibration needs samples\n  where: samples\n  got: 0\n  expected: at least 1"),
    ({"seed": -1}, "a seed must not be negative\n  where: seed\n  got: -1"),
    ({"damping": -1.0}, "damping must not be negative\n  where: damping\n  got: -1.0"),
])  # fmt: skip
def test_numbers_out_of_range_are_errors(options, text):
    with pytest.raises(ConfigError) as caught:
        Calibration([], **options)
    assert str(caught.value) == text


def test_numpy_helper_reads_what_was_written():
    """The file is a plain ONNX file for every other tool."""
    result = prune(chain(), method="sparsegpt", calibration=feeds(20, 16))
    proto = onnx.load_from_string(bytes(result.model.files[""]))
    onnx.checker.check_model(proto, full_check=True)
    assert numpy_helper.to_array(proto.graph.initializer[0]).shape == (16, 12)
