import dataclasses
import time
import warnings

import onnx
import pytest
from onnx import helper, parser

from trtsparse.builder.config import SparsityWarning
from trtsparse.builder.report import Notes
from trtsparse.builder.sites import Evidence, make_rows, node_names, nodes_in_fp32, warn_before
from trtsparse.builder.sparsity_log import SparseLayers
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.validate import validate
from trtsparse.sparsity.weights import find_sites

TURING = "no target has Sparse Tensor Cores: they came with compute capability 8.0"


@pytest.fixture
def sites(net):
    return validate(net()).sites


def rows(sites, evidence, **options):
    return [(row.node, row.chosen) for row in make_rows(sites, evidence, reached="fp16", **options)]


def test_what_the_library_did_not_tell_is_not_known(sites):
    assert rows(sites, Evidence(asked=True, at_load=False)) == [("conv", None), ("gemm", None)]


def test_a_build_without_sparsity_chose_nothing(sites):
    assert rows(sites, Evidence(asked=False, at_load=True)) == [("conv", False), ("gemm", False)]


def test_the_inspector_alone_is_enough(sites):
    evidence = Evidence(asked=True, at_load=False, tactics=(("gemm", "sparse_gemm"),))
    assert rows(sites, evidence) == [("conv", False), ("gemm", True)]


def test_log_and_inspector_add_up(sites):
    log = SparseLayers(eligible="conv + relu, gemm", chosen="conv + relu")
    evidence = Evidence(asked=True, at_load=False, log=log, tactics=(("gemm", "sparse_gemm"),))
    assert rows(sites, evidence) == [("conv", True), ("gemm", True)]


def test_a_sparse_layer_that_is_no_node_of_the_model_is_kept_by_name(sites):
    log = SparseLayers(eligible="conv, __myl_Fc_7", chosen="conv, __myl_Fc_7")
    evidence = Evidence(asked=True, at_load=False, log=log)
    nodes = [site.node for site in sites]
    assert evidence.knowing(nodes).untraced(nodes) == ("__myl_Fc_7",)


def test_nodes_that_a_conversion_renamed_are_traced_by_their_weight(net):
    source = net()
    converted = onnx.ModelProto()
    converted.CopyFrom(source)
    converted.graph.node[4].name = "gemm/MatMulAddFusion_12"
    names = node_names(OnnxModel.open(source), OnnxModel.open(converted))
    assert names["gemm"] == ("gemm", "gemm/MatMulAddFusion_12")
    assert names["conv"] == ("conv",)


def test_nodes_without_names_go_by_their_output_as_well(net):
    source = OnnxModel.open(net(named=False))
    assert node_names(source, source)["Conv_0"] == ("Conv_0", "node_of_c")


def test_nodes_in_branches_have_names_too(net):
    inner = net(batch=2).graph
    branch = helper.make_graph(list(inner.node), "branch", [], list(inner.output), list(inner.initializer))
    node = helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)
    go = helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [go, *inner.input], list(inner.output))
    model = OnnxModel.open(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert {"If_0", "conv", "gemm"} <= set(node_names(model, model))


def test_what_stays_in_fp32_is_not_eligible_and_says_so(sites):
    found = make_rows(
        sites, Evidence(asked=True, at_load=True), reached="fp16", kept=("conv",), open_layers=("gemm",)
    )
    assert [(row.eligible, row.reason, row.chosen) for row in found] == [
        (False, "kept in FP32 by the conversion", False),
        (True, "", "decided at load"),
    ]
    assert found[0].warnings == ()
    assert found[1].warnings[-1].startswith("its output stays floating point")


def test_what_runs_sparse_is_eligible_whatever_was_expected(sites):
    evidence = Evidence(asked=True, at_load=False, log=SparseLayers(eligible="conv, gemm", chosen="conv"))
    found = make_rows(sites, evidence, reached="int8", kept=("conv", "gemm"))
    assert [(row.eligible, row.chosen, row.reason) for row in found] == [
        (True, True, ""),
        (False, False, "kept in FP32 by the conversion"),
    ]


def test_a_node_in_a_sparse_layer_keeps_its_structural_reason(sites):
    inner = dataclasses.replace(sites[0], node="attention", eligible=False, reason="not constant", compliant=None)
    names = {name: (name,) for name in ("conv", "attention", "gemm")}
    log = SparseLayers(chosen="{ForeignNode[conv...attention]}")
    evidence = Evidence(asked=True, at_load=False, log=log, names=names)
    found = make_rows([sites[0], inner, sites[1]], evidence, reached="fp32")
    assert [(row.eligible, row.reason) for row in found] == [
        (True, ""),
        (False, "not constant"),
        (False, "FP32 build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"),
    ]


QUANTIZED = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(v, s, z) """


def products(text, *, float_type="float"):
    """A model of the nodes in text, between x and y, with an INT8 weight v and a floating point weight w."""
    return OnnxModel.open(
        parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 19]> g ({float_type}[4, 4] x, bool c) => ({float_type}[4, 4] y)
            <{float_type} s = {{1}}, int8 z = {{0}}, int8[4, 4] v = {{{", ".join("1" * 16)}}},
            {float_type}[4, 4] w = {{{", ".join("1" * 16)}}}> {{ {QUANTIZED} {text} }}"""
        )
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a] y = MatMul(d, wd)", set()),
        ("[a] h = MatMul(d, wd) [b] y = MatMul(h, w)", {"b"}),
        ("[a] h = MatMul(d, wd) [b] y = MatMul(w, d)", {"b"}),
        ("[a] y = MatMul(x, wd)", {"a"}),
        ("t = Transpose(d) [a] y = MatMul(t, wd)", set()),
        ("r = Relu(d) [a] y = MatMul(r, wd)", {"a"}),
        ("a, b = Split<axis=0, num_outputs=2>(d) f = Concat<axis=0>(a, b) [c] y = MatMul(f, wd)", set()),
        (
            """[a] h = MatMul(d, wd) y = If (c) <then_branch = t () => (float[4, 4] o) { [b] o = MatMul(h, w) },
            else_branch = e () => (float[4, 4] p) { p = Identity(h) }>""",
            {"b"},
        ),
        ("MatMul_3 = Identity(d) [a] y = MatMul(MatMul_3, w)", {"a"}),
    ],
)
def test_products_of_what_is_not_quantized_are_in_fp32(text, expected):
    model = products(text)
    assert nodes_in_fp32(model, model) == expected


def test_products_in_half_precision_are_not_in_fp32():
    model = products("[a] h = MatMul(d, wd) [b] y = MatMul(h, w)", float_type="float16")
    assert nodes_in_fp32(model, model) == set()


def test_a_name_that_a_quantized_node_has_too_says_nothing():
    branch = "t () => (float[4, 4] {0}) {{ g = Identity(h) i = Identity(g) k = Identity(i) {0} = MatMul(k, w) }}"
    branches = f"then_branch = {branch.format('o')}, else_branch = {branch.format('p')}"
    model = products(f"h = MatMul(d, wd) y = If (c) <{branches}>")
    assert [site.node for site in find_sites(model)] == ["MatMul_3"] * 3
    assert nodes_in_fp32(model, model) == set()


def test_what_a_conversion_renamed_is_in_fp32_under_the_name_of_the_model():
    source = products("[a] h = MatMul(d, wd) [b] y = MatMul(h, w)")
    built = products("[a] h = MatMul(d, wd) [fused] y = MatMul(h, w)")
    assert "b" in nodes_in_fp32(source, built)
    assert "a" not in nodes_in_fp32(source, built)


@pytest.mark.parametrize(
    ("reached", "reason"),
    [("int8", "computed in FP32: not quantized"), ("fp16", "computed in FP32: stored so")],
)
def test_what_is_computed_in_fp32_is_not_eligible_and_says_so(sites, reached, reason):
    (conv, gemm) = make_rows(sites, Evidence(asked=True, at_load=True), reached=reached, in_fp32={"gemm"})
    assert (conv.eligible, conv.chosen) == (True, "decided at load")
    assert (gemm.eligible, gemm.chosen, gemm.reason) == (False, False, reason)


def test_a_build_of_which_all_stays_in_fp32_is_told_before(sites):
    notes = Notes()
    with pytest.warns(SparsityWarning):
        warn_before(sites, notes, reached="int8", forced=False, kept=("conv",), in_fp32={"gemm"})
    reasons = "kept in FP32 by the conversion; computed in FP32: not quantized"
    assert notes.texts == [f"sparsity is on, but no weight of the model is eligible: {reasons}"]


@pytest.mark.parametrize(
    ("targets", "warning", "reason"),
    [
        (("7.5",), "no target has Sparse Tensor Cores (7.5)", TURING),
        (("7.0", "7.5"), "no target has Sparse Tensor Cores (7.0, 7.5)", TURING),
        (("7.5", "8.6"), "targets without Sparse Tensor Cores run dense (7.5)", ""),
        (("7.5", "current"), "targets without Sparse Tensor Cores run dense (7.5)", ""),
        (("8.0", "12.0"), None, ""),
        (("current",), None, ""),
        ((), None, ""),
    ],
)
def test_gpus_before_ampere_run_nothing_sparse(sites, targets, warning, reason):
    notes = Notes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_before(sites, notes, reached="fp16", forced=False, targets=targets)
    told = f"sparsity is on, but {warning}: they came with compute capability 8.0"
    assert notes.texts == ([] if warning is None else [told])
    assert [w.category for w in caught] == [SparsityWarning] * len(notes.texts)
    found = make_rows(sites, Evidence(asked=True, at_load=True), reached="fp16", targets=targets)
    chosen = False if reason else "decided at load"
    assert [(row.eligible, row.reason, row.chosen) for row in found] == [(not reason, reason, chosen)] * 2


@pytest.mark.parametrize("name", ["block_{}/conv", "conv ({})"])
def test_a_thousand_layers_are_traced_quickly(sites, name):
    many = [dataclasses.replace(sites[0], node=name.format(n)) for n in range(1000)]
    layers = ", ".join(f"{site.node} + relu_{n}" for n, site in enumerate(many))
    log = SparseLayers(eligible=layers, chosen=layers)
    evidence = Evidence(asked=True, at_load=False, log=log, tactics=tuple((site.node, "sparse") for site in many))
    started = time.perf_counter()
    assert all(row.chosen for row in make_rows(many, evidence, reached="fp16"))
    nodes = [site.node for site in many]
    assert evidence.knowing(nodes).untraced(nodes) == ()
    assert time.perf_counter() - started < 3
