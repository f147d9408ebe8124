import dataclasses
import time
import warnings

import onnx
import pytest
from onnx import helper

from trtsparse.builder.config import SparsityWarning
from trtsparse.builder.report import Notes
from trtsparse.builder.sites import Evidence, make_rows, node_names, warn_before
from trtsparse.builder.sparsity_log import SparseLayers
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.validate import validate

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
