import json
import warnings

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

import models
from tests.doubles import installed, samples
from tests.helpers import matmul, model, random, sparse, tensor
from tests.tune.results import result
from tests.tune.scripted import command
from trtsparse.builder.build import build
from trtsparse.builder.config import BuildConfig, Profile
from trtsparse.errors import ConfigError, ModelNotFoundError
from trtsparse.sparsity.prune import prune
from trtsparse.tune import shipped
from trtsparse.tune import tune as tuning
from trtsparse.tune.cache import Cache
from trtsparse.tune.explain import explain
from trtsparse.tune.gemm import Gemm
from trtsparse.tune.measure import Options, Tuner

NO_TIME = "a time is a positive, finite number of milliseconds\n  where: total_ms\n  got: "
DTYPES = "auto, fp32, fp16, bf16, int8, fp8_e4m3, tf32"
BERT = {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 128, "vocabulary": 50}
BERT_SHAPES = {"input_ids": (2, 16), "token_type_ids": (2, 16)}
FACTS = {
    "gpu": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "driver": "580.1", "cublaslt": "13.1.0",
    "cusparselt": "0.8.0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_tables(monkeypatch, tmp_path):
    """What ships may change; these tests say what is in a table."""
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    return tmp_path


def test_a_model_as_it_comes_is_eligible_and_has_to_be_pruned_first():
    found = explain(models.get("bert-base", **BERT), shapes=BERT_SHAPES, gpu="h100")
    weights = [row for row in found.sites if row.eligible]
    assert len(weights) == 12
    assert {(row.compliant, row.chosen) for row in weights} == {(False, "unknown")}
    assert all(row.why.startswith("not compliant: ") and "prune first" in row.why for row in weights)
    assert found.totals.now.expected == 1.0
    products = [row for row in found.sites if not row.eligible]
    assert len(products) == 4
    assert all(row.why.startswith("not constant: ") for row in products)


def test_a_pruned_model_tells_what_it_gains_with_bounds():
    path = models.get("llm-block", hidden=1024, intermediate=4096)
    found = explain(prune(path).model, shapes={"hidden_states": (8, 2048, 1024)}, gpu="h100", dtype="bf16")
    assert {(row.gemm.m, row.gemm.n, row.gemm.k) for row in found.sites} == {(16384, 4096, 1024), (16384, 1024, 4096)}
    assert all(row.why == f"a sparse kernel is faster here ({row.gain:.2f}x, an estimate)" for row in found.sites)
    gain = found.totals.now
    assert 1.1 < gain.lower < gain.expected < gain.upper < 1.5
    assert 0.75 < found.totals.share < 1
    assert found.totals.now == found.totals.pruned


def test_grouped_convolutions_are_told_and_count_as_the_rest():
    path = models.get("resnext50", image_size=64)
    found = explain(prune(path).model, shapes={"input": (32, 3, 64, 64)}, gpu="h100")
    grouped = [row for row in found.sites if "grouped" in row.why]
    assert len(grouped) == 16
    assert all(row.why == "grouped convolution (group = 32): TensorRT never uses sparse kernels" for row in grouped)
    assert found.totals.rest_ms > 0
    narrow = next(row for row in found.sites if row.gemm and row.gemm.k == 64)
    assert "too few channels to fill a sparse kernel" in narrow.why
    stem = found.sites[0]
    assert stem.why == "reduction of 3 is not a multiple of 4"


@pytest.mark.parametrize(("name", "shapes"), [("magika", {}), ("ppocr-det", {"x": (1, 3, 192, 320)})])
def test_models_from_packages_are_explained_to_the_last_site(name, shapes):
    pytest.importorskip("magika")
    pytest.importorskip("rapidocr")
    path = models.get(name)
    if not shapes:
        shapes = {value.name: (4, 2048) for value in onnx.load(path, load_external_data=False).graph.input}
    found = explain(path, shapes=shapes, gpu="l4")
    assert found.sites
    assert all(row.why for row in found.sites)
    assert json.loads(json.dumps(found.to_dict()))["schema"] == "trtsparse.explain/1"


@pytest.mark.parametrize("dtype", ["fp32", "tf32"])
def test_an_fp32_build_is_the_reason(dtype):
    (row,) = explain(matmul(sparse(64, 64, axis=0)), gpu="h100", dtype=dtype).sites
    assert (row.compliant, row.eligible) == (True, False)
    assert row.why == f"{dtype.upper()} build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"


def quantized(*, output, dtype=np.int8):
    """A product of two quantized values; its output is quantized too, or not."""
    node = helper.make_node
    scales = [tensor("scale", np.float32(0.1)), tensor("zero", np.zeros((), dtype))]
    weights = np.tile(np.array([[0], [0], [1], [2]], dtype), (16, 64))
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        node("MatMul", ["xd", "w"], ["a"], name="mm"),
        node("Relu", ["a"], ["r"]),
        node("QuantizeLinear", ["r", "scale", "zero"], ["rq"]) if output else node("Identity", ["r"], ["rq"]),
        node("DequantizeLinear", ["rq", "scale", "zero"], ["y"]) if output else node("Identity", ["rq"], ["y"]),
    ]
    return model(nodes, [tensor("q", weights), *scales], inputs={"x": [4096, 64]})


@pytest.mark.parametrize("dtype", ["auto", "fp32"])
def test_an_int8_product_needs_an_int8_output(dtype):
    closed, opened = (explain(quantized(output=output), gpu="h100", dtype=dtype).sites[0] for output in (True, False))
    assert closed.gemm == opened.gemm == Gemm(4096, 64, 64, "int8")
    assert (closed.open_output, opened.open_output) == (False, True)
    assert "only seen chosen by TensorRT where it is INT8 too" in opened.why
    assert "only seen chosen" not in closed.why


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("auto", "fp8_e4m3"), ("fp32", "fp8_e4m3"), ("fp8_e4m3", "fp8_e4m3"), ("fp16", "fp16"), ("int8", "int8")],
)
def test_an_fp8_product_is_not_taken_for_an_int8_one(dtype, found):
    (row,) = explain(quantized(output=False, dtype=ml_dtypes.float8_e4m3fn), gpu="h100", dtype=dtype).sites
    assert row.gemm == Gemm(4096, 64, 64, found)
    assert not row.open_output
    assert "INT8" not in row.why


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8_e4m3"])
def test_a_product_that_is_asked_for_in_another_type_needs_no_int8_output(dtype):
    (row,) = explain(quantized(output=False), gpu="h100", dtype=dtype).sites
    assert row.gemm.dtype == dtype
    assert not row.open_output
    assert "INT8" not in row.why


def test_what_is_all_quantized_has_no_use_for_other_types():
    notes = explain(quantized(output=True), gpu="h100", dtype="fp32").notes
    assert not any("kernels exist" in note for note in notes)


def in_a_branch(proto):
    """The same computation as one branch of an If; the other one has a product of the same name, not quantized."""
    then = onnx.GraphProto()
    then.CopyFrom(proto.graph)
    weights = list(then.initializer)
    for unused in (then.initializer, then.input):
        del unused[:]
    other = helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, None)
    branches = {
        "then_branch": then,
        "else_branch": helper.make_graph([helper.make_node("MatMul", ["x", "v"], ["e"], "mm")], "e", [], [other]),
    }
    both = model(
        [helper.make_node("If", ["c"], ["z"], **branches)],
        [*weights, tensor("v", sparse(64, 64, axis=0))],
        inputs={"x": [4096, 64]},
        outputs={"z": None},
    )
    both.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    return both


@pytest.mark.parametrize("output", [True, False])
def test_a_quantized_product_in_a_branch_is_explained_as_outside(output):
    plain = explain(quantized(output=output), gpu="h100").sites[0]
    rows = explain(in_a_branch(quantized(output=output)), gpu="h100").sites
    inside, other = sorted(rows, key=lambda row: row.tensor)
    assert (inside.gemm, inside.why, inside.open_output) == (plain.gemm, plain.why, plain.open_output)
    assert (other.node, other.gemm.dtype, other.open_output) == ("mm", "fp16", False)


def test_totals_count_the_branch_that_takes_longer_and_say_so():
    found = explain(in_a_branch(quantized(output=True)), gpu="h100", total_ms=1.0)
    int8, fp16 = sorted(row.dense_ms for row in found.sites)
    assert int8 < fp16 == found.totals.dense_ms
    (note,) = found.notes
    assert note == (
        "totals count one branch of an If, that whose products take longer, and the body of a Loop or Scan once; "
        "what else these do is left out"
    )


def asking(inputs):
    return (
        f"sizes depend on dynamic inputs ({inputs}): give --shapes name:1x3x224x224,... (shapes= in Python) "
        "for times and gains"
    )


def test_unknown_sizes_are_told_and_left_out_of_the_totals():
    found = explain(matmul(sparse(64, 64, axis=0), rows="n"), gpu="h100")
    assert found.sites[0].why == "its size is dynamic: give --shapes"
    assert found.totals is None
    assert found.notes == (asking("x: nx64"), "totals leave out weight sites whose size is not known")


def test_an_input_that_is_sized_by_another_one_is_not_asked_for():
    path = models.get("bert-base", **BERT)
    asked = [note for note in explain(path, gpu="h100").notes if "dynamic inputs" in note]
    assert asked == [asking("input_ids: NxS, token_type_ids: NxS")]
    found = explain(path, shapes={"input_ids": (2, 16)}, gpu="h100")
    assert not any("dynamic inputs" in note for note in found.notes)
    assert found.totals == explain(path, shapes=BERT_SHAPES, gpu="h100").totals


@pytest.mark.parametrize("dtype", ["fp32", "tf32"])
def test_a_type_without_sparse_kernels_is_noted(dtype):
    proto = matmul(sparse(64, 64, axis=0))
    note = (
        f"no 2:4 sparse kernels exist for {dtype}: "
        "give --dtype fp16, bf16, int8 or fp8_e4m3 (dtype= in Python) for what these would gain"
    )
    assert note in explain(proto, gpu="h100", dtype=dtype).notes
    assert not any("kernels exist" in text for text in explain(proto, gpu="h100").notes)


def test_shapes_that_contradict_the_model_are_refused():
    path = models.get("llm-block", hidden=64, intermediate=128)
    with pytest.raises(ConfigError) as caught:
        explain(path, gpu="h100", shapes={"hidden_states": (1, 16, 65)})
    assert str(caught.value) == (
        "a shape contradicts the model\n  where: shapes\n  got: hidden_states: (1, 16, 65)\n"
        "  expected: hidden_states: (N, S, 64)"
    )
    with pytest.raises(ConfigError) as caught:
        explain(models.get("bert-base", **BERT), gpu="h100", shapes=BERT_SHAPES | {"token_type_ids": (1, 16)})
    assert str(caught.value) == (
        "two dims of the same name have different sizes\n  where: shapes, input 'token_type_ids', dim 0 ('N')\n"
        "  got: 1\n  expected: 2, as in input 'input_ids', dim 0"
    )


def test_a_table_is_used_and_the_rest_estimated(no_tables):
    known = [result(Gemm(64, 64, 64, "fp16"), 1.0, 0.8), result(Gemm(256, 64, 64, "fp16"), 2.0, 1.6)]
    shipped.write(no_tables / "h100.json", shipped.make("h100", "2026-01-02", FACTS, known))
    proto = model(
        [helper.make_node("MatMul", [x, "w"], [y], name=y) for x, y in (("x", "a"), ("z", "b"), ("v", "c"))],
        [tensor("w", sparse(64, 64, axis=0))],
        inputs={"x": [64, 64], "z": [128, 64], "v": [8192, 64]},
        outputs={"a": None, "b": None, "c": None},
    )
    found = explain(proto, gpu="h100")
    assert [row.basis.split(" ")[0] for row in found.sites] == ["measured", "interpolated", "estimate"]
    assert found.sites[0].gain == pytest.approx(1.25)
    assert found.times.startswith("times of the table that ships for NVIDIA H100 80GB HBM3, measured 2026-01-02")
    assert found.notes[:2] == (
        "1 of 3 products are not in the table: their times are estimates",
        "times of 1 products are interpolated between other numbers of rows",
    )


def test_the_gpu_at_hand_is_measured(monkeypatch, tmp_path):
    script = {"dense 0": 2.0, "sparse config 0": 1.0}
    monkeypatch.setattr(tuning, "Tuner", lambda: Tuner(Options(rounds=3), command=command(script)))
    seen = []
    found = explain(
        matmul(sparse(64, 64, axis=0)), cache=Cache(tmp_path / "c.json"), progress=lambda *done: seen.append(done)
    )
    assert (found.gpu, found.sites[0].basis) == ("NVIDIA Scripted 1", "measured here")
    assert found.sites[0].why.endswith("(2.00x)")
    assert seen == [(0, 1), (1, 1)]
    assert found.totals.now.upper == pytest.approx(2.0)


def test_without_a_gpu_an_h100_stands_in_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "Tuner", lambda: Tuner(Options(), command=command({"unavailable": "device"})))
    found = explain(matmul(sparse(64, 64, axis=0)), cache=Cache(tmp_path / "c.json"))
    assert found.gpu == "NVIDIA H100 SXM"
    assert found.times == (
        "nothing was measured here (cuBLASLt does not take this GPU): estimates from the peaks of NVIDIA H100 SXM, "
        "not measured"
    )


def test_a_measured_total_makes_the_gain_amdahls():
    proto = matmul(sparse(512, 512, axis=0), rows=65536)
    free = explain(proto, gpu="h100")
    dense, best = free.totals.dense_ms, free.totals.now_ms
    found = explain(proto, gpu="h100", total_ms=2 * dense)
    assert found.totals.now.expected == pytest.approx(2 * dense / (dense + best))
    assert found.totals.share == pytest.approx(0.5)
    short = explain(proto, gpu="h100", total_ms=dense / 2)
    assert short.notes == (
        f"the measured {dense / 2:.4g} ms are less than the {dense:.4g} ms of the products: taken as these",
    )


# with a build report


@pytest.fixture(scope="module")
def built():
    """A dense and a sparse build of a small net, by TensorRT's double, which tells what was chosen."""
    proto = samples.tiny("N", channels=512, sparse=True)
    profile = Profile.parse("x:1x8x6x6:4x8x6x6:8x8x6x6")
    reports = {}
    with installed("10.13.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sparsity in ("enable", "disable"):
            config = BuildConfig(precision="fp16", sparsity=sparsity, profiles=(profile,))
            reports[sparsity] = build(proto, config).report
        reports["fp32"] = build(proto, BuildConfig(sparsity="enable", profiles=(profile,))).report
    return proto, reports


def test_chosen_is_read_from_the_report_and_shapes_from_its_profile(built):
    proto, reports = built
    report = reports["enable"]
    found = explain(proto, gpu="h100", report=report)
    assert [row.chosen for row in found.sites] == [row.chosen for row in report.sites]
    assert any(row.chosen is True for row in found.sites)
    assert all(row.why.startswith("runs sparse; ") for row in found.sites if row.chosen is True)
    assert found.sites[0].gemm == Gemm(4 * 36, 512, 72, "fp16")
    assert found.report == "tensorrt 10.13.3.9, fp16, sparsity enable"


def test_a_build_without_sparsity_is_the_reason(built):
    proto, reports = built
    found = explain(proto, gpu="h100", report=reports["disable"].to_dict())
    assert {row.chosen for row in found.sites} == {False}
    assert all(row.why.startswith("built with sparsity off: ") for row in found.sites)
    assert found.totals.now.expected == 1.0


def test_an_fp32_build_is_read_from_the_report(built, tmp_path):
    proto, reports = built
    path = tmp_path / "net.plan.json"
    path.write_text(json.dumps(reports["fp32"].to_dict()))
    found = explain(proto, gpu="h100", report=str(path))
    assert {row.why for row in found.sites} == {"FP32 build: Sparse Tensor Cores take FP16, BF16, FP8 and INT8"}


def partly_quantized():
    """A quantized product, and one that is not."""
    proto = quantized(output=False)
    proto.graph.node.append(helper.make_node("MatMul", ["y", "v"], ["z"], name="head"))
    proto.graph.initializer.append(tensor("v", sparse(64, 64, axis=0)))
    proto.graph.output[0].name = "z"
    return proto


@pytest.mark.parametrize(
    ("version", "options", "head"),
    [
        ("10.13.3", {"precision": "fp16"}, "fp16"),
        ("10.13.3", {"precision": "bf16"}, "bf16"),
        ("10.13.3", {"precision": "int8"}, "fp16"),
        ("10.13.3", {"precision": "int8", "int8_rest": "fp32"}, None),
        ("10.13.3", {"precision": "fp32"}, None),
        ("rtx-1.7.1", {"precision": "fp16"}, "fp16"),
        ("rtx-1.7.1", {"precision": "bf16"}, "bf16"),
        ("rtx-1.7.1", {"precision": "int8"}, None),
        ("rtx-1.7.1", {"precision": "int8", "int8_rest": "fp16"}, "fp16"),
        ("rtx-1.7.1", {"precision": "fp32"}, None),
    ],
)
def test_a_report_of_a_quantized_model_leaves_the_other_products_in_floating_point(version, options, head):
    with installed(version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = build(partly_quantized(), BuildConfig(sparsity="enable", **options)).report
    assert report.precision.reached == "int8"
    first, second = explain(partly_quantized(), gpu="h100", report=report).sites
    assert first.gemm == Gemm(4096, 64, 64, "int8")
    assert (second.gemm and second.gemm.dtype) == head
    assert second.reason == ("" if head else "computed in FP32: not quantized")


def test_a_report_of_a_model_that_the_build_quantized_makes_all_products_int8():
    proto = matmul(sparse(64, 64, axis=0))
    with installed("rtx-1.7.1"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = BuildConfig(precision="int8", sparsity="enable", random_calibration=True)
        report = build(proto, config).report
    (row,) = explain(proto, gpu="h100", report=report).sites
    assert row.gemm == Gemm(2, 64, 64, "int8")


def test_a_report_of_another_model_is_refused(built):
    _, reports = built
    with pytest.raises(ConfigError) as caught:
        explain(matmul(random(8, 8)), gpu="h100", report=reports["enable"])
    assert str(caught.value) == (
        "the build report is about another model\n  where: ModelProto\n  got: 2 weight sites, such as conv\n"
        "  expected: 1 weight sites, such as matmul"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a build report\n  where: {path}\n  got: Expecting property name"),
        ("[]", "not a build report\n  where: {path}\n  got: list\n  expected: a PLAN.json"),
        ("{}", "not a build report\n  where: report\n  got: KeyError: 'precision'\n  expected: a PLAN.json"),
        (None, "cannot read the build report\n  where: {path}\n  got: No such file or directory"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, message):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        explain(matmul(random(8, 8)), gpu="h100", report=path)
    assert str(caught.value).startswith(message.replace("{path}", str(path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": "fp64"},
            f"no such data type of a product\n  where: dtype\n  got: fp64\n  expected: {DTYPES}",
        ),
        ({"total_ms": 0.0}, f"{NO_TIME}0.0"),
        ({"total_ms": float("nan")}, f"{NO_TIME}nan"),
        ({"total_ms": float("inf")}, f"{NO_TIME}inf"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        explain(matmul(random(8, 8)), gpu="h100", **options)
    assert str(caught.value) == message


def test_other_wrong_input_is_told():
    with pytest.raises(ModelNotFoundError):
        explain("nothing.onnx", gpu="h100")
    with pytest.raises(ConfigError, match="nothing is known of this GPU"):
        explain(matmul(random(8, 8)), gpu="voodoo2")
    with pytest.raises(ConfigError, match="the model has no such input"):
        explain(matmul(random(8, 8)), gpu="h100", shapes={"z": (1, 2)})
