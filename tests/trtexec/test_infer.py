"""How an engine is loaded, with doubles of TensorRT's runtime."""

from types import SimpleNamespace

import pytest

from tests.trtexec.running import ON_CPU, failed
from trtsparse import Session
from trtsparse.errors import ConfigError, UnsupportedOptionError
from trtsparse.trtexec import infer
from trtsparse.trtexec.parse import parse
from trtsparse.trtexec.run import trtexec


def runtime(**more):
    return SimpleNamespace(
        engine_host_code_allowed=False, temporary_directory=None, tempfile_control_flags=3,
        load_runtime=lambda path: SimpleNamespace(path=path), **more,
    )  # fmt: skip


def prepared(*words):
    trt = SimpleNamespace(
        TempfileControlFlag=SimpleNamespace(__members__={"ALLOW_IN_MEMORY_FILES": 0, "ALLOW_TEMPORARY_FILES": 1})
    )
    made = runtime()
    return made, infer._prepare(parse(["--loadEngine=m.plan", *words]), trt, made)


def test_a_version_compatible_plan_may_bring_code_only_when_asked():
    assert prepared("--versionCompatible")[0].engine_host_code_allowed
    assert not prepared()[0].engine_host_code_allowed


def test_temporary_files_are_controlled():
    made, used = prepared("--tempdir=here", "--tempfileControls=in_memory:deny,temporary:allow")
    assert (made.temporary_directory, made.tempfile_control_flags) == ("here", 2)
    assert used is made


def test_a_lean_runtime_loads_the_plan():
    made, used = prepared("--leanDLLPath=lean.so")
    assert used.path == "lean.so"
    assert used is not made


def test_a_lean_runtime_that_does_not_load_is_an_error():
    made = runtime()
    made.load_runtime = lambda _path: None
    with pytest.raises(ConfigError) as error:
        infer._prepare(parse(["--loadEngine=m.plan", "--leanDLLPath=lean.so"]), None, made)
    assert str(error.value) == "the lean runtime does not load\n  where: --leanDLLPath\n  got: lean.so"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("50%", 500), ("20B", 20), ("-1", 123), (None, 1000)],
)
def test_the_budget_of_weights_is_set(flag, expected):
    words = ["--onnx=m.onnx", "--allowWeightStreaming", *([f"--weightStreamingBudget={flag}"] if flag else [])]
    asked = []
    engine = SimpleNamespace(
        raw=SimpleNamespace(streamable_weights_size=1000, get_weight_streaming_automatic_budget=lambda: 123),
        set_weights_budget=asked.append,
    )
    infer._stream_weights(engine, parse(words).inference, infer.Printer())
    assert asked == [expected]


@pytest.mark.parametrize("flag", ["--dumpOptimizationProfile", "--dumpRefit"])
def test_what_only_plans_have_is_not_asked_of_onnx_runtime(model, flag):
    result = trtexec(f"--onnx={model} {flag} {ON_CPU}")
    error = failed(result, UnsupportedOptionError)
    with Session(model) as session:
        got = session.engine.description
    assert got.startswith(f"{model} in ONNX Runtime ")
    assert str(error) == f"only TensorRT's engines can do this\n  got: {got}\n  to fix: leave --engine out"
