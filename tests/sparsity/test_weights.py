"""Every weight is found, whatever stands between it and its node, with its axis and its work."""

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers import matmul, model, random, tensor
from tests.sparsity.finding import behind, node, only, sites
from trtsparse.errors import ConfigError, ModelError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.weights import find_sites, with_shapes


def found(site):
    return site.tensor, site.node, site.shape, site.axis, site.eligible, site.reason


CHAINS = {
    "Identity": ([node("Identity", "w", "w2")], (8, 4), 0),
    "three Identities": (
        [node("Identity", "w", "a"), node("Identity", "a", "b"), node("Identity", "b", "w2")],
        (8, 4),
        0,
    ),
    "Cast": ([node("Cast", "w", "w2", to=TensorProto.FLOAT16)], (8, 4), 0),
    "CastLike": ([node("CastLike", "w x", "w2")], (8, 4), 0),
    "Transpose of rank 2": ([node("Transpose", "w", "w2", perm=[1, 0])], (4, 8), 1),
    "Transpose without perm": ([node("Transpose", "w", "w2")], (4, 8), 1),
    "two Transposes": ([node("Transpose", "w", "a"), node("Transpose", "a", "w2")], (8, 4), 0),
    "Transpose of rank 3, cyclic": ([node("Transpose", "w", "w2", perm=[1, 2, 0])], (4, 3, 8), 2),
    "Transpose of rank 3, cyclic the other way": ([node("Transpose", "w", "w2", perm=[2, 0, 1])], (8, 4, 3), 0),
    "Transpose of rank 3, last two": ([node("Transpose", "w", "w2", perm=[0, 2, 1])], (3, 4, 8), 2),
    "Reshape": ([node("Reshape", "w shape", "w2")], (8, 2, 2), 0),
    "Reshape with 0 and -1": ([node("Reshape", "w zero", "w2")], (8, 2, 2), 0),
    "Squeeze": ([node("Squeeze", "w last", "w2")], (8, 4, 1, 1), 0),
    "Unsqueeze": ([node("Unsqueeze", "w first", "w2")], (8, 4), 0),
    "Flatten": ([node("Flatten", "w", "w2", axis=1)], (8, 2, 2), 0),
    "Flatten from behind": ([node("Flatten", "w", "a", axis=-1), node("Transpose", "a", "w2")], (2, 2, 8), 2),
    "Transpose and Squeeze": (
        [node("Transpose", "w", "a", perm=[2, 3, 1, 0]), node("Squeeze", "a first", "w2")],
        (4, 8, 1, 1),
        1,
    ),
    "Reshape, Transpose, Cast, Identity": (
        [
            node("Reshape", "w shape48", "a"),
            node("Transpose", "a", "b"),
            node("Cast", "b", "c", to=TensorProto.FLOAT),
            node("Identity", "c", "w2"),
        ],
        (2, 2, 8),
        2,
    ),
    "QuantizeLinear and DequantizeLinear": (
        [node("QuantizeLinear", "w scale", "q"), node("DequantizeLinear", "q scale", "w2")],
        (8, 4),
        0,
    ),
}
CONSTANTS = [
    tensor("shape", np.array([8, 4])),
    tensor("shape48", np.array([4, 8])),
    tensor("zero", np.array([0, -1])),
    tensor("last", np.array([2, 3])),
    tensor("first", np.array([0, 1])),
    tensor("scale", np.float32(0.1)),
]


@pytest.mark.parametrize("name", CHAINS)
def test_a_weight_is_found_behind(name):
    chain, shape, axis = CHAINS[name]
    inputs = {"x": [3, 2, 8] if len(shape) == 3 and "rank 3" in name else [2, 8]}
    site = only(behind(chain, random(*shape), extra=CONSTANTS, inputs=inputs))
    assert found(site) == ("w", "consumer", shape, axis, True, "")
    assert site.ref is not None


@pytest.mark.parametrize("name", [name for name in CHAINS if "Quantize" not in name])
def test_the_axis_is_the_one_along_which_the_consumer_sums(name):
    chain, shape, axis = CHAINS[name]
    if "CastLike" in name:
        chain = [node("Identity", "w", "w2")]
    values = np.zeros(shape, np.float32)
    index = [0] * len(shape)
    index[axis] = 5  # reduction row 5 of output column 0
    values[tuple(index)] = 1
    graph = model(chain, [tensor("w", values), *CONSTANTS], inputs={"x": [2, 8]}, outputs={"w2": None})
    (operand,) = onnx.reference.ReferenceEvaluator(graph).run(None, {"x": np.zeros((2, 8), np.float32)})
    assert operand[..., 5, 0].reshape(-1)[0] == 1


@given(st.permutations([0, 1, 2]), st.booleans())
def test_transposes_of_rank_three_are_followed_the_right_way(perm, twice):
    seen = (3, 8, 4)  # what the MatMul sees: batch, reduction, output
    perm = list(perm)
    total = [perm[p] for p in perm] if twice else perm
    shape = [0, 0, 0]
    for position, source in enumerate(total):
        shape[source] = seen[position]
    chain = [node("Transpose", "w", "a" if twice else "w2", perm=perm)]
    chain += [node("Transpose", "a", "w2", perm=perm)] if twice else []
    site = only(behind(chain, random(*shape), inputs={"x": [3, 2, 8]}))
    assert (site.shape, site.axis, site.eligible) == (tuple(shape), total[1], True)


@pytest.mark.parametrize(
    ("chain", "shape"),
    [
        ([node("Reshape", "w shape", "w2")], (2, 4, 4)),
        ([node("Reshape", "w shape", "w2")], (4, 8)),
        ([node("Transpose", "w", "a"), node("Reshape", "a shape", "w2")], (2, 2, 8)),
    ],
)
def test_a_reshape_that_does_not_keep_the_axis_is_said_so(chain, shape):
    site = only(behind(chain, random(*shape), extra=CONSTANTS))
    if shape == (2, 2, 8):
        assert site.eligible
        return
    assert found(site) == (
        "w",
        "consumer",
        shape,
        -1,
        False,
        "a reshape between the stored tensor and the node does not keep the reduction axis",
    )
    assert not site.analysable


def test_a_weight_in_a_constant_node_is_found():
    constant = helper.make_node("Constant", [], ["w2"], value=tensor("", random(8, 4)))
    assert found(only(model([constant, node("MatMul", "x w2", "y")]))) == ("w2", "matmul", (8, 4), 0, True, "")


def branch(name, *, weights):
    nodes = [helper.make_node("MatMul", ["x", weights], [f"{name}_out"], name=name)]
    initializers = [tensor(weights, random(8, 4))] if weights == "inner" else []
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_out", 1, [2, 4])], initializers)


def test_weights_in_both_bodies_of_an_if_are_found_inner_and_outer():
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("then", weights="inner"), else_branch=branch("else", weights="outer")
    )
    proto = model([choice], [tensor("outer", random(8, 4))])
    proto.graph.input.append(condition)
    assert sorted(found(site) for site in sites(proto)) == [
        ("inner", "then", (8, 4), 0, True, ""),
        ("outer", "else", (8, 4), 0, True, ""),
    ]


def test_a_name_in_a_body_hides_the_same_name_outside():
    proto = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("then", weights="inner"),
                          else_branch=branch("else", weights="inner"))],
        [tensor("inner", random(16, 16))],
    )  # fmt: skip
    assert [site.shape for site in sites(proto)] == [(8, 4), (8, 4)]


def test_a_loop_body_uses_constants_from_outside_but_not_what_it_carries():
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Transpose", ["outer"], ["t"]),
            helper.make_node("MatMul", ["state", "t"], ["next"], name="constant"),
            helper.make_node("MatMul", ["state", "state"], ["square"], name="carried"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", 1, [8, 8])],
        [info("on", TensorProto.BOOL, []), info("next", 1, [8, 8])],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    proto = model([loop], [tensor("outer", random(8, 8)), tensor("n", np.array(3))], inputs={"x": [8, 8]})
    constant, carried = sites(proto)
    assert found(constant) == ("outer", "constant", (8, 8), 1, True, "")
    assert carried.reason == "not constant: 'state' is an input of the subgraph"


def function(name, nodes, inputs, **attributes):
    return helper.make_function(
        "local",
        name,
        inputs,
        ["b"],
        nodes,
        [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
        **attributes,
    )


def test_weights_in_a_function_and_in_a_function_it_calls_are_found():
    constant = helper.make_node("Constant", [], ["w"], value=tensor("", random(8, 8)))
    inner = function("Inner", [constant, helper.make_node("MatMul", ["a", "w"], ["b"])], ["a"])
    outer = function(
        "Outer",
        [helper.make_node("Inner", ["a"], ["t"], domain="local"), helper.make_node("MatMul", ["t", "v"], ["b"])],
        ["a", "v"],
    )
    call = helper.make_node("Outer", ["x", "v"], ["y"], domain="local")
    proto = model([call], [tensor("v", random(8, 4))], functions=[inner, outer])
    first, second = sites(proto)
    assert (first.shape, first.axis, first.eligible) == ((8, 8), 0, True)
    assert (second.tensor, second.shape, second.axis, second.eligible) == ("v", (8, 4), 0, True)


def test_a_function_called_twice_is_two_sites_of_one_tensor():
    constant = helper.make_node("Constant", [], ["w"], value=tensor("", random(8, 8)))
    inner = function("F", [constant, helper.make_node("MatMul", ["a", "w"], ["b"])], ["a"])
    calls = [helper.make_node("F", [i], [o], domain="local") for i, o in (("x", "t"), ("t", "y"))]
    first, second = sites(model(calls, functions=[inner]))
    assert first.ref.key == second.ref.key


@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
def test_a_weight_that_a_function_takes_as_an_attribute_is_found(given):
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.add(name="value", ref_attr_name="weights", type=onnx.AttributeProto.TENSOR)
    body = [constant, helper.make_node("MatMul", ["a", "w"], ["b"])]
    weights = tensor("", random(8, 4))
    if given:
        local = function("F", body, ["a"], attributes=["weights"])
        call = helper.make_node("F", ["x"], ["y"], domain="local", weights=weights)
    else:
        local = function("F", body, ["a"], attribute_protos=[helper.make_attribute("weights", weights)])
        call = helper.make_node("F", ["x"], ["y"], domain="local")
    opened = OnnxModel.open(model([call], functions=[local]))
    (site,) = find_sites(opened)
    assert (site.shape, site.axis, site.eligible) == ((8, 4), 0, True)
    assert np.array_equal(opened.read(site.ref), random(8, 4))


def test_a_function_that_calls_itself_is_refused():
    proto = model(
        [helper.make_node("F", ["x"], ["y"], domain="local")],
        functions=[function("F", [helper.make_node("F", ["a"], ["b"], domain="local")], ["a"])],
    )
    with pytest.raises(ModelError) as caught:
        sites(proto)
    assert caught.value.what == "the model's functions cannot be inlined"
    assert caught.value.where == "ModelProto"


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemms_axis_depends_on_its_transposes(a, b):
    x, w = ((8, 2) if a else (2, 8)), ((4, 8) if b else (8, 4))
    weights = model([node("Gemm", "x w", "y", transA=a, transB=b)], [tensor("w", random(*w))], inputs={"x": x})
    site = only(weights)
    assert (site.axis, site.output_axis, site.macs) == (int(b), 1 - int(b), 2 * 8 * 4)
    left = model([node("Gemm", "w x", "y", transA=a, transB=b)], [tensor("w", random(*x))], inputs={"x": w})
    site = only(left)
    assert (site.axis, site.output_axis, site.macs) == (1 - int(a), int(a), 2 * 8 * 4)


def test_a_constant_first_operand_of_matmul_is_summed_along_its_last_axis():
    proto = model([node("MatMul", "w x", "y")], [tensor("w", random(3, 4, 8))], inputs={"x": [3, 8, 5]})
    site = only(proto)
    assert (site.axis, site.output_axis, site.macs) == (2, 1, 3 * 4 * 8 * 5)


def test_nodes_without_a_name_get_their_operator_and_position():
    proto = model(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        [tensor("w", random(8, 4))],
    )
    assert only(proto).node == "MatMul_1"


# ---- multiply-accumulates


@given(
    st.integers(1, 2),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_the_work_of_a_convolution_is_what_a_loop_counts(batch, group, kernel, stride, pad, dilation, spatial):
    size, channels, outputs = 7, 4, 8
    weights = random(outputs, channels // group, *([kernel] * spatial))
    proto = model(
        [
            node(
                "Conv",
                "x w",
                "y",
                group=group,
                strides=[stride] * spatial,
                pads=[pad] * (2 * spatial),
                dilations=[dilation] * spatial,
            )
        ],
        [tensor("w", weights)],
        inputs={"x": [batch, channels, *([size] * spatial)]},
    )
    out = sum(1 for start in range(0, size + 2 * pad, stride) if start + dilation * (kernel - 1) < size + 2 * pad)
    count = batch * outputs * out**spatial * (channels // group) * kernel**spatial
    assert only(proto).macs == count


def test_the_work_of_a_transposed_convolution_spreads_every_input():
    weights = random(8, 4, 3, 3)
    proto = model(
        [node("ConvTranspose", "x w", "y", strides=[2, 2])], [tensor("w", weights)], inputs={"x": [1, 8, 5, 5]}
    )
    assert only(proto).macs == 1 * 8 * 5 * 5 * 4 * 3 * 3


@pytest.mark.parametrize(
    ("x", "w", "macs"),
    [
        ([2, 8], (8, 4), 2 * 8 * 4),
        ([5, 2, 8], (8, 4), 5 * 2 * 8 * 4),
        ([5, 2, 8], (5, 8, 4), 5 * 2 * 8 * 4),
        ([1, 2, 8], (5, 8, 4), 5 * 2 * 8 * 4),
        ([3, 1, 2, 8], (5, 8, 4), 3 * 5 * 2 * 8 * 4),
        ([8], (8, 4), 8 * 4),
        ([2, 8], (8,), 2 * 8),
    ],
)
def test_the_work_of_a_product_counts_batches(x, w, macs):
    assert only(model([node("MatMul", "x w", "y")], [tensor("w", random(*w))], inputs={"x": x})).macs == macs


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_the_work_of_a_recurrent_layer_is_each_weight_at_every_step_of_every_sequence(op, gates, directions, layout):
    steps, batch, features, hidden = 5, 3, 8, 4
    weights = [
        tensor("W", random(directions, gates * hidden, features)),
        tensor("R", random(directions, gates * hidden, hidden)),
    ]
    options = {"direction": "bidirectional"} if directions == 2 else {}
    recurrent = node(op, "x W R", "y", hidden_size=hidden, layout=layout, **options)
    x = [batch, steps, features] if layout else [steps, batch, features]
    found = sites(model([recurrent], weights, inputs={"x": x}))
    once = steps * batch * directions * gates * hidden
    assert [(site.tensor, site.macs) for site in found] == [("W", once * features), ("R", once * hidden)]
    dynamic = model([recurrent], weights, inputs={"x": ["n", "m", features]})
    assert [site.macs for site in sites(dynamic)] == [None, None]


def test_the_work_of_a_recurrent_layer_without_constant_weights_is_that_of_both():
    given = {"x": [5, 3, 8], "W": [1, 4, 8], "R": [1, 4, 4]}
    assert only(model([node("RNN", "x W R", "y", hidden_size=4)], inputs=given)).macs == 5 * 3 * (4 * 8 + 4 * 4)
    given["R"] = [1, "n", 4]
    assert only(model([node("RNN", "x W R", "y", hidden_size=4)], inputs=given)).macs is None


def test_work_is_known_from_the_output_where_the_input_is_not():
    plugin = helper.make_node("Plugin", ["x"], ["p"], domain="someones")
    proto = model([plugin, node("Gemm", "p w", "y", transB=1)], [tensor("w", random(4, 8))], outputs={"y": [2, 4]})
    assert only(proto).macs == 2 * 8 * 4


def dynamic():
    return matmul(random(8, 4), rows="batch")


def test_work_is_unknown_with_dynamic_shapes_and_known_when_they_are_given():
    assert only(dynamic()).macs is None
    assert only(dynamic(), shapes={"x": (6, 8)}).macs == 6 * 8 * 4


def test_given_shapes_size_dims_of_the_same_name_in_other_inputs():
    nodes = [node("MatMul", "x w", "a"), node("Identity", "z", "y")]
    proto = model(nodes, [tensor("w", random(8, 4))], inputs={"x": ["n", 8], "z": ["n"]}, outputs={"y": None})
    assert only(proto, shapes={"z": (6,)}).macs == 6 * 8 * 4


def test_an_input_of_unknown_rank_stays_so_when_another_shape_is_given():
    nodes = [node("MatMul", "x w", "a"), node("Identity", "z", "y")]
    proto = model(nodes, [tensor("w", random(8, 4))], inputs={"x": ["n", 8], "z": None}, outputs={"y": None})
    x, z = with_shapes(proto, {"x": (6, 8)}, "model").graph.input
    assert [dim.dim_value for dim in x.type.tensor_type.shape.dim] == [6, 8]
    assert not z.type.tensor_type.HasField("shape")


def test_sizes_may_be_numbers_of_numpy():
    assert only(dynamic(), shapes={"x": tuple(np.int64([6, 8]))}).macs == 6 * 8 * 4


def test_an_initializer_among_the_inputs_has_its_shape():
    proto = matmul(random(8, 4), rows="batch")
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [8, 4]))
    assert only(proto, shapes={"x": (6, 8)}).macs == 6 * 8 * 4
    with pytest.raises(ConfigError) as caught:
        sites(proto, shapes={"w": (8, 4)})
    assert str(caught.value) == "the model has no such input\n  where: shapes\n  got: w\n  expected: x"


def test_shapes_may_be_given_for_an_input_of_unknown_rank():
    proto = matmul(random(8, 4))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert only(proto).macs is None
    assert only(proto, shapes={"x": (6, 8)}).macs == 6 * 8 * 4


def test_shapes_of_unknown_inputs_are_refused():
    with pytest.raises(ConfigError) as caught:
        sites(dynamic(), shapes={"z": (6, 8)})
    assert str(caught.value) == "the model has no such input\n  where: shapes\n  got: z\n  expected: x"


@pytest.mark.parametrize("shape", [(6, 8, 1), (6,), (6, 9), (-1, 8)])
def test_shapes_that_contradict_the_model_are_refused(shape):
    with pytest.raises(ConfigError) as caught:
        sites(dynamic(), shapes={"x": shape})
    assert str(caught.value) == (
        f"a shape contradicts the model\n  where: shapes\n  got: x: ({', '.join(map(str, shape))})\n"
        "  expected: x: (batch, 8)"
    )


def test_the_skeleton_is_not_changed_by_looking_for_sites():
    opened = OnnxModel.open(dynamic())
    before = opened.proto.SerializeToString()
    find_sites(opened, shapes={"x": (6, 8)})
    assert opened.proto.SerializeToString() == before
