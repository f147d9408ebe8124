"""What a plan's inputs are is known from its report, its model, or the library; and it is said where it is not."""

import hashlib
import json
import re

import numpy as np
import pytest

from tests.doubles import installed
from tests.triton.samples import from_text, integer_layer
from trtsparse import Profile, Session
from trtsparse.engines.onnxruntime import OnnxRuntimeEngine
from trtsparse.engines.tensorrt import TensorRTEngine
from trtsparse.errors import ConfigError, PlanError
from trtsparse.triton.source import known_source, open_source

LAYER = Profile.parse("x:1x64:4x64:16x64")


@pytest.fixture(scope="module")
def engine(built):
    return built(integer_layer(), str(LAYER))


@pytest.fixture
def plan(engine, tmp_path):
    return engine.save(tmp_path / "layer.plan")


def known(facts):
    return [str(spec) for spec in (*facts.inputs, *facts.outputs)], [dict(profile) for profile in facts.profiles]


EXPECTED = (["'x' float32 (?, 64)", "'y' float32 (?, 16)"], [dict(LAYER.shapes)])


def test_a_build_says_everything(engine, plan):
    for source in (engine, plan, str(plan)):
        opened = open_source(source)
        assert known(opened.facts) == EXPECTED
        assert opened.header.flavour == "tensorrt"
    assert (open_source(plan).name, open_source(engine).name) == ("layer", "model")
    assert known(known_source(plan).facts) == EXPECTED


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int64", "bool"])
def test_the_report_names_types_as_numpy_and_ml_dtypes_do(plan, dtype):
    path = plan.with_name("layer.plan.json")
    report = json.loads(path.read_text())
    report["inputs"][0]["dtype"] = dtype
    path.write_text(json.dumps(report))
    assert open_source(plan).facts.inputs[0].dtype.name == dtype


def test_the_model_of_a_plan_with_a_report_names_its_dims(built, tmp_path):
    model = from_text("g (float[n, s] a, float[n, s] b) => (float[n, s] y) { y = Add(a, b) }")
    engine = built(model, "a:1x8:4x8:16x8,b:1x8:4x8:16x8")
    facts = open_source(engine, model=model).facts
    assert known(facts)[0] == ["'a' float32 (n, s)", "'b' float32 (n, s)", "'y' float32 (n, s)"]
    assert facts.profiles == open_source(engine).facts.profiles
    assert known(open_source(engine.save(tmp_path / "m.plan"), model=model.SerializeToString()).facts)[0][0] == (
        "'a' float32 (n, s)"
    )


def test_another_model_than_that_of_the_report_is_refused(plan, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(integer_layer(1).SerializeToString())
    built_from, given = (hashlib.sha256(integer_layer(seed).SerializeToString()).hexdigest() for seed in (0, 1))
    with pytest.raises(ConfigError) as caught:
        open_source(plan, model=other)
    assert str(caught.value) == (
        f"the plan was built from another model\n  where: model\n  got: {other}, SHA-256 {given}\n"
        f"  expected: ModelProto, SHA-256 {built_from}\n"
        "  to fix: give that one, or leave it out: the plan's report says what its inputs and outputs are"
    )
    with pytest.raises(ConfigError) as caught:
        open_source(plan, model=OnnxRuntimeEngine(integer_layer()))
    assert str(caught.value) == ("the plan's report says what its inputs are\n  where: model\n  to fix: leave it out")


def test_a_plan_without_a_report_is_described_by_its_model(engine):
    facts = open_source(engine.plan, model=integer_layer(), profiles=[LAYER]).facts
    assert known(facts) == (["'x' float32 (n, 64)", "'y' float32 (n, 16)"], [dict(LAYER.shapes)])


def test_a_plan_without_a_report_is_loaded_where_its_library_is(engine, plan):
    plan.with_name("layer.plan.json").unlink()
    with installed("10.13.3"):
        assert known(open_source(plan).facts) == EXPECTED
        loaded = TensorRTEngine(plan)
        opened = open_source(loaded)
        assert known(opened.facts) == EXPECTED
        assert opened.content == engine.plan
        assert known(open_source(engine.plan, model=loaded).facts) == EXPECTED


def test_a_plan_about_which_nothing_is_known_says_what_to_give(plan):
    plan.with_name("layer.plan.json").unlink()
    with installed("rtx-1.7.1"), pytest.raises(ConfigError) as caught:
        open_source(plan)
    assert str(caught.value) == (
        f"the plan's inputs and outputs are not known\n  where: {plan}\n"
        "  got: no build report beside it, and it cannot be loaded here: TensorRT cannot be imported\n"
        f"  expected: {plan}.json of its build, or its ONNX model\n"
        "  to fix: give the ONNX model of this plan of TensorRT 10.13.3.9 and its profiles"
    )
    assert known_source(plan).facts.inputs == ()


def test_the_report_of_another_plan_is_refused(plan, built):
    other = built(integer_layer(1), "x:1x64")
    plan.write_bytes(other.plan)
    with pytest.raises(PlanError) as caught:
        open_source(plan)
    assert re.sub("[0-9a-f]{64}", "HASH", str(caught.value)) == (
        f"the build report beside the plan is that of another plan\n  where: {plan}.json\n"
        "  got: SHA-256 HASH\n  expected: HASH\n"
        "  to fix: copy both files again, or remove the report and give the ONNX model"
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"plan": 3}'])
def test_a_report_that_cannot_be_read_is_named(plan, text):
    plan.with_name("layer.plan.json").write_text(text)
    with pytest.raises(
        PlanError, match=r"the build report beside the plan cannot be read\n  where: .*layer\.plan\.json"
    ):
        open_source(plan)


def test_profiles_are_not_given_twice(plan):
    assert open_source(plan, profiles=[LAYER]).facts.profiles
    with pytest.raises(ConfigError) as caught:
        open_source(plan, profiles=[Profile.parse("x:1x64")])
    assert (
        str(caught.value)
        == "the plan's report says which profiles it has\n  where: profiles\n  to fix: leave them out"
    )


def test_a_model_says_itself_what_its_inputs_are():
    with pytest.raises(ConfigError) as caught:
        open_source(integer_layer(), model=integer_layer())
    assert str(caught.value) == (
        "an ONNX model says itself what its inputs are\n  where: model\n  to fix: leave it out"
    )
    with pytest.raises(ConfigError, match="a profile names an input that the model does not have"):
        open_source(integer_layer(), profiles=[Profile.parse("z:1x64")])


def test_an_engine_without_a_plan_cannot_be_exported():
    with Session(integer_layer(), threads=1) as session, pytest.raises(ConfigError) as caught:
        open_source(session)
    assert str(caught.value) == (
        f"the engine does not give the model that it was made from\n  where: engine\n"
        f"  got: {session.engine.description}\n  to fix: give the model's own file"
    )


def test_a_session_of_the_model_describes_a_plan(engine):
    with Session(OnnxRuntimeEngine(integer_layer(), threads=1)) as session:
        facts = open_source(engine.plan, model=session, profiles=[LAYER]).facts
    assert known(facts) == (["'x' float32 (n, 64)", "'y' float32 (n, 16)"], [dict(LAYER.shapes)])


def test_inputs_that_hold_shapes_are_told_by_their_profile(engine):
    inputs = "float[n, 4] x, int64[2] s, int64[2] v"
    model = from_text(f"g ({inputs}) => (float[a, b] y, int64[2] w) {{ y = Reshape(x, s) w = Add(v, v) }}")
    profile = Profile.parse("x:1x4:2x4:4x4,s:1x4:2x4:4x4,v:2")
    assert open_source(engine.plan, model=model, profiles=[profile]).facts.shape_inputs == {"s"}


def test_a_report_with_a_type_that_numpy_lacks_is_named(plan):
    path = plan.with_name("layer.plan.json")
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float5"'))
    with pytest.raises(ConfigError) as caught:
        open_source(plan)
    assert str(caught.value) == "an input or output has a type that numpy lacks\n  where: 'x'\n  got: float5"


def test_large_models_keep_their_data_files(tmp_path):
    import onnx

    onnx.save(
        integer_layer(), tmp_path / "big.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin"
    )
    folder = tmp_path / "1"
    folder.mkdir()
    open_source(tmp_path / "big.onnx").write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "weights.bin"]
    x = np.ones((1, 64), np.float32)
    with Session(folder / "model.onnx") as copy, Session(integer_layer()) as original:
        np.testing.assert_array_equal(copy.run({"x": x})["y"], original.run({"x": x})["y"])
