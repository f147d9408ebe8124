"""`permute`: what it returns, what it writes, and what it refuses."""

import json
import math
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtsparse.accuracy.permute as module
from tests.accuracy.permuting import Net
from tests.helpers import arrays, differing, save_external
from trtsparse.accuracy.permutation_sums import kept_magnitude
from trtsparse.accuracy.permute import permute
from trtsparse.errors import (
    ConfigError,
    EngineError,
    FeedError,
    MissingDependencyError,
    OperatorError,
    OutputError,
    PrecisionError,
    ShapeError,
)
from trtsparse.files.model import OnnxModel
from trtsparse.precision.compare import compare_models
from trtsparse.precision.feeds import random_feeds
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def uneven(net):
    """Make the channels of different sizes, large ones side by side, so that there is much to gain."""
    for tensor in net.weights:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1:
            factors = np.exp(2 * np.cos(np.arange(values.shape[1]) / values.shape[1] * math.pi))
            values = values * factors.reshape(1, -1, *[1] * (values.ndim - 2))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return net


def residual_net():
    net = Net()
    x = net.conv("a", net.input("x", [1, 3, 6, 6]), 3, 16, kernel=3)
    y = net.conv("c", net.node("Relu", net.conv("b", x, 16, 24)), 24, 16, kernel=3)
    x = net.node("Relu", net.node("Add", x, y))
    return uneven(net).model(net.conv("z", x, 16, 8))


def pruned_magnitude(model, names):
    weights = arrays(prune(model).model)
    return sum(float(np.abs(weights[name]).sum(dtype=np.float64)) for name in names)


def test_groups_say_what_was_kept_and_is_kept_now():
    model = residual_net()
    result = permute(model)
    groups = {group.weights: group for group in result.groups}
    stream, inner = groups["b", "z"], groups["c",]
    assert (stream.channels, inner.channels) == (16, 24)
    assert set(stream.permuted) == {"a", "a_bias", "b", "c", "c_bias", "z"}
    assert set(inner.permuted) == {"b", "b_bias", "c"}
    assert dict(result.left_alone) == {}
    weights = arrays(model)
    whole = sum(float(np.abs(weights[name]).sum()) for name in "bz")
    before = kept_magnitude(weights["b"][:, :, 0, 0]) + kept_magnitude(weights["z"][:, :, 0, 0])
    assert stream.magnitude == pytest.approx(whole)
    assert stream.kept_before == pytest.approx(before / whole)
    for group in result.groups:
        assert 0 < group.kept_before < group.kept_after <= group.kept_bound < 1
        assert group.converged
        assert group.seconds > 0
    assert result.kept_before < result.kept_after <= result.kept_bound
    assert 0 < result.error < 1e-5
    assert result.seconds > sum(group.seconds for group in result.groups)


def test_pruning_keeps_what_the_groups_say():
    model = residual_net()
    result = permute(model)
    for group in result.groups:
        before, after = (pruned_magnitude(m, group.weights) for m in (model, result.model))
        assert before == pytest.approx(group.kept_before * group.magnitude)
        assert after == pytest.approx(group.kept_after * group.magnitude)


def test_the_model_computes_the_same_and_the_given_one_is_not_changed():
    model = residual_net()
    before = model.SerializeToString()
    result = permute(model)
    assert model.SerializeToString() == before
    assert compare_models(model, result.model, feeds=random_feeds(model, seed=7, count=3)).error < 1e-5


def test_only_elements_of_the_permuted_tensors_change_places():
    model = residual_net()
    model.metadata_props.add(key="k", value="v")
    before = OnnxModel.open(model)
    result = permute(before)
    changed = set(differing(before.files[""], result.model.files[""]).tolist())
    refs = {ref.name: ref for ref in before.refs()}
    allowed = set()
    for stored in {name for group in result.groups for name in group.permuted}:
        raw = next(t for t in model.graph.initializer if t.name == stored).raw_data
        offset = bytes(before.files[""]).index(raw)
        allowed |= set(range(offset, offset + len(raw)))
    assert changed
    assert changed <= allowed
    old, new = arrays(model), arrays(result.model)
    assert refs
    for name, values in old.items():
        assert np.sort(values, axis=None).tolist() == np.sort(new[name], axis=None).tolist()


def test_equal_calls_give_equal_bytes():
    first, second = (permute(residual_net()).model.files[""] for _ in range(2))
    assert first == second


def test_a_second_call_finds_next_to_nothing():
    once = permute(residual_net())
    twice = permute(once.model)
    assert twice.kept_before == pytest.approx(once.kept_after)
    assert twice.kept_after - twice.kept_before < 0.2 * (once.kept_after - once.kept_before)


def test_a_compliant_model_stays_as_it_is():
    pruned = prune(residual_net()).model
    result = permute(pruned)
    assert result.groups == ()
    assert dict(result.left_alone)["c"] == "c is compliant already"
    assert (result.kept_before, result.kept_after, result.kept_bound, result.error) == (1, 1, 1, None)
    assert result.model.files[""] == pruned.files[""]


def test_a_compliant_weight_among_dense_ones_stays_compliant():
    pruned = prune(residual_net(), include=["z"]).model
    result = permute(pruned)
    assert [group.weights for group in result.groups] == [("c",)]
    assert dict(result.left_alone) == dict.fromkeys("bz", "z is compliant already")
    compliant = {site.tensor: site.compliant for site in validate(result.model).sites}
    assert compliant["z"]
    assert compliant["c"] is False


def test_small_vectors_of_a_result_in_memory_are_the_permuted_ones():
    result = permute(residual_net())
    skeleton = {t.name: result.model.array(t) for t in result.model.proto.graph.initializer}
    for name, values in arrays(result.model).items():
        assert np.array_equal(values, skeleton[name]), name


def test_the_result_goes_to_a_file_and_may_replace_the_model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(residual_net(), path)
    before = path.read_bytes()
    result = permute(path, output=tmp_path / "p.onnx")
    assert path.read_bytes() == before
    assert result.model.path == tmp_path / "p.onnx"
    permute(path, output=path)
    assert path.read_bytes() == (tmp_path / "p.onnx").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "p.onnx"]


@pytest.mark.parametrize("where", ["beside", "elsewhere", "in place"])
def test_external_data(tmp_path, where):
    model = residual_net()
    (tmp_path / "in").mkdir()
    path = save_external(model, tmp_path / "in" / "m.onnx", a="w.bin", b="w.bin", z="w.bin", a_bias="w.bin")
    target = {"beside": tmp_path / "in" / "p.onnx", "elsewhere": tmp_path / "p.onnx", "in place": path}[where]
    expected = arrays(permute(model).model)
    result = permute(path, output=target)
    found = arrays(OnnxModel.open(target))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(values, found[name]), name
    assert len(result.groups) == 2
    names = sorted(file.name for file in target.parent.iterdir() if file.is_file())
    more = {"beside": ["m.onnx", "p.onnx", "p.onnx.data", "w.bin"], "elsewhere": ["p.onnx", "w.bin"]}
    assert names == more.get(where, ["m.onnx", "w.bin"])


def test_included_weights_decide_and_others_follow():
    result = permute(residual_net(), include=["z"])
    (group,) = result.groups
    assert group.weights == ("z",)
    assert set(group.permuted) == {"a", "a_bias", "b", "c", "c_bias", "z"}


def test_excluded_weights_keep_their_bytes():
    model = residual_net()
    result = permute(model, exclude=["b"])
    assert result.groups == ()
    assert dict(result.left_alone) == dict.fromkeys("bcz", "b is excluded")
    assert arrays(result.model)["b"].tobytes() == arrays(model)["b"].tobytes()


def test_another_pattern():
    result = permute(residual_net(), pattern=Pattern(1, 2))
    assert result.pattern == "1:2"
    assert result.kept_after > result.kept_before


def test_weights_that_are_not_finite_are_left_alone():
    model = residual_net()
    values = arrays(model)["z"].copy()
    values[0, 0] = np.nan
    next(t for t in model.graph.initializer if t.name == "z").CopyFrom(numpy_helper.from_array(values, "z"))
    result = permute(model, check=False)
    assert [group.weights for group in result.groups] == [("c",)]
    why = "the values are not all finite, here or where the same is read"
    assert dict(result.left_alone) == {"b": why, "z": why}


def test_weights_that_the_search_does_not_see_never_lose_more_than_others_gain():
    """y reads the channels behind a Flatten of 3 pixels: its groups cut across channels."""
    net = Net()
    x = net.conv("a", net.input("x", [1, 3, 3, 1]), 3, 16)
    pooled = net.node("Flatten", net.node("ReduceMean", net.conv("b", x, 16, 4), axes=[2, 3]))
    model = net.model(net.node("Add", pooled, net.node("Gemm", net.node("Flatten", x), net.weight("y", 48, 4))))
    result = permute(model)
    before, after = (pruned_magnitude(m, ["b", "y"]) for m in (model, result.model))
    assert after >= before
    permuted = {name for group in result.groups for name in group.permuted}
    assert permuted in (set(), {"a", "a_bias", "b", "y"})


def test_channels_of_a_grouped_convolution_are_one_group_of_the_report():
    net = Net()
    x = net.node("Relu", net.conv("a", net.input("x", [1, 3, 4, 4]), 3, 16))
    x = net.node("Relu", net.conv("b", x, 16, 32, kernel=3, groups=4))
    result = permute(uneven(net).model(net.conv("z", x, 32, 8)))
    (group,) = result.groups
    assert (group.channels, group.weights) == (32, ("z",))
    assert set(group.permuted) == {"b", "b_bias", "z"}


def test_the_time_limit_is_kept_and_the_best_so_far_returned():
    net = Net()
    x = net.input("x", ["N", 64])
    for name, inputs, outputs in (("a", 64, 768), ("b", 768, 768), ("c", 768, 64)):
        x = net.node("Relu", net.node("MatMul", x, net.weight(name, inputs, outputs)))
    model = net.model(x)
    start = time.monotonic()
    result = permute(model, time_limit_s=0.5)
    assert time.monotonic() - start < 10  # with other work on the machine
    assert not all(group.converged for group in result.groups)
    assert result.kept_after > result.kept_before


def test_progress_is_reported_to_the_end():
    calls = []
    permute(residual_net(), progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) > 10
    assert calls[-1][0] == calls[-1][1]
    assert {total for _, total in calls} == {calls[-1][1]}


def test_given_inputs_are_compared():
    model = residual_net()
    seen = []

    def feeds():
        for seed in range(3):
            (feed,) = random_feeds(model, seed=seed)
            seen.append(feed)
            yield feed

    assert permute(model, check=feeds()).error > 0
    assert len(seen) == 3
    assert permute(model, check=False).error is None


def test_given_inputs_that_do_not_fit_are_an_error():
    with pytest.raises(ShapeError) as caught:
        permute(residual_net(), check=[{"x": np.zeros((1, 3, 5, 6), np.float32)}])
    assert str(caught.value).splitlines() == [
        "an array has the wrong shape",
        "  where: feed 0, input 'x', dim 2",
        "  got: (1, 3, 5, 6)",
        "  expected: (1, 3, 6, 6)",
    ]
    with pytest.raises(FeedError, match="there are no feeds"):
        permute(residual_net(), check=[])


def test_a_model_that_computes_something_else_is_an_error_and_nothing_is_written(tmp_path, monkeypatch):
    def half(original, copy, changes):
        apply(original, copy, changes[::2])

    apply = module._apply
    monkeypatch.setattr(module, "_apply", half)
    with pytest.raises(PrecisionError) as caught:
        permute(residual_net(), output=tmp_path / "p.onnx")
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "the model with permuted channels computes something else",
        "  where: output 'conv6' of ModelProto",
    ]
    assert caught.value.error > 0.01
    assert lines[3:] == [
        "  expected: at most 0.001",
        "  to fix: report this model; excluding weights (exclude, --exclude) finds the operator that is to blame",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_onnx_runtime_does_not_run_says_how_to_do_without(tmp_path):
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    y = net.node("Special", net.linear("z", x, 16, 8), domain="plugins")
    model = uneven(net).model(y)
    with pytest.raises(EngineError) as caught:
        permute(model, output=tmp_path / "p.onnx")
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["ONNX Runtime does not load the model", "  where: ModelProto"]
    assert lines[-1] == "  to fix: leave the comparison out: check=False (--no-check)"
    assert list(tmp_path.iterdir()) == []
    assert permute(model, check=False, output=tmp_path / "p.onnx").kept_after > 0


def test_channels_of_an_operator_that_onnx_does_not_define_keep_their_order():
    net = Net()
    x = net.node("Relu", net.linear("a", net.input("x", [4, 12]), 12, 16))
    x = net.node("Special", net.linear("b", x, 16, 8))
    model = net.model(net.linear("c", x, 8, 8))
    with pytest.raises(OperatorError, match="allow_unknown_operators"):
        permute(model, check=False)
    result = permute(model, check=False, allow_unknown_operators=True)
    assert [group.weights for group in result.groups] == [("b",)]
    assert [name for name, _ in result.left_alone] == ["a", "c"]
    before, after = arrays(model), arrays(result.model)
    assert np.array_equal(before["c"], after["c"])
    assert np.array_equal(np.sort(before["b"], axis=0), np.sort(after["b"], axis=0))


def test_onnx_runtime_is_only_needed_for_the_comparison(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError) as caught:
        permute(residual_net())
    assert str(caught.value) == "ONNX Runtime is not installed\n  to fix: pip install 'trtsparse[cpu]'"
    assert permute(residual_net(), check=False).groups


@pytest.mark.parametrize("limit", [0, -1.0, math.nan])
def test_a_time_limit_that_is_none_is_an_error(limit):
    with pytest.raises(ConfigError) as caught:
        permute(residual_net(), time_limit_s=limit)
    assert str(caught.value) == (
        f"a search needs time\n  where: time_limit_s\n  got: {limit}\n  expected: more than 0"
    )


def test_a_glob_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match="no weight or node has this name"):
        permute(residual_net(), include=["nothing"])


def test_an_output_that_cannot_be_written_is_found_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_search", lambda *_: pytest.fail("searched"))
    with pytest.raises(OutputError):
        permute(residual_net(), output=tmp_path / "missing" / "p.onnx")


def test_the_result_is_json():
    result = permute(residual_net())
    document = json.loads(json.dumps(result.to_dict()))
    assert document["schema"] == "trtsparse.permute/1"
    assert document["kept_after"] == result.kept_after
    assert {tuple(group["weights"]) for group in document["groups"]} == {("b", "z"), ("c",)}
    assert document["left_alone"] == []
    assert set(document["groups"][0]) == {
        "weights", "permuted", "channels", "magnitude", "kept_before", "kept_after", "kept_bound", "seconds",
        "converged",
    }  # fmt: skip
