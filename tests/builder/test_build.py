"""Builds with the real TensorRT-RTX, which needs no GPU."""

import hashlib
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builder.options import BATCH, config
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, BuildWarning, Profile, SparsityWarning
from trtsparse.errors import BuildError, ConfigError
from trtsparse.precision.feeds import RandomCalibrationWarning
from trtsparse.sparsity.prune import prune

pytestmark = pytest.mark.usefixtures("rtx")


def test_a_fixed_model_builds_and_says_what_it_is(net, rtx):
    engine = build(net(batch=2), config())
    report = engine.report
    assert str(engine.header) == f"TensorRT-RTX {rtx.__version__}"
    assert engine.header.nbytes == engine.nbytes == len(engine.plan) == report.plan["nbytes"]
    assert report.plan["sha256"] == hashlib.sha256(engine.plan).hexdigest()
    assert report.inputs == ({"name": "x", "dtype": "float32", "shape": [2, 8, 6, 6]},)
    assert report.outputs == ({"name": "y", "dtype": "float32", "shape": [2, 12]},)
    assert (report.precision.asked, report.precision.reached, report.precision.way) == ("fp32", "fp32", "as is")
    assert report.warnings == ()
    assert report.build_seconds <= report.total_seconds


def test_dynamic_inputs_take_several_profiles(net):
    second = Profile.parse("x:16x8x6x6:32x8x6x6:64x8x6x6")
    report = build(net(), config(profiles=(BATCH, second))).report
    assert report.inputs[0]["shape"] == [-1, 8, 6, 6]
    assert [profile["x"]["max"] for profile in report.profiles] == [[8, 8, 6, 6], [64, 8, 6, 6]]


def test_profiles_come_from_samples_where_none_is_given(net):
    samples = [{"x": np.zeros((n, 8, 6, 6), np.float32)} for n in (1, 5, 3, 3)]
    (profile,) = build(net(), config(), samples=samples).report.profiles
    assert profile["x"] == {"min": [1, 8, 6, 6], "opt": [3, 8, 6, 6], "max": [5, 8, 6, 6]}


def test_the_target_gpus_reach_the_plan(net):
    plans = {
        target: build(net(batch=2), config(compute_capabilities=target)).plan for target in ((), ("8.6",), ("12.0",))
    }
    assert len(set(plans.values())) == 3
    assert build(net(batch=2), config(compute_capabilities=("sm86",))).plan == plans["8.6",]


def test_fp16_converts_the_graph_and_reports_the_error(net):
    report = build(net(), config(precision="fp16", profiles=(BATCH,))).report
    assert (report.precision.reached, report.precision.way, report.precision.typing) == (
        "fp16",
        "converted graph",
        "strong",
    )
    assert 0 < report.precision.error <= report.precision.limit
    assert report.inputs[0]["dtype"] == "float32"  # inputs and outputs keep their types


def test_a_model_stored_in_fp16_is_built_as_it_is(net):
    report = build(net(batch=2, dtype=np.float16), config(precision="fp16")).report
    assert (report.precision.stored, report.precision.way, report.precision.error) == ("fp16", "as is", None)
    assert report.inputs[0]["dtype"] == "float16"


def test_fp32_asked_for_a_half_precision_model_is_not_silently_half(net):
    with pytest.warns(BuildWarning) as caught:
        report = build(net(batch=2, dtype=np.float16), config()).report
    assert report.precision.reached == "fp16"
    assert [str(w.message) for w in caught] == [
        "precision='fp32' was asked for, but the model is stored in FP16 and stays so"
    ]


def test_a_quantized_model_reaches_int8(quantized):
    report = build(quantized, config(precision="int8", sparsity="enable")).report
    assert (report.precision.reached, report.precision.way) == ("int8", "as is")
    (row,) = report.sites
    assert (row.compliant, row.eligible, row.chosen) == (True, True, "decided at load")


def test_what_a_quantized_model_leaves_in_fp32_is_not_eligible(quantized):
    graph = quantized.graph
    graph.node[3].output[0] = "h"
    graph.node.append(helper.make_node("MatMul", ["h", "head.w"], ["y"], "head"))
    graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "head.w"))
    rows = build(quantized, config(precision="int8", sparsity="enable")).report.sites
    assert [(row.node, row.compliant, row.eligible, row.chosen, row.reason) for row in rows] == [
        ("mm", True, True, "decided at load", ""),
        ("head", True, False, False, "computed in FP32: not quantized"),
    ]


@pytest.mark.filterwarnings("ignore::trtsparse.builder.config.BuildWarning")
@pytest.mark.usefixtures("rtx")
def test_what_the_conversion_does_not_quantize_is_not_eligible(text_model):
    pytest.importorskip("onnxruntime")
    ones = ", ".join(["1.0"] * 16)
    model = text_model(
        f"""g (float[4, 4] x) => (float[4, 4] y) <float[4, 4] w = {{{ones}}}, float[4, 4] v = {{{ones}}}>
        {{ [body] h = MatMul(x, w) r = Relu(h) [left] y = MatMul(v, r) }}"""
    )
    rows = build(model, config(precision="int8", random_calibration=True, sparsity="enable")).report.sites
    assert [(row.node, row.reason) for row in rows] == [("body", ""), ("left", "computed in FP32: not quantized")]


def test_the_timing_cache_does_not_replace_the_model(external):
    before = {path: path.read_bytes() for path in external.parent.iterdir()}
    for path in before:
        with pytest.raises(ConfigError, match="the output would replace "):
            build(external, config(timing_cache=path, profiles=(BATCH,)))
    assert {path: path.read_bytes() for path in external.parent.iterdir()} == before


def test_a_sparse_build_says_that_kernels_are_chosen_at_load(net):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = build(net(), config(precision="fp16", sparsity="enable", profiles=(BATCH,))).report
    assert [(r.node, r.compliant, r.eligible, r.found, r.chosen) for r in report.sites] == [
        ("conv", True, True, None, "decided at load"),
        ("gemm", True, True, None, "decided at load"),
    ]
    assert report.config["profiling_verbosity"] is None
    assert report.chosen == ()


def test_columns_stay_apart(net):
    with pytest.warns(SparsityWarning):
        report = build(net(sparse=False), config(precision="fp16", sparsity="enable", profiles=(BATCH,))).report
    assert [(r.compliant, r.eligible, r.chosen) for r in report.sites] == [(False, True, False)] * 2
    dense = build(net(), config(precision="fp16", profiles=(BATCH,))).report
    assert [(r.compliant, r.eligible, r.chosen) for r in dense.sites] == [(True, True, False)] * 2


def test_force_prunes_and_says_what(net):
    model = net(sparse=False)
    before = model.SerializeToString()
    report = build(model, config(precision="fp16", sparsity="force", profiles=(BATCH,))).report
    assert model.SerializeToString() == before
    assert [(r.compliant, r.chosen) for r in report.sites] == [(True, "decided at load")] * 2
    assert [tensor["tensor"] for tensor in report.pruning["tensors"]] == ["conv.w", "gemm.w"]
    assert report.pruning["zeroed"] == sum(tensor["zeroed"] for tensor in report.pruning["tensors"]) > 0


def test_force_leaves_what_it_is_told_to(net):
    options = config(precision="fp16", sparsity="force", prune_exclude=("gemm",), profiles=(BATCH,))
    report = build(net(sparse=False), options).report
    assert [r.compliant for r in report.sites] == [True, False]


def test_a_forced_build_equals_building_the_pruned_model(net):
    model = net(sparse=False, batch=2)
    pruned = prune(model).model.load()
    assert (
        build(model, config(sparsity="force", precision="fp16")).plan
        == build(pruned, config(sparsity="enable", precision="fp16")).plan
    )


@pytest.mark.parametrize(
    ("make", "options", "texts"),
    [
        (
            {},
            {"sparsity": "enable"},
            [
                (
                    "sparsity is on, but everything is FP32: Sparse Tensor Cores take FP16, BF16, FP8 and INT8; "
                    "build with precision='fp16'"
                )
            ],
        ),
        (
            {"sparse": False},
            {"sparsity": "enable", "precision": "fp16"},
            [
                (
                    "sparsity is on, but none of the 2 eligible weights is compliant: nothing can run sparse; "
                    "prune the model first, or build with sparsity='force'"
                )
            ],
        ),
        (
            {"group": 8},
            {"sparsity": "enable", "precision": "fp16"},
            ["grouped convolutions never run sparse in TensorRT: conv"],
        ),
    ],
)
def test_what_keeps_a_build_from_being_sparse_is_said(net, make, options, texts):
    if make.get("group") == 8:
        model = net(sparse=False, group=8)
        gemm = next(t for t in model.graph.initializer if t.name == "gemm.w")
        array = onnx.numpy_helper.to_array(gemm).copy()
        array.reshape(-1, 4, 12)[:, 2:] = 0
        gemm.CopyFrom(onnx.numpy_helper.from_array(array, "gemm.w"))
    else:
        model = net(**make)
    with pytest.warns(SparsityWarning) as caught:
        report = build(model, config(profiles=(BATCH,), **options)).report
    assert [str(w.message) for w in caught] == texts == list(report.warnings)
    assert all(w.filename == __file__ for w in caught)


def test_a_model_without_products_has_nothing_to_be_sparse(relu):
    with pytest.warns(SparsityWarning) as caught:
        build(relu, config(sparsity="enable", precision="fp16"))
    assert [str(w.message) for w in caught] == [
        "sparsity is on, but no weight of the model is eligible: it has no Conv, Gemm or MatMul"
    ]


def test_reasons_against_eligibility_are_told(text_model):
    weights = ", ".join(["1"] * 12)
    model = text_model(f"g (float[2,6] x) => (float[2,2] y) <float[6,2] w = {{{weights}}}> {{ y = MatMul(x, w) }}")
    with pytest.warns(
        SparsityWarning, match="no weight of the model is eligible: reduction of 6 is not a multiple of 4"
    ):
        build(model, config(sparsity="enable", precision="fp16"))


# inputs that need care ------------------------------------------------------------------------------------------


def test_dims_called_question_mark_are_not_taken_for_equal(twins):
    profile = Profile.parse("x:1x4:2x4:3x4,z:5x4:6x4:7x4")
    model = twins(["?", 4], ["?", 4])
    report = build(model, config(profiles=(profile,))).report
    assert [i["shape"] for i in report.inputs] == [[-1, 4], [-1, 4]]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "?"


def test_dims_of_one_name_must_agree(twins):
    with pytest.raises(ConfigError, match="a profile gives the dim 'N' two sizes"):
        build(twins(["N", 4], ["N", 4]), config(profiles=(Profile.parse("x:1x4:2x4:3x4,z:5x4:6x4:7x4"),)))
    overlapping = Profile.parse("x:1x4:6x4:7x4,z:5x4:6x4:9x4")
    assert build(twins(["N", 4], ["N", 4]), config(profiles=(overlapping,))).plan


RESHAPE = "g (float[N,12] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }"


def test_an_input_that_holds_a_shape_gets_a_range_of_values(text_model):
    profile = Profile.parse("x:1x12:2x12:4x12,s:1x12:2x12:4x12")
    report = build(text_model(RESHAPE), config(profiles=(profile,))).report
    assert report.inputs[1] == {"name": "s", "dtype": "int64", "shape": [2]}
    samples = [{"x": np.zeros((n, 12), np.float32), "s": np.array([n, 12])} for n in (1, 2, 4)]
    assert build(text_model(RESHAPE), config(), samples=samples).plan


def test_an_input_that_holds_a_shape_and_has_no_values_is_named(text_model):
    with pytest.raises(ConfigError) as error:
        build(text_model(RESHAPE), config(profiles=(Profile.parse("x:1x12:2x12:4x12"),)))
    assert str(error.value) == (
        "an input holds a shape, and no profile gives the range of its values\n"
        "  where: profile 0, input 's'\n"
        "  expected: 2 values each for min, opt and max, such as s:1x3:8x3:16x3"
    )


def test_external_data_is_read_from_beside_the_model(external):
    report = build(external, config(profiles=(BATCH,))).report
    digest = hashlib.sha256((external.parent / "external.data").read_bytes()).hexdigest()
    assert report.model["external"] == [{"name": "external.data", "sha256": digest}]
    assert report.model["sha256"] == hashlib.sha256(external.read_bytes()).hexdigest()


def test_pruned_external_data_lives_in_memory_only(external):
    before = (external.parent / "external.data").read_bytes()
    report = build(external, config(sparsity="force", precision="fp16", profiles=(BATCH,))).report
    assert all(row.compliant for row in report.sites)
    with pytest.warns(SparsityWarning, match="everything is FP32"):
        assert build(external, config(sparsity="force", profiles=(BATCH,))).plan
    assert (external.parent / "external.data").read_bytes() == before
    assert sorted(path.name for path in external.parent.iterdir()) == ["external.data", "external.onnx"]


@pytest.mark.parametrize("sparsity", ["disable", "force"])
def test_unnamed_dims_and_external_data_go_together(tmp_path, net, sparsity):
    model = net()
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_value != 8:
            dim.dim_param = "?"
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    profile = Profile.parse("x:1x8x6x6:2x8x16x24:4x8x32x48")
    options = config(precision="fp32", sparsity=sparsity, profiles=(profile,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)
        report = build(path, options).report
    assert report.inputs[0]["shape"] == [-1, 8, -1, -1]


def test_bytes_build_like_a_model(relu):
    assert build(relu.SerializeToString(), config()).plan == build(relu, config()).plan


def test_nodes_without_names_are_called_by_operator_and_position(net):
    report = build(net(named=False, batch=2), config()).report
    assert [row.node for row in report.sites] == ["Conv_0", "Gemm_4"]


def test_all_options_at_once_build(net):
    options = config(
        sparsity="enable",
        precision="fp16",
        profiles=(BATCH,),
        memory_pools={"workspace": 1 << 28, "tactic_shared_memory": 1 << 16},
        optimization_level=2,
        strict_nans=True,
        max_aux_streams=1,
        builder_threads=2,
        refit="individual",
        compute_capabilities=("8.6", "8.9"),
        profiling_verbosity="layer_names_only",
    )
    engine = build(net(), options)
    stored = json.loads(json.dumps(engine.report.to_dict()))
    assert stored["schema"] == "trtsparse.build/1"
    assert stored["config"]["compute_capabilities"] == ["8.6", "8.9"]


# one logger a process -------------------------------------------------------------------------------------------


def test_builds_in_threads_keep_their_messages_apart():
    found = {}

    def work(name):
        x, w = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xw")
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name)], "g", [x, w], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        try:
            build(model, config(compute_capabilities=("7.5",)))
        except BuildError as error:
            found[name] = str(error)

    threads = [threading.Thread(target=work, args=(f"product_{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for name, text in found.items():
        assert [other for other in found if other in text] == [name]


FOREIGN = """
import warnings
import tensorrt_rtx as trt
from onnx import parser
from trtsparse.builder.build import build
text = '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
other = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    build(parser.parse_model(text))
print(*(w.message for w in caught))
"""


def test_a_logger_registered_by_someone_else_is_noticed():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "another TensorRT object of this process has its own logger: the build log was not heard\n"


# real models ----------------------------------------------------------------------------------------------------


def test_magika_builds_sparse_in_fp16(magika):
    from models.packaged import magika_features

    samples = [{"bytes": magika_features([__file__, onnx.__file__])}, {"bytes": magika_features([magika])}]
    options = config(precision="fp16", sparsity="force", compute_capabilities=("8.6",))
    report = build(magika, options, samples=samples).report
    rows = {row.node.split("/")[-2]: (row.compliant, row.eligible, row.chosen) for row in report.sites}
    assert rows["Conv_0"] == (True, True, "decided at load")
    assert rows["einsum"] == (None, False, False)  # 257 inputs: not a multiple of 4
    assert report.profiles == ({"bytes": {"min": [1, 2048], "opt": [2, 2048], "max": [2, 2048]}},)
    assert report.precision.error <= report.precision.limit


def test_ppocr_builds_with_a_wide_profile(ppocr_det):
    profile = Profile.parse("x:1x3x64x64:1x3x192x320:1x3x640x640")
    report = build(ppocr_det, config(profiles=(profile,))).report
    assert len(report.sites) > 40
    assert report.inputs == ({"name": "x", "dtype": "float32", "shape": [-1, 3, -1, -1]},)


def test_ppocr_builds_sparse_in_fp16_from_sample_images(ppocr_det):
    pytest.importorskip("PIL")
    from models.packaged import ppocr_input

    samples = [{"x": ppocr_input("det", seed=seed, size=size)} for seed, size in enumerate([(192, 320), (64, 96)])]
    with pytest.warns(SparsityWarning, match="grouped convolutions never run sparse in TensorRT: Conv"):
        report = build(ppocr_det, config(precision="fp16", sparsity="force", max_error=0.5), samples=samples).report
    assert report.profiles[0]["x"] == {"min": [1, 3, 64, 96], "opt": [1, 3, 192, 320], "max": [1, 3, 192, 320]}
    eligible = [row for row in report.sites if row.eligible]
    assert len(eligible) > 20
    assert all(row.compliant and row.chosen == "decided at load" for row in eligible)
    assert {row.reason.split(" (")[0] for row in report.sites if not row.eligible} >= {"grouped convolution"}


@pytest.mark.filterwarnings("ignore::trtsparse.builder.config.BuildWarning")
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.usefixtures("rtx")
def test_int8_is_calibrated_with_a_folder_of_samples_by_any_method(net, tmp_path, method):
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", rng.standard_normal((2, 8, 6, 6)).astype("f4"))
    config = BuildConfig(precision="int8", calibration=method, max_error=0.9, flavour="tensorrt_rtx")
    report = build(net(batch=2), config, samples=tmp_path).report
    assert report.precision.reached == "int8"
    assert report.config["calibration"] == method


@pytest.mark.filterwarnings("ignore::trtsparse.builder.config.BuildWarning")
@pytest.mark.usefixtures("rtx")
def test_int8_with_random_calibration_warns_loudly_and_only_when_asked(net):
    with pytest.warns(RandomCalibrationWarning):
        build(
            net(batch=2),
            BuildConfig(precision="int8", random_calibration=True, max_error=0.9, flavour="tensorrt_rtx"),
        )
    with pytest.raises(ConfigError, match="INT8 needs sample inputs to calibrate with"):
        build(net(batch=2), BuildConfig(precision="int8", flavour="tensorrt_rtx"))


def test_a_build_for_gpus_before_ampere_says_so_before_and_in_every_row(net):
    with pytest.warns(SparsityWarning, match=r"no target has Sparse Tensor Cores \(7.5\)"):
        report = build(
            net(batch=2), config(precision="fp16", sparsity="enable", compute_capabilities=("7.5",))
        ).report
    assert [(row.eligible, row.chosen) for row in report.sites] == [(False, False)] * 2
    with pytest.warns(SparsityWarning, match=r"targets without Sparse Tensor Cores run dense \(7.5\)"):
        report = build(
            net(batch=2), config(precision="fp16", sparsity="enable", compute_capabilities=("7.5", "8.6"))
        ).report
    assert [(row.eligible, row.chosen) for row in report.sites] == [(True, "decided at load")] * 2
