"""What validate says about values, totals and precisions, and the form of its report."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

import trtsparse.sparsity
from tests.helpers import matmul, model, random, sparse, tensor
from trtsparse.errors import ConfigError, PatternError
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.validate import Total, validate

SCHEMA = Path(trtsparse.sparsity.__file__).with_name("sparsity-report.schema.json")


def check_form(report):
    """The report as read back from JSON, checked against the schema."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def mixed():
    """An eligible and compliant, an eligible, a grouped, and a dynamic site."""
    nodes = [
        helper.make_node("Conv", ["x", "good"], ["a"], name="conv"),
        helper.make_node("Conv", ["a", "bad"], ["b"], name="dense"),
        helper.make_node("Conv", ["b", "grouped"], ["c"], name="grouped", group=4),
        helper.make_node("MatMul", ["c", "c"], ["y"], name="dynamic"),
    ]
    weights = {"good": sparse(4, 8, 1, 1, axis=1), "bad": random(16, 4, 3, 3), "grouped": random(8, 4, 1, 1)}
    return model(nodes, [tensor(name, value) for name, value in weights.items()], inputs={"x": [1, 8, 6, 6]})


def test_every_site_says_eligible_and_compliant_apart():
    report = validate(mixed())
    assert [(s.node, s.eligible, s.compliant, s.violating, s.groups) for s in report.sites] == [
        ("conv", True, True, 0, 8),
        ("dense", True, False, 144, 144),
        ("grouped", False, False, 8, 8),
        ("dynamic", False, None, 0, 0),
    ]
    assert not report.compliant
    assert report.sites[1].first_violating == (0, 0, 0, 0)
    assert report.sites[0].zero_fraction == 0.5


def test_totals_add_up_by_sites_parameters_and_macs():
    report = validate(mixed())
    assert report.by_sites == Total(4, 2, 1)
    assert report.by_parameters == Total(32 + 576 + 32, 32 + 576, 32)
    macs = [36 * 4 * 8, 16 * 16 * 36, 16 * 8 * 4, 8 * 4 * 4 * 4]
    assert [site.macs for site in report.sites] == macs
    assert report.by_macs == Total(sum(macs), sum(macs[:2]), macs[0])
    assert report.by_macs.share == macs[0] / sum(macs)


def test_a_tied_tensor_counts_its_parameters_once():
    nodes = [helper.make_node("MatMul", [i, "w"], [o]) for i, o in (("x", "a"), ("a", "y"))]
    report = validate(model(nodes, [tensor("w", sparse(8, 8, axis=0))]))
    assert (report.by_sites, report.by_parameters) == (Total(2, 2, 2), Total(64, 64, 64))
    assert report.by_macs.total == 2 * 2 * 64


def test_a_tied_tensor_stands_for_its_worst_use():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["y"], transB=1),
    ]
    report = validate(model(nodes, [tensor("w", sparse(8, 8, axis=0))]))
    assert [site.compliant for site in report.sites] == [True, False]
    assert report.by_parameters == Total(64, 64, 0)


def test_small_vectors_count_as_parameters_too():
    report = validate(model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", random(8))]))
    assert report.by_parameters == Total(8, 0, 0)


def test_a_model_without_eligible_weights_is_not_compliant():
    report = validate(model([helper.make_node("Relu", ["x"], ["y"])]))
    assert not report.compliant
    assert report.sites == ()
    assert report.by_macs == Total(0, 0, 0)
    assert report.by_macs.share == 0
    check_form(report)


def test_an_empty_weight_is_reported_and_no_error():
    (site,) = validate(matmul(np.zeros((0, 4), np.float32))).sites
    assert (site.reason, site.compliant, site.parameters) == ("empty weight: dims [0, 4]", None, 0)


def test_work_is_unknown_with_dynamic_shapes_and_known_when_they_are_given():
    proto = matmul(random(8, 4), rows="batch")
    assert validate(proto).by_macs is None
    assert validate(proto, shapes={"x": (5, 8)}).by_macs == Total(160, 160, 0)


def underflowing(small):
    """Three of every four weights are far smaller than the fourth."""
    values = np.full((8, 4), small, np.float32)
    values[0::4] = 1
    return matmul(values)


@pytest.mark.parametrize(
    ("small", "compliant"),
    [
        (0.25, {"stored": False, "fp32": False, "fp16": False, "bf16": False, "int8": False}),
        (1e-3, {"stored": False, "fp32": False, "fp16": False, "bf16": False, "int8": True}),
        (1e-9, {"stored": False, "fp32": False, "fp16": True, "bf16": False, "int8": True}),
        (1e-42, {"stored": False, "fp32": False, "fp16": True, "bf16": True, "int8": True}),
    ],
)
def test_values_are_judged_as_they_will_be_after_conversion(small, compliant):
    proto = underflowing(small)
    assert {precision: validate(proto, precision=precision).compliant for precision in compliant} == compliant


def test_int8_scales_are_those_of_each_output_channel():
    values = np.full((4, 2), 0.001, np.float32)
    values[0, 0] = 1  # its channel's other weights round to zero, the other channel's do not
    report = validate(matmul(values), precision="int8")
    assert (report.sites[0].violating, report.sites[0].first_violating) == (1, (0, 1))


def test_overflow_is_not_zero():
    assert not validate(matmul(np.full((4, 2), 1e6, np.float32)), precision="fp16").compliant


def test_quantized_weights_are_judged_around_their_zero_points():
    values = np.full((8, 4), 3, np.int8)
    values[0::2] = 5
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    report = validate(model(nodes, [tensor("w", values), tensor("s", np.float32(1)), tensor("z", np.int8(3))]))
    assert report.compliant
    assert report.sites[0].zero_fraction == 0.5


def test_bfloat16_weights_are_judged():
    report = validate(matmul(sparse(8, 4, axis=0).astype(ml_dtypes.bfloat16)), precision="stored")
    assert report.compliant
    assert report.sites[0].dtype == "bfloat16"


def test_other_patterns_are_judged():
    assert not validate(matmul(sparse(8, 4, axis=0)), pattern=Pattern(1, 4)).compliant
    assert validate(matmul(sparse(8, 4, axis=0)), pattern=Pattern(1, 2)).compliant
    assert validate(matmul(sparse(8, 4, axis=0)), pattern="1:2").pattern == "1:2"


def test_what_is_no_pattern_is_named():
    with pytest.raises(ConfigError) as caught:
        validate(matmul(random(8, 4)), pattern=(2, 4))
    assert str(caught.value) == (
        "not a pattern\n  where: pattern\n  got: (2, 4)\n  expected: a Pattern, or text as '2:4'"
    )
    with pytest.raises(PatternError, match="not an N:M pattern\n  got: 2-4"):
        validate(matmul(random(8, 4)), pattern="2-4")


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError) as caught:
        validate(mixed(), precision="fp4")
    assert str(caught.value) == (
        "unknown precision\n  where: precision\n  got: fp4\n  expected: stored, fp32, fp16, bf16, int8"
    )


def test_progress_ends_at_the_whole():
    calls = []
    validate(mixed(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(128, 2560), (2432, 2560), (2560, 2560)]


def test_reports_have_the_form_of_the_schema():
    document = check_form(validate(mixed()))
    assert document["schema"] == "trtsparse.sparsity/1"
    assert document["by_sites"] == {"total": 4, "eligible": 2, "compliant": 1}
    assert document["sites"][1]["first_violating"] == [0, 0, 0, 0]
    check_form(validate(matmul(random(8, 4), rows="n"), precision="int8", pattern=Pattern(1, 2)))


@pytest.mark.parametrize(
    ("key", "value"), [("pattern", "2/4"), ("by_sites", None), ("sites", [{}]), ("extra", 1), ("compliant", "yes")]
)
def test_the_schema_refuses_other_documents(key, value):
    jsonschema = pytest.importorskip("jsonschema")
    document = {**validate(mixed()).to_dict(), key: value}
    assert not jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(document)


def test_the_schema_names_exactly_the_fields_of_a_report():
    schema = json.loads(SCHEMA.read_text())
    document = validate(mixed()).to_dict()
    assert set(schema["properties"]) == set(document) == set(schema["required"])
    site = schema["$defs"]["site"]
    assert set(site["properties"]) == set(document["sites"][0]) == set(site["required"])


def test_a_tensor_used_twice_is_read_once(monkeypatch):
    from trtsparse.files.model import OnnxModel

    reads = []
    original = OnnxModel.read
    monkeypatch.setattr(OnnxModel, "read", lambda self, ref: reads.append(ref.name) or original(self, ref))
    nodes = [helper.make_node("MatMul", [i, "w"], [o]) for i, o in (("x", "a"), ("a", "y"))]
    validate(model(nodes, [tensor("w", random(8, 8))]))
    assert reads == ["w"]


def test_weights_of_types_that_cannot_be_judged_do_not_stop_the_others():
    nodes = [
        helper.make_node("Cast", ["flags"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["a"], name="flags"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="weights"),
    ]
    report = validate(model(nodes, [tensor("flags", np.ones((8, 8), bool)), tensor("w", sparse(8, 4, axis=0))]))
    assert [(site.node, site.compliant) for site in report.sites] == [("flags", None), ("weights", True)]
    assert report.compliant
