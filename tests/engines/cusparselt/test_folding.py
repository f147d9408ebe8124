"""Constants that are computed beforehand, and what is dropped from a graph."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.engines.cusparselt.programs import check, plain
from tests.helpers import model, random, tensor
from trtsparse.engines.cusparselt.graph import read_graph
from trtsparse.engines.cusparselt.patterns import fuse
from trtsparse.engines.cusparselt.program import Program
from trtsparse.files.model import OnnxModel

torch = pytest.importorskip("torch")
BF16 = ml_dtypes.bfloat16


def test_weights_of_bfloat16_are_folded_like_others():
    """A model whose weights, stored transposed, and whose products are of bfloat16."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    w = random(16, 8).astype(BF16)
    graph = fuse(read_graph(OnnxModel.open(model(nodes, [tensor("w", w)]))))
    assert graph.counts() == {"Cast": 2, "Linear": 1}
    assert graph.constants["t"].dtype == BF16
    x = random(2, 8)
    (found,) = Program(graph, device="cpu", linear=bfloat)([torch.from_numpy(x)])
    right = x.astype(BF16).astype(np.float32) @ w.T.astype(np.float32)
    np.testing.assert_allclose(found.numpy(), right, rtol=2**-8)


def bfloat(_node, weight, _bias):
    weight = torch.from_numpy(np.array(weight).view(np.int16)).view(torch.bfloat16)
    return lambda x: torch.nn.functional.linear(x, weight)


def test_weights_of_bfloat16_may_be_cast():
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    assert check(model(nodes, [tensor("w", random(8, 4).astype(BF16))])) == {"Linear": 1}


def test_a_constant_may_be_cast_to_bfloat16():
    nodes = [
        helper.make_node("Cast", ["c"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["b"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    assert check(model(nodes, [tensor("c", random(8))])) == {"Add": 1}


def test_a_batch_normalisation_of_bfloat16_is_part_of_the_convolution():
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    w, s = random(4, 3, 3, 3).astype(BF16), np.abs(random(4)).astype(BF16)
    source = model(nodes, [tensor("w", w), tensor("s", s)], inputs={"x": [1, 3, 5, 5]})
    graph = fuse(read_graph(OnnxModel.open(source)))
    assert graph.counts() == {"Cast": 2, "Conv": 1}
    x = random(1, 3, 5, 5)
    (found,) = Program(graph, device="cpu", linear=plain)([torch.from_numpy(x)])
    w, s = (torch.from_numpy(constant.astype(np.float32)) for constant in (w, s))
    right = torch.nn.functional.batch_norm(torch.nn.functional.conv2d(torch.from_numpy(x), w), s, s, s, s)
    assert (found - right).abs().max() <= 0.02 * right.abs().max()


def test_what_fails_is_not_folded():
    """PyTorch has no sums of uint16; nothing needs this one."""
    nodes = [helper.make_node("Add", ["c", "c"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    assert check(model(nodes, [tensor("c", np.arange(3, dtype=np.uint16))])) == {"Relu": 1}


def test_a_mask_that_nothing_reads_is_dropped_with_its_dropout():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Dropout", ["m"], ["d", "mask"]),
        helper.make_node("Add", ["d", "b"], ["y"]),
    ]
    assert check(model(nodes, [tensor("w", random(8, 4)), tensor("b", random(4))])) == {"Linear": 1}


def test_an_input_that_is_left_out_at_the_end_is_no_input():
    nodes = [helper.make_node("Conv", ["x", "w", ""], ["c"]), helper.make_node("Add", ["c", "b"], ["y"])]
    constants = [tensor("w", random(8, 4, 1, 1)), tensor("b", random(8, 1, 1))]
    assert check(model(nodes, constants, inputs={"x": [1, 4, 3, 5]})) == {"Linear": 1}


def test_parts_of_a_split_that_nothing_reads_still_take_their_share():
    nodes = [helper.make_node("Split", ["x"], ["y", "rest"], axis=1)]
    check(model(nodes, opset=17))
