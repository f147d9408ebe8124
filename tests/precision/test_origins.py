import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from trtsparse.errors import ConfigError
from trtsparse.files.model import OnnxModel
from trtsparse.precision.fold import fold
from trtsparse.precision.origins import Origins


def origins_of(model, *, opset=0):
    original = OnnxModel.open(model)
    folded = fold(original, opset=opset)
    return Origins(original, folded), [node.name for node in folded.proto.graph.node]


def functions(call="[call] a = local.block(x) [last] y = Abs(a)"):
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[2] x) => (float[2] y) {{ {call} }}
        <opset_import: ["": 17, "local": 1], domain: "local"> block (a) => (d) {{
            [start] b = Exp(a) c = local.inner(b) [end] d = Relu(c)
        }}
        <opset_import: ["": 17], domain: "local"> inner (a) => (b) {{ [middle] b = Tanh(a) }}
    """)


def test_a_fused_node_stands_for_all_that_went_into_it(perceptron):
    origins, nodes = origins_of(perceptron)
    assert nodes == ["fc1/MatMulAddFusion", "relu", "fc2/MatMulAddFusion"]
    assert [origins.sources(node) for node in nodes] == [("fc1", "fc1_bias"), ("relu",), ("fc2", "fc2_bias")]
    assert [origins.layers(node) for node in nodes] == [("fc1",), ("relu",), ("fc2",)]
    assert origins.translated({nodes[2]: "error", nodes[1]: "asked"}) == {
        "relu": "asked",
        "fc2": "error",
        "fc2_bias": "error",
    }


def test_a_fused_node_of_a_model_in_float16_is_known_again(parse):
    model = parse("""g (float16[2, 2] x) => (float16[2, 2] y)
        <float16[2, 2] w = {1, 2, 3, 4}, float16[2] b = {1, 2}> {
        [mm] a = MatMul(x, w) [add] c = Add(a, b) [relu] y = Relu(c)
    }""")
    origins, _ = origins_of(model)
    assert origins.sources("mm/MatMulAddFusion") == ("mm", "add")
    assert "mm/MatMulAddFusion" in origins.matching(["mm"])


def test_a_node_that_is_left_out_is_found_in_what_reads_it(parse):
    origins, nodes = origins_of(
        parse("g (float[2] x) => (float[2] y) { [skip] a = Identity(x) [one] b = Exp(a) [two] y = Abs(b) }")
    )
    assert nodes == ["one", "two"]
    assert origins.matching(["skip"]) == ["one"]
    assert origins.sources("one") == ("one",)


def test_a_node_that_equals_another_is_found_in_the_one_that_is_left(parse):
    origins, nodes = origins_of(
        parse("""g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
            [one] s = Constant <value: tensor = float[1, 1] {3}> () [mul1] a = Mul(x, s) [cos1] b = Cos(a)
            [two] t = Constant <value: tensor = float[1, 1] {3}> () [mul2] c = Mul(x, t) [skip] d = Identity(c)
            [cos2] e = Cos(d) [first] y = Abs(b) [second] z = Exp(e)
        }""")
    )
    assert len(nodes) == 4
    (mul,) = {"mul1", "mul2"} & set(nodes)
    (cos,) = {"cos1", "cos2"} & set(nodes)
    assert origins.matching(["mul1"]) == origins.matching(["mul2"]) == [mul]
    assert origins.matching(["cos1"]) == origins.matching(["cos2"]) == [cos]
    assert [origins.sources(node) for node in nodes] == [(node,) for node in nodes]


def test_equal_nodes_that_are_fused_are_found_in_the_fused_one(parse):
    origins, nodes = origins_of(
        parse("""g (float[2, 2] x) => (float[2, 2] y, float[2, 2] z)
            <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> {
            [mm1] a = MatMul(x, w) [add1] c = Add(a, b) [mm2] d = MatMul(x, w) [add2] e = Add(d, b)
            [first] y = Abs(c) [second] z = Exp(e)
        }""")
    )
    (fused,) = set(nodes) - {"first", "second"}
    assert all(origins.matching([name]) == [fused] for name in ("mm1", "add1", "mm2", "add2"))
    assert origins.sources(fused) == ("mm1", "add1", "mm2", "add2")


def test_an_equal_node_that_was_fused_alone_is_found_where_it_went(build):
    ones = np.ones(4, np.float32)
    model = build(
        [
            ("MatMul", "fused", ["x", "w"], ["a"], {}),
            ("BatchNormalization", "norm", ["a", "s", "b", "m", "v"], ["y"], {}),
            ("MatMul", "alone", ["x", "w"], ["c"], {}),
            ("Abs", "abs", ["c"], ["z"], {}),
        ],
        inputs={"x": [2, 4]},
        outputs={"y": [2, 4], "z": [2, 4]},
        weights={"w": np.eye(4, dtype=np.float32), **dict.fromkeys("sbmv", ones)},
    )
    origins, nodes = origins_of(model)
    (gemm,) = set(nodes) - {"alone", "abs"}
    assert origins.matching(["fused"]) == [gemm]
    assert origins.matching(["alone"]) == ["alone"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["Sin", "Cos", "Exp", "Sub", "Mul"]), st.integers(0, 2), st.integers(0, 2)),
        min_size=2,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_node_is_found_in_the_one_that_computes_its_value(build, steps):
    nodes = []
    for i, (operator, *inputs) in enumerate(steps):
        read = [f"v{max(i - back, 0)}" for back in inputs][: 1 + (operator in ("Sub", "Mul"))]
        nodes.append((operator, f"n{i}", read, [f"v{i + 1}"], {}))
    last = {f"v{len(steps)}": [3]}
    model = build(nodes, inputs={"v0": [3]}, outputs=last)

    def terms(graph):
        found = {"v0": "x"}
        for node in graph.node:
            found[node.output[0]] = f"{node.op_type}({', '.join(found[name] for name in node.input)})"
        return {node.name: found[node.output[0]] for node in graph.node}

    folded = fold(OnnxModel.open(model))
    origins, before, after = Origins(OnnxModel.open(model), folded), terms(model.graph), terms(folded.proto.graph)
    for name, term in before.items():
        assert origins.matching([name]) == [other for other, its in after.items() if its == term]


def test_an_old_operator_stands_behind_all_that_it_becomes(build):
    model = build(
        [("Relu", "relu", ["x"], ["a"], {}), ("Softmax", "soft", ["a"], ["b"], {}), ("Abs", "abs", ["b"], ["y"], {})],
        inputs={"x": [2, 3, 4]},
        outputs={"y": [2, 3, 4]},
        opset=11,
    )
    origins, nodes = origins_of(model, opset=13)
    inside = nodes[1:-1]
    assert len(inside) > 1
    assert origins.matching(["soft"]) == inside
    assert {origins.sources(node) for node in inside} == {("soft",)}


def test_a_node_in_a_branch_is_not_taken_for_one_in_the_other(parse):
    model = parse("""g (bool c, float[4] x) => (float[4] y) {
        b = If (c) <
            then_branch = t () => (float[4] u) { [yes] u = Exp(x) },
            else_branch = e () => (float[4] u) { [no] u = Neg(x) }
        >
        y = Abs(b)
    }""")
    origins, _ = origins_of(model)
    assert origins.matching(["yes"]) == ["yes"]
    assert origins.matching(["If_0"]) == ["If_0"]


def test_a_constant_that_is_folded_may_be_named(parse):
    origins, nodes = origins_of(
        parse("""g (float[3, 2] x, float[2, 3] z) => (float[2, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
            [turn] t = Transpose(w) [add] a = Add(x, t) [shape] s = Shape(z) [reshape] y = Reshape(a, s)
        }""")
    )
    assert nodes == ["add", "reshape"]
    assert origins.matching(["turn"]) == origins.matching(["shape"]) == []
    assert origins.matching(["*"]) == nodes


def test_equal_nodes_that_become_one_constant_may_both_be_named(parse):
    origins, nodes = origins_of(
        parse("""g (float[3, 2] x, float[2, 3] z) => (float[2, 3] y) {
            [shape1] s = Shape(z) [first] a = Reshape(x, s) [exp] b = Exp(a)
            [shape2] t = Shape(z) [abs] c = Abs(x) [second] d = Reshape(c, t) [add] y = Add(b, d)
        }""")
    )
    assert set(nodes) == {"first", "exp", "abs", "second", "add"}
    assert origins.matching(["shape1"]) == origins.matching(["shape2"]) == []


def test_a_node_that_is_gone_without_a_trace_is_refused(parse):
    original = parse("g (float[2] x) => (float[2] y) { [one] a = Exp(x) [two] y = Abs(a) }")
    folded = parse("g (float[2] x) => (float[2] z) { [other] z = Exp(x) }")
    origins = Origins(OnnxModel.open(original), OnnxModel.open(folded))
    with pytest.raises(ConfigError) as caught:
        origins.matching(["one", "other"])
    assert str(caught.value) == (
        "a node that should stay in float32 is gone from the folded model\n"
        "  where: keep_fp32\n"
        "  got: 'one'\n"
        "  to fix: name the node that reads its output"
    )


def test_a_call_stands_for_all_nodes_that_it_expands_to():
    origins, nodes = origins_of(functions())
    assert len(nodes) == 4
    assert origins.matching(["call"]) == nodes[:3]
    assert origins.matching(["last"]) == nodes[3:]
    assert origins.sources(nodes[0]) == (nodes[0],)


def test_a_name_inside_a_function_stands_for_the_node_in_all_calls():
    origins, nodes = origins_of(functions("[one] a = local.block(x) [two] y = local.block(a)"))
    assert origins.matching(["middle"]) == [nodes[1], nodes[4]]
    assert origins.matching(["one"]) == nodes[:3]
    assert origins.matching(["two", "start"]) == [*nodes[3:], nodes[0]]


def test_an_unknown_node_of_a_model_with_functions_is_refused():
    origins, _ = origins_of(functions())
    with pytest.raises(ConfigError) as caught:
        origins.matching(["midle"])
    assert str(caught.value) == (
        "the model has no such node\n"
        "  where: keep_fp32\n"
        "  got: 'midle'\n"
        "  expected: one of 8 node names, or a pattern\n"
        "  to fix: did you mean 'middle'?"
    )


def test_a_normalization_is_found_in_the_convolution_and_its_folded_weight_is_not(build):
    ones = np.ones(4, np.float32)
    model = build(
        [
            ("Transpose", "turn", ["w"], ["t"], {"perm": [1, 0, 2, 3]}),
            ("Conv", "conv", ["x", "t"], ["a"], {}),
            ("BatchNormalization", "norm", ["a", "s", "b", "m", "v"], ["y"], {}),
        ],
        inputs={"x": [1, 4, 4, 4]},
        outputs={"y": [1, 4, 4, 4]},
        weights={"w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), **dict.fromkeys("sbmv", ones)},
    )
    origins, nodes = origins_of(model)
    assert origins.matching(["norm"]) == origins.matching(["conv"]) == nodes == ["conv"]
    assert origins.matching(["turn"]) == []
    assert origins.layers("conv") == ("conv",)
