"""Where every tensor's bytes are."""

import numpy as np
from onnx import TensorProto, helper

from tests.helpers import model, random, save_external, tensor
from trtsparse.accuracy.located import located
from trtsparse.files.model import OnnxModel


def test_every_tensor_can_be_read_where_it_is(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("", np.float32([1, 2, 3]))),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["i"]),
        helper.make_node("Add", ["i", "c"], ["y"]),
    ]
    packed = helper.make_tensor("b", TensorProto.FLOAT, [3], [4.0, 5.0, 6.0])
    proto = model(nodes, [tensor("w", random(8, 3)), packed], inputs={"x": [2, 8]})
    for source in (proto, save_external(proto, tmp_path / "m.onnx", w="w.bin")):
        opened = located(OnnxModel.open(source))
        found = {ref.name: opened.read(ref).tolist() for ref in opened.refs()}
        assert found[""] == [1, 2, 3]
        assert found["b"] == [4, 5, 6]
        assert np.array_equal(found["w"], random(8, 3))


def test_an_empty_tensor_has_no_place():
    proto = model([helper.make_node("Add", ["x", "e"], ["y"])], [tensor("e", np.zeros(0, np.float32))])
    opened = located(OnnxModel.open(proto))
    assert list(opened.refs()) == []
    assert opened.array(opened.proto.graph.initializer[0]).size == 0
