"""Defects known from other validators and pruners of 2:4 sparsity; each name says what went wrong there."""

import time

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.helpers import arrays, matmul, model, random, tensor
from trtsparse.cli.main import main
from trtsparse.sparsity.pattern import count_groups, prune_array
from trtsparse.sparsity.prune import prune
from trtsparse.sparsity.validate import validate


def test_matmul_weights_of_rank_three_are_not_pruned_along_the_batch_axis():
    result = prune(
        model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", random(4, 8, 12))], inputs={"x": [4, 2, 8]}
        )
    )
    assert result.tensors[0].axes == (1,)
    pruned = arrays(result.model)["w"]
    assert np.count_nonzero(pruned.reshape(4, 2, 4, 12), axis=2).max() == 2
    assert np.count_nonzero(pruned, axis=0).max() > 2


def test_bfloat16_is_pruned_by_magnitude_and_not_by_position():
    values = np.array([[1], [2], [3], [4], [8], [-7], [6], [5]]).astype(ml_dtypes.bfloat16)
    pruned = arrays(prune(matmul(values)).model)["w"]
    assert pruned.astype(float).reshape(-1).tolist() == [0, 0, 3, 4, 8, -7, 0, 0]


@pytest.mark.parametrize("kernel", [1, 3])
def test_bfloat16_is_judged_where_the_inner_stride_is_larger_than_one(kernel):
    values = np.zeros((8, 8, kernel, kernel), ml_dtypes.bfloat16)
    values[:, 1::4] = values[:, 3::4] = 1
    proto = model([helper.make_node("Conv", ["x", "w"], ["y"])], [tensor("w", values)], inputs={"x": [1, 8, 8, 8]})
    report = validate(proto)
    assert report.compliant
    assert report.sites[0].groups == values.size // 4


def test_weights_in_constant_nodes_are_seen():
    constant = helper.make_node("Constant", [], ["w"], value=tensor("", random(8, 4)))
    proto = model([constant, helper.make_node("MatMul", ["x", "w"], ["y"])])
    assert validate(proto).by_sites.eligible == 1
    assert prune(proto).zeroed == 16


def test_a_tied_weight_used_along_two_axes_keeps_both():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1),
        helper.make_node("Gemm", ["a", "w"], ["y"], transB=0),
    ]
    result = prune(model(nodes, [tensor("w", random(8, 8))]))
    pruned = arrays(result.model)["w"]
    assert result.tensors[0].axes == (0, 1)
    assert count_groups(pruned, axis=0).violating == count_groups(pruned, axis=1).violating == 0


def test_all_opset_imports_metadata_and_functions_survive():
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("F", ["a"], ["y"], domain="local")]
    proto = model(nodes, [tensor("w", random(8, 4))], functions=[function], producer_name="p", model_version=7)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    helper.set_model_props(proto, {"key": "value"})
    pruned = prune(proto).model.load()
    for field, _ in proto.ListFields():
        if field.name != "graph":
            assert getattr(pruned, field.name) == getattr(proto, field.name)


def test_a_transpose_of_rank_three_is_followed_with_its_permutation_and_not_the_inverse():
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[2, 0, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    (site,) = validate(model(nodes, [tensor("w", random(8, 4, 3))], inputs={"x": [3, 2, 8]})).sites
    assert (site.axis, site.eligible) == (0, True)


def test_a_model_that_is_not_compliant_has_a_failing_exit_code(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(matmul(random(8, 4)).SerializeToString())
    assert main(["validate", str(tmp_path / "model.onnx")]) == 1
    assert capsys.readouterr().err == "not compliant\n"


def test_judging_and_pruning_do_not_run_at_the_speed_of_python_loops():
    weights = np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)
    begin = time.perf_counter()
    count_groups(weights, axis=0)
    prune_array(weights, axis=0)
    elapsed = time.perf_counter() - begin
    assert weights.size / elapsed > 5e6  # loops reach about one million a second


def test_what_is_kept_is_large_and_not_first():
    values = np.tile(np.float32([1, 2, 3, 4]), (4, 2))
    proto = model([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], [tensor("w", values)])
    assert arrays(prune(proto).model)["w"].tolist() == [[0, 0, 3, 4, 0, 0, 3, 4]] * 4


def test_convolutions_over_volumes_are_pruned():
    proto = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [tensor("w", random(8, 8, 3, 3, 3))],
        inputs={"x": [1, 8, 4, 4, 4]},
    )
    result = prune(proto)
    assert result.zeroed == 8 * 8 * 27 // 2
    assert validate(result.model).compliant


def test_several_models_are_pruned_in_one_process_without_knowing_of_each_other():
    first, second = matmul(random(8, 4)), matmul(random(8, 4, seed=1))
    alone = arrays(prune(second).model)["w"]
    prune(first)
    assert np.array_equal(arrays(prune(second).model)["w"], alone)


def test_bfloat16_weights_too_short_for_groups_are_refused_as_every_other_type():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        proto = model(
            [
                helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", ["x", "c"], ["y"]),
            ],
            [tensor("w", np.ones((6, 4), dtype))],
            inputs={"x": [2, 6]},
        )
        assert prune(proto).skipped == (("w", "reduction of 6 is not a multiple of 4"),)
