"""What no tool could run is refused before any weight is read."""

import pytest
from onnx import defs, helper

from tests.helpers import matmul, model, random, tensor
from trtsparse.errors import ExternalDataError, ModelError, OperatorError
from trtsparse.files.check import check
from trtsparse.files.model import OnnxModel


def checked(proto, **options):
    check(OnnxModel.open(proto), **options)


def inner(*nodes):
    return helper.make_graph(list(nodes), "body", [], [helper.make_tensor_value_info("o", 1, None)])


def test_a_good_model_passes():
    checked(matmul(random(8, 4)))


@pytest.mark.parametrize("version", [0, -1, defs.onnx_opset_version() + 1, 9999])
def test_an_unknown_opset_is_refused(version):
    import onnx

    with pytest.raises(ModelError) as caught:
        checked(matmul(random(8, 4), opset=version))
    assert str(caught.value) == (
        f"the model's opset is unknown\n  where: ModelProto\n  got: opset {version}\n"
        f"  expected: 1 to {defs.onnx_opset_version()}, what onnx {onnx.__version__} knows\n"
        "  to fix: install a newer onnx, or export the model with an older opset"
    )


def test_each_unknown_operator_is_listed():
    nodes = [
        helper.make_node("Swirl", ["x"], ["a"], name="first"),
        helper.make_node("If", ["a"], ["b"], then_branch=inner(helper.make_node("Twirl", [], ["o"])),
                         else_branch=inner(helper.make_node("Constant", [], ["o"], value=tensor("t", random(2, 2))))),
        helper.make_node("Swirl", ["b"], []),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("Free", ["a"], ["z"], domain="someones.own"),
    ]  # fmt: skip
    with pytest.raises(OperatorError) as caught:
        checked(model(nodes))
    assert caught.value.nodes == (
        "Swirl (node 'first', opset 21)",
        "Swirl (node '', opset 21)",
        "Twirl (node 'o', opset 21)",
    )
    assert str(caught.value) == (
        "the model has operators that ONNX does not define\n  where: ModelProto\n  got: \n"
        "    Swirl (node 'first', opset 21)\n    Swirl (node '', opset 21)\n    Twirl (node 'o', opset 21)\n"
        "  to fix: check the exporter; for TensorRT plugins use allow_unknown_operators (--allow-unknown-operators)"
    )
    checked(model(nodes), allow_unknown_operators=True)


def test_an_operator_newer_than_the_opset_is_unknown():
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"])
    checked(model([node], [tensor("s", random(8))], opset=17))
    with pytest.raises(OperatorError):
        checked(model([node], [tensor("s", random(8))], opset=16))


def test_unknown_operators_inside_functions_are_listed():
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Swirl", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    with pytest.raises(OperatorError, match="Swirl"):
        checked(model([helper.make_node("F", ["x"], ["y"], domain="local")], functions=[function]))


def test_an_initializer_that_appears_twice_is_refused():
    proto = matmul(random(8, 4))
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError) as caught:
        checked(proto)
    assert str(caught.value) == (
        "an initializer appears more than once\n  where: graph 'graph' of ModelProto\n  got: 'w'\n"
        "  to fix: give every initializer a name of its own"
    )


@pytest.mark.parametrize(
    ("node", "got", "expected"),
    [
        (helper.make_node("Conv", ["x"], ["y"], name="n"), "1 inputs, 1 outputs", "at least 2 inputs, 1 outputs"),
        (helper.make_node("MatMul", ["x", "x"], [], name="n"), "2 inputs, 0 outputs", "at least 2 inputs, 1 outputs"),
    ],
)
def test_a_node_that_lacks_inputs_or_outputs_is_refused(node, got, expected):
    with pytest.raises(ModelError) as caught:
        checked(model([node]))
    assert str(caught.value) == (
        f"a node lacks inputs or outputs\n  where: {node.op_type} 'n' in ModelProto\n  got: {got}\n"
        f"  expected: {expected}"
    )


def test_nodes_that_need_each_other_are_refused():
    nodes = [
        helper.make_node("Identity", ["b"], ["a"], name="one"),
        helper.make_node("Identity", ["a"], ["b"], name="two"),
        helper.make_node("MatMul", ["x", "a"], ["y"]),
    ]
    with pytest.raises(ModelError) as caught:
        checked(model(nodes))
    message = str(caught.value)
    assert message.startswith("nodes need each other's results\n  where: graph 'graph' of ModelProto\n  got: ")
    assert set(caught.value.got.split(" <- ")) == {"one", "two"}


@pytest.mark.parametrize("place", ["node", "input", "initializer"])
def test_names_that_are_not_utf8_are_refused(place):
    proto = matmul(random(8, 4), name="NAME")
    if place == "input":
        proto.graph.node[0].input[1] = "NAME"
        proto.graph.node[0].name = ""
    elif place == "initializer":
        proto.graph.initializer[0].name = "NAME"
        proto.graph.node[0].name = ""
    data = proto.SerializeToString().replace(b"NAME", b"N\xff\xfeE")
    with pytest.raises(ModelError) as caught:
        checked(data)
    assert str(caught.value) == (
        "a name is not UTF-8 text\n  where: bytes\n  got: b'N\\xff\\xfeE'\n  to fix: export the model again"
    )


def test_an_initializer_without_its_external_file_is_refused_although_no_node_uses_it(tmp_path):
    from tests.helpers import point_to

    proto = matmul(random(8, 4))
    proto.graph.initializer.append(tensor("unused", random(4, 4)))
    point_to(proto.graph.initializer[1], location="missing.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ExternalDataError):
        checked(tmp_path / "model.onnx")
