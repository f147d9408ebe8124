import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtsparse.builder.sparsity_log import NodeNames, SparseLayers, nodes_in, read_inspector, read_log

OLD = (
    "(Sparsity) Layers eligible for sparse math: Conv_0 + Relu_1, Conv_2",
    "(Sparsity) TRT inference plan picked sparse implementation for layers: Conv_2",
)
NEW = (
    "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: Conv_0 + Relu_1, Conv_2",
    "(Sparsity) Chose 1 layer(s) using sparse tactics: Conv_2",
)


@pytest.mark.parametrize("lines", [OLD, NEW])
def test_both_families_say_the_same(lines):
    assert read_log(lines) == SparseLayers("Conv_0 + Relu_1, Conv_2", "Conv_2", 2, 1)


OLD_NONE = (
    "(Sparsity) Layers eligible for sparse math: ",
    "(Sparsity) TRT inference plan picked sparse implementation for layers: ",
)
NEW_NONE = (
    "(Sparsity) Found 0 layer(s) eligible to use sparse tactics",
    "(Sparsity) Chose 0 layer(s) using sparse tactics",
)


@pytest.mark.parametrize("lines", [OLD_NONE, NEW_NONE])
def test_no_layers_is_known_to_be_none(lines):
    assert read_log(lines) == SparseLayers("", "", 0, 0)


def test_a_silent_log_is_not_no_layers():
    assert read_log(["Engine generation completed in 1 seconds."]) == SparseLayers(None, None, None, None)


def test_the_last_pair_counts():
    first = [line.replace("Conv_2", "Conv_7") for line in NEW]
    assert read_log([*first, "between", *NEW]).chosen == "Conv_2"


def test_lines_inside_a_log_file_are_found():
    assert read_log([f"[01/02/2026-03:04:05] [I] [TRT] {line}" for line in NEW]).eligible_count == 2


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("a", ("a",)),
        ("a + b", ("a", "b")),
        ("b || c", ("b", "c")),
        ("PWN(b)", ("b",)),
        ("conv.w + QuantizeLinear_3 + a, c", ("a", "c")),
        ("{ForeignNode[a...c]}", ("a", "c")),
        ("a/MatMulAddFusion", ("a",)),
        ("a [Convolution]", ("a",)),
        ("aa + ab", ()),
        ("", ()),
    ],
)
def test_fused_names_lead_back_to_nodes(layers, expected):
    assert nodes_in(layers, ["a", "b", "c"]) == expected


def test_names_that_contain_separators_are_matched_whole():
    assert nodes_in("x + y, other", ["x + y", "x", "y"]) == ("x + y",)


@pytest.mark.parametrize(
    ("one", "other"),
    [("fc(1)", "big_fc(1)"), ("fc, 1", "big fc, 1"), ("fc", "fc[1]"), ("fc + 1", "big fc + 1"), ("fc", "fc(1)"),
     ("fc(1)", "fc(1)(2)"), ("m.fc[0]", "m.fc[1]"), ("{a}", "a{a}")],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["{}", "{} + relu, other", "w + {}", "PWN({})", "{} [Gemm]", "{}/MatMulAddFusion"])
def test_a_name_that_is_part_of_another_is_not_found_in_it(one, other, layer):
    nodes = [one, other, "relu"]
    for name in (one, other):
        text = layer.format(name)
        assert [node for node in nodes_in(text, nodes) if node != "relu"] == [name]


def test_the_last_bracket_of_a_name_is_not_that_of_the_layer():
    assert nodes_in("{ForeignNode[a...fc[1]]}", ["a", "fc", "fc[1]"]) == ("a", "fc[1]")


def test_layers_are_told_apart_where_names_have_commas():
    names = NodeNames(["fc, 1", "big fc, 1"])
    assert names.layers("fc, 1 + relu, big fc, 1, __myl_Fc_7") == ("fc, 1 + relu", "big fc, 1", "__myl_Fc_7")
    assert names.layers("") == ()


names = st.lists(st.from_regex(r"[A-Za-z][\w/.:-]{0,12}", fullmatch=True), min_size=1, max_size=8, unique=True)


@given(names, st.data())
def test_every_fused_node_is_found_and_no_other(nodes, data):
    chosen = data.draw(st.lists(st.sampled_from(nodes), unique=True))
    layers = ", ".join(" + ".join(chosen[start : start + 2]) for start in range(0, len(chosen), 2))
    assert set(nodes_in(layers, nodes)) == set(chosen)


hard_names = st.lists(st.text("ab1()[]{}", min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


@given(hard_names, st.data())
def test_brackets_in_names_hide_and_pretend_nothing(nodes, data):
    chosen = data.draw(st.lists(st.sampled_from(nodes), unique=True))
    assert set(nodes_in(", ".join(chosen), nodes)) == set(chosen)
    assert set(nodes_in(" + ".join(chosen), nodes)) == set(chosen)


def inspector(*layers):
    return json.dumps({"Layers": list(layers), "Bindings": []})


def test_a_sparse_tactic_is_proof_and_sparse_weights_are_not():
    information = inspector(
        {"Name": "a + r", "HasSparseWeights": 1, "TacticName": "sm80_xmma_fprop_sparse_conv_f16"},
        {"Name": "b", "HasSparseWeights": 1, "TacticName": "sm80_xmma_gemm_f16"},
    )
    assert read_inspector(information) == (("a + r", "sm80_xmma_fprop_sparse_conv_f16"),)


@pytest.mark.parametrize(
    "tactic", ["sm80_xmma_SPARSE_gemm", "cutlass_spmma_16816", "x_sptensorop_y", "sp_gemm_1", "spgemm"]
)
def test_every_spelling_of_a_sparse_kernel_is_known(tactic):
    assert read_inspector(inspector({"Name": "a", "TacticName": tactic})) == (("a", tactic),)


def test_onnx_nodes_in_the_metadata_are_part_of_the_layer():
    metadata = "[ONNX Layer: /fc1/MatMul]\x1e[ONNX Layer: /fc1/Add]"
    ((layer, _),) = read_inspector(inspector({"Name": "__myl_Fc", "TacticName": "sparse", "Metadata": metadata}))
    assert nodes_in(layer, ["/fc1/MatMul", "/fc1/Add", "/fc2/MatMul"]) == ("/fc1/MatMul", "/fc1/Add")


@pytest.mark.parametrize("between", ["\x1e", "\x1f", "", ", ", " ", "\x1e[Other: c]\x1e", ", [Other kind: c], "])
@pytest.mark.parametrize(
    ("first", "second"),
    [("fc[1]", "relu(2)"), ("blk[0]/fc", "fc[2]"), ("fc[1][2]", "a]b"), ("a], b", "c[")],
)
def test_nodes_in_the_metadata_may_have_brackets_in_their_names(between, first, second):
    metadata = f"[ONNX Layer: {first}]{between}[ONNX Layer: {second}]"
    ((layer, _),) = read_inspector(inspector({"Name": "__myl", "TacticName": "sparse", "Metadata": metadata}))
    assert layer == f"__myl, {first}, {second}"


@pytest.mark.parametrize("information", ["", "no json", "[]", inspector("a", "b"), inspector({"Name": "a"})])
def test_an_inspector_that_tells_no_tactics_is_not_no_tactics(information):
    assert read_inspector(information) is None
