"""What each layer costs when pruned alone, and pruning within a limit."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.helpers import arrays, model, random, tensor
from trtsparse.accuracy.calibration import Calibration
from trtsparse.accuracy.prune import prune
from trtsparse.accuracy.sensitivity import Limit, LimitedResult, prune_within, sensitivity
from trtsparse.errors import ConfigError, OperatorError, PrecisionError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.ort import runner
from trtsparse.sparsity.prune import prune as prune_by_magnitude
from trtsparse.sparsity.validate import validate

DATA = [{"x": np.random.default_rng(seed).normal(0.5, 1, (10, 16)).astype(np.float32)} for seed in range(5)]


def tower():
    """Five layers: w0 to w4; of w1 two weights of each group are tiny, so that pruning it costs next to nothing."""
    nodes, name = [], "x"
    weights = {f"w{i}": random(16, 16, seed=i) for i in range(5)}
    weights["w1"][::2] *= 1e-4
    for i in range(5):
        nodes += [
            helper.make_node("MatMul", [name, f"w{i}"], [f"h{i}"], name=f"layer{i}"),
            helper.make_node("Relu", [f"h{i}"], ["y" if i == 4 else f"r{i}"]),
        ]
        name = f"r{i}"
    return model(nodes, [tensor(n, v) for n, v in weights.items()], inputs={"x": ["n", 16]}, opset=17)


def outputs(source):
    run = runner(OnnxModel.open(source))
    return np.concatenate([run(feed)["y"] for feed in DATA])


def moved(a, b):
    return np.linalg.norm(outputs(a) - outputs(b)) / np.linalg.norm(outputs(a))


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_each_layer_s_drop_is_the_output_error_of_a_model_with_it_alone_pruned(method):
    found = sensitivity(tower(), calibration=DATA, method=method)
    assert (found.measure, found.method, len(found.layers)) == ("output error", method, 5)
    assert [layer.drop for layer in found.layers] == sorted((layer.drop for layer in found.layers), reverse=True)
    assert found.layers[-1].tensor == "w1"
    for layer in found.layers:
        alone = prune(tower(), method=method, calibration=DATA, include=[layer.tensor])
        assert layer.drop == pytest.approx(moved(tower(), alone.model), rel=1e-3, abs=1e-6)
        assert layer.parameters == 256
    assert found.together > found.layers[0].drop * 0.5


def test_the_user_s_score_is_asked_when_given():
    calls = []

    def evaluate(opened):
        calls.append(opened)
        return -float(np.mean((outputs(tower()) - outputs(opened)) ** 2))

    found = sensitivity(tower(), evaluate=evaluate)
    assert found.measure == "evaluation"
    assert len(calls) == 7  # dense, five layers, all together
    assert all(isinstance(opened, OnnxModel) for opened in calls)
    for layer in found.layers:
        alone = prune_by_magnitude(tower(), include=[layer.tensor]).model
        assert layer.drop == pytest.approx(-evaluate(alone), rel=1e-3, abs=1e-9)


def test_the_report_is_json():
    document = sensitivity(tower(), calibration=DATA).to_dict()
    assert set(document) == {"model", "measure", "method", "layers", "together"}
    assert document["layers"][0].keys() == {"tensor", "nodes", "parameters", "drop"}


def test_progress_counts_the_layers():
    steps = []
    sensitivity(tower(), calibration=DATA, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("max_drop", [0.05, 0.15, 0.3, 0.5])
def test_the_limit_is_kept_and_the_layers_left_dense_are_told(method, max_drop):
    result = prune_within(tower(), limit=Limit(max_drop), method=method, calibration=DATA)
    assert isinstance(result, LimitedResult)
    assert result.drop <= max_drop
    assert result.drop == pytest.approx(moved(tower(), result.model), rel=1e-3, abs=1e-6)
    report = validate(result.model)
    dense = {site.tensor for site in report.sites if not site.compliant}
    assert dense == set(result.dense)
    assert "w1" not in dense
    reasons = dict(result.skipped)
    for name in result.dense:
        assert reasons[name].startswith("left dense to keep to the limit: pruned alone it moves the output by 0.")
    before, after = arrays(tower()), arrays(result.model)
    for name in dense:
        assert np.array_equal(before[name], after[name])


def test_no_layer_is_left_dense_when_all_may_be_pruned():
    result = prune_within(tower(), limit=Limit(0.99), method="sparsegpt", calibration=DATA)
    plain = prune(tower(), method="sparsegpt", calibration=DATA)
    assert result.dense == ()
    assert bytes(result.model.files[""]) == bytes(plain.model.files[""])


def test_a_better_method_leaves_fewer_layers_dense():
    counts = {
        method: len(prune_within(tower(), limit=Limit(0.3), method=method, calibration=DATA).dense)
        for method in ("magnitude", "sparsegpt")
    }
    assert counts["sparsegpt"] < counts["magnitude"]


def test_of_layers_that_cost_alike_the_smaller_is_left_dense():
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("MatMul", ["x", "small"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    constants = [tensor("large", random(16, 64)), tensor("small", random(16, 4) * 4)]
    proto = model(nodes, constants, inputs={"x": ["n", 16]}, opset=17)
    found = {layer.tensor: layer.drop for layer in sensitivity(proto, calibration=DATA).layers}
    limit = Limit(float(np.hypot(*found.values())) * 0.95)
    assert prune_within(proto, limit=limit, calibration=DATA).dense == ("small",)


def test_a_limit_that_no_layer_keeps_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(PrecisionError) as caught:
        prune_within(tower(), limit=Limit(0.0), output=tmp_path / "out.onnx", calibration=DATA, exclude=["w1"])
    assert str(caught.value).startswith("no layer can be pruned within the limit\n  where: ModelProto\n  got: 0.")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_model_without_eligible_layers_has_nothing_to_lose():
    proto = model([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["n", 16]})
    result = prune_within(proto, limit=Limit(0.0), calibration=DATA)
    assert (result.drop, result.dense, result.tensors) == (0.0, (), ())


def test_a_user_s_limit_counts_in_the_user_s_unit(tmp_path):
    truth = outputs(tower()).argmax(1)

    def right(opened):
        return 100 * float(np.mean(outputs(opened).argmax(1) == truth))

    limit = Limit(10.0, evaluate=right)
    result = prune_within(tower(), limit=limit, output=tmp_path / "out.onnx", method="sparsegpt", calibration=DATA)
    assert 100 - right(OnnxModel.open(tmp_path / "out.onnx")) == pytest.approx(result.drop)
    assert result.drop <= 10
    assert result.to_dict()["max_drop"] == 10.0


def test_a_model_with_plugins_is_scored_by_the_user():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Special", ["h"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    proto = model(nodes, [tensor("w", random(8, 8)), tensor("v", random(8, 8, seed=1) / 10)])

    def evaluate(opened):
        return sum(float(np.abs(values).sum()) for values in arrays(opened).values())

    with pytest.raises(OperatorError, match="allow_unknown_operators"):
        sensitivity(proto, evaluate=evaluate)
    with pytest.raises(OperatorError, match="allow_unknown_operators"):
        prune_within(proto, limit=Limit(1.0, evaluate))
    found = sensitivity(proto, evaluate=evaluate, allow_unknown_operators=True)
    assert [layer.tensor for layer in found.layers] == ["w", "v"]
    limit = Limit(found.layers[1].drop * 1.01, evaluate)
    result = prune_within(proto, limit=limit, allow_unknown_operators=True)
    assert (result.dense, [tensor.tensor for tensor in result.tensors]) == (("w",), ["v"])


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(ConfigError) as caught:
        sensitivity(tower(), evaluate=lambda _: float("nan"))
    assert str(caught.value) == "the score of a model is not a number\n  where: evaluate\n  got: nan"


def test_nothing_to_measure_with_is_an_error():
    with pytest.raises(ConfigError) as caught:
        sensitivity(tower())
    assert str(caught.value) == (
        "there is nothing to measure accuracy with\n  where: calibration\n"
        "  to fix: give calibration data or a function that scores a model"
    )
    with pytest.raises(ConfigError, match="'sparsegpt' needs calibration data"):
        sensitivity(tower(), evaluate=lambda _: 1.0, method="sparsegpt")


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_limit_below_zero_is_an_error(value):
    with pytest.raises(ConfigError) as caught:
        Limit(value)
    assert str(caught.value) == f"the limit must not be negative\n  where: max_drop\n  got: {value}"


def test_outputs_that_are_not_floats_count_by_the_share_that_differs():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ArgMax", ["h"], ["y"], axis=1)]
    proto = model(nodes, [tensor("w", random(16, 8))], inputs={"x": ["n", 16]}, opset=17)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    found = sensitivity(proto, calibration=Calibration(DATA, biases=False))
    other = prune(proto, calibration=Calibration(DATA, biases=False)).model
    share = float(np.mean(outputs(proto) != outputs(other)))
    assert found.layers[0].drop == pytest.approx(np.sqrt(share))


def test_an_output_that_stops_being_finite_is_an_infinite_drop():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Div", ["x0", "h"], ["y"]),
    ]
    weights = np.float32([[1], [2], [0], [0]] * 4)
    weights[2:] = np.float32([0, 0, 0, 0] * 3 + [0, 0])[:, None]
    weights[:4] = np.float32([[3], [3], [1], [0]])
    data = [{"x": np.eye(16, dtype=np.float32)[[2]], "x0": np.ones((1, 1), np.float32)}]
    proto = model(nodes, [tensor("w", weights)], inputs={"x": ["n", 16], "x0": [1, 1]}, opset=17)
    found = sensitivity(proto, calibration=Calibration(data, biases=False))
    assert found.layers[0].drop == np.inf
    assert found.to_dict()["layers"][0]["drop"] == "inf"
